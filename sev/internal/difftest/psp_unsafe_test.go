package difftest

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
	"unsafe"

	pb "github.com/google/gce-tcb-verifier/proto/sev"
	gce "github.com/google/gce-tcb-verifier/sev"
	"github.com/google/go-sev-guest/abi"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/validate"
	sevguest "github.com/google/go-sev-guest/verify"
	"github.com/google/go-sev-guest/verify/trust"
	"golang.org/x/sys/unix"

	"github.com/gvmm/gvmm/sev"
	"github.com/gvmm/gvmm/sev/psp"
)

// host drives the software PSP with nothing but bytes.
type host struct {
	t       *testing.T
	k       *psp.Kernel
	memory  []byte // guest memory, then room for structures
	sev, vm int
	open    []int
	next    int
}

const (
	guestPages = 64
	guestBase  = 0x400000
	encryptOp  = 0xc008aeba
)

func newHost(t *testing.T, o psp.Options) *host {
	t.Helper()
	memory, err := unix.Mmap(-1, 0, (guestPages+16)*sev.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, k: psp.New(o), memory: memory}
	t.Cleanup(func() {
		for _, fd := range h.open {
			_ = h.k.Close(fd)
		}
		_ = unix.Munmap(memory)
	})
	kvm := h.fd(h.k.Open("/dev/kvm"))
	h.sev = h.fd(h.k.Open("/dev/sev"))
	h.vm = h.fd(h.k.Call(kvm, 0xae01, 4))          // KVM_CREATE_VM
	h.command(22, 48, nil)                         // INIT2
	h.command(100, 64, map[int]uint64{0: 0x30000}) // LAUNCH_START
	memfd := h.fd(h.k.Call(h.vm, 0xc040aed4, h.make(64, map[int]uint64{0: guestPages * sev.PageSize})))
	base := uint64(uintptr(unsafe.Pointer(&memory[0])))
	h.fdOK(h.k.Call(h.vm, 0x40a0ae49, h.make(160, map[int]uint64{0: 4 << 32, 8: guestBase, 16: guestPages * sev.PageSize, 24: base, 40: uint64(memfd)})))
	h.fdOK(h.k.Call(h.vm, 0x4020aed2, h.make(32, map[int]uint64{0: guestBase, 8: guestPages * sev.PageSize, 16: 8})))
	return h
}

func (h *host) fdOK(n int, err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) fd(n int, err error) int {
	h.t.Helper()
	h.fdOK(n, err)
	h.open = append(h.open, n)
	return n
}

// make lays out a structure of numbers of eight bytes and returns its address.
func (h *host) make(size int, fields map[int]uint64) uintptr {
	at := guestPages*sev.PageSize + h.next%(8*sev.PageSize)
	h.next += (size + 7) &^ 7
	b := h.memory[at : at+size]
	clear(b)
	for off, v := range fields {
		binary.LittleEndian.PutUint64(b[off:], v)
	}
	return uintptr(unsafe.Pointer(&b[0]))
}

func (h *host) command(id uint64, size int, fields map[int]uint64) {
	h.t.Helper()
	data := h.make(size, fields)
	c := h.make(24, map[int]uint64{0: id, 8: uint64(data), 16: uint64(h.sev) << 32})
	h.fdOK(h.k.Call(h.vm, encryptOp, c))
}

// resetVMSA is the VMSA of a vCPU that nobody has touched (Linux init_vmcb,
// kvm_vcpu_reset, sev_es_sync_vmsa), as the other program writes it.
func resetVMSA(t *testing.T) []byte {
	t.Helper()
	data := func() *pb.VmcbSeg { return &pb.VmcbSeg{Attrib: 0x92, Limit: 0xffff} }
	table := func() *pb.VmcbSeg { return &pb.VmcbSeg{Limit: 0xffff} }
	page := make([]byte, sev.PageSize)
	if err := gce.PutVmsa(&pb.VmcbSaveArea{
		Es: data(), Ss: data(), Ds: data(), Fs: data(), Gs: data(), Gdtr: table(), Idtr: table(),
		Cs:   &pb.VmcbSeg{Selector: 0xf000, Attrib: 0x9a, Limit: 0xffff, Base: 0xffff0000},
		Ldtr: &pb.VmcbSeg{Attrib: 0x82, Limit: 0xffff}, Tr: &pb.VmcbSeg{Attrib: 0x83, Limit: 0xffff},
		Efer: 0x1000, Cr4: 0x40, Cr0: 0x10, Dr7: 0x400, Dr6: 0xffff0ff0, Rflags: 2, Rip: 0xfff0, Rdx: 0x600,
		GPat: 0x7040600070406, SevFeatures: 1, Xcr0: 1,
	}, page); err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint32(page[0x408:], 0x1f80) // MXCSR and FCW, which it does not know
	binary.LittleEndian.PutUint16(page[0x410:], 0x37f)
	return page
}

