package devices

import (
	"reflect"
	"testing"
	"time"
)

func TestEndings(t *testing.T) {
	var got []End
	end := func(e End) { e.Why = ""; got = append(got, e) }
	keyboard := NewI8042(end)
	for _, c := range []struct {
		name   string
		h      Handler
		offset uint64
		data   []byte
		want   []End
	}{
		{"power-off", NewPowerManagement(end), 4, []byte{0x00, 0x20}, []End{{Kind: EndPowerOff}}},
		{"power-off by bytes", NewPowerManagement(end), 5, []byte{0x34}, []End{{Kind: EndPowerOff}}},
		{"sleep type without enable", NewPowerManagement(end), 4, []byte{0x00, 0x1c}, nil},
		{"event enable", NewPowerManagement(end), 2, []byte{0xff, 0xff}, nil},
		{"exit 0", NewDebugExit(end, false), 0, []byte{0}, []End{{Kind: EndCode}}},
		{"exit 7", NewDebugExit(end, false), 0, []byte{7, 0, 0, 0}, []End{{Kind: EndCode, Code: 7}}},
		{"exit 41", NewDebugExit(end, false), 0, []byte{41, 0}, []End{{Kind: EndCode, Code: 41}}},
		{"Unikraft halt", NewDebugExit(end, true), 0, []byte{41, 0}, []End{{Kind: EndPowerOff}}},
		{"Unikraft crash", NewDebugExit(end, true), 0, []byte{42, 0}, []End{{Kind: EndCrash}}},
		{"panic", NewPanic(end), 0, []byte{1}, []End{{Kind: EndCrash}}},
		{"crash kernel loaded", NewPanic(end), 0, []byte{2}, nil},
		{"reset control", NewResetControl(end), 0, []byte{6}, []End{{Kind: EndReset}}},
		{"reset control, CPU bit only", NewResetControl(end), 0, []byte{2}, nil},
		{"keyboard reset", keyboard.Command(), 0, []byte{0xfe}, []End{{Kind: EndReset}}},
		{"keyboard pulse of another line", keyboard.Command(), 0, []byte{0xfd}, nil},
	} {
		got = nil
		c.h.Write(c.offset, c.data)
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

func TestKeyboardControllerAnswers(t *testing.T) {
	k := NewI8042(func(End) { t.Error("ended") })
	get := func(h Handler) byte {
		b := []byte{0xff}
		h.Read(0, b)
		return b[0]
	}
	if s := get(k.Command()); s&i8042OutputFull != 0 {
		t.Errorf("status %#x before any command", s)
	}
	k.Command().Write(0, []byte{0xaa})
	if s := get(k.Command()); s&i8042OutputFull == 0 {
		t.Errorf("status %#x, want an answer", s)
	}
	if b := get(k.Data()); b != 0x55 {
		t.Errorf("self test answered %#x", b)
	}
	k.Command().Write(0, []byte{0xd1})
	k.Data().Write(0, []byte{0xdd}) // A20 off, reset line high
	k.Command().Write(0, []byte{0xd0})
	if b := get(k.Data()); b&i8042A20 == 0 {
		t.Errorf("output port %#x: A20 cannot be switched off", b)
	}
	for range 100 {
		k.Command().Write(0, []byte{0xaa})
	}
	if len(k.out) > i8042Answers {
		t.Errorf("%d answers kept", len(k.out))
	}
}

func TestClockTellsTheTime(t *testing.T) {
	now := time.Date(2031, time.December, 9, 23, 58, 7, 0, time.UTC) // a Tuesday
	c := NewCMOS(func() time.Time { return now }, 48<<20)
	read := func(i byte) byte {
		c.Write(0, []byte{i | 0x80})
		b := []byte{0xff}
		c.Read(1, b)
		return b[0]
	}
	for reg, want := range map[byte]byte{
		cmosSeconds: 0x07, cmosMinutes: 0x58, cmosHours: 0x23, cmosWeekday: 3, cmosDay: 0x09, cmosMonth: 0x12, cmosYear: 0x31, cmosCentury: 0x20,
		cmosStatusB: statusB24, cmosStatusD: statusDValid,
		cmosBaseLow: 0x80, cmosBaseLow + 1: 2, cmosExtLow: 0x00, cmosExtLow + 1: 0xbc, cmosHighLow: 0x00, cmosHighLow + 1: 2,
	} {
		if got := read(reg); got != want {
			t.Errorf("register %#x: %#x, want %#x", reg, got, want)
		}
	}
	for range 1000 {
		if read(cmosStatusA)&0x80 != 0 {
			t.Fatal("an update in progress")
		}
	}
	c.Write(0, []byte{cmosHours})
	c.Write(1, []byte{0x01})
	c.Write(0, []byte{0x40})
	c.Write(1, []byte{0x5a})
	if read(cmosHours) != 0x23 || read(0x40) != 0x5a {
		t.Error("RAM is not kept, or the clock was set")
	}
}
