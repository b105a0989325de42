package cli

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gvmm/gvmm/sev"
	"github.com/gvmm/gvmm/sev/idauth"

	"github.com/gvmm/gvmm/vmm/kvm"
)

const ovmfTail = "../../../sev/testdata/ovmf_AmdSev_suffix.bin"

// measured runs gvmm measure and returns standard output.
func measured(t *testing.T, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	if status := Main(append([]string{"measure"}, args...), &out, &errs, kvm.Host{}); status != 0 {
		t.Fatalf("%q: status %d: %s", args, status, errs.String())
	}
	return out.String()
}

func TestMeasureSNP(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const want = "803f691094946e42068aaa3a8f9e26a5c89f36f7b73ecfb28c653360fe4b3aba7e534442e7e1e17895dfe778d0228977"
	args := []string{"snp", "--vmm", "qemu", "--firmware", ovmfTail, "--vcpus=1", "--kernel", empty, "--initrd", empty,
		"--append", "console=ttyS0 loglevel=7", "--guest-features", "0x21"}
	for _, cpu := range [][]string{{"--vcpu-type", "EPYC-v4"}, {"--vcpu-sig", "800f12"}} {
		if got := measured(t, append(args, cpu...)...); got != want+"\n" {
			t.Errorf("%v: %s", cpu, got)
		}
	}
	explained := strings.Split(measured(t, append(args, "--vcpu-type=EPYC", "--explain")...), "\n")
	if explained[0] != want || !strings.HasSuffix(explained[len(explained)-2], "vcpu 0             "+want) {
		t.Errorf("--explain: %q", explained)
	}
	var asJSON struct{ Digest string }
	if err := json.Unmarshal([]byte(measured(t, append(args, "--vcpu-type=EPYC", "--json")...)), &asJSON); err != nil || asJSON.Digest != want {
		t.Errorf("--json: %+v, %v", asJSON, err)
	}
	if got := measured(t, "sev", "--vmm=qemu", "--firmware", ovmfTail, "--kernel", empty); got != "77f613d7bbcdf12a73782ea9e88b0172aeda50d1a54201cb903594ff52846898\n" {
		t.Errorf("sev: %s", got)
	}
}

