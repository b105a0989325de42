package psp

import (
	"crypto/rand"
	"crypto/sha512"
	"errors"
	"slices"

	"golang.org/x/sys/unix"
)

// Commands of KVM_MEMORY_ENCRYPT_OP (enum sev_cmd_id).
const (
	cmdInit2          = 22
	cmdLaunchStart    = 100
	cmdLaunchUpdate   = 101
	cmdLaunchFinish   = 102
	cmdEnableReqCerts = 103
)

// Firmware errors (AMD 56860, status codes; include/uapi/linux/psp-sev.h).
const (
	fwPolicyFailure  = 0x7
	fwBadSignature   = 0xa
	fwBadMeasurement = 0xb
	fwInvalidParam   = 0x16
	fwBadVersion     = 0x22
	fwInvalidKey     = 0x27
)

// Page types.
const (
	pageNormal     = 1
	pageVMSA       = 2
	pageZero       = 3
	pageUnmeasured = 4
	pageSecrets    = 5
	pageCPUID      = 6
)

// vmsaGPA is where every VMSA is measured (INITIAL_VMSA_GPA).
const vmsaGPA = 0xfffffffff000

// guest is the firmware's context of a guest, and what KVM keeps of SEV.
type guest struct {
	active, started, finished bool
	features                  uint64
	certs                     bool // certificate requests go to user space
	fixedCPUID                bool // Options.RewriteCPUID was done

	Launch
}

// Launch is what the firmware knows of a guest: what a report says of it.
type Launch struct {
	Digest       [48]byte
	Policy       uint64
	HostData     [32]byte
	FamilyID     [16]byte
	ImageID      [16]byte
	SVN          uint32
	IDKey        [48]byte // digests of the keys of the ID block, if there was one
	AuthorKey    [48]byte
	HasAuthor    bool
	VCEKDisabled bool

	Pages []MeasuredPage // what went into the digest, in order
	VMSAs [][]byte       // pages of the vCPUs, in order
	ID    [32]byte       // report ID

	vmpck [32]byte
}

// MeasuredPage is a step of the launch digest.
type MeasuredPage struct {
	Type     uint8
	GPA      uint64
	Contents [48]byte // SHA-384 of the page, or zeros
}

// Launched returns what the firmware knows of a guest whose launch is finished;
// ok is false for any other.
func (m *Machine) Launched() (l Launch, ok bool) {
	m.k.mu.Lock()
	defer m.k.mu.Unlock()
	l = m.Launch
	l.Pages, l.VMSAs = slices.Clone(l.Pages), slices.Clone(l.VMSAs)
	return l, m.finished
}

// firmwareError is an error of the firmware, which KVM passes on with EIO.
type firmwareError uint32

func (e firmwareError) Error() string { return "firmware error" }

// encryptOp is KVM_MEMORY_ENCRYPT_OP (sev_mem_enc_ioctl) with a struct kvm_sev_cmd
// {id, pad, data, error, sev_fd}, which lies at arg. The kernel writes it back
// whether or not the command succeeds.
// (The size in the request's number is a pointer's.)
func (m *Machine) encryptOp(arg uint64) error {
	if arg == 0 {
		return nil
	}
	b := make([]byte, 24)
	if err := copyIn(arg, b); err != nil {
		return err
	}
	id, data, fd := uint32(get(b, 0, 4)), get(b, 8, 8), int(int32(get(b, 20, 4)))
	if m.active && id < cmdLaunchStart {
		return unix.EPERM
	}
	var run func([]byte) error
	size := 64
	switch id {
	case cmdInit2:
		run, size = m.init2, 48
	case cmdLaunchStart:
		run = m.launchStart
	case cmdLaunchUpdate:
		run = func(p []byte) error { return m.launchUpdate(p, data) }
	case cmdLaunchFinish:
		run, size = m.launchFinish, 88
	case cmdEnableReqCerts:
		run, size = m.enableCerts, 0
	default:
		return unix.EINVAL
	}
	err := m.command(id, fd, data, size, run)
	if fw := firmwareError(0); errors.As(err, &fw) {
		le.PutUint32(b[16:], uint32(fw))
		err = unix.EIO
	}
	if copyOut(arg, b) != nil {
		return unix.EFAULT
	}
	return err
}

