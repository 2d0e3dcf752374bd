package client

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/resolver"
)

// maxAddresses is more than the number of nodes in any cluster.
const maxAddresses = 64

// Addresses parses a list of nodes separated by commas, each of the form
// host:port. Spaces around them are ignored. A duplicate is an error.
func Addresses(list string) ([]string, error) {
	var addrs []string
	seen := make(map[string]bool)
	for part := range strings.SplitSeq(list, ",") {
		addr := strings.TrimSpace(part)
		switch {
		case addr == "":
			return nil, errors.New("an address is empty")
		case seen[addr]:
			return nil, fmt.Errorf("duplicate address %s", addr)
		case len(addrs) == maxAddresses:
			return nil, fmt.Errorf("more than %d addresses", maxAddresses)
		}
		seen[addr] = true
		addrs = append(addrs, addr)
	}
	return addrs, nil
}

// target returns what gRPC connects to. A single address is left to gRPC, which
// resolves its host. Of several, the first that accepts a connection is used, and
// the next one when that connection is lost.
func target(list string) (string, []grpc.DialOption, error) {
	addrs, err := Addresses(list)
	if err != nil {
		return "", nil, err
	}
	if len(addrs) == 1 {
		return addrs[0], nil, nil
	}
	for _, addr := range addrs {
		if host, port, err := net.SplitHostPort(addr); err != nil || host == "" || port == "" {
			return "", nil, fmt.Errorf("address %q in the list is not of the form host:port", addr)
		}
	}
	return nodeScheme + ":///" + addrs[0], []grpc.DialOption{grpc.WithResolvers(nodes(addrs))}, nil
}

const nodeScheme = "conclave-nodes"

// nodes is a resolver that returns a fixed list of addresses, in order.
type nodes []string

func (nodes) Scheme() string { return nodeScheme }

func (n nodes) Build(_ resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	var state resolver.State
	for _, addr := range n {
		// The certificate of each node is for its own name, not for that of the
		// first one.
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: addr, ServerName: addr}}})
	}
	// An error here comes from the balancer, which reports it to callers
	// itself.
	_ = cc.UpdateState(state)
	return resolved{}, nil
}

// resolved is the resolver after that; it has nothing to look up again.
type resolved struct{}

func (resolved) ResolveNow(resolver.ResolveNowOptions) {}
func (resolved) Close()                                {}

// Loopback reports whether host:port is a loopback address, so that traffic without TLS
// stays on this machine.
func Loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}
