package awsapi

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// A browser lets a page read an answer from another origin only if that answer
// names the page's origin (CORS). This does not protect the server, as other
// clients ignore it. It decides whether pages of an origin may use, with this
// server, the credentials that their users give them. So it is off by default, and
// wildcards are not accepted. Requests are signed and no cookies are used, so
// browsers are never told to send any.

const (
	headerOrigin = "Origin"
	// corsMethods and corsHeaders are what signed requests of all SDKs need.
	corsMethods = http.MethodPost
	corsHeaders = "authorization, content-type, x-amz-date, x-amz-target, x-amz-content-sha256, x-amz-security-token, " +
		"x-amz-user-agent, amz-sdk-invocation-id, amz-sdk-request"
	// corsExposed are the headers of an answer that a page may read.
	corsExposed = "x-amzn-requestid, x-amzn-errortype, retry-after, date"
	// corsMaxAge is how long a browser may cache the answer, in seconds: the
	// longest that some of them accept.
	corsMaxAge = "7200"
)

// CheckOrigin returns an error unless s is an origin as browsers send it: scheme,
// host, and the port if it is not the default one. An origin without TLS must be on
// this machine, as anybody could have changed its pages elsewhere.
func CheckOrigin(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "" || u.Hostname() == "" || s != u.Scheme+"://"+u.Host || s != strings.ToLower(s) || strings.ContainsAny(s, "* ,"):
		return fmt.Errorf("%q is not an origin such as https://app.example.com: it needs a scheme, a host and, if it is not the default, a port, in lower case and without wildcards", s)
	case u.Scheme == "https" && u.Port() == "443", u.Scheme == "http" && u.Port() == "80":
		return fmt.Errorf("%q names the default port, which browsers leave out", s)
	case u.Scheme == "https", u.Scheme == "http" && loopback(u.Hostname()):
		return nil
	}
	return fmt.Errorf("%q: an origin must have https, or http on localhost", s)
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || err == nil && ip.IsLoopback()
}

// cors answers a browser that asks whether a page may send a request (a preflight),
// and lets a page of an allowed origin read the answer to a request. It reports
// whether the request is done. It only looks at two headers, since nobody is
// authenticated yet.
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
