package awsapi

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// Browsers let a page read the answers of another origin only if that one names the
// page's (CORS). It is no protection of the server: whoever has no browser need not
// ask. What it decides is whether pages of an origin may use the credentials that
// their users give them here. So it is off, and takes whole origins alone; and as
// requests are signed and nothing goes by cookies, browsers are never told to send
// any.

const (
	headerOrigin = "Origin"
	// corsMethods and corsHeaders are what a signed request needs, whoever made it.
	corsMethods = http.MethodPost
	corsHeaders = "authorization, content-type, x-amz-date, x-amz-target, x-amz-content-sha256, x-amz-security-token, " +
		"x-amz-user-agent, amz-sdk-invocation-id, amz-sdk-request"
	// corsExposed are the headers of an answer that a page may read.
	corsExposed = "x-amzn-requestid, x-amzn-errortype, retry-after, date"
	// corsMaxAge is how long a browser need not ask again, in seconds: what some of
	// them allow at the most.
	corsMaxAge = "7200"
)

// CheckOrigin tells whether s is an origin as browsers send it: scheme, host and the
// port if it is not the scheme's. Pages that came without TLS could be anybody's,
// unless they are from this machine.
func CheckOrigin(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "" || u.Hostname() == "" || s != u.Scheme+"://"+u.Host || s != strings.ToLower(s) || strings.ContainsAny(s, "* ,"):
		return fmt.Errorf("%q is not an origin, such as https://app.example.com: a scheme, a host and a port if there is one, in lower case and without wildcards", s)
	case u.Scheme == "https" && u.Port() == "443", u.Scheme == "http" && u.Port() == "80":
		return fmt.Errorf("%q names the scheme's own port, which browsers leave out", s)
	case u.Scheme == "https", u.Scheme == "http" && loopback(u.Hostname()):
		return nil
	}
	return fmt.Errorf("%q: an origin is https, or http on localhost", s)
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || err == nil && ip.IsLoopback()
}

// cors answers a browser that asks whether a page may send a request, and lets a
// page of an allowed origin read the answer to one. It reports whether that was all.
// It costs nothing but a look at two headers, since nobody is known yet.
func (h *Handler) cors(w http.ResponseWriter, r *http.Request) (done bool) {
	header := w.Header()
	header.Add("Vary", headerOrigin)
	origin := r.Header[headerOrigin]
	if len(origin) != 1 || !h.origins[origin[0]] {
		return false
	}
	header["Access-Control-Allow-Origin"] = origin
	if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
		header.Set("Access-Control-Expose-Headers", corsExposed)
		return false
	}
	header.Set("Access-Control-Allow-Methods", corsMethods)
	header.Set("Access-Control-Allow-Headers", corsHeaders)
	header.Set("Access-Control-Max-Age", corsMaxAge)
	w.WriteHeader(http.StatusNoContent)
	return true
}
