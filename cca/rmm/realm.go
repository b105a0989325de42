package rmm

import (
	"crypto/sha256"
	"crypto/sha512"

	"golang.org/x/sys/unix"
)

// The states of a realm (DEN0137 A2.1, and KVM's of it).
const stateNone, stateNew, stateActive, stateDead = 0, 1, 2, 3

// realm is a realm as the RMM sees it.
type realm struct {
	bits    int
	version int
	state   int

	sha512  bool
	rpv     [64]byte
	measure [64]byte // the RIM

	start  int               // level at which translation starts
	tables map[tableKey]bool // realm translation tables below that
	ram    []span            // where RIPAS is RAM
	data   map[uint64]bool   // granules that have data
	recs   int
}

// tableKey names the table of a level that translates an address.
type tableKey struct {
	level int
	base  uint64
}

func newRealm(bits, version int) *realm {
	return &realm{
		bits: bits, version: version, tables: map[tableKey]bool{}, data: map[uint64]bool{},
		start: 4 - (bits-8)/9, // stage2_pgtable_levels: up to 16 tables lie side by side at the start
	}
}

func (r *realm) shared() uint64 { return 1 << (r.bits - 1) }

// hash is the realm's algorithm, in a slot of 64 bytes.
func (r *realm) hash(b []byte) (sum [64]byte) {
	if r.sha512 {
		return sha512.Sum512(b)
	}
	s := sha256.Sum256(b)
	copy(sum[:], s[:])
	return sum
}

func (r *realm) rim() []byte {
	if r.sha512 {
		return append([]byte(nil), r.measure[:]...)
	}
	return append([]byte(nil), r.measure[:32]...)
}

// create is RMI_REALM_CREATE (measurement_realm_params_measure): s2sz, sve_vl,
// num_bps, num_wps and pmu_num_ctrs each lie in eight bytes.
func (r *realm) create(sveVQ, bps, wps, counters int, pmu bool) {
	var params [4096]byte
	if sveVQ > 0 {
		params[0] |= 1 << 1
		params[16] = byte(sveVQ - 1)
	}
	if pmu {
		params[0] |= 1 << 2
		params[40] = byte(counters)
	}
	params[8], params[24], params[32] = byte(r.bits), byte(bps), byte(wps)
	if r.sha512 {
		params[48] = 1
	}
	r.measure = r.hash(params[:])
	r.state = stateNew
}

// descriptor extends the RIM by a measurement descriptor: kind and length, the
// RIM so far, and 176 bytes of payload.
func (r *realm) descriptor(kind byte, payload func(p []byte)) {
	var d [256]byte
	d[0] = kind
	le.PutUint64(d[8:], uint64(len(d)))
	copy(d[16:80], r.measure[:])
	payload(d[80:])
	r.measure = r.hash(d[:])
}

// entrySize is what an entry of a level's table translates.
func entrySize(level int) uint64 { return 1 << (12 + 9*(3-level)) }

func keyOf(level int, ipa uint64) tableKey {
	return tableKey{level, ipa &^ (entrySize(level-1) - 1)}
}

// walk returns the last level that has a table for the address.
func (r *realm) walk(ipa uint64) int {
	level := r.start
	for level < 3 && r.tables[keyOf(level+1, ipa)] {
		level++
	}
	return level
}

// grow makes the tables from one level down to another (realm_create_rtt_levels).
func (r *realm) grow(ipa uint64, from, to int) {
	for level := from + 1; level <= to; level++ {
		r.tables[keyOf(level, ipa)] = true
	}
}

// initRIPAS is RMI_RTT_INIT_RIPAS. It returns how far it came, or base and the
// level at which the walk ended.
func (r *realm) initRIPAS(base, top uint64) (next uint64, level int) {
	level = r.walk(base)
	size := entrySize(level)
	if base%size != 0 {
		return base, level
	}
	addr := base
	for end := base&^(entrySize(level-1)-1) + entrySize(level-1); addr < end && addr+size <= top; addr += size {
		if level < 3 && r.tables[keyOf(level+1, addr)] || level == 3 && r.data[addr] {
			break
		}
		r.ram = append(r.ram, span{addr, addr + size})
		if r.version == 1 { // of 2.0 on it extends nothing
			r.descriptor(2, func(p []byte) {
				le.PutUint64(p, addr)
				le.PutUint64(p[8:], addr+size)
			})
		}
	}
	return addr, level
}

// setRAM is KVM's loop around it (realm_init_ipa_state). skip: it goes on behind
// granules that have data.
func (r *realm) setRAM(m span, skip bool) error {
	if (m.lo|m.hi)&(page-1) != 0 || m.lo >= m.hi || m.hi > r.shared() {
		return unix.ENXIO
	}
	for ipa := m.lo; ipa < m.hi; {
		next, reached := r.initRIPAS(ipa, m.hi)
		if next > ipa {
			ipa = next
			continue
		}
		want := 3 // find_map_level
		for want > r.start && ipa%entrySize(want-1) == 0 && ipa+entrySize(want-1) <= m.hi {
			want--
		}
		switch {
		case reached < want:
			r.grow(ipa, reached, want)
		case skip:
			ipa += page
		default:
			return unix.ENXIO
		}
	}
	return nil
}

// addData is RMI_DATA_CREATE with the tables it needs.
func (r *realm) addData(ipa uint64, content []byte, measured bool) error {
	if ipa+page > r.shared() || r.data[ipa] || r.state != stateNew {
		return unix.ENXIO
	}
	r.grow(ipa, r.walk(ipa), 3)
	r.data[ipa] = true
	r.descriptor(0, func(p []byte) {
		le.PutUint64(p, ipa)
		if measured {
			sum := r.hash(content)
			p[8] = 1
			copy(p[16:], sum[:])
		}
	})
	return nil
}

// addREC is RMI_REC_CREATE. Contexts come in the order of their numbers; the
// first one runs at once and is measured.
func (r *realm) addREC(id int, pc uint64, gprs [8]uint64) error {
	if id != r.recs || r.state != stateNew {
		return unix.ENXIO
	}
	r.recs++
	if id != 0 {
		return nil
	}
	var params [4096]byte
	params[0] = 1 // runnable
	le.PutUint64(params[512:], pc)
	for i, x := range gprs {
		le.PutUint64(params[768+8*i:], x)
	}
	sum := r.hash(params[:])
	r.descriptor(1, func(p []byte) { copy(p, sum[:]) })
	return nil
}

// isRAM reports whether the realm may use a granule.
func (r *realm) isRAM(ipa uint64) bool {
	if r.data[ipa] {
		return true
	}
	for _, s := range r.ram {
		if s.has(span{ipa, ipa + page}) {
			return true
		}
	}
	return false
}
