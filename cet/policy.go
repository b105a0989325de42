package cet

import "fmt"

// Policy says whether guests see CET.
type Policy string

// The policies. The zero value is Auto.
const (
	Auto    Policy = "auto"    // what the host has
	Off     Policy = "off"     // nothing of it
	Require Policy = "require" // all of it, or the VM does not start
)

// Preset names what the monitor switches on before the guest's first
// instruction. The zero value leaves it to the guest.
type Preset string

// The presets.
const (
	PresetIBT         Preset = "ibt"   // supervisor indirect branch tracking
	PresetShadowStack Preset = "shstk" // a supervisor shadow stack
)

// Audit says what an audit in software looks for. The zero value is no audit.
type Audit string

// The audits.
const (
	AuditAll         Audit = "all"
	AuditShadowStack Audit = "shstk" // returns that do not match their calls
	AuditIBT         Audit = "ibt"   // indirect branches to places without ENDBR64
)

// Check refuses unknown words and policies that contradict the preset, naming
// the flag.
func Check(p Policy, preset Preset, a Audit) error {
	switch {
	case p != "" && p != Auto && p != Off && p != Require:
		return fmt.Errorf("--cet %q: give off, auto or require", string(p))
	case preset != "" && preset != PresetIBT && preset != PresetShadowStack:
		return fmt.Errorf("--cet-preset %q: give ibt or shstk", string(preset))
	case a != "" && a != AuditAll && a != AuditShadowStack && a != AuditIBT:
		return fmt.Errorf("--cet-audit=%s: give all, shstk or ibt", string(a))
	case preset != "" && p == Off:
		return fmt.Errorf("--cet-preset %s: --cet off hides what it needs", string(preset))
	}
	return nil
}

// Features are the two halves of CET.
type Features struct{ ShadowStack, IBT bool }

// Any reports whether there is either.
func (f Features) Any() bool { return f.ShadowStack || f.IBT }

func (f Features) String() string {
	switch f {
	case Features{true, true}:
		return "shadow stack and IBT"
	case Features{true, false}:
		return "shadow stack"
	case Features{false, true}:
		return "IBT"
	}
	return "none"
}
