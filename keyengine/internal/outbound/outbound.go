// Package outbound calls the servers that the operator of a node has configured: receivers and
// witnesses of the audit log.
//
// A server may be slow, broken or hostile. So each wait has an end, headers are bounded, and no
// redirect and no proxy of the environment is followed. Its address comes from the operator who
// configures the node, not from a caller of the API, so it may be a private one; but link-local
// addresses are refused, since those are of the metadata services of clouds. Package egress is
// for addresses that others choose.
package outbound

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"
)

// DialTimeout bounds how long a connection may take to be established, and the TLS handshake
// again.
const DialTimeout = 5 * time.Second

const (
	// maxHeader bounds the headers of an answer, in bytes.
	maxHeader = 32 << 10
	// maxPEM bounds files with certificates, in bytes.
	maxPEM = 1 << 20
)

// ReadFile reads a file that configures whom a node calls, or that such a file names. It refuses
// more than limit bytes, also of a file that does not tell its size.
func ReadFile(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s is longer than %d bytes", name, limit)
	}
	return b, nil
}

// TLS configures how servers are authenticated, and how the node is. All values are the
// names of PEM files.
type TLS struct {
	CA   string `json:"ca,omitzero"`   // default: the system's
	Cert string `json:"cert,omitzero"` // of the node as a client; none by default
	Key  string `json:"key,omitzero"`
}

// Config returns the configuration of TLS for the server with the given name.
func (t *TLS) Config(name string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: name}
	if t == nil {
		return c, nil
	}
	if t.CA != "" {
		pem, err := ReadFile(t.CA, maxPEM)
		if err != nil {
			return nil, err
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s has no certificate", t.CA)
		}
	}
	if (t.Cert == "") != (t.Key == "") {
		return nil, errors.New("cert and key belong together")
	}
	if t.Cert != "" {
		own, err := tls.LoadX509KeyPair(t.Cert, t.Key)
		if err != nil {
			return nil, err
		}
		c.Certificates = []tls.Certificate{own}
	}
	return c, nil
}

// Dialer returns a dialer that refuses link-local addresses, and all that are not loopback if
// the connection has no TLS. It checks the address that a name has when it is called.
func Dialer(plain bool) *net.Dialer {
	return &net.Dialer{Timeout: DialTimeout, Control: func(_, address string, _ syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		a := to.Addr().Unmap()
		switch {
		case a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified():
			return fmt.Errorf("%v is link-local or no address of a server", a)
		case plain && !a.IsLoopback():
			return fmt.Errorf("%v is not loopback, and the connection has no TLS", a)
		}
		return nil
	}}
}

// ParseURL parses the URL of a server.
func ParseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, errors.New("the URL cannot be parsed") // it may have a secret
	}
	if u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.Fragment != "" {
		return nil, errors.New("the URL is not https://HOST/…, or http:// on loopback")
	}
	return u, nil
}

// Client returns a client for one server, which may take as long as timeout to answer.
func Client(u *url.URL, t *TLS, timeout time.Duration) (*http.Client, error) {
	conf, err := t.Config(u.Hostname())
	if err != nil {
		return nil, err
	}
	return &http.Client{
		Timeout: timeout,
		Transport: &http.Transport{
			DialContext: Dialer(u.Scheme == "http").DialContext, TLSClientConfig: conf, TLSHandshakeTimeout: DialTimeout,
			ResponseHeaderTimeout: timeout, IdleConnTimeout: time.Minute, MaxIdleConns: 1, MaxConnsPerHost: 1,
			MaxResponseHeaderBytes: maxHeader, DisableCompression: true, ForceAttemptHTTP2: true,
		},
		// A redirect is an answer without success: what is sent goes to the address that was
		// configured, and nowhere else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// WithoutURL returns what is behind an error of http.Client, without the URL, which may have a
// token in it.
func WithoutURL(err error) error {
	for {
		var u interface{ Unwrap() error }
		if !errors.As(err, &u) || !strings.Contains(err.Error(), "://") {
			return err
		}
		inner := u.Unwrap()
		if inner == nil {
			return errors.New("the request failed")
		}
		err = inner
	}
}

// Clipped returns the text of an error for the node's log, quoted and not longer than 300
// characters before that: a server can write into it with what it answers.
func Clipped(err error) string { return fmt.Sprintf("%.300q", err.Error()) }
