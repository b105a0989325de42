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
	"strings"

	"github.com/spf13/pflag"

	"github.com/gvmm/gvmm/internal/sibling"
	"github.com/gvmm/gvmm/sev"
	"github.com/gvmm/gvmm/vmm"
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

const measureSNPUsage = `usage: gvmm measure %[1]s [flags of gvmm run] IMAGE
       gvmm measure %[1]s --vmm qemu|ec2|gce --firmware FILE --vcpus N [flags]
       gvmm measure %[1]s --vmm qemu --igvm FILE

Prints the launch digest, in hex, of the guest that "gvmm run --sev-snp" starts
with the same flags or, with --vmm, that another monitor starts. It needs no KVM
and no SNP. With --explain the digest is followed by one line for each range of
pages that enters it, with the digest behind it.

  gvmm measure snp -M 256M -i initrd.img -a 'console=ttyS0' vmlinuz
  gvmm measure snp --firmware OVMF.amdsev.fd -c 4 -i initrd.img vmlinuz
  gvmm measure snp --vmm qemu --firmware OVMF.amdsev.fd --vcpus 4 --vcpu-type EPYC-Milan \
      --kernel vmlinuz --initrd initrd.img --append 'console=ttyS0'
  gvmm measure snp --id-key id.pem --author-key author.pem --id-block block.bin --id-auth auth.bin vmlinuz

`

// snpFlags are the flags of measure snp.
type snpFlags struct {
	cfg                            vmm.Config // gvmm's own launch
	launch                         sev.FirmwareLaunch
	vmm, kernel, igvm              string
	cpuType, svsm                  string
	varsSize                       uint64
	idBlock, idAuth, idKey, author string
	block                          sev.IDBlock
	explain, asJSON                bool
	files                          []io.Closer       // opened for reading
	group                          map[string]string // whose launch a flag describes: "", "run" or "vmm"
}

// register registers the flags; finish checks them.
func (f *snpFlags) register(fs *pflag.FlagSet) (finish func([]string, int) error) {
	l := &f.launch
	f.group = map[string]string{}
	group := func(name string) {
		fs.VisitAll(func(fl *pflag.Flag) {
			if _, ok := f.group[fl.Name]; !ok {
				f.group[fl.Name] = name
			}
		})
	}
	finish = machineFlags(fs, &f.cfg)
	for _, both := range [...]string{"cpus", "initrd", "append", "firmware"} {
		f.group[both] = ""
	}
	group("run")
	fs.StringVar(&f.kernel, "kernel", "", "kernel `FILE` handed to the firmware")
	fs.StringVar(&f.cpuType, "vcpu-type", "", "`TYPE` of vCPU as QEMU names it: EPYC-Milan and the like (qemu)")
	fs.Var(hexFlag(func(v uint64) { l.Sig = uint32(v) }, 32), "vcpu-sig", "CPUID signature of the vCPUs, in place of --vcpu-type")
	fs.Var(hexFlag(func(v uint64) { l.RDX = &v }, 64), "vcpu-rdx", "what vCPUs start with in RDX, in place of what the monitor does (EC2 left 0 until 2026)")
	l.Features = sev.FeatureSNP
	fs.Var(hexFlag(func(v uint64) { l.Features = v }, 64), "guest-features", "SEV_FEATURES of the guest (default 1: SNP)")
	fs.Var(bytesFlag(48, func(b []byte) { l.FirmwareDigest = (*sev.Digest)(b) }), "firmware-digest", "digest behind the firmware's own pages, which then are not measured")
	fs.StringVar(&f.svsm, "svsm", "", "COCONUT-SVSM image `FILE` below the firmware (qemu)")
	fs.Uint64Var(&f.varsSize, "vars-size", 0, "`BYTES` of firmware variables (OVMF_VARS) between the two")
	fs.StringVar(&f.igvm, "igvm", "", "IGVM `FILE`, which says itself what is launched (qemu)")
	group("vmm")
	fs.StringVar(&f.vmm, "vmm", "", "the monitor, where it is not gvmm: `qemu|ec2|gce`")
	fs.IntVar(&f.cfg.CPUs, "vcpus", 1, "the same as --cpus")
	fs.BoolVar(&f.explain, "explain", false, "print every range of pages as well")
	fs.BoolVar(&f.asJSON, "json", false, "print JSON")
	fs.StringVar(&f.idBlock, "id-block", "", "write the ID block, which lets nothing else start, to `FILE`")
	fs.StringVar(&f.idAuth, "id-auth", "", "write its signatures to `FILE`")
	fs.StringVar(&f.idKey, "id-key", "", "P-384 private key `PEM` that signs the ID block")
	fs.StringVar(&f.author, "author-key", "", "P-384 private key `PEM` that vouches for the ID key")
	fs.Var(hexFlag(func(v uint64) { f.block.Policy = v }, 64), "policy", "guest policy for the ID block (default: that of --sev-snp or of the IGVM file, or 30000)")
	fs.Uint32Var(&f.block.GuestSVN, "guest-svn", 0, "security version `NUMBER` of the guest, for the ID block")
	fs.Var(bytesFlag(16, func(b []byte) { f.block.FamilyID = [16]byte(b) }), "family-id", "family ID, for the ID block")
	fs.Var(bytesFlag(16, func(b []byte) { f.block.ImageID = [16]byte(b) }), "image-id", "image ID, for the ID block")
	return finish
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
	finish := f.register(fs)
	help, err := parse(fs, args, func(args []string, dash int) error {
		if err := f.check(fs, args); err != nil || f.vmm != "" {
			return err
		}
		return finish(args, dash)
	})
	if help || err != nil {
		return err
	}
	if err := f.measure(what, stdout); err != nil {
		return fmt.Errorf("measure %s: %w", what, err)
	}
	return nil
}

