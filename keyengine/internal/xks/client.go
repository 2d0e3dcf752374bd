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

	"github.com/conclavekms/conclave/keyengine/internal/egress"
)

const (
	// DefaultTimeout is AWS's timeout for every call, including a TLS handshake.
	DefaultTimeout = 250 * time.Millisecond
	// maxBody is the maximum length of an answer. The longest valid one has 4300 bytes of
	// ciphertext in base64.
	maxBody = 32 << 10
	// maxHeader is the maximum length of an answer's headers.
	maxHeader = 16 << 10
	// maxConnections is the maximum number of connections to one host, so that a slow proxy
	// cannot occupy more. Further calls wait, within their timeout.
	maxConnections = 64
)

// Config configures a Client. The zero value behaves like AWS.
type Config struct {
	// AllowPrivate permits endpoints with addresses that are not public, such as loopback
	// and private networks.
	AllowPrivate bool
	// Roots are the certificate authorities of proxies. The default is the system's.
	Roots *x509.CertPool
	// Timeout is the timeout of a call. The default is DefaultTimeout.
	Timeout time.Duration
	// Now returns the time for signatures. The default is the system's clock.
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
			// The specification has no redirects. Following one could make this node call a
			// host of the attacker's choice.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Transport: &http.Transport{
				Proxy:                  nil, // ignore proxies in the environment
				DialContext:            dialer.DialContext,
				TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: cfg.Roots},
				ForceAttemptHTTP2:      true,
				DisableCompression:     true, // an answer must not grow beyond its limit
				MaxConnsPerHost:        maxConnections,
				MaxIdleConnsPerHost:    maxConnections,
				IdleConnTimeout:        90 * time.Second,
				MaxResponseHeaderBytes: maxHeader,
			},
		},
	}
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Proxy describes the proxy of a key store and the key that signs requests to it.
type Proxy struct {
	Endpoint    string // https://host, with a port where that is allowed
	Path        string // […]/kms/xks/v1
	Region      string // of the key store
	AccessKeyID string
	// SigningKey writes the SigV4 key for a day, Region and service, 32 bytes, to dst. The
	// client wipes it.
	SigningKey func(dst []byte, date, region, service string) error
}

// Origin describes the request that causes a call: the specification's requestMetadata.
type Origin struct {
	Principal string `json:"awsPrincipalArn,omitempty"`
	Key       string `json:"kmsKeyArn,omitempty"`
	Operation string `json:"kmsOperation"`
	RequestID string `json:"kmsRequestId"`
}

// call makes one request and returns the body of a successful answer.
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
	// Calls are idempotent. The header itself is not sent: it makes net/http retry if the
	// proxy had just closed the connection.
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

// refusePrivate checks the address right before the connection is made, so that an earlier
// resolution of the name does not matter.
func refusePrivate(_, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil || !egress.Public(at.Addr()) {
		return ErrAddress
	}
	return nil
}
