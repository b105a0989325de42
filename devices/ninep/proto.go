package ninep

import (
	"encoding/binary"
	"strings"

	"golang.org/x/sys/unix"
)

// Requests; the reply to one has the next number.
const (
	tStatfs      = 8
	tLopen       = 12
	tLcreate     = 14
	tSymlink     = 16
	tMknod       = 18
	tRename      = 20
	tReadlink    = 22
	tGetattr     = 24
	tSetattr     = 26
	tXattrwalk   = 30
	tXattrcreate = 32
	tReaddir     = 40
	tFsync       = 50
	tLock        = 52
	tGetlock     = 54
	tLink        = 70
	tMkdir       = 72
	tRenameat    = 74
	tUnlinkat    = 76
	tVersion     = 100
	tAuth        = 102
	tAttach      = 104
	tFlush       = 108
	tWalk        = 110
	tOpen        = 112
	tCreate      = 114
	tRead        = 116
	tWrite       = 118
	tClunk       = 120
	tRemove      = 122
	tStat        = 124
	tWstat       = 126

	rLerror = 7   // 9P2000.L: errno[4]
	rError  = 107 // 9P2000.u: ename[s] errno[4]
)

const (
	headerSize  = 7  // size[4] type[1] tag[2]
	readHeader  = 11 // Rread up to the data: header, count[4]
	writeHeader = 23 // Twrite up to the data: header, fid[4] offset[8] count[4]
	ioOverhead  = 24 // what clients subtract from msize (P9_IOHDRSZ)
	qidSize     = 13

	noTag   = 0xffff
	noID    = 0xffffffff // NOFID, NONUNAME
	maxName = 255
	maxWalk = 16 // names in one Twalk (MAXWELEM)

	minMsize = 4096
	maxMsize = 512 << 10
)

// Bits of qid.type.
const (
	qtDir     = 0x80
	qtSymlink = 0x02
	qtFile    = 0
)

// decoder takes fields off a copied message. After the first field that is
// missing or not allowed, err is set and every further field is zero: handlers
// look at err once, before they do anything.
type decoder struct {
	b   []byte
	err unix.Errno
}

func (d *decoder) take(n int) []byte {
	if n > len(d.b) {
		d.fail(unix.EINVAL)
		return nil
	}
	p := d.b[:n]
	d.b = d.b[n:]
	return p
}

func (d *decoder) fail(err unix.Errno) {
	if d.err == 0 {
		d.err = err
	}
	d.b = nil
}

// number takes n bytes, little-endian.
func (d *decoder) number(n int) (v uint64) {
	for i, b := range d.take(n) {
		v |= uint64(b) << (8 * i)
	}
	return v
}

func (d *decoder) u8() uint8   { return uint8(d.number(1)) }
func (d *decoder) u16() uint16 { return uint16(d.number(2)) }
func (d *decoder) u32() uint32 { return uint32(d.number(4)) }
func (d *decoder) u64() uint64 { return d.number(8) }

// str takes a string of at most limit bytes without NUL.
func (d *decoder) str(limit int) string {
	p := d.take(int(d.u16()))
	if len(p) > limit {
		d.fail(unix.ENAMETOOLONG)
		return ""
	}
	s := string(p)
	if strings.IndexByte(s, 0) >= 0 {
		d.fail(unix.EINVAL)
		return ""
	}
	return s
}

// name takes the name of a directory entry: one path component that is neither
// empty nor "." nor "..".
func (d *decoder) name() string {
	s := d.str(maxName)
	if d.err == 0 && (s == "" || s == "." || s == ".." || strings.IndexByte(s, '/') >= 0) {
		d.fail(unix.EINVAL)
		return ""
	}
	return s
}

// qid identifies an object (intro(5)).
type qid struct {
	typ     uint8
	version uint32
	path    uint64
}

// encoder appends the fields of a reply.
type encoder struct{ b []byte }

func (e *encoder) u8(v uint8)   { e.b = append(e.b, v) }
func (e *encoder) u16(v uint16) { e.b = binary.LittleEndian.AppendUint16(e.b, v) }

func (e *encoder) u32(vs ...uint32) {
	for _, v := range vs {
		e.b = binary.LittleEndian.AppendUint32(e.b, v)
	}
}

func (e *encoder) u64(vs ...uint64) {
	for _, v := range vs {
		e.b = binary.LittleEndian.AppendUint64(e.b, v)
	}
}

func (e *encoder) str(s string) {
	e.u16(uint16(len(s)))
	e.b = append(e.b, s...)
}

func (e *encoder) bytes(p []byte) {
	e.u16(uint16(len(p)))
	e.b = append(e.b, p...)
}

func (e *encoder) qid(q qid) {
	e.u8(q.typ)
	e.u32(q.version)
	e.u64(q.path)
}
