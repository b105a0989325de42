package sev

import (
	"fmt"
	"slices"
	"strings"
)

// Signature returns CPUID leaf 1 EAX for a family, model and stepping (AMD
// 25481, CPUID Fn0000_0001_EAX). QEMU starts its vCPUs with it in RDX.
func Signature(family, model, stepping uint32) uint32 {
	sig := model>>4&0xf<<16 | model&0xf<<4 | stepping&0xf
	if family > 0xf {
		return sig | (family-0xf)&0xff<<20 | 0xf<<8
	}
	return sig | family<<8
}

// cpuTypes are the AMD server models that QEMU knows, by the name before the
// version suffix. QEMU's versions of a model change features, never the signature.
var cpuTypes = []struct {
	name string
	sig  uint32
}{
	{"EPYC", Signature(23, 1, 2)}, // Naples
	{"EPYC-IBPB", Signature(23, 1, 2)},
	{"EPYC-Rome", Signature(23, 49, 0)},
	{"EPYC-Milan", Signature(25, 1, 1)},
	{"EPYC-Genoa", Signature(25, 17, 0)},
	{"EPYC-Turin", Signature(26, 0, 0)},
}

// TypeSignature returns the CPUID signature of a vCPU type as QEMU names it:
// "EPYC-Milan", with or without a version as in "EPYC-Milan-v2"; "Naples" to
// "Turin" alone do as well.
func TypeSignature(name string) (uint32, error) {
	base := strings.ToLower(name)
	if i := strings.LastIndex(base, "-v"); i >= 0 && i+2 < len(base) && strings.Trim(base[i+2:], "0123456789") == "" {
		base = base[:i]
	}
	if base == "naples" {
		base = "epyc"
	}
	var known []string
	for _, t := range cpuTypes {
		if lower := strings.ToLower(t.name); base == lower || "epyc-"+base == lower {
			return t.sig, nil
		}
		known = append(known, t.name)
	}
	slices.Sort(known)
	return 0, fmt.Errorf("unknown vCPU type %q: known are %s, each also with a version such as -v2", name, strings.Join(known, ", "))
}
