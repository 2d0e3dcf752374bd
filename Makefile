# make run    builds bin/conclave and starts a one-node server for development
# make test   runs everything that needs no container engine
# See `make help` for the rest.

SHELL := /bin/bash
GO    ?= go
export GOTOOLCHAIN := local

# Release binaries are static and built on the FIPS 140-3 validated module.
GOFIPS140 ?= v1.0.0
LDFLAGS   := -s -w -X main.version=$(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

# The protobuf files and what is generated from them.
PROTO := $(shell git ls-files -co --exclude-standard '*.proto')

.PHONY: help run build release demo test test-pkcs11 check race bench scale image compose-test test-clients test-clients-uncached fuzz generate generate-check clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

bin/conclave: build

build: ## build bin/conclave
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/conclave ./cmd/conclave

release: ## build bin/conclave on the validated FIPS module
	@mkdir -p bin
	CGO_ENABLED=0 GOFIPS140=$(GOFIPS140) $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/conclave ./cmd/conclave

run: build ## start a development server on loopback
	bin/conclave dev $(ARGS)

demo: build ## three nodes, the ceremony, a crash, and what they promise
	bin/conclave demo

test: check ## everything that needs no container engine
	$(GO) test -timeout 7m ./...

race: ## all tests but the heaviest under the race detector
	$(GO) test -race -short -timeout 20m ./...

test-pkcs11: ## what the tag pkcs11 adds, with SoftHSM
	CGO_ENABLED=1 $(GO) vet -tags pkcs11 ./keyengine/... ./cmd/...
	CGO_ENABLED=1 $(GO) test -tags pkcs11 -run 'HSM|Token|KeyStays|ManyAtOnce|HangingModule|Store' -timeout 5m ./keyengine ./keyengine/internal/hsm

check: ## formatting, vet, staticcheck
	@unformatted=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); \
		if [ -n "$$unformatted" ]; then echo "not gofmt-ed:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

bench: build ## throughput and latency beside bare echoes, on three nodes
	bin/conclave bench $(ARGS)

scale: ## 100,000 keys, aliases and grants beside an empty cluster
	CONCLAVE_SCALE=$${CONCLAVE_SCALE:-100000} $(GO) test -count=1 -timeout 20m -run '^TestScale$$' -v ./integration

fuzz: ## each fuzz target for FUZZTIME (default 10s)
	@set -e; for pkg in $$($(GO) list ./...); do \
		for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
			echo "== $$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $${FUZZTIME:-10s} $$pkg; \
		done; done

image: ## build the container image conclave:latest from the static binary
	@mkdir -p bin/image/data bin/image/tls bin/image/tmp
	CGO_ENABLED=0 GOFIPS140=$(GOFIPS140) $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/image/conclave ./cmd/conclave
	docker build -t conclave:latest .

compose-test: image ## the three nodes of docker-compose.yml, ceremony included
	CONCLAVE_COMPOSE_TEST=1 $(GO) test -count=1 -timeout 10m -run '^TestCompose' -v ./integration

# Programs and libraries that others wrote for AWS KMS: modules of their own, so
# that each is built of the versions that it asks for.
CLIENTS := integration/clients
SOPS    := github.com/getsops/sops/v3/cmd/sops
COSIGN  := github.com/sigstore/cosign/v3/cmd/cosign

test-clients: build $(CLIENTS)/js/node_modules/.package-lock.json ## clients of AWS KMS, unmodified; the first build takes minutes
	@mkdir -p bin/clients
	cd $(CLIENTS)/sops && CGO_ENABLED=0 $(GO) build -o $(CURDIR)/bin/clients/ $(SOPS)
	cd $(CLIENTS)/cosign && CGO_ENABLED=0 $(GO) build -o $(CURDIR)/bin/clients/ $(COSIGN)
	cd $(CLIENTS) && $(GO) vet ./... && CONCLAVE_BINARY=$(CURDIR)/bin/conclave $(GO) test -count=1 -timeout 7m ./...

$(CLIENTS)/js/node_modules/.package-lock.json: $(CLIENTS)/js/package-lock.json
	@if command -v npm >/dev/null; then cd $(CLIENTS)/js && npm ci --ignore-scripts --no-audit --no-fund && touch node_modules/.package-lock.json; \
		else echo "there is no npm: no clients in JavaScript"; fi

# How many packages test-clients would have to compile, for .ci/run.
test-clients-uncached:
	@{ (cd $(CLIENTS)/sops && CGO_ENABLED=0 $(GO) build -n -o /dev/null $(SOPS)); \
		(cd $(CLIENTS)/cosign && CGO_ENABLED=0 $(GO) build -n -o /dev/null $(COSIGN)); \
		(cd $(CLIENTS) && $(GO) test -n ./...); } 2>&1 | grep -c '/compile ' || true

generate: ## regenerate protobuf code, the README's table and docs/compatibility.md; needs protoc
	@mkdir -p bin
	$(GO) build -o bin/protoc-gen-go google.golang.org/protobuf/cmd/protoc-gen-go
	$(GO) build -o bin/protoc-gen-go-grpc google.golang.org/grpc/cmd/protoc-gen-go-grpc
	protoc --plugin=bin/protoc-gen-go --plugin=bin/protoc-gen-go-grpc \
		--go_out=. --go_opt=module=github.com/conclavekms/conclave \
		--go-grpc_out=. --go-grpc_opt=module=github.com/conclavekms/conclave $(PROTO)
	$(GO) test -count=1 ./integration -run '^Test(SupportTable|Compatibility)$$' -update

generate-check: generate ## fail if generated code is not what is committed
	git diff --exit-code -- '*.pb.go' README.md docs/compatibility.md

clean: ## remove what was built
	rm -rf bin $(CLIENTS)/js/node_modules