// The software PSP comes to the same digest as the other program from the pages
// that it is handed, in parts or whole.
func TestPSPDigest(t *testing.T) {
	vmsa := resetVMSA(t)
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 4))
		h := newHost(t, psp.Options{PartialPages: int(seed % 4)})
		copy(h.memory, random(guestPages*sev.PageSize, r))
		theirs := gce.SnpMeasurement{Product: spb.SevProduct_SEV_PRODUCT_MILAN}
		for page := 0; page < guestPages; {
			n := min(1+r.IntN(5), guestPages-page)
			typ := []uint64{1, 3, 4, 5}[r.IntN(4)]
			gpa := uint64(guestBase + page*sev.PageSize)
			src := h.memory[page*sev.PageSize:][:n*sev.PageSize]
			var err error
			if typ == 1 {
				err = theirs.Update(gpa, src, gce.PageType(typ))
			} else {
				err = theirs.ZeroContentUpdate(gpa, uint32(len(src)), gce.PageType(typ))
			}
			if err != nil {
				t.Fatal(err)
			}
			for done := 0; done < n; {
				u := h.make(64, map[int]uint64{
					0: gpa>>12 + uint64(done), 8: uint64(uintptr(unsafe.Pointer(&src[done*sev.PageSize]))), 16: uint64((n - done) * sev.PageSize), 24: typ,
				})
				at := guestPages*sev.PageSize + h.next - 64
				h.fdOK(h.k.Call(h.vm, encryptOp, h.make(24, map[int]uint64{0: 101, 8: uint64(u), 16: uint64(h.sev) << 32})))
				done = n - int(binary.LittleEndian.Uint64(h.memory[at+16:])/sev.PageSize)
				h.next = 0
			}
			page += n
		}
		cpus := 1 + r.IntN(4)
		for i := range cpus {
			h.fd(h.k.Call(h.vm, 0xae41, uintptr(i))) // KVM_CREATE_VCPU
			if err := theirs.Update4K(sev.VMSAGPA, vmsa, gce.PageType(sev.PageVMSA)); err != nil {
				t.Fatal(err)
			}
		}
		h.command(102, 88, nil) // LAUNCH_FINISH
		l, ok := h.k.Machines()[0].Launched()
		if !ok || !bytes.Equal(l.Digest[:], theirs.Digest[:]) || len(l.VMSAs) != cpus || !bytes.Equal(l.VMSAs[0], vmsa) {
			t.Errorf("seed %d: %x, want %x", seed, l.Digest, theirs.Digest)
		}
	}
}

// The reports that the software PSP issues are accepted by go-sev-guest, what they
// say is what was launched, and no byte of them can be changed.
func TestPSPReports(t *testing.T) {
	// go-sev-guest 0.15 takes a Turin for an older chip: levels that are the same in
	// both layouts, no level of the FMC, and a chip ID of 64 bytes.
	turin := psp.Turin
	turin.TCB, turin.SPL, turin.HWID = [8]byte{7: 75}, [10]byte{8: 75}, 64
	for _, product := range []psp.Product{psp.Milan, psp.Genoa, turin} {
		h := newHost(t, psp.Options{Product: product})
		h.fd(h.k.Call(h.vm, 0xae41, 0))
		h.command(102, 88, map[int]uint64{19: 0x1234})
		certs, err := h.k.Certificates()
		if err != nil {
			t.Fatal(err)
		}
		root := trust.AMDRootCertsProduct(product.Name)
		var parsed [3]*x509.Certificate
		for i, der := range [][]byte{certs.ARK, certs.ASK, certs.ASVK} {
			if parsed[i], err = x509.ParseCertificate(der); err != nil {
				t.Fatal(err)
			}
		}
		root.ProductCerts = &trust.ProductCerts{Ark: parsed[0], Ask: parsed[1], Asvk: parsed[2]}
		l, _ := h.k.Machines()[0].Launched()
		for _, version := range []uint32{2, 3, 5} {
			for _, key := range []psp.Key{psp.VCEK, psp.VLEK} {
				name := fmt.Sprintf("%s version %d key %d", product.Name, version, key)
				raw, err := h.k.Machines()[0].Report(psp.ReportRequest{Data: [64]byte{7}, Key: key, Version: version})
				if err != nil {
					t.Fatal(err)
				}
				check := func(raw []byte) error {
					report, err := abi.ReportToProto(raw)
					if err != nil {
						return err
					}
					a := &spb.Attestation{Report: report, CertificateChain: &spb.CertificateChain{ArkCert: certs.ARK, AskCert: certs.ASK, VcekCert: certs.VCEK}}
					if key == psp.VLEK {
						a.CertificateChain = &spb.CertificateChain{ArkCert: certs.ARK, AskCert: certs.ASVK, VlekCert: certs.VLEK}
					}
					if err := sevguest.SnpAttestation(a, &sevguest.Options{
						DisableCertFetching: true, Now: time.Now(), TrustedRoots: map[string][]*trust.AMDRootCerts{product.Name: {root}},
					}); err != nil {
						return err
					}
					return validate.SnpAttestation(a, &validate.Options{
						GuestPolicy: abi.SnpPolicy{SMT: true}, Measurement: l.Digest[:], ReportData: append([]byte{7}, make([]byte, 63)...),
						HostData: append([]byte{0x34, 0x12}, make([]byte, 30)...),
					})
				}
				if err := check(raw); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				for at := 0; at < len(raw); at += 101 {
					bad := bytes.Clone(raw)
					bad[at] ^= 4
					if check(bad) == nil {
						t.Errorf("%s: accepted with byte %#x changed", name, at)
					}
				}
			}
		}
	}
}
