package complete

const page = 4096

// piece is one page's share of a memory operand.
type piece struct {
	gpa uint64
	ram []byte // nil: not RAM, the bus answers
	n   int
}

// operand is a translated memory operand of up to maxOperand bytes.
type operand struct {
	lin    uint64
	pieces [maxOperand/page + 2]piece
	count  int
}

// maxOperand bounds a memory operand: the largest XSAVE image there is.
const maxOperand = 3 * page

// linear turns an offset in a segment into a linear address and checks the n
// bytes there: canonical in 64-bit mode (SDM vol. 1, 3.3.7.1), within the limit
// and of a fitting type elsewhere (vol. 3, 5.3 to 5.5).
func (c *Completer) linear(seg uint8, off uint64, n int, write bool) (uint64, bool) {
	s := &c.cpu.Seg[seg]
	vec := uint8(vecGP)
	if seg == SS {
		vec = vecSS
	}
	if c.in.mode == 64 {
		lin := off
		if seg >= FS {
			lin += s.Base
		}
		if !c.canonical(lin) || !c.canonical(lin+uint64(n)-1) {
			c.raiseErr(vec, 0)
			return 0, false
		}
		return lin, true
	}
	last := off + uint64(n) - 1
	ok := !s.Unusable && off <= 0xffffffff
	if s.Type&8 == 0 && s.Type&4 != 0 { // expand-down data
		top := uint64(0xffff)
		if s.DB {
			top = 0xffffffff
		}
		ok = ok && off > uint64(s.Limit) && last <= top
	} else {
		ok = ok && last <= uint64(s.Limit)
	}
	if c.cpu.protected() {
		code := s.Type&8 != 0
		if write && (code || s.Type&2 == 0) || code && s.Type&2 == 0 {
			ok = false
		}
	}
	if !ok {
		c.raiseErr(vec, 0)
		return 0, false
	}
	return (s.Base + off) & 0xffffffff, true
}

func (c *Completer) canonical(lin uint64) bool {
	shift := 16
	if c.cpu.CR4&cr4LA57 != 0 {
		shift = 7
	}
	return uint64(int64(lin<<shift)>>shift) == lin
}

// fetch reads more bytes of the instruction into c.in.raw: up to the end of the
// page that holds the next one.
func (c *Completer) fetch() bool {
	in, cpu := &c.in, c.cpu
	ip := cpu.RIP + uint64(in.have)
	lin := ip
	if in.mode != 64 {
		ip &= 0xffffffff
		if ip > uint64(cpu.Seg[CS].Limit) {
			c.raiseErr(vecGP, 0)
			return false
		}
		lin = (cpu.Seg[CS].Base + ip) & 0xffffffff
	} else if !c.canonical(lin) {
		c.raiseErr(vecGP, 0)
		return false
	}
	gpa, ok := c.translate(lin, accFetch)
	if !ok {
		return false
	}
	n := min(maxLen-in.have, page-int(lin%page))
	if in.mode != 64 {
		n = int(min(uint64(n), uint64(cpu.Seg[CS].Limit)-ip+1))
	}
	ram := c.ram(gpa, n)
	if ram == nil {
		c.why = "the instruction is outside guest RAM"
		return false
	}
	copy(in.raw[in.have:], ram)
	in.have += n
	return true
}

// prepare makes the n bytes at lin the operand; every page is checked before any is
// touched.
func (c *Completer) prepare(lin uint64, n int, acc access) bool {
	o := &c.op
	o.lin, o.count = lin, 0
	for n > 0 {
		k := min(n, page-int(lin%page))
		gpa, ok := c.translate(lin, acc)
		if !ok {
			return false
		}
		o.pieces[o.count] = piece{gpa, c.ram(gpa, k), k}
		o.count++
		n -= k
		lin += uint64(k)
		if c.in.mode != 64 {
			lin &= 0xffffffff
		}
	}
	return true
}

// read copies bytes of the operand, at offset from, into buf.
func (c *Completer) read(from int, buf []byte) { c.move(from, buf, false) }

// write copies buf to the operand at offset from.
func (c *Completer) write(from int, buf []byte) { c.move(from, buf, true) }

func (c *Completer) move(from int, buf []byte, write bool) {
	start := 0
	for _, p := range c.op.pieces[:c.op.count] {
		lo, hi := max(from, start), min(from+len(buf), start+p.n)
		if lo < hi {
			b := buf[lo-from : hi-from]
			switch {
			case p.ram == nil:
				c.mmio(p.gpa+uint64(lo-start), b, write)
			case write:
				copy(p.ram[lo-start:], b)
			default:
				copy(b, p.ram[lo-start:])
			}
		}
		start += p.n
	}
}

// mmio hands bytes that are not RAM to the bus, as naturally aligned accesses
// of 8, 4, 2 or 1 bytes.
func (c *Completer) mmio(gpa uint64, buf []byte, write bool) {
	c.onBus = true
	for len(buf) > 0 {
		n := 8
		for n > len(buf) || gpa%uint64(n) != 0 {
			n /= 2
		}
		if write {
			c.bus.Write(gpa, buf[:n])
		} else {
			c.bus.Read(gpa, buf[:n])
		}
		buf = buf[n:]
		gpa += uint64(n)
	}
}
