// Package egress says which addresses a node may call when somebody else chose the address:
// whoever creates a key store or registers an identity provider makes the nodes send
// requests to it, and must not reach the operator's network in this way.
package egress

import "net/netip"

// notPublic are networks without public endpoints, in addition to those that netip.Addr
// knows. Some of them embed IPv4 addresses.
var notPublic = func() (nets []netip.Prefix) {
	for _, s := range []string{
		"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24",
		"203.0.113.0/24", "240.0.0.0/4",
		"::/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16", "fec0::/10",
	} {
		nets = append(nets, netip.MustParsePrefix(s))
	}
	return nets
}()

// Public reports whether an address can be that of a public endpoint.
func Public(a netip.Addr) bool {
	a = a.Unmap()
	if !a.IsGlobalUnicast() || a.IsPrivate() || a.Zone() != "" {
		return false
	}
	for _, n := range notPublic {
		if n.Contains(a) {
			return false
		}
	}
	return true
}
