# make help describes the targets.
SHELL := /bin/bash
GO ?= go
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.6.1
# Prints how many tests were skipped, and what each of them lacked.
GOTESTSUM := gotest.tools/gotestsum@v1.13.0
export CGO_ENABLED := 0
# Without the folder in them, tests and released programs share what has been compiled, wherever the checkout is.
export GOFLAGS := $(strip $(filter-out -trimpath,$(shell $(GO) env GOFLAGS)) -trimpath)

# Packages that baking and the lab need; no daemon among them.
TOOLS := mmdebstrap extlinux syslinux-common fdisk e2fsprogs systemd-container iproute2 util-linux
# Programs that check generated files in tests, and real daemons for the agent's tests.
# php and a web server come before wordpress, which would otherwise install Apache.
CHECKERS := fish zsh genisoimage haproxy keepalived nginx-light php8.2-fpm php8.2-cli php8.2-mysql php8.2-redis php wordpress redis-server redis-sentinel \
	mariadb-server galera-4 mariadb-backup cloud-init nftables iptables shellcheck qemu-system-x86 qemu-utils curl faketime \
	dnf rpm createrepo-c gnupg ruby xz-utils xfsprogs vagrant attr lvm2 patch
# Installs and runs PHP 7.2, centos7's version.
ifeq ($(shell command -v npm),)
CHECKERS += nodejs npm
endif
# For the test of the agent with real GlusterFS servers, in network namespaces.
GLUSTER := glusterfs-server glusterfs-client
# Wrong clocks, for the fault matrix and the soak test.
FAULT_TOOLS := faketime
# For the lab's virtual machines, and for their tests to log in.
VM_TOOLS := qemu-system-x86 qemu-utils openssh-client
# For the hosts in the test of examples/libvirt.
LIBVIRT := libvirt-daemon-system libvirt-clients
# What looks at the site.
BROWSER := chromium chromium-driver openssl
# For make bench to compare with.
BENCHERS := cloud-image-utils genisoimage qemu-utils mkosi debootstrap apt-utils xz-utils apache2-utils redis-server haproxy

.PHONY: help
help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

# What imagegen --version prints: the last tag and the distance from it.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null)
BIN ?= bin

# The agent has no version: every commit would change it, and so rebake all images. It has no HTTP/2, which nothing asks it for: half a megabyte
# of each node's memory.
.PHONY: build
build: ## bin/imagegen and bin/imagegen-node
	@mkdir -p $(BIN)
	$(GO) build -buildvcs=false -tags nethttpomithttp2 -ldflags '-s -w' -o $(BIN)/ ./cmd/imagegen-node
	$(GO) build -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)' -o $(BIN)/ ./cmd/imagegen

# $(call missing,PACKAGES): a shell expression that lists those that are not installed.
missing = $$(for p in $(1); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done)

# $(call install,PACKAGES): installs missing packages with APT. Their daemons do not start; only the programs are needed.
define install
@missing=$(call missing,$(1)); [ -z "$$missing" ] || { \
  [ "$$(id -u)" = 0 ] || { echo "make: run it as root: it needs packages that are not installed:" $$missing >&2; exit 1; }; \
  echo "installing" $$missing; policy=/usr/sbin/policy-rc.d; \
  [ -e $$policy ] || { trap "rm -f $$policy" EXIT; printf '#!/bin/sh\nexit 101\n' >$$policy; chmod 755 $$policy; }; \
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(APT_OPTIONS) $$missing >/dev/null; }
endef

# The package names are Debian 12's.
DEBIAN12 := $(shell . /etc/os-release 2>/dev/null; [ "$$ID$$VERSION_ID" = debian12 ] && [ "$$(id -u)" = 0 ] && echo yes)

.PHONY: tools
tools: ## installs the packages that baking and the lab need (Debian 12, root)
	$(call install,$(TOOLS))

.PHONY: checkers
checkers: ## installs the programs that the tests use (Debian 12, root; elsewhere does nothing, and tests that lack one are skipped)
ifeq ($(DEBIAN12),yes)
	$(call install,$(TOOLS) $(CHECKERS))
endif

.PHONY: demo
demo: tools build ## builds and runs the reference cluster (root)
	@[ -e demo/cluster.yaml ] || bin/imagegen init --distro debian12 demo
	bin/imagegen build -f demo/cluster.yaml -o demo/dist
	bin/imagegen up -f demo/cluster.yaml -o demo/dist --wait
	@bin/imagegen status -f demo/cluster.yaml -o demo/dist

.PHONY: test
test: checkers ## installs what it needs (Debian 12, root), then: formatting, vet, staticcheck, builds for macOS and Windows, all tests except the end-to-end ones; SKIP=REGEXP leaves some out
	@unformatted=$$(gofmt -l .); [ -z "$$unformatted" ] || { echo "gofmt: $$unformatted"; exit 1; }
	$(GO) vet ./...
	@# Without optimizations: nobody runs them.
	GOOS=darwin $(GO) build -gcflags 'all=-N -l' -o /dev/null ./cmd/imagegen
	GOOS=windows $(GO) build -gcflags 'all=-N -l' -o /dev/null ./cmd/imagegen
	$(GO) run $(STATICCHECK) ./...
	@# Go's cache of results knows nothing of installed programs or of who runs the tests: skipped ones would stay skipped.
	@# go vet has run above.
	$(GO) run $(GOTESTSUM) --format pkgname -- -count=1 -vet=off -timeout 20m $(if $(SKIP),-skip '$(SKIP)') $$($(GO) list ./... | grep -v -e '/e2e$$' -e '/bench$$')

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (default 60s)
	@for pkg in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$pkg | grep ^Fuzz); do \
	    echo "$$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $${FUZZTIME:-60s} $$pkg || exit 1; \
	  done; done