func (f *snpFlags) measure(what string, stdout io.Writer) (err error) {
	var r snpResult
	var start sev.Digest
	var ranges []sev.Range
	var bound *sev.IDBlock // an IGVM file's own
	switch {
	case f.vmm == "":
		in, err := vmm.Inspect(f.cfg)
		if err != nil {
			return err
		}
		defer in.Close()
		ranges, err = sev.PlanRanges(in.Plan, f.cfg.CPUs, f.cfg.SNP.Features)
		if err != nil {
			return err
		}
		f.block.Policy = cmp.Or(f.block.Policy, f.cfg.SNP.Policy)
	case f.igvm != "":
		data, err := readBounded(f.igvm, sev.MaxFirmware)
		if err != nil {
			return fmt.Errorf("--igvm: %w", err)
		}
		file, err := sev.ParseIGVM(data)
		if err != nil {
			return fmt.Errorf("--igvm %s: %w", f.igvm, err)
		}
		ranges, bound = file.Ranges, file.IDBlock
		f.block.Policy = cmp.Or(f.block.Policy, file.Policy)
	default:
		defer func() {
			for _, file := range f.files {
				_ = file.Close()
			}
		}()
		if err := f.open(); err != nil {
			return err
		}
		if what != "snp" {
			digest, err := f.launch.Legacy(what == "sev-es")
			if err != nil {
				return fmt.Errorf("%s: %w", f.cfg.Firmware, err)
			}
			return f.print(stdout, snpResult{Digest: hex.EncodeToString(digest)})
		}
		if ranges, err = f.launch.Ranges(); err != nil {
			return fmt.Errorf("%s: %w", f.cfg.Firmware, err)
		}
		if f.launch.FirmwareDigest != nil {
			start = *f.launch.FirmwareDigest
		}
	}
	digest, err := sev.Measure(start, ranges, func(rg sev.Range, d sev.Digest) {
		if f.explain {
			r.Ranges = append(r.Ranges, snpRange{rg, d})
		}
	})
	if err != nil {
		return err
	}
	if bound != nil && bound.Digest != digest {
		return fmt.Errorf("--igvm %s: its ID block is for the digest %s, its launch has %s: no host starts it", f.igvm, bound.Digest, digest)
	}
	r.Digest = digest.String()
	if f.idBlock != "" {
		f.block.Policy = cmp.Or(f.block.Policy, sev.DefaultPolicy)
		if r.KeyDigests, err = f.writeIDBlock(digest); err != nil {
			return err
		}
	}
	return f.print(stdout, r)
}

