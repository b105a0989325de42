package cli

import (
	"bytes"
	"cmp"
	"encoding/json"
	"os/exec"

	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/gvmm/gvmm/sev"
)

const measureUsage = `usage: gvmm measure snp|sev-es|sev|cca [flags]

Predicts the launch measurement of a confidential guest. Nothing is started.
"gvmm measure snp --help" explains AMD's kinds, "gvmm measure cca --help" Arm's.
`

// measure is `gvmm measure`.
func measure(args []string, stdout io.Writer) error {
	if len(args) == 0 {
		return usageError{errors.New("measure: name what to measure: snp, sev-es, sev or cca")}
	}
	switch what, rest := args[0], args[1:]; what {
	case "snp", "sev-es", "sev":
		return measureSNP(what, rest, stdout)
	case "cca":
		return measureCCA(rest, stdout)
	case "-h", "--help":
		fmt.Fprint(stdout, measureUsage)
		return nil
	default:
		return usageError{fmt.Errorf("measure: %q is unknown: give snp, sev-es, sev or cca", what)}
	}
}

const measureSNPUsage = `usage: gvmm measure %s --vmm qemu|ec2|gce --firmware FILE --vcpus N [flags]

Prints the launch digest, in hex, of a guest that another monitor starts with
the given firmware. With --explain the digest is followed by one line for each
range of pages that enters it, with the digest behind it.

  gvmm measure snp --vmm qemu --firmware OVMF.amdsev.fd --vcpus 4 --vcpu-type EPYC-Milan \
      --kernel vmlinuz --initrd initrd.img --append 'console=ttyS0'
  gvmm measure snp --vmm gce --firmware OVMF.fd --vcpus 2 --explain
  gvmm measure snp --vmm qemu --firmware OVMF.fd --vcpus 1 --vcpu-type EPYC-v4 \
      --id-key id.pem --author-key author.pem --id-block block.bin --id-auth auth.bin

`

// snpFlags are the flags of measure snp.
type snpFlags struct {
	launch                         sev.FirmwareLaunch
	vmm, firmware, kernel, initrd  string
	cmdline, cpuType, svsm         string
	varsSize                       uint64
	idBlock, idAuth, idKey, author string
	block                          sev.IDBlock
	explain, asJSON                bool
}

func (f *snpFlags) register(fs *pflag.FlagSet) {
	l := &f.launch
	l.Features = sev.FeatureSNP
	f.block.Policy = sev.DefaultPolicy
	fs.StringVar(&f.vmm, "vmm", "", "whose launch: `qemu|ec2|gce`")
	fs.StringVar(&f.firmware, "firmware", "", "OVMF image `FILE`")
	fs.StringVar(&f.kernel, "kernel", "", "kernel `FILE` handed over with its hash (QEMU: kernel-hashes=on)")
	fs.StringVarP(&f.initrd, "initrd", "i", "", "initial RAM disk `FILE` (with --kernel)")
	fs.StringVarP(&f.cmdline, "append", "a", "", "kernel `PARAMETERS`, kept byte for byte (with --kernel)")
	fs.IntVarP(&l.VCPUs, "vcpus", "c", 1, "number of `vCPUs`")
	fs.StringVar(&f.cpuType, "vcpu-type", "", "vCPU `MODEL` as QEMU names it: EPYC, EPYC-Milan-v2, ...")
	fs.Var(hexFlag(func(v uint64) { l.Sig = uint32(v) }, 32), "vcpu-sig", "vCPU signature (CPUID leaf 1 EAX) instead of a model")
	fs.Var(hexFlag(func(v uint64) { l.RDX = &v }, 64), "vcpu-rdx", "what vCPUs find in RDX (default: qemu their signature, ec2 and gce 600; ec2 before May 2026: 0)")
	fs.BoolVar(&f.asJSON, "json", false, "print JSON")
	if fs.Name() != "measure snp" {
		return
	}
	fs.Var(hexFlag(func(v uint64) { l.Features = v }, 64), "guest-features", "SEV_FEATURES (default 1: SNP alone; 21: with debug swap)")
	fs.Var(bytesFlag(48, func(b []byte) { l.FirmwareDigest = (*sev.Digest)(b) }), "firmware-digest", "digest behind the firmware's own pages, which then are not measured")
	fs.StringVar(&f.svsm, "svsm", "", "COCONUT-SVSM image `FILE` below the firmware (qemu)")
	fs.Uint64Var(&f.varsSize, "vars-size", 0, "`BYTES` of firmware variables (OVMF_VARS) between the two")
	fs.BoolVar(&f.explain, "explain", false, "print every range of pages as well")
	fs.StringVar(&f.idBlock, "id-block", "", "write the ID block, which lets nothing else start, to `FILE`")
	fs.StringVar(&f.idAuth, "id-auth", "", "write its signatures to `FILE`")
	fs.StringVar(&f.idKey, "id-key", "", "P-384 private key `PEM` that signs the ID block")
	fs.StringVar(&f.author, "author-key", "", "P-384 private key `PEM` that vouches for the ID key")
	fs.Var(hexFlag(func(v uint64) { f.block.Policy = v }, 64), "policy", "guest policy for the ID block (default 30000)")
	fs.Uint32Var(&f.block.GuestSVN, "guest-svn", 0, "security version `NUMBER` of the guest, for the ID block")
	fs.Var(bytesFlag(16, func(b []byte) { f.block.FamilyID = [16]byte(b) }), "family-id", "family ID, for the ID block")
	fs.Var(bytesFlag(16, func(b []byte) { f.block.ImageID = [16]byte(b) }), "image-id", "image ID, for the ID block")
}

