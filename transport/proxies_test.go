package transport

import (
	"strings"
	"testing"
)

func TestSourceIP(t *testing.T) {
	for in, want := range map[string]string{
		"10.1.2.3:4567":           "10.1.2.3",
		"[2001:db8::1]:443":       "2001:db8::1",
		"[fe80::1%eth0]:443":      "fe80::1",
		"@":                       "@",
		"[::ffff:10.0.0.1]:12345": "10.0.0.1",
	} {
		if got := SourceIP(in); got != want {
			t.Errorf("SourceIP(%q): got %q, want %q", in, got, want)
		}
	}
}

// Only what trusted proxies have written counts: a client can send any header, and can have
// the proxies append to it.
func TestForwardedSource(t *testing.T) {
	const client, proxy, inner, v6proxy = "203.0.113.9", "10.0.0.2", "10.0.0.3", "2001:db8:1::2"
	proxies, err := ParseProxies([]string{"10.0.0.0/24", "2001:db8:1::/64", "192.0.2.7"})
	if err != nil {
		t.Fatal(err)
	}
	at := func(host string) string {
		if strings.Contains(host, ":") {
			return "[" + host + "]:4711"
		}
		return host + ":4711"
	}
	for _, tt := range []struct {
		name, peer, want string
		headers          []string
	}{
		{"no header", proxy, proxy, nil},
		{"one proxy", proxy, client, []string{client}},
		{"one address as a proxy", "192.0.2.7", client, []string{client}},
		{"two proxies", proxy, client, []string{client + ", " + inner}},
		{"two headers", proxy, client, []string{client, inner}},
		{"client sends one too", proxy, client, []string{"198.51.100.1, " + client}},
		{"client sends another header", proxy, client, []string{"198.51.100.1", client}},
		{"client names a proxy", proxy, client, []string{inner + "," + client}},
		{"client sends nonsense", proxy, client, []string{"nonsense, ,,\x00," + client}},
		{"client sends very much", proxy, client, []string{strings.Repeat("198.51.100.1,", 2000) + client}},
		{"client is no proxy", client, client, []string{"198.51.100.1"}},
		{"client is no proxy and names one", client, client, []string{"198.51.100.1, " + proxy}},
		{"next to the proxies", "10.0.1.2", "10.0.1.2", []string{client}},
		{"IPv6", v6proxy, "2001:db8:2::9", []string{"2001:DB8:2:0::9"}},
		{"IPv6 proxy, IPv4 client", v6proxy, client, []string{client}},
		{"mapped peer", "::ffff:" + proxy, client, []string{client}},
		{"mapped client", proxy, client, []string{"::ffff:" + client}},
		{"mapped proxy", proxy, client, []string{client + ", ::ffff:" + inner}},
		{"port", proxy, client, []string{client + ":1234"}},
		{"IPv6 with port", proxy, "2001:db8:2::9", []string{"[2001:db8:2::9]:1234"}},
		{"white space", proxy, client, []string{"\t" + client + " \t"}},
		{"only proxies", proxy, proxy, []string{inner + ", " + v6proxy}},
		{"empty", proxy, proxy, []string{""}},
		{"empty element", proxy, proxy, []string{client + ","}},
		{"unknown", proxy, proxy, []string{"unknown"}},
		{"unknown behind a proxy", proxy, proxy, []string{client + ", unknown, " + inner}},
		{"name", proxy, proxy, []string{"localhost"}},
		{"zone", proxy, proxy, []string{"fe80::1%eth0"}},
		{"range", proxy, proxy, []string{"203.0.113.0/24"}},
		{"octal", proxy, proxy, []string{"203.0.113.010"}},
		{"in quotes", proxy, proxy, []string{`"203.0.113.9"`}},
		{"white space within", proxy, proxy, []string{"203.0.113. 9"}},
		{"too many proxies", proxy, proxy, []string{client + strings.Repeat(", "+inner, maxHops)}},
		{"as many proxies as there may be", proxy, client, []string{client + strings.Repeat(", "+inner, maxHops-1)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := proxies.SourceIP(at(tt.peer), tt.headers); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			if got, want := Proxies(nil).SourceIP(at(tt.peer), tt.headers), strings.TrimPrefix(tt.peer, "::ffff:"); got != want {
				t.Errorf("without trusted proxies: got %s, want %s", got, want)
			}
		})
	}
	if got := proxies.SourceIP("@", []string{client}); got != "@" {
		t.Errorf("of a peer without an address: got %s, want @", got)
	}
}

func TestParseProxies(t *testing.T) {
	for _, bad := range []string{"", "proxy.example.com", "10.0.0.0/33", "10.0.0.1:80", "fe80::1%eth0", "0.0.0.0/0", "::/0", "::ffff:0:0/90", "::ffff:0.0.0.0/96"} {
		if _, err := ParseProxies([]string{"10.0.0.1", bad}); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	p, err := ParseProxies([]string{"::ffff:10.0.0.0/120", "::ffff:192.0.2.7", "10.1.2.3/8"})
	if err != nil {
		t.Fatal(err)
	}
	for _, peer := range []string{"10.0.0.9:1", "192.0.2.7:1", "10.200.0.1:1"} {
		if got := p.SourceIP(peer, []string{"203.0.113.9"}); got != "203.0.113.9" {
			t.Errorf("behind %s: got %s, want 203.0.113.9", peer, got)
		}
	}
}