// command checks what commands have in common and runs one.
func (m *Machine) command(id uint32, fd int, data uint64, size int, run func([]byte) error) error {
	_, isSEV := m.k.files[fd].(*device)
	switch {
	case id == cmdLaunchUpdate && (!m.active || !m.started), id == cmdInit2 && m.kind != typeSNP, id == cmdEnableReqCerts && !m.active:
		return unix.EINVAL
	case id != cmdInit2 && !m.active:
		return unix.ENOTTY
	case id == cmdLaunchFinish && !m.started:
		return unix.EINVAL
	}
	p := make([]byte, size)
	if err := copyIn(data, p); err != nil {
		return err
	}
	if !isSEV && id != cmdInit2 && id != cmdEnableReqCerts {
		switch id {
		case cmdLaunchStart:
			return unix.ENOTTY // no context could be made
		case cmdLaunchUpdate:
			return unix.EIO
		}
		return unix.EBADF
	}
	if fw := m.k.opt.Fail[id]; fw != 0 {
		return firmwareError(fw)
	}
	return run(p)
}

// init2 takes a struct kvm_sev_init {vmsa_features, flags, ghcb_version}.
func (m *Machine) init2(p []byte) error {
	features := get(p, 0, 8)
	if len(m.cpus) > 0 || get(p, 8, 4) != 0 || features&^m.k.opt.VMSAFeatures != 0 || get(p, 12, 2) > 2 {
		return unix.EINVAL
	}
	m.active, m.features = true, features|1 // SNP active
	return nil
}

func (m *Machine) enableCerts([]byte) error {
	if len(m.cpus) > 0 {
		return unix.EINVAL
	}
	m.certs = true
	return nil
}

// launchStart takes a struct kvm_sev_snp_launch_start {policy, gosvw, flags}.
func (m *Machine) launchStart(p []byte) error {
	policy, o := get(p, 0, 8), &m.k.opt
	const mustBeOne = 1 << 17
	if m.started || get(p, 24, 2) != 0 || policy&^o.PolicyBits != 0 || policy&mustBeOne == 0 {
		return unix.EINVAL
	}
	fw := o.Product.Firmware
	if v := uint8(policy >> 8); v > fw[0] || v == fw[0] && uint8(policy) > fw[1] ||
		!o.NoSMT && policy>>16&1 == 0 || // the host runs SMT, the guest forbids it
		policy&(1<<22|1<<23|1<<24) != 0 { // AES-256, no RAPL, ciphertext hiding: not on this host
		return firmwareError(fwPolicyFailure)
	}
	m.started, m.Policy = true, policy
	_, err1 := rand.Read(m.ID[:])
	_, err2 := rand.Read(m.vmpck[:])
	if err1 != nil || err2 != nil {
		return unix.EIO
	}
	return nil
}

// launchUpdate takes a struct kvm_sev_snp_launch_update {gfn_start, uaddr, len,
// type, pad, flags} and writes it back behind the pages it has done.
func (m *Machine) launchUpdate(p []byte, data uint64) error {
	first, addr, size, typ := get(p, 0, 8), get(p, 8, 8), get(p, 16, 8), p[24]
	s := m.find(first)
	switch {
	case size == 0, size%pageSize != 0, get(p, 26, 2) != 0, typ < pageNormal, typ == pageVMSA, typ > pageCPUID,
		typ != pageZero && (addr == 0 || addr%pageSize != 0), s == nil || s.mem == nil:
		return unix.EINVAL
	}
	m.k.updates++
	if n := m.k.opt.EAGAIN; n > 0 && m.k.updates%n == 0 {
		return unix.EAGAIN
	}
	pages := min(size/pageSize, s.first+s.pages-first)
	if n := m.k.opt.PartialPages; n > 0 {
		pages = min(pages, uint64(n))
	}
	for done := range pages {
		if err := m.populate(s, first+done, addr+done*pageSize, typ); err != nil {
			if done > 0 { // what was done stands; the caller meets the error with its next call
				pages = done
				break
			}
			if fw := firmwareError(0); errors.As(err, &fw) {
				return fw
			}
			return unix.EIO
		}
	}
	le.PutUint64(p, first+pages)
	le.PutUint64(p[16:], size-pages*pageSize)
	if typ != pageZero {
		le.PutUint64(p[8:], addr+pages*pageSize)
	}
	return copyOut(data, p)
}

// populate copies a page into the guest_memfd, gives it to the guest and
// measures it (kvm_gmem_populate, sev_gmem_post_populate, SNP_LAUNCH_UPDATE).
func (m *Machine) populate(s *slot, number, addr uint64, typ uint8) error {
	at := number - s.first + s.offset
	if _, assigned := s.mem.owned[at]; assigned {
		return unix.EEXIST
	}
	if !m.private[number] || m.finished {
		return unix.EINVAL
	}
	page := make([]byte, pageSize)
	if typ != pageZero {
		if err := copyIn(addr, page); err != nil {
			return err
		}
	}
	var contents [48]byte
	switch typ {
	case pageNormal:
		contents = sha512.Sum384(page)
	case pageSecrets:
		clear(page)
		le.PutUint32(page, 3) // version; VMPCK0 at 0x20
		copy(page[0x20:], m.vmpck[:])
	case pageCPUID:
		ok := checkCPUID(page, hardware(m.k.opt.Product.Signature))
		if m.k.opt.RewriteCPUID && !m.fixedCPUID {
			m.fixedCPUID = true
			page[16+24+8] ^= 1 // ECX of the first entry
			ok = false
		}
		if !ok {
			if err := copyOut(addr, page); err != nil {
				return err
			}
			return firmwareError(fwInvalidParam)
		}
	}
	if _, err := unix.Pwrite(s.mem.fd, page, int64(at*pageSize)); err != nil {
		return err
	}
	s.mem.owned[at] = Page{GPA: number * pageSize, Type: typ}
	m.measure(typ, number*pageSize, contents)
	return nil
}

