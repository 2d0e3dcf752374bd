# make run    builds bin/conclave and starts a one-node server for development
# make test   runs everything that needs no container engine
# See `make help` for the rest.

SHELL := /bin/bash
GO    ?= go
export GOTOOLCHAIN := local

# Release binaries are static and built on the FIPS 140-3 validated module.
GOFIPS140 ?= v1.0.0
RELEASE   := $(shell cat VERSION)
VERSION   := $(RELEASE)+$(shell git describe --always --dirty --exclude '*' 2>/dev/null || echo unknown)
LDFLAGS   := -s -w -X github.com/conclavekms/conclave/cmd/conclave/internal/cli.Version=$(VERSION)

# The protobuf files and what is generated from them.
PROTO := $(shell git ls-files -co --exclude-standard '*.proto')

.PHONY: help run build release demo test test-full test-pkcs11 test-tpm check race bench bench-audit scale faults soak image compose-test test-clients test-clients-uncached test-witness test-tlog test-sinks test-sinks-uncached fuzz generate generate-check deb deb-check helm-check observability-check clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  make \1\t/' | expand -t 32

bin/conclave: build

build: ## build bin/conclave
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/conclave ./cmd/conclave

# The same source and the same Go give the same bytes, wherever they are built: nothing of
# the directory, the time or the machine gets into a binary, and no C compiler is used.
release: ## bin/release: binaries for linux on the validated FIPS module, checksums, bills of materials
	@rm -rf bin/release && mkdir -p bin/release
	@set -e; for arch in amd64 arm64; do name=bin/release/conclave-$(RELEASE)-linux-$$arch; \
		CGO_ENABLED=0 GOFIPS140=$(GOFIPS140) GOOS=linux GOARCH=$$arch $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o $$name ./cmd/conclave; \
		$(GO) run ./cmd/sbom -version $(RELEASE) $$name > $$name.cdx.json; done
	cd bin/release && sha256sum conclave-* > SHA256SUMS && cat SHA256SUMS

deb: build release ## bin/release: Debian packages of the release's binaries; needs dpkg-deb
	@set -e; for arch in amd64 arm64; do packaging/deb/build $(RELEASE) $$arch bin/release/conclave-$(RELEASE)-linux-$$arch bin/conclave bin/release; done
	cd bin/release && sha256sum conclave-* conclave_*.deb > SHA256SUMS

deb-check: ## the package in a fresh Debian, from installation to purge; needs root and debootstrap
	@[ -e bin/deb-root/etc/debian_version ] || { rm -rf bin/deb-root; debootstrap --variant=minbase bookworm bin/deb-root; }
	CONCLAVE_NO_SKIP=1 CONCLAVE_DEB_ROOT=$(CURDIR)/bin/deb-root $(GO) test -count=1 -timeout 10m -run '^TestDeb' -v ./packaging

helm-check: build ## render the Helm chart and check it against the schema of Kubernetes; a module of its own
	cd packaging/helm/check && $(GO) vet . && CONCLAVE_BINARY=$(CURDIR)/bin/conclave $(GO) test -count=1 -timeout 5m .

PROMTOOL := github.com/prometheus/prometheus/cmd/promtool@v0.316.0

observability-check: ## the alert rules and their unit tests with promtool; the first build takes minutes
	@[ -x bin/tools/promtool ] || GOBIN=$(CURDIR)/bin/tools CGO_ENABLED=0 $(GO) install $(PROMTOOL)
	cd packaging/observability && $(CURDIR)/bin/tools/promtool check config prometheus.yml && $(CURDIR)/bin/tools/promtool test rules alerts_test.yml

run: build ## start a development server on loopback
	bin/conclave dev $(ARGS)

demo: build ## three nodes, the ceremony, a crash, and what they promise
	bin/conclave demo

# The longest packages begin first. Three at a time, since they wait a lot.
test: check ## everything that needs no container engine
	$(GO) test -p 3 -timeout 60m ./integration/faults ./integration/security ./cluster ./cmd/conclave ./integration/faketime ./...

test-full: ## the same, with more rounds of what is tested by repetition
	CONCLAVE_FULL=1 $(MAKE) --no-print-directory test

# A program with the race detector sleeps for a second when it ends, by default. The tests of
# commands start hundreds.
race: ## all tests but the heaviest under the race detector
	GORACE=atexit_sleep_ms=20 $(GO) test -race -short -p 3 -timeout 20m ./cmd/conclave ./keyengine ./cluster ./integration/faketime ./...

