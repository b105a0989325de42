package cli

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/gvmm/gvmm/cca"
	"github.com/gvmm/gvmm/vmm"
)

// realmFlag registers --realm, whose value names what differs from the defaults.
func realmFlag(fs *pflag.FlagSet, cfg *vmm.Config) {
	fs.Var(parsed("hash=sha256|sha512,rpv=HEX,sve-vl=BITS,pmu-counters=N,ipa-bits=N,abi=NAME", func(s string) (err error) {
		cfg.Realm, err = parseRealm(s)
		return err
	}), "realm", "launch as an Arm CCA realm; everything behind the = can be left out; abi: the kernel's interface if it is not found out, "+cca.ABIs())
	fs.Lookup("realm").NoOptDefVal = "on"
}

func parseRealm(s string) (*cca.Config, error) {
	c := new(cca.Config)
	number := func(s string, most uint64) (uint64, error) {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil || n > most {
			return 0, fmt.Errorf("give a number up to %d", most)
		}
		return n, nil
	}
	for o := range strings.SplitSeq(s, ",") {
		key, val, _ := strings.Cut(o, "=")
		var n uint64
		var err error
		switch key {
		case "on":
		case "hash":
			c.Hash, err = cca.ParseHash(val)
		case "rpv":
			c.RPV, err = hex.DecodeString(val)
		case "sve-vl":
			n, err = number(val, 2048)
			c.SVE = uint16(n)
		case "pmu-counters":
			n, err = number(val, 31)
			c.PMU, c.PMUCounters = true, uint8(n)
		case "ipa-bits":
			n, err = number(val, 52)
			c.IPABits = uint8(n)
		case "abi":
			c.ABI = val
		default:
			err = errors.New("unknown: `--help` names the options")
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", o, err)
		}
	}
	return c, nil
}
