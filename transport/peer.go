package transport

import (
	"crypto/tls"
	"strings"

	"github.com/conclavekms/conclave/keyengine/iam"
)

// These bound what is kept of headers that the caller chooses freely.
const (
	maxUserAgent = 1024
	maxHost      = 261 // a name in DNS and a port
)

// TLSInfo describes a connection for the audit record, with CloudTrail's names:
// "TLSv1.3", "TLS_AES_128_GCM_SHA256", "X25519MLKEM768". nil is a connection without TLS.
// host is the one that the client asks for, in its Host header or pseudo-header.
func TLSInfo(state *tls.ConnectionState, host string) iam.TLS {
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
	exchange := ""
	if state.CurveID != 0 { // which a resumed connection of TLS 1.2 does not have
		exchange = state.CurveID.String()
	}
	return iam.TLS{Version: version, Cipher: cipher, Host: bounded(host, maxHost), KeyExchange: exchange}
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
	return bounded(s, maxUserAgent)
}

// bounded returns the beginning of a text as valid UTF-8.
func bounded(s string, most int) string {
	return strings.ToValidUTF8(s[:min(len(s), most)], "\uFFFD")
}
