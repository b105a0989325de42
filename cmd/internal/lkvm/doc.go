// Package lkvm is kvmtool's command line in front of gvmm: subcommands, options,
// defaults, files and exit statuses, so that scripts written for lkvm run
// unchanged. What differs is in docs/lkvm.md.
package lkvm
