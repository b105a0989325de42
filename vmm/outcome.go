package vmm

import (
	"context"
	"errors"
	"fmt"

	"github.com/gvmm/gvmm/devices"
)

// Exit statuses of `gvmm run`. Others are the guest's own code.
const (
	StatusOK          = 0   // the guest powered off or reset in order
	StatusTimeout     = 124 // the time-out ended it
	StatusCannotStart = 125 // usage, files or host: it never started
	StatusLacking     = 126 // the host lacks what was asked for
	StatusInterrupted = 130 // SIGINT, or Ctrl-A x on the terminal
	StatusTerminated  = 143 // SIGTERM
	StatusCrashed     = 139 // triple fault, emulation failure, panic
)

// Outcome is how a VM ended.
type Outcome struct {
	Status int    // exit status for a shell
	Why    string // one line for people
	Dump   string // registers and code of a crashed vCPU, several lines; may be empty
}

func (o Outcome) String() string { return fmt.Sprintf("%s (status %d)", o.Why, o.Status) }

// Stopped is the cause with which a caller cancels the context of [VM.Run] to
// choose how the VM's end is reported.
type Stopped Outcome

func (s Stopped) Error() string { return s.Why }

// A LackingError means the host lacks something the configuration asks for.
type LackingError struct{ Err error }

func (e *LackingError) Error() string { return e.Err.Error() }
func (e *LackingError) Unwrap() error { return e.Err }

// stopOutcome is the outcome of a VM whose context was cancelled.
func stopOutcome(cause error) Outcome {
	var s Stopped
	switch {
	case errors.As(cause, &s):
		return Outcome(s)
	case errors.Is(cause, context.DeadlineExceeded):
		return Outcome{Status: StatusTimeout, Why: "time-out"}
	default:
		return Outcome{Status: StatusInterrupted, Why: "stopped: " + cause.Error()}
	}
}

// endOutcome turns the guest's own end into an outcome. panicLine is what the
// guest said on its console when it crashed: many guests panic by resetting.
func endOutcome(e devices.End, panicLine string) Outcome {
	switch {
	case e.Kind == devices.EndCode:
		return Outcome{Status: e.Code, Why: fmt.Sprintf("guest ended with its own code %d: %s", e.Code, e.Why)}
	case e.Kind == devices.EndCrash:
		if panicLine != "" {
			e.Why += ": " + panicLine
		}
		return Outcome{Status: StatusCrashed, Why: "guest crashed: " + e.Why}
	case panicLine != "":
		return Outcome{Status: StatusCrashed, Why: "guest crashed: " + panicLine}
	case e.Kind == devices.EndReset:
		return Outcome{Status: StatusOK, Why: "guest reset: " + e.Why}
	default:
		return Outcome{Status: StatusOK, Why: "guest powered off: " + e.Why}
	}
}