// check checks what the flags say together.
func (f *snpFlags) check(fs *pflag.FlagSet, args []string) (err error) {
	l := &f.launch
	l.VMM, l.VCPUs = sev.VMM(strings.ToLower(f.vmm)), f.cfg.CPUs
	fs.Visit(func(fl *pflag.Flag) {
		switch group := f.group[fl.Name]; {
		case group == "vmm" && f.vmm == "":
			err = usageError{fmt.Errorf("--%s describes another monitor's launch: name it with --vmm, qemu, ec2 or gce", fl.Name)}
		case group == "run" && f.vmm != "":
			err = usageError{fmt.Errorf("--%s shapes gvmm's own launch: leave it out, or --vmm", fl.Name)}
		}
	})
	if f.cfg.SNP == nil {
		f.cfg.SNP = new(vmm.SNP)
	}
	switch p := f.cfg.SNP.Policy; {
	case err != nil:
		return err
	case (f.idBlock == "") != (f.idKey == "") || (f.idBlock == "") != (f.idAuth == "") || f.idBlock == "" && f.author != "":
		return usageError{errors.New("--id-block, --id-auth and --id-key go together, --author-key with them")}
	case p != 0 && f.block.Policy != 0 && p != f.block.Policy:
		return usageError{fmt.Errorf("--policy %x: the launch has policy %x, and an ID block has to have it too", f.block.Policy, p)}
	case f.vmm == "" && fs.Name() == "measure snp":
		return nil
	case f.vmm == "":
		return usageError{errors.New("no --vmm given: name the monitor: qemu, ec2 or gce")}
	case len(args) > 0:
		return usageError{fmt.Errorf("unexpected %q: firmware and kernel are given by --firmware and --kernel", args[0])}
	case l.VMM != sev.QEMU && l.VMM != sev.EC2 && l.VMM != sev.GCE:
		return usageError{fmt.Errorf("--vmm %q: give qemu, ec2 or gce", f.vmm)}
	case f.igvm != "" && (fs.Name() != "measure snp" || l.VMM != sev.QEMU || l.VCPUs != 1 || f.cfg.Firmware != ""):
		return usageError{errors.New("--igvm goes with measure snp, --vmm qemu and one vCPU, and without --firmware: the file says all else")}
	case f.igvm != "":
		return nil
	case f.cfg.Firmware == "":
		return usageError{errors.New("no --firmware given: it is what these monitors launch")}
	case f.kernel == "" && (f.cfg.Initrd != "" || f.cfg.Params != ""):
		return usageError{errors.New("--initrd and --append need a --kernel")}
	case f.cpuType != "" && fs.Changed("vcpu-sig"):
		return usageError{errors.New("--vcpu-type and --vcpu-sig exclude each other")}
	case l.VMM == sev.QEMU && fs.Name() != "measure sev" && f.cpuType == "" && !fs.Changed("vcpu-sig") && l.RDX == nil:
		return usageError{errors.New("no --vcpu-type or --vcpu-sig: QEMU's vCPUs start with their signature in RDX")}
	case f.svsm == "" && f.varsSize != 0:
		return usageError{errors.New("--vars-size goes with --svsm")}
	}
	if f.cpuType != "" {
		if l.Sig, err = sev.TypeSignature(f.cpuType); err != nil {
			return usageError{fmt.Errorf("--vcpu-type: %w", err)}
		}
	}
	return nil
}

// open opens the files that another monitor's launch is made of. They are read as
// they are measured; the caller closes f.files.
func (f *snpFlags) open() (err error) {
	flags := [...]string{"--firmware", "--svsm", "--kernel", "--initrd"}
	var blobs [len(flags)]sev.Blob
	var images [2]*sev.Firmware
	for i, path := range [...]string{f.cfg.Firmware, f.svsm, f.kernel, f.cfg.Initrd} {
		if path == "" {
			continue
		}
		file, blob, err := openBlob(path)
		if err != nil {
			return fmt.Errorf("%s: %w", flags[i], err)
		}
		f.files = append(f.files, file)
		if blobs[i] = blob; i < len(images) {
			if images[i], err = sev.ParseFirmware(blob); err != nil {
				return fmt.Errorf("%s %s: %w", flags[i], path, err)
			}
		}
	}
	if f.launch.Firmware = images[0]; images[1] != nil {
		f.launch.SVSM = &sev.SVSM{Image: images[1], VarsSize: f.varsSize}
	}
	if blobs[2] != nil {
		f.launch.Kernel, err = sev.HashKernel(blobs[2], blobs[3], f.cfg.Params)
	}
	return err
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
	program, err := sibling.Find(verifier)
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
		if why := strings.TrimPrefix(strings.TrimSpace(said.String()), "gvmm: "); why != "" {
			err = errors.New(why)
		}
		return nil, err
	}
	digests := new(sev.KeyDigests)
	return digests, json.Unmarshal(out, digests)
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