.PHONY: e2e
e2e: tools build ## the reference cluster in the lab: bakes, boots in three orders, faults, five minutes of random faults, three VMs (root)
	$(call install,$(VM_TOOLS) $(GLUSTER) $(FAULT_TOOLS) $(BROWSER))
	IMAGEGEN_E2E=1 $(GO) test -count=1 -p 1 -timeout 75m -v ./e2e ./lab
	@# Not beside the cluster: bakes take all processors, and its boots have time limits.
	IMAGEGEN_E2E=1 $(GO) test -count=1 -timeout 30m -run 'TestGlusterForReal|TestCentOSBake|TestReproducible' -v ./agent ./images

.PHONY: e2e-soak
e2e-soak: tools build ## random faults under load for TIME (default 1h); SEED replays a run (root)
	$(call install,$(FAULT_TOOLS))
	IMAGEGEN_E2E=soak IMAGEGEN_SOAK_TIME=$(TIME) IMAGEGEN_SOAK_SEED=$(SEED) $(GO) test -count=1 -timeout 0 -run TestSoak -v ./e2e

.PHONY: e2e-faults
e2e-faults: tools build ## every fault of the matrix in docs/faults.md, under load; IMAGEGEN_FAULTS=REGEXP picks some (root)
	$(call install,$(FAULT_TOOLS))
	IMAGEGEN_E2E=faults $(GO) test -count=1 -timeout 90m -run TestFaults -v ./e2e

.PHONY: e2e-changes
e2e-changes: tools build ## every change of the table in docs/changes.md, under load; IMAGEGEN_CHANGES=REGEXP picks some (root)
	IMAGEGEN_E2E=changes $(GO) test -count=1 -timeout 300m -run 'TestChanges$$' -v ./e2e

# The last commit without generations.
EARLIER ?= 6d7cc2310125d83a0be96788a35ad75465a5e2ef
.PHONY: e2e-upgrade
e2e-upgrade: tools build ## a cluster made by an earlier imagegen (EARLIER=COMMIT) is rolled to this one, under load (root)
	dir=$$(mktemp -d) && trap "rm -rf $$dir" EXIT && git archive $(EARLIER) | tar -x -C $$dir && $(MAKE) -C $$dir build BIN=bin && \
	IMAGEGEN_E2E=upgrade IMAGEGEN_EARLIER=$$dir/bin/imagegen $(GO) test -count=1 -timeout 60m -run TestUpgrade -v ./e2e

.PHONY: e2e-gluster
e2e-gluster: tools build ## real GlusterFS servers, as in e2e, and one whose brick does not start when it is added: half an hour (root)
	$(call install,$(GLUSTER))
	IMAGEGEN_E2E=gluster $(GO) test -count=1 -timeout 60m -run TestGlusterForReal -v ./agent

.PHONY: e2e-vm
e2e-vm: tools build ## virtual machines, emulated where KVM does not work: every controller, the reference cluster, bakes; hours on two cores (root)
	$(call install,$(VM_TOOLS) $(LIBVIRT))
	IMAGEGEN_E2E=vm $(GO) test -count=1 -timeout 300m -run 'TestBoot|TestVirtualMachines|TestExecOnLibvirt' -v ./e2e
	IMAGEGEN_E2E=vm $(GO) test -count=1 -timeout 120m -run TestBakeIn -v ./images
	IMAGEGEN_E2E=vm $(GO) test -count=1 -timeout 120m -v ./machines/virtualbox
	IMAGEGEN_E2E=vm $(GO) test -count=1 -timeout 90m -run TestLibvirt -v ./machines/exec

.PHONY: e2e-incus
e2e-incus: tools build ## three Incus hosts on this machine: the suite of providers, a tier, and the reference cluster, of whose hosts one and two are lost (root)
	IMAGEGEN_E2E=incus $(GO) test -count=1 -timeout 30m -v ./machines/incus
	IMAGEGEN_E2E=incus $(GO) test -count=1 -timeout 90m -run TestIncus -v ./e2e

.PHONY: e2e-incus-tier
e2e-incus-tier: tools build ## the part of e2e-incus that .ci/run has time for: five nodes on three hosts, one of which loses its power (root)
	IMAGEGEN_E2E=incus $(GO) test -count=1 -timeout 30m -run 'TestIncus$$' -v ./e2e

.PHONY: e2e-incus-changes
e2e-incus-changes: tools build ## the core of the table of changes on three Incus hosts, under load; IMAGEGEN_CHANGES=REGEXP picks some (root)
	IMAGEGEN_E2E=incus $(GO) test -count=1 -timeout 120m -run 'TestChangesOnIncus$$' -v ./e2e

.PHONY: bench
bench: tools build ## beside other tools: BENCH=seeds,scale,vmdk,bake,builders,page,site,idle; see docs/bench.md for its variables (root)
	$(call install,$(BENCHERS))
	BENCH=$${BENCH:-seeds,scale,vmdk,bake,builders,page,site,idle} BENCH_DISK='$(abspath $(BENCH_DISK))' $(GO) test -count=1 -timeout 180m -v ./bench