// hexFlag is a flag that takes a hexadecimal number of so many bits.
func hexFlag(set func(uint64), bits int) *value {
	return parsed("HEX", func(s string) error {
		v, err := parseHex(s, bits)
		if err == nil {
			set(v)
		}
		return err
	})
}

// bytesFlag is a flag that takes n bytes in hexadecimal.
func bytesFlag(n int, set func([]byte)) *value {
	return parsed("HEX", func(s string) error {
		b, err := parseBytes(s, n)
		if err == nil {
			set(b)
		}
		return err
	})
}

// measureSNP is `gvmm measure snp`, and sev-es and sev with it.
func measureSNP(what string, args []string, stdout io.Writer) error {
	var f snpFlags
	fs := newFlags("measure "+what, fmt.Sprintf(measureSNPUsage, what), stdout)
	f.register(fs)
	help, err := parse(fs, args, func(args []string, _ int) error { return f.check(fs, args) })
	if help || err != nil {
		return err
	}
	if err := f.open(); err != nil {
		return fmt.Errorf("measure %s: %w", what, err)
	}
	if what != "snp" {
		digest, err := f.launch.Legacy(what == "sev-es")
		if err != nil {
			return fmt.Errorf("measure %s: %s: %w", what, f.firmware, err)
		}
		return f.print(stdout, snpResult{Digest: hex.EncodeToString(digest)})
	}
	var r snpResult
	digest, err := f.launch.Digest(func(rg sev.Range, d sev.Digest) {
		if f.explain {
			r.Ranges = append(r.Ranges, snpRange{rg, d})
		}
	})
	if err != nil {
		return fmt.Errorf("measure snp: %s: %w", f.firmware, err)
	}
	r.Digest = digest.String()
	if f.idBlock != "" {
		if r.KeyDigests, err = f.writeIDBlock(digest); err != nil {
			return fmt.Errorf("measure snp: %w", err)
		}
	}
	return f.print(stdout, r)
}

// check checks what the flags say together.
func (f *snpFlags) check(fs *pflag.FlagSet, args []string) error {
	l := &f.launch
	l.VMM = sev.VMM(strings.ToLower(f.vmm))
	switch {
	case len(args) > 0:
		return usageError{fmt.Errorf("unexpected %q: firmware and kernel are given by --firmware and --kernel", args[0])}
	case f.vmm == "":
		return usageError{errors.New("no --vmm given: name the monitor: qemu, ec2 or gce")}
	case l.VMM != sev.QEMU && l.VMM != sev.EC2 && l.VMM != sev.GCE:
		return usageError{fmt.Errorf("--vmm %q: give qemu, ec2 or gce", f.vmm)}
	case f.firmware == "":
		return usageError{errors.New("no --firmware given: it is what these monitors launch")}
	case f.kernel == "" && (f.initrd != "" || f.cmdline != ""):
		return usageError{errors.New("--initrd and --append need a --kernel")}
	case f.cpuType != "" && fs.Changed("vcpu-sig"):
		return usageError{errors.New("--vcpu-type and --vcpu-sig exclude each other")}
	case l.VMM == sev.QEMU && fs.Name() != "measure sev" && f.cpuType == "" && !fs.Changed("vcpu-sig") && l.RDX == nil:
		return usageError{errors.New("no --vcpu-type or --vcpu-sig: QEMU's vCPUs start with their signature in RDX")}
	case (f.idBlock == "") != (f.idKey == "") || (f.idBlock == "") != (f.idAuth == "") || f.idBlock == "" && f.author != "":
		return usageError{errors.New("--id-block, --id-auth and --id-key go together, --author-key with them")}
	case f.svsm == "" && f.varsSize != 0:
		return usageError{errors.New("--vars-size goes with --svsm")}
	}
	if f.cpuType != "" {
		sig, err := sev.TypeSignature(f.cpuType)
		if err != nil {
			return usageError{fmt.Errorf("--vcpu-type: %w", err)}
		}
		l.Sig = sig
	}
	return nil
}

