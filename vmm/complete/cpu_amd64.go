package complete

import "fmt"

// Numbers of the general registers, as instructions encode them.
const (
	RAX = iota
	RCX
	RDX
	RBX
	RSP
	RBP
	RSI
	RDI
)

// Numbers of the segment registers, as instructions encode them.
const (
	ES = iota
	CS
	SS
	DS
	FS
	GS
)

// Segment is a segment register's hidden part, as struct kvm_segment has it.
type Segment struct {
	Base     uint64
	Limit    uint32 // last valid offset in bytes; first invalid one below when expand-down
	Type     uint8  // descriptor type field, 4 bits
	L        bool   // CS: 64-bit code
	DB       bool   // CS: 32-bit default sizes; data: upper bound of expand-down
	Unusable bool   // null selector
}

// CPU is the state of one vCPU that completion reads and changes.
type CPU struct {
	GPR         [16]uint64 // RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 ... R15
	RIP, RFLAGS uint64

	CR0, CR3, CR4, EFER uint64
	XCR0                uint64
	CPL                 uint8
	Seg                 [6]Segment // ES, CS, SS, DS, FS, GS

	// XSAVE is what KVM_GET_XSAVE or KVM_GET_XSAVE2 returned: the standard
	// format of XSAVE (SDM vol. 1, 13.4), at least 576 bytes.
	XSAVE []byte

	// Complete sets these when XSAVE or Seg have changed. GPR, RIP and RFLAGS
	// are to be written back after every Done and Fault.
	FPUChanged, SegChanged bool
}

// Fault is an exception to inject.
type Fault struct {
	Vector    uint8
	HasError  bool
	ErrorCode uint32
	CR2       uint64 // for #PF
}

// Outcome says how a completion ended.
type Outcome uint8

// The outcomes.
const (
	Done      Outcome = iota // Count instructions are finished, RIP is behind them
	Faulted                  // inject Result.Fault; for #DB RIP is behind the instruction, else at it
	NotOnList                // nothing changed; Result.Reason says why
)

// Result is the end of one completion.
type Result struct {
	Outcome Outcome
	Fault   Fault
	Count   int      // instructions finished
	Reason  string   // NotOnList: why
	Bytes   [15]byte // the last instruction as far as it was fetched
	Len     int      // of Bytes
	Asm     string   // NotOnList: best-effort disassembly
}

func (r *Result) String() string {
	switch r.Outcome {
	case Done:
		return "completed"
	case Faulted:
		return fmt.Sprintf("exception %d, error code %#x, cr2 %#x", r.Fault.Vector, r.Fault.ErrorCode, r.Fault.CR2)
	}
	return fmt.Sprintf("instruction % x (%s): %s", r.Bytes[:r.Len], r.Asm, r.Reason)
}

// Exception vectors (SDM vol. 3, 6.3.1).
const (
	vecDB = 1
	vecUD = 6
	vecNM = 7
	vecSS = 12
	vecGP = 13
	vecPF = 14
	vecMF = 16
	vecXM = 19
)

const (
	cr0PE = 1 << 0
	cr0MP = 1 << 1
	cr0EM = 1 << 2
	cr0TS = 1 << 3
	cr0WP = 1 << 16
	cr0PG = 1 << 31

	cr4PSE        = 1 << 4
	cr4PAE        = 1 << 5
	cr4OSFXSR     = 1 << 9
	cr4OSXMMEXCPT = 1 << 10
	cr4LA57       = 1 << 12
	cr4FSGSBASE   = 1 << 16
	cr4OSXSAVE    = 1 << 18
	cr4SMEP       = 1 << 20
	cr4SMAP       = 1 << 21
	cr4CET        = 1 << 23

	eferLMA   = 1 << 10
	eferNXE   = 1 << 11
	eferFFXSR = 1 << 14

	flagCF    = 1 << 0
	flagPF    = 1 << 2
	flagAF    = 1 << 4
	flagZF    = 1 << 6
	flagSF    = 1 << 7
	flagTF    = 1 << 8
	flagOF    = 1 << 11
	flagRF    = 1 << 16
	flagVM    = 1 << 17
	flagAC    = 1 << 18
	flagArith = flagCF | flagPF | flagAF | flagZF | flagSF | flagOF
)

func (c *CPU) long() bool { return c.EFER&eferLMA != 0 && c.Seg[CS].L }

// protected reports whether the vCPU is in protected mode proper, where VEX
// encodings exist.
func (c *CPU) protected() bool { return c.CR0&cr0PE != 0 && c.RFLAGS&flagVM == 0 }