test-pkcs11: ## what the tag pkcs11 adds, with SoftHSM
	CGO_ENABLED=1 $(GO) vet -tags pkcs11 ./keyengine/... ./cmd/...
	CGO_ENABLED=1 $(GO) test -tags pkcs11 -run 'HSM|Token|KeyStays|ManyAtOnce|HangingModule|Store' -timeout 5m ./keyengine ./keyengine/internal/hsm ./keyengine/seal

test-tpm: ## what the tag tpm adds, with swtpm
	$(GO) vet -tags tpm ./keyengine/seal ./cmd/...
	$(GO) test -tags tpm -run TPM -timeout 5m ./keyengine/seal

check: ## formatting, vet, staticcheck
	@unformatted=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); \
		if [ -n "$$unformatted" ]; then echo "not gofmt-ed:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

bench: build ## throughput and latency beside bare echoes, and of a user beside root, on three nodes
	bin/conclave bench --user $(ARGS)

bench-audit: ## the audit log with RECORDS records, ten million if not given: rates, bytes, memory, searches; needs 1.1 KB of disk for each
	CONCLAVE_AUDIT_RECORDS=$${RECORDS:-10000000} $(GO) test -count=1 -timeout 3h -run '^TestScale$$' -v ./keyengine/internal/auditindex

scale: ## 100,000 keys, aliases and grants, and 100,000 users, beside an empty cluster, and keys restored from a backup
	CONCLAVE_SCALE=$${CONCLAVE_SCALE:-100000} $(GO) test -count=1 -timeout 30m -run '^TestScale(Users)?$$' -v ./integration/scale
	CONCLAVE_SCALE=$${CONCLAVE_SCALE:-100000} $(GO) test -count=1 -timeout 20m -run '^TestBackupDrill$$' -v ./cmd/conclave

faults: ## paused processes, hung, slow and full disks, an archive and hostile receivers of the audit log, at length; needs strace and root
	CONCLAVE_FAULTS=1 CONCLAVE_FULL=1 CONCLAVE_NO_SKIP=1 $(GO) test -count=1 -timeout 30m -run '^Test(Pauses|HungDisk|SlowDisk|FullDisk|ArchivedLog)$$' -v ./integration/faults
	CONCLAVE_FAULTS=1 $(GO) test -count=1 -timeout 30m -run '^Test(HostileSinks|WaitingRecords)$$' -v ./integration/sinks

soak: ## faults and rotation under load for CONCLAVE_SOAK (default 75m); timings of shares
	CONCLAVE_TIMING_RUNS=1000000 $(GO) test -count=1 -timeout 30m -run '^TestTiming$$' -v ./keyengine/internal/shamir
	CONCLAVE_SOAK=$${CONCLAVE_SOAK:-75m} $(GO) test -count=1 -timeout 6h -run '^TestSoak$$' -v ./integration/faults

# A number of executions and not a duration: when a duration ends, go test may report
# "context deadline exceeded" as the target's failure (https://go.dev/issue/75804, mended
# in Go 1.27). Inputs that reach new code are hardly minimized, which otherwise takes
# most of the time.
fuzz: ## each fuzz target, FUZZTIME executions of it (default 100000x)
	@mkdir -p bin
	@set -e; for pkg in $$(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u); do \
		$(GO) test -c -fuzz . -o bin/fuzz.test $$pkg; \
		for f in $$(bin/fuzz.test -test.list '^Fuzz'); do \
			echo "== $$pkg $$f"; (cd $$pkg && $(CURDIR)/bin/fuzz.test -test.run '^$$' -test.fuzz "^$$f$$" -test.fuzztime $${FUZZTIME:-100000x} -test.fuzzminimizetime 10x \
				-test.fuzzcachedir "$$($(GO) env GOCACHE)/fuzz/$$($(GO) list)"); \
		done; done

image: ## build the container image conclave:latest from the static binary
	@mkdir -p bin/image/data bin/image/tls bin/image/tmp bin/image/ca bin/image/split/node-1 bin/image/split/node-2 bin/image/split/node-3 bin/image/split/operator
	CGO_ENABLED=0 GOFIPS140=$(GOFIPS140) $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/image/conclave ./cmd/conclave
	docker build -t conclave:latest .

compose-test: image ## the three nodes of docker-compose.yml, ceremony included
	CONCLAVE_COMPOSE_TEST=1 $(GO) test -count=1 -timeout 10m -run '^TestCompose' -v ./integration/docs

