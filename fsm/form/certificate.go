package form

import (
	"strings"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

const (
	// MaxPattern is the length of the longest pattern of a certificate mapping, in bytes.
	MaxPattern = 512
	// maxSegments bounds the path of a URI, and so what its evaluation looks up.
	maxSegments = 16
	// maxTrustDomain is the length of the longest trust domain of SPIFFE, in bytes.
	maxTrustDomain = 255

	operatorURI = "conclave://operator/"
	ownScheme   = "conclave"
)

// certificateURI is a URI of a certificate, or the beginning of one, in its parts.
type certificateURI struct {
	scheme, authority string
	segments          int
}

// parseURI parses a URI that a certificate may name a client by. There is one spelling of each:
// the scheme and the authority are in lower case, the path has no empty segments and neither
// "." nor "..", and nothing is escaped. These are the rules of the SPIFFE ID standard, which
// apply to the URIs of other schemes too; those may also have "@" and "+" in the path. A URI
// has no user, port, query or fragment.
func parseURI(s string) (u certificateURI, ok bool) {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok || scheme == "" || !only(scheme, lettersLower+digits+"+.-") || !only(scheme[:1], lettersLower) {
		return u, false
	}
	authority, path, slash := strings.Cut(rest, "/")
	if authority == "" || len(authority) > maxTrustDomain || !only(authority, lettersLower+digits+"._-") {
		return u, false
	}
	u.scheme, u.authority = scheme, authority
	if !slash {
		return u, true
	}
	chars := lettersLower + lettersUpper + digits + "._-"
	if scheme != "spiffe" {
		chars += "@+"
	}
	for segment := range strings.SplitSeq(path, "/") {
		u.segments++
		if segment == "" || segment == "." || segment == ".." || !only(segment, chars) || u.segments > maxSegments {
			return u, false
		}
	}
	return u, true
}

// IsPattern reports whether a text is the pattern of a certificate mapping: a URI, or the
// beginning of URIs up to a slash, followed by an asterisk. Of the cluster's own URIs, only
// that of one operator is a pattern: those of nodes are never clients, and operators are
// named one by one.
func IsPattern(s string) bool {
	beginning, open := strings.CutSuffix(s, "/*")
	u, ok := parseURI(beginning)
	switch {
	case !ok || len(s) > MaxPattern:
		return false
	case u.scheme == ownScheme:
		return !open && strings.HasPrefix(s, operatorURI) && u.segments == 1
	}
	return open || u.segments > 0
}

// PatternsOf returns the patterns that match the URI of a certificate, the longest first. It
// returns none for what is not such a URI.
func PatternsOf(uri string) (patterns []string) {
	u, ok := parseURI(uri)
	if !ok || u.segments == 0 {
		return nil
	}
	add := func(p string) {
		if IsPattern(p) {
			patterns = append(patterns, p)
		}
	}
	add(uri)
	for range u.segments {
		uri = uri[:strings.LastIndexByte(uri, '/')]
		add(uri + "/*")
	}
	return patterns
}

// CheckMapping checks a certificate mapping. It never changes, so that whoever has deleted one
// knows that what it allowed has ended.
func CheckMapping(was, n *fsmpb.CertificateMapping) (broken string) {
	switch {
	case !IsPattern(n.Pattern):
		return "a certificate mapping has no valid pattern"
	case n.Created <= 0:
		return "a certificate mapping has no creation date"
	case len(n.Principal) < minUniqueID || len(n.Principal) > maxUniqueID || !only(n.Principal, lettersUpper+digits):
		return "a certificate mapping has no principal"
	case was != nil:
		return "it changes a certificate mapping"
	}
	return ""
}
