package transport

import (
	"crypto/tls"
	"net"
	"strings"

	"github.com/conclavekms/conclave/keyengine/iam"
)

// maxUserAgent bounds what is kept of a header that the caller fills in freely.
const maxUserAgent = 1024

// TLSInfo describes a connection for the audit record, in CloudTrail's words:
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

// The names are made once: every request asks, and for a cipher's crypto/tls
// builds its whole list.
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

// SourceIP takes the address out of a connection's "host:port". Only the
// connection says where a request comes from: headers that claim another origin
// are the caller's own words, and policies decide by this address.
func SourceIP(remote string) string {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return remote
	}
	host, _, _ = strings.Cut(host, "%")
	return host
}

// UserAgent makes a caller's User-Agent fit for a record: valid UTF-8, and not
// longer than 1,024 bytes.
func UserAgent(s string) string {
	if len(s) > maxUserAgent {
		s = s[:maxUserAgent]
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