# Programs and libraries that others wrote for AWS KMS: modules of their own, so
# that each is built of the versions that it asks for. PROGRAMS are those that are
# built and tested; the libraries always are.
CLIENTS   := integration/clients
PROGRAMS  ?= sops cosign seaweedfs
sops      := github.com/getsops/sops/v3/cmd/sops
cosign    := github.com/sigstore/cosign/v3/cmd/cosign
seaweedfs := github.com/seaweedfs/seaweedfs/weed

test-clients: build $(CLIENTS)/js/node_modules/.package-lock.json ## clients of AWS KMS, unmodified; the first build takes minutes
	@mkdir -p bin/clients
	@set -ex; $(foreach p,$(PROGRAMS),(cd $(CLIENTS)/$(p) && CGO_ENABLED=0 $(GO) build -o $(CURDIR)/bin/clients/ $($(p)));) true
	cd $(CLIENTS) && $(GO) vet ./... && CONCLAVE_BINARY=$(CURDIR)/bin/conclave CONCLAVE_PROGRAMS="$(PROGRAMS)" $(GO) test -count=1 -timeout 10m ./...

$(CLIENTS)/js/node_modules/.package-lock.json: $(CLIENTS)/js/package-lock.json
	@if command -v npm >/dev/null; then cd $(CLIENTS)/js && npm ci --ignore-scripts --no-audit --no-fund && touch node_modules/.package-lock.json; \
		else echo "there is no npm: no clients in JavaScript"; fi

test-clients-uncached: ## count the packages that test-clients would have to compile
	@{ $(foreach p,$(PROGRAMS),(cd $(CLIENTS)/$(p) && CGO_ENABLED=0 $(GO) build -n -o /dev/null $($(p)));) \
		(cd $(CLIENTS) && $(GO) test -n ./...); } 2>&1 | grep -c '/compile ' || true

# OpenTelemetry's collector, a module of its own.
COLLECTOR := integration/collector

test-sinks: ## the audit log streamed to OpenTelemetry's collector; the first build takes minutes
	cd $(COLLECTOR) && $(GO) vet ./... && CGO_ENABLED=0 $(GO) build -o $(CURDIR)/bin/collector .
	CONCLAVE_COLLECTOR=$(CURDIR)/bin/collector $(GO) test -count=1 -timeout 10m -run '^TestCollector$$' -v ./integration/sinks

test-sinks-uncached: ## count the packages that test-sinks would have to compile
	@(cd $(COLLECTOR) && CGO_ENABLED=0 $(GO) build -n -o /dev/null .) 2>&1 | grep -c '/compile ' || true

test-tlog: build ## programs that others wrote for transparency logs judge the published audit log; a module of its own
	cd integration/tlog && $(GO) vet ./... && CONCLAVE_BINARY=$(CURDIR)/bin/conclave $(GO) test -count=1 -timeout 5m ./...

# Its go.sum is made with `go mod tidy -e`: a test of torchwood's own needs a module that the
# module proxy does not have.
test-witness: build ## witnesses and logs that others wrote, with Conclave's; a module of its own, whose first build takes minutes
	cd integration/tlog/witness && $(GO) vet . && CONCLAVE_BINARY=$(CURDIR)/bin/conclave $(GO) test -count=1 -timeout 10m .

generate: ## regenerate protobuf code, the README's table, docs/compatibility.md and docs/cli.md; needs protoc
	@mkdir -p bin
	$(GO) build -o bin/protoc-gen-go google.golang.org/protobuf/cmd/protoc-gen-go
	$(GO) build -o bin/protoc-gen-go-grpc google.golang.org/grpc/cmd/protoc-gen-go-grpc
	protoc --plugin=bin/protoc-gen-go --plugin=bin/protoc-gen-go-grpc \
		--go_out=. --go_opt=module=github.com/conclavekms/conclave \
		--go-grpc_out=. --go-grpc_opt=module=github.com/conclavekms/conclave $(PROTO)
	$(GO) test -count=1 ./integration/docs -run '^Test(SupportTable|Compatibility)$$' -update
	$(GO) test -count=1 ./cmd/conclave -run '^TestDocs$$' -update

generate-check: generate ## fail if generated code is not what is committed
	git diff --exit-code -- '*.pb.go' README.md docs/compatibility.md docs/cli.md

clean: ## remove what was built
	rm -rf bin $(CLIENTS)/js/node_modules