// measure extends the launch digest by a page (AMD 56860, 8.17.2, PAGE_INFO).
func (m *Machine) measure(typ uint8, gpa uint64, contents [48]byte) {
	info := append(slices.Clone(m.Digest[:]), contents[:]...)
	info = le.AppendUint16(info, 0x70)
	info = append(info, typ, 0, 0, 0, 0, 0) // not an IMI page; no permissions for VMPL 1 to 3
	info = le.AppendUint64(info, gpa)
	m.Digest = sha512.Sum384(info)
	m.Pages = append(m.Pages, MeasuredPage{typ, gpa, contents})
}

// launchFinish takes a struct kvm_sev_snp_launch_finish {id_block_uaddr,
// id_auth_uaddr, id_block_en, auth_key_en, vcek_disabled, host_data, flags}.
func (m *Machine) launchFinish(p []byte) error {
	if get(p, 54, 2) != 0 {
		return unix.EINVAL
	}
	for _, c := range m.cpus {
		page, err := c.vmsa()
		if err != nil {
			return err
		}
		m.VMSAs = append(m.VMSAs, page)
		m.measure(pageVMSA, vmsaGPA, sha512.Sum384(page))
		c.protected = true
	}
	var block, auth []byte
	if p[16] != 0 {
		block, auth = make([]byte, 96), make([]byte, pageSize)
		if copyIn(get(p, 0, 8), block) != nil || copyIn(get(p, 8, 8), auth) != nil {
			return unix.EFAULT
		}
	}
	if m.finished {
		return firmwareError(2) // INVALID_GUEST_STATE
	}
	if block != nil {
		if fw := m.checkIDBlock(block, auth, p[17] != 0); fw != 0 {
			return fw
		}
	}
	m.VCEKDisabled = p[18] != 0
	copy(m.HostData[:], p[19:])
	m.finished = true
	return nil
}

// vmsa builds the vCPU's VMSA of what user space has set (sev_es_sync_vmsa).
func (c *cpu) vmsa() ([]byte, error) {
	if c.debug || c.dr7&^dr7Fixed != 0 {
		return nil, unix.EINVAL
	}
	page := slices.Clone(c.save[:])
	put := func(at int, v uint64) { le.PutUint64(page[at:], v) }
	put(vEFER, c.efer|efSVME)
	put(vCR4, c.cr4|cr4MCE) // the host's MCE
	put(vCR0, c.cr0)
	if !c.m.keepCD {
		put(vCR0, c.cr0&^(cr0CD|cr0NW))
	}
	put(vDR7, c.dr7)
	put(vDR6, c.dr6)
	put(vRFLAGS, c.regs[regRFLAGS])
	put(vRIP, c.regs[regRIP])
	// RAX RBX RCX RDX RSI RDI RSP RBP R8 to R15
	for i, at := range []int{vRAX, 0x318, 0x308, 0x310, 0x330, 0x338, vRSP, 0x328, 0x340, 0x348, 0x350, 0x358, 0x360, 0x368, 0x370, 0x378} {
		put(at, c.regs[i])
	}
	put(vXCR0, c.xcr0)
	put(vXSS, c.xss)
	le.PutUint32(page[vPKRU:], c.pkru)
	put(vFeatures, c.m.features)

	x, f := c.xsave[:], page[vX87:] // FXSAVE image; the VMSA's floating point part
	copy(f[0:8], x[16:24])          // data pointer
	copy(f[8:12], x[24:28])         // MXCSR
	copy(f[12:14], x[4:6])          // tags, as FXSAVE abridges them
	copy(f[14:16], x[2:4])
	copy(f[16:18], x[0:2])
	copy(f[18:20], x[6:8])
	copy(f[24:32], x[8:16]) // instruction pointer
	for i := range 8 {
		copy(f[32+8*i:], x[32+16*i:][:8])
		copy(f[96+2*i:], x[40+16*i:][:2])
	}
	copy(f[112:368], x[160:416])
	if get(x, 512, 8)>>2&1 != 0 {
		copy(f[368:624], x[576:832])
	}
	return page, nil
}
