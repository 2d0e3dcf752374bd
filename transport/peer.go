package transport

import (
	"crypto/tls"
	"strings"

	"github.com/conclavekms/conclave/keyengine/iam"
)

// maxUserAgent bounds what is kept of a header that the caller chooses freely.
const maxUserAgent = 1024

// TLSInfo describes a connection for the audit record, with CloudTrail's names:
// "TLSv1.3", "TLS_AES_128_GCM_SHA256". nil is a connection without TLS.
func TLSInfo(state *tls.ConnectionState) iam.TLS {
	if state == nil {
		return iam.TLS{}
	}
	version, ok := versionNames[state.Version]
	if !ok {
		version = versionName(state.Version)
	}
	cipher, ok := cipherNames[state.CipherSuite]
	if !ok {
		cipher = tls.CipherSuiteName(state.CipherSuite)
	}
	return iam.TLS{Version: version, Cipher: cipher}
}

func versionName(v uint16) string { return strings.Replace(tls.VersionName(v), "TLS ", "TLSv", 1) }

// The names are computed once, as every request needs them and crypto/tls
// builds its whole list of cipher suites to look one up.
var (
	versionNames = make(map[uint16]string)
	cipherNames  = make(map[uint16]string)
)

func init() {
	for _, c := range tls.CipherSuites() {
		cipherNames[c.ID] = c.Name
	}
	for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		versionNames[v] = versionName(v)
	}
}

// UserAgent returns a caller's User-Agent for a record: as valid UTF-8, and no
// longer than 1,024 bytes.
func UserAgent(s string) string {
	if len(s) > maxUserAgent {
		s = s[:maxUserAgent]
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
