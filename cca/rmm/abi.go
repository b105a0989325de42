package rmm

import "golang.org/x/sys/unix"

// rules are what one version of the series lays down.
type rules struct {
	realms   unix.Errno  // why no realm is created; 0: it is
	cap      int         // the capability of realms
	also     map[int]int // what a kernel of that time answers to other numbers
	explicit bool        // KVM_ENABLE_CAP launches; otherwise populating and running
	early    unix.Errno  // error of a call at the wrong time, where explicit
	feature  int         // number of KVM_ARM_VCPU_REC, where explicit
	needs    bool        // KVM_ARM_VCPU_INIT must ask for it
	update   bool        // populating moves its argument forward; otherwise it returns bytes
	aligned  bool        // the source of populating must be
	gmem     bool        // attributes are the guest_memfd's, which is private for good
	version  int         // major version of the RMM
}

// The numbers are those of the series' own include/uapi/linux/kvm.h; the others
// what mainline had by then: 240 and 241 (nested virtualization), 243 (cacheable
// PFN maps), 244 (guest_memfd flags), 245 (synchronous aborts).
var abis = map[string]rules{
	"none":   {realms: unix.EINVAL, also: map[int]int{240: 1, 241: 1, 243: 1, 244: 1, 245: 1, 251: 1}, gmem: true},
	"no-rmm": {realms: unix.EPERM, cap: 244, also: map[int]int{240: 1, 241: 1, 243: 1}},
	"v5":     {cap: 300, explicit: true, early: unix.EINVAL, feature: 8, version: 1},
	"v7":     {cap: 300, explicit: true, early: unix.EINVAL, feature: 8, needs: true, version: 1},
	"v8":     {cap: 240, explicit: true, early: unix.EPERM, feature: 8, needs: true, version: 1},
	"v9":     {cap: 243, explicit: true, early: unix.EPERM, feature: 9, needs: true, version: 1, also: map[int]int{240: 1, 241: 1}},
	"v10":    {cap: 244, explicit: true, early: unix.EPERM, feature: 9, needs: true, version: 1, also: map[int]int{240: 1, 241: 1, 243: 1}},
	"v12":    {cap: 247, version: 1, also: map[int]int{240: 1, 241: 1, 243: 1, 244: 1, 245: 1}},
	"v13":    {cap: 248, version: 2, update: true, aligned: true, also: map[int]int{240: 1, 241: 1, 243: 1, 244: 1, 245: 1}},
	"v14":    {cap: 249, version: 2, update: true, aligned: true, also: map[int]int{240: 1, 241: 1, 243: 1, 244: 1, 245: 1}},
	"v15":    {cap: 251, version: 2, update: true, aligned: true, gmem: true, also: map[int]int{240: 1, 241: 1, 243: 1, 244: 1, 245: 1, 250: 8}},
}

// caps are what every one of these kernels answers.
var caps = map[int]int{
	32: 1, 36: 1, 66: 64, 77: 1, 126: 1, 131: 1, 136: 1, // irqfd, ioeventfd, vCPUs, MSIs, PMU, device ids, immediate exit
	170: 1, 171: 1, 172: 1, 231: 1, 234: 1, // SVE, pointer authentication, memory slots with guest_memfd
}

const (
	capIPASize    = 165
	capAttributes = 233
)

func (k *Kernel) check(n int, realm bool) int {
	switch {
	case n == k.rules.cap && n != 0:
		return 1
	case n == capIPASize:
		return k.opt.IPALimit
	case n == capAttributes && !k.rules.gmem:
		return private
	case realm && !k.rules.explicit && n != 250: // they have a list of what realms may know of
		if k.rules.also[n] != 0 {
			return 0
		}
	}
	return caps[n] + k.rules.also[n]
}
