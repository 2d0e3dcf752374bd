package xks

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"
)

const (
	// DefaultTimeout is AWS's for every call, a TLS handshake included.
	DefaultTimeout = 250 * time.Millisecond
	// maxBody bounds an answer. The longest legal one has 4300 bytes of ciphertext
	// in base64.
	maxBody = 32 << 10
	// maxHeader bounds the headers of an answer.
	maxHeader = 16 << 10
	// maxConnections bounds the connections to one host, so that a slow proxy holds
	// up no more than that; further calls wait, within their time.
	maxConnections = 64
)

// Config is what a client works with. Its zero value is AWS's behaviour.
type Config struct {
	// AllowPrivate lets endpoints be on addresses that are not public, such as
	// loopback and private networks.
	AllowPrivate bool
	// Roots are the authorities of proxies' certificates; nil for the system's.
	Roots *x509.CertPool
	// Timeout of a call; 0 for DefaultTimeout.
	Timeout time.Duration
	// Now is the time that requests are signed with; nil for the system's.
	Now func() time.Time
}

// Client calls proxies. It is safe for concurrent use.
type Client struct {
	http    *http.Client
	timeout time.Duration
	now     func() time.Time
}

// New returns a client.
func New(cfg Config) *Client {
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	dialer := &net.Dialer{}
	if !cfg.AllowPrivate {
		dialer.Control = refusePrivate
	}
	return &Client{
		timeout: cfg.Timeout, now: cfg.Now,
		http: &http.Client{
			// Whoever answers with a redirect is not the proxy of the specification,
			// and where it points is nobody's business to be made to call.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Transport: &http.Transport{
				Proxy:                  nil, // the environment's is not for keys
				DialContext:            dialer.DialContext,
				TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: cfg.Roots},
				ForceAttemptHTTP2:      true,
				DisableCompression:     true, // a bounded answer must not grow
				MaxConnsPerHost:        maxConnections,
				MaxIdleConnsPerHost:    maxConnections,
				IdleConnTimeout:        90 * time.Second,
				MaxResponseHeaderBytes: maxHeader,
			},
		},
	}
}

// Close ends the connections that are idle.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Proxy is where a key store's keys are, and what requests to it are signed with.
type Proxy struct {
	Endpoint    string // https://host, with a port where that is allowed
	Path        string // […]/kms/xks/v1
	Region      string // of the key store
	AccessKeyID string
	// SigningKey writes the SigV4 key of a day, Region and service, 32 bytes, to
	// dst. The client wipes it.
	SigningKey func(dst []byte, date, region, service string) error
}

// Origin says for whom and why a call is made: the specification's requestMetadata.
type Origin struct {
	Principal string `json:"awsPrincipalArn,omitempty"`
	Key       string `json:"kmsKeyArn,omitempty"`
	Operation string `json:"kmsOperation"`
	RequestID string `json:"kmsRequestId"`
}

// call makes one request, and returns the body of an answer that is a success.
func (c *Client) call(ctx context.Context, p *Proxy, operation string, body any) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	payload, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("request to an external key store proxy: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.Endpoint+p.Path+operation, bytes.NewReader(payload))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	req.Header.Set("Content-Type", "application/json")
	// Every call may be made twice. The header itself is not sent: it tells
	// net/http to try again on a connection that the proxy had just closed.
	req.Header["Idempotency-Key"] = nil
	if err := sign(req, p, payload, c.now()); err != nil {
		return nil, err
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, transportFailure(ctx, err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxBody+1))
	switch {
	case err != nil:
		return nil, transportFailure(ctx, err)
	case len(answer) > maxBody:
		return nil, malformed("more than %d bytes", maxBody)
	case res.StatusCode != http.StatusOK:
		return nil, decodeFailure(res.StatusCode, answer)
	}
	return answer, nil
}

// notPublic are networks that no public endpoint is on, beside those that
// netip.Addr knows. Some hold IPv4 addresses inside.
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

// public tells whether an address can be that of a public endpoint.
func public(a netip.Addr) bool {
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

// refusePrivate looks at the address that is about to be connected to. What the
// name resolved to earlier, or elsewhere, does not matter.
func refusePrivate(_, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil || !public(at.Addr()) {
		return ErrAddress
	}
	return nil
}
