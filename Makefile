# gvmm: build, demo, tests, benchmarks. The two targets a newcomer needs are
# `make demo` and `make test`; each fetches what it needs by itself.

GO      ?= go
BIN     := bin
LDFLAGS := -s -w
LINT    := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

export CGO_ENABLED = 0

.PHONY: all build guests demo test unit vet lint integration bench fuzz sloc clean docs/demo.svg

all: build

build: ## the programs, static, in bin/
	$(GO) build -trimpath -ldflags='$(LDFLAGS)' -o $(BIN)/ ./cmd/...
	ln -sf gvmm-firecracker $(BIN)/firecracker # what kraft and Firecracker's SDK call
	ln -sf gvmm $(BIN)/lkvm

guests: ## our own small guests, built from source with gcc
	$(MAKE) -C integration/guests

demo: build guests ## boot the demo unikernel with a disk and a network
	$(GO) run ./integration/demo $(BIN)/gvmm $(BIN)/guests/demo.multiboot

docs/demo.svg: build guests ## the picture of a real run in the README
	$(GO) run ./integration/demo -svg $@ $(BIN)/gvmm $(BIN)/guests/demo.multiboot

test: vet lint unit integration ## everything CI runs

vet:
	$(GO) vet ./...
	GOARCH=arm64 $(GO) vet ./...

lint:
	$(GO) run $(LINT) run ./...

unit: ## packages by themselves, without labs
	$(GO) test $$($(GO) list ./... | grep -v /integration)
	cd sev/internal/difftest && $(GO) test . # other people's code as the judge, in a module of its own

integration: guests ## gvmm end to end: on this machine's KVM and in the x86 lab
	$(GO) test -timeout 40m ./integration/...
	cd integration/fcsdk && $(GO) test . # Firecracker's Go SDK, in a module of its own

bench: build guests ## the promises of docs/performance.md, measured here
	$(GO) run ./integration/bench

fuzz: ## every fuzz target for FUZZTIME each (default 30s)
	./scripts/fuzz $(FUZZTIME)

sloc: ## source lines by room, without tests
	./scripts/sloc

clean:
	rm -rf $(BIN)
	$(MAKE) -C integration/guests clean