// gvmm's own launches: what shapes the guest shows in the digest, what does not,
// does not, and an ID block has the policy of the launch.
func TestMeasureOwn(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image")
	b := make([]byte, 0x3000) // an ELF64 with one segment and no notes
	copy(b, "\x7fELF\x02\x01\x01")
	for at, v := range map[int]uint16{16: 2, 18: 62, 54: 56, 56: 1, 64: 1, 68: 5} {
		binary.LittleEndian.PutUint16(b[at:], v)
	}
	for at, v := range map[int]uint64{24: 0x100000, 32: 64, 72: 0x1000, 80: 0x100000, 88: 0x100000, 96: 0x2000, 104: 0x4000} {
		binary.LittleEndian.PutUint64(b[at:], v)
	}
	b[0x1000] = 0xf4
	write := func() {
		t.Helper()
		if err := os.WriteFile(image, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write()
	plain := measured(t, "snp", image)
	if len(plain) != 97 || plain != measured(t, "snp", "--sev-snp=policy=b0000,host-data="+strings.Repeat("01", 32), "--vcpus", "1", image) {
		t.Errorf("policy and host data show in the digest, which is %s", plain)
	}
	seen := map[string]bool{plain: true}
	for _, flags := range [][]string{{"-c", "2"}, {"-M", "64M"}, {"-a", "x"}, {"-i", image}, {"-d", image}, {"--sev-snp=cbit=47"},
		{"--sev-snp=features=20"}, {"--machine=pc"}, {"--firmware", ovmfTail}, {"-d", image, "--console=virtio"}} {
		d := measured(t, append(append([]string{"snp"}, flags...), image)...)
		if seen[d] {
			t.Errorf("%q do not show in the digest", flags)
		}
		seen[d] = true
	}
	lines := strings.Split(strings.TrimSpace(measured(t, "snp", "--explain", "-c", "2", image)), "\n")
	if last := lines[len(lines)-1]; !strings.Contains(last, "vcpu 1") || !strings.HasSuffix(last, lines[0]) || !strings.Contains(lines[2], "secrets") {
		t.Errorf("--explain: %q", lines)
	}
	b[0x2fff] ^= 1
	write()
	if measured(t, "snp", image) == plain {
		t.Error("a changed byte does not show in the digest")
	}
}

func TestMeasureIDBlock(t *testing.T) {
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", dir, "../../gvmm-verify")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	pemFile, block, auth := filepath.Join(dir, "key"), filepath.Join(dir, "block"), filepath.Join(dir, "auth")
	if err := os.WriteFile(pemFile, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	out := measured(t, "snp", "--vmm=ec2", "--firmware", ovmfTail, "--id-block", block, "--id-auth", auth, "--id-key", pemFile,
		"--author-key", pemFile, "--policy", "b0000", "--guest-svn", "7", "--family-id", strings.Repeat("ab", 16))
	b, err := os.ReadFile(block)
	if err != nil {
		t.Fatal(err)
	}
	a, err := os.ReadFile(auth)
	if err != nil {
		t.Fatal(err)
	}
	digests, err := idauth.Check(b, a)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out, "id key digest     "+digests.ID.String()) || b[48] != 0xab || b[84] != 7 || b[90] != 0xb {
		t.Errorf("%s%x", out, b)
	}
	if d := sev.Digest(b); out[:96] != d.String() {
		t.Errorf("block is for digest %s, printed %s", d, out)
	}
	// Both files are those that a launch takes, which then has the block's policy.
	cfg, err := parseFlags(t, "--sev-snp=id-block="+block+",id-auth="+auth, "image")
	if err != nil || cfg.SNP.Policy != 0xb0000 || !bytes.Equal(cfg.SNP.IDAuth, a) {
		t.Errorf("launch with the block: %v", err)
	}
	if _, err := parseFlags(t, "--sev-snp=policy=30000,id-block="+block+",id-auth="+auth, "image"); err == nil || !strings.Contains(err.Error(), "for policy b0000") {
		t.Errorf("another policy: %v", err)
	}
	// The same for gvmm's own launch, whose policy the block takes over.
	measured(t, "snp", "--sev-snp=policy=70000", "--firmware", ovmfTail, "--id-block", block, "--id-auth", auth, "--id-key", pemFile)
	if b, err = os.ReadFile(block); err != nil || b[90] != 7 {
		t.Errorf("own launch's block has policy % x, %v", b[88:], err)
	}
}

func TestMeasureErrors(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		"name what to measure":             {},
		`"tdx" is unknown`:                 {"tdx"},
		"no --vmm given":                   {"sev-es", "--firmware", ovmfTail},
		"no IMAGE given":                   {"snp"},
		"--kernel describes another":       {"snp", "--kernel", "measure.go", "image"},
		"--memory shapes gvmm's own":       {"snp", "--vmm", "gce", "-M", "64M"},
		"--igvm goes with":                 {"snp", "--vmm", "gce", "--igvm", "measure.go"},
		"does not begin with IGVM":         {"snp", "--vmm", "qemu", "--igvm", "measure.go"},
		"and an ID block has to have it":   {"snp", "--policy", "30000", "--sev-snp=policy=b0000", "image"},
		`--vmm "xen"`:                      {"snp", "--vmm", "xen"},
		"no --firmware":                    {"snp", "--vmm", "qemu"},
		"no --vcpu-type":                   {"snp", "--vmm", "qemu", "--firmware", ovmfTail},
		`--vcpu-type: unknown vCPU type`:   {"snp", "--vmm", "qemu", "--firmware", ovmfTail, "--vcpu-type", "Z80"},
		`"1x" is no hexadecimal`:           {"snp", "--vcpu-sig", "1x"},
		"need a --kernel":                  {"snp", "--vmm", "gce", "--firmware", ovmfTail, "--append", "x"},
		"go together":                      {"snp", "--vmm", "gce", "--firmware", ovmfTail, "--id-block", "x"},
		"unexpected \"image\"":             {"snp", "--vmm", "gce", "--firmware", ovmfTail, "image"},
		"--firmware: open":                 {"snp", "--vmm", "gce", "--firmware", "nowhere"},
		"measure.go: size":                 {"snp", "--vmm", "gce", "--firmware", "measure.go"},
		"suffix.bin: firmware has no sect": {"snp", "--vmm", "gce", "--firmware", "../../../sev/testdata/ovmf_OvmfX64_suffix.bin", "--kernel", "measure.go"},
		"fifo: not a regular file":         {"snp", "--vmm", "gce", "--firmware", fifo},
		"0 vCPUs":                          {"snp", "--vmm", "gce", "--firmware", ovmfTail, "--vcpus", "0"},
	} {
		var out, errs bytes.Buffer
		if status := Main(append([]string{"measure"}, args...), &out, &errs, kvm.Host{}); status != 125 || !strings.Contains(errs.String(), want) || out.Len() > 0 {
			t.Errorf("%q: status %d, %q, want %q", args, status, errs.String(), want)
		}
	}
}
