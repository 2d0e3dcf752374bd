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

// maxAddresses is more than any cluster has nodes.
const maxAddresses = 64

// Addresses reads a list of nodes separated by commas: host:port each. Spaces
// around them do not count; a duplicate is an error.
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

// target is what gRPC connects to. One address is left to gRPC, which resolves its
// host; of several, the first that can be connected to is used, and the next
// when that is lost.
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
			return "", nil, fmt.Errorf("address %q of several is not host:port", addr)
		}
	}
	return nodeScheme + ":///" + addrs[0], []grpc.DialOption{grpc.WithResolvers(nodes(addrs))}, nil
}

const nodeScheme = "conclave-nodes"

// nodes resolves to a fixed list of addresses, in order.
type nodes []string

func (nodes) Scheme() string { return nodeScheme }

func (n nodes) Build(_ resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	var state resolver.State
	for _, addr := range n {
		// A node's certificate is for its own name, not for the first's.
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: addr, ServerName: addr}}})
	}
	// An error here is one of the balancer's, which it tells callers itself.
	_ = cc.UpdateState(state)
	return resolved{}, nil
}

// resolved has nothing to look up again.
type resolved struct{}

func (resolved) ResolveNow(resolver.ResolveNowOptions) {}
func (resolved) Close()                                {}

// Loopback reports whether host:port is an address of this machine alone, where what goes
// without TLS stays.
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