// open reads the files that the flags name.
func (f *snpFlags) open() (err error) {
	if f.launch.Firmware, err = openFirmware(f.firmware); err != nil {
		return fmt.Errorf("--firmware %w", err)
	}
	if f.svsm != "" {
		f.launch.SVSM = &sev.SVSM{VarsSize: f.varsSize}
		if f.launch.SVSM.Image, err = openFirmware(f.svsm); err != nil {
			return fmt.Errorf("--svsm %w", err)
		}
	}
	if f.kernel == "" {
		return nil
	}
	kernel, err := os.Open(f.kernel)
	if err != nil {
		return fmt.Errorf("--kernel: %w", err)
	}
	defer kernel.Close()
	var initrd io.Reader
	if f.initrd != "" {
		file, err := os.Open(f.initrd)
		if err != nil {
			return fmt.Errorf("--initrd: %w", err)
		}
		defer file.Close()
		initrd = file
	}
	hashes, err := sev.HashKernel(kernel, initrd, f.cmdline)
	f.launch.Kernel = &hashes
	return err
}

func openFirmware(path string) (*sev.Firmware, error) {
	data, err := readBounded(path, sev.MaxFirmware)
	if err != nil {
		return nil, err
	}
	fw, err := sev.ParseFirmware(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return fw, nil
}

// readBounded reads a regular file of at most limit bytes.
func readBounded(path string, limit int64) ([]byte, error) {
	file, blob, err := openBlob(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if blob.Size() > limit {
		return nil, fmt.Errorf("%s: more than %d bytes", path, limit)
	}
	data := make([]byte, blob.Size())
	_, err = io.ReadFull(file, data)
	return data, err
}

// writeIDBlock has the ID block of a launch with the given digest signed, by the
// verifier's program: private keys have no place in the monitor's.
func (f *snpFlags) writeIDBlock(d sev.Digest) (*sev.KeyDigests, error) {
	program, err := findVerifier()
	if err != nil {
		return nil, err
	}
	f.block.Digest = d
	cmd := exec.Command(program, "sign-id-block", "--block", hex.EncodeToString(f.block.Bytes()),
		"--id-key", f.idKey, "--author-key", f.author, "--id-block", f.idBlock, "--id-auth", f.idAuth)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		why := strings.TrimPrefix(strings.TrimSpace(said.String()), "gvmm: ")
		return nil, cmp.Or(errorOf(why), err)
	}
	digests := new(sev.KeyDigests)
	return digests, json.Unmarshal(out, digests)
}

func errorOf(why string) error {
	if why == "" {
		return nil
	}
	return errors.New(why)
}

// snpResult is what measure prints.
type snpResult struct {
	Digest string     `json:"digest"`
	Ranges []snpRange `json:"ranges,omitempty"`
	*sev.KeyDigests
}

type snpRange struct {
	sev.Range
	Digest sev.Digest `json:"digest"` // behind the range
}

func (f *snpFlags) print(w io.Writer, r snpResult) error {
	if f.asJSON {
		return writeJSON(w, r)
	}
	var b strings.Builder
	fmt.Fprintln(&b, r.Digest)
	for _, rg := range r.Ranges {
		fmt.Fprintf(&b, "%012x-%012x %-10s %-18s %s\n", rg.GPA, rg.GPA+rg.Size, rg.Type, rg.Name, rg.Digest)
	}
	if r.KeyDigests != nil {
		fmt.Fprintf(&b, "id key digest     %s\n", r.ID)
		if r.Author != nil {
			fmt.Fprintf(&b, "author key digest %s\n", r.Author)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
