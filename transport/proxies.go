package transport

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// HeaderForwardedFor is the header in which proxies say where requests come from: each
// appends the address of the client that it has the request from.
const HeaderForwardedFor = "X-Forwarded-For"

// maxHops bounds how many trusted proxies a request may have passed.
const maxHops = 16

// Proxies are the addresses of the proxies that are trusted to say where requests come from.
// Nothing that anybody else sends is believed: conditions of policies, such as those on
// aws:SourceIp, depend on the address.
type Proxies []netip.Prefix

// ParseProxies parses addresses and ranges in CIDR notation.
func ParseProxies(list []string) (Proxies, error) {
	var p Proxies
	for _, s := range list {
		r, err := netip.ParsePrefix(s)
		if err != nil {
			a, aerr := netip.ParseAddr(s)
			if aerr != nil || a.Zone() != "" {
				return nil, fmt.Errorf("%q is neither an IP address nor a range in CIDR notation", s)
			}
			r = netip.PrefixFrom(a, a.BitLen())
		}
		if r.Addr().Is4In6() { // as which addresses are compared
			if r.Bits() < 96 {
				return nil, fmt.Errorf("%q is wider than the IPv4-mapped addresses", s)
			}
			r = netip.PrefixFrom(r.Addr().Unmap(), r.Bits()-96)
		}
		if r.Bits() == 0 {
			return nil, fmt.Errorf("%q is every address, so anybody could say where a request comes from", s)
		}
		p = append(p, r.Masked())
	}
	return p, nil
}

func (p Proxies) trusts(a netip.Addr) bool {
	for _, r := range p {
		if r.Contains(a) {
			return true
		}
	}
	return false
}

// SourceIP returns the address that a request comes from, given the "host:port" of the
// connection and the values of the header X-Forwarded-For.
//
// That is the address of the connection, unless it is a trusted proxy's. Then it is the
// right-most address of the header that is not a trusted proxy's: what is right of it was
// written by trusted proxies, and what is left of it by whoever sent the request to the first
// of them, so it is not even looked at. If that part of the header has anything but
// addresses, or none that is not a proxy's, the address of the connection stands.
func (p Proxies) SourceIP(remote string, forwarded []string) string {
	peer := SourceIP(remote)
	if len(p) == 0 || len(forwarded) == 0 {
		return peer
	}
	a, err := netip.ParseAddr(peer)
	if err != nil || !p.trusts(a) {
		return peer
	}
	hops := 0
	for i := len(forwarded) - 1; i >= 0; i-- {
		for rest, more := forwarded[i], true; more; hops++ {
			var last string
			if at := strings.LastIndexByte(rest, ','); at >= 0 {
				rest, last = rest[:at], rest[at+1:]
			} else {
				last, more = rest, false
			}
			a, ok := forwardedAddress(strings.Trim(last, " \t"))
			if !ok || hops >= maxHops {
				return peer
			}
			if !p.trusts(a) {
				return a.String()
			}
		}
	}
	return peer
}

// forwardedAddress parses an element of the header: an address, which some proxies write with
// the port.
func forwardedAddress(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		var p netip.AddrPort
		if p, err = netip.ParseAddrPort(s); err == nil {
			a = p.Addr()
		}
	}
	return a.Unmap(), err == nil && a.Zone() == ""
}

// SourceIP returns the address of a connection's "host:port", without the zone of a
// link-local address. An IPv4 address is in the form of IPv4, also if it arrived as an
// IPv4-mapped one.
func SourceIP(remote string) string {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return remote
	}
	host, _, _ = strings.Cut(host, "%")
	if strings.HasPrefix(host, "::ffff:") {
		if a, err := netip.ParseAddr(host); err == nil {
			return a.Unmap().String()
		}
	}
	return host
}
