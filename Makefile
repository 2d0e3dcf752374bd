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

.PHONY: help run build release demo test check race bench scale image compose-test fuzz generate generate-check clean

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
	rm -rf bin
