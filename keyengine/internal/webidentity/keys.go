package webidentity

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"

	"github.com/conclavekms/conclave/keyengine/internal/egress"
)

const (
	// defaultTimeout is that of fetching an issuer's keys, both of its documents together.
	defaultTimeout = 5 * time.Second
	// keysFresh is how long the keys of an issuer are used without asking it again. A key
	// that the issuer has withdrawn is no longer accepted after this time.
	keysFresh = 15 * time.Minute
	// keysKept is how long they are used if the issuer cannot be asked.
	keysKept = time.Hour
	// fetchEvery is how often one issuer is asked at most. Anybody can make a token that
	// names a key that is not known.
	fetchEvery = 5 * time.Second
	// maxFetches bounds the requests at once to all issuers.
	maxFetches = 16
	// maxIssuers bounds the issuers whose keys are kept.
	maxIssuers = 1024
	// maxDocument bounds each document of an issuer, in bytes.
	maxDocument = 256 << 10
	maxHeader   = 16 << 10
)

// ErrUnreachable is returned if an issuer's keys cannot be had.
var ErrUnreachable = errors.New("the keys of the identity provider cannot be fetched")

// errAddress: the address of an issuer is not public.
var errAddress = errors.New("the address is not public")

// Config is the operator's configuration. It must be the same on all nodes.
type Config struct {
	// AllowPrivate permits issuers at addresses that are not public, such as that of a
	// Kubernetes API server, and issuers without TLS on loopback, for development. Callers
	// who may register identity providers can then make the nodes send requests into the
	// operator's network.
	AllowPrivate bool
	// Roots are the certificate authorities of issuers. The default is the system's.
	Roots *x509.CertPool
	// Timeout is that of fetching an issuer's keys. The default is 5 s.
	Timeout time.Duration
}

// Issuers has the keys of issuers. It is safe for concurrent use.
//
// Keys of an issuer are fetched again when they are older than keysFresh, or when a token
// names a key that is not among them; that is how issuers replace keys.
type Issuers struct {
	cfg   Config
	now   func() time.Time
	http  *http.Client
	slots chan struct{} // one for each request that may be under way
	life  context.Context
	end   context.CancelFunc
	wait  sync.WaitGroup

	mu  sync.Mutex
	all map[string]*issuer // by URL
}

// issuer is an issuer with its keys. Issuers.mu is held to use it.
type issuer struct {
	keys    []jose.JSONWebKey
	fetched time.Time     // when the issuer was asked for keys; zero if there are none
	tried   time.Time     // when it was last asked
	err     error         // of the last time
	pending chan struct{} // closed when the request under way has ended; nil if there is none
}

// NewIssuers returns Issuers that know no keys yet. The caller must close them.
func NewIssuers(cfg Config, now func() time.Time) *Issuers {
	cfg.Timeout = cmp.Or(cfg.Timeout, defaultTimeout)
	s := &Issuers{cfg: cfg, now: now, slots: make(chan struct{}, maxFetches), all: make(map[string]*issuer)}
	s.life, s.end = context.WithCancel(context.Background())
	dialer := &net.Dialer{}
	if !cfg.AllowPrivate {
		dialer.Control = refusePrivate
	}
	s.http = &http.Client{
		// A redirect could lead to a host that nobody has registered.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: bounded{s, &http.Transport{
			Proxy:                  nil, // ignore proxies in the environment
			DialContext:            dialer.DialContext,
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: cfg.Roots},
			ForceAttemptHTTP2:      true,
			DisableCompression:     true, // a document must not grow beyond its limit
			MaxIdleConnsPerHost:    1,
			IdleConnTimeout:        30 * time.Second,
			MaxResponseHeaderBytes: maxHeader,
		}},
	}
	return s
}

// Close ends requests under way and waits for them.
func (s *Issuers) Close() {
	s.end()
	s.wait.Wait()
	s.http.CloseIdleConnections()
}

// Accepts reports whether tokens of that issuer are accepted, if it is registered: without
// TLS only on loopback, and only for development.
func (s *Issuers) Accepts(t *Token) bool {
	return !t.Insecure || s.cfg.AllowPrivate && t.OnLoopback()
}

// Keys returns the keys with which a token can be verified, as a JWK set, which has none if
// the issuer does not have the key that the token names. It returns ErrUnreachable if the
// keys cannot be fetched. The issuer must be registered, and be one that Accepts accepts.
func (s *Issuers) Keys(ctx context.Context, t *Token) ([]byte, error) {
	s.mu.Lock()
	i := s.issuer(t.url)
	now := s.now()
	age, since := now.Sub(i.fetched), now.Sub(i.tried)
	if fresh := i.keys != nil && 0 <= age && age < keysFresh; fresh && len(matching(i.keys, t.KeyID)) > 0 {
		defer s.mu.Unlock()
		return marshal(matching(i.keys, t.KeyID))
	}
	// A clock that was set back must not keep the keys from being fetched.
	if i.pending == nil && (since < 0 || since >= fetchEvery) {
		i.tried, i.pending = now, make(chan struct{})
		s.wait.Go(func() { s.fetch(t.url, i) })
	}
	pending := i.pending
	s.mu.Unlock()
	if pending != nil {
		select {
		case <-pending:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ErrUnreachable, ctx.Err())
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if age := s.now().Sub(i.fetched).Abs(); i.keys == nil || age >= keysKept {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, cmp.Or(i.err, errors.New("it was asked too often")))
	}
	return marshal(matching(i.keys, t.KeyID))
}

// issuer returns the entry of an issuer. If there are too many, it removes an arbitrary one
// for it.
func (s *Issuers) issuer(url string) *issuer {
	if i := s.all[url]; i != nil {
		return i
	}
	for other, i := range s.all {
		if len(s.all) < maxIssuers {
			break
		}
		if i.pending == nil {
			delete(s.all, other)
		}
	}
	i := new(issuer)
	s.all[url] = i
	return i
}

// fetch asks an issuer for its keys and ends what waits for them.
func (s *Issuers) fetch(url string, i *issuer) {
	ctx, cancel := context.WithTimeout(s.life, s.cfg.Timeout)
	defer cancel()
	at := s.now()
	var keys []jose.JSONWebKey
	var err error
	select {
	case s.slots <- struct{}{}:
		keys, err = s.ask(ctx, url)
		<-s.slots
	case <-ctx.Done():
		err = ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if i.err = err; err == nil {
		i.keys, i.fetched = keys, at
	}
	close(i.pending)
	i.pending = nil
}

// ask fetches the discovery document of an issuer, and then its keys.
func (s *Issuers) ask(ctx context.Context, issuer string) ([]jose.JSONWebKey, error) {
	ctx = oidc.ClientContext(ctx, s.http)
	p, err := oidc.NewProvider(ctx, issuer) // checks that the document is this issuer's
	if err != nil {
		return nil, err
	}
	var doc struct {
		Keys string `json:"jwks_uri"`
	}
	if err := p.Claims(&doc); err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, doc.Keys, nil)
	if err != nil {
		return nil, err
	}
	res, err := s.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	switch {
	case err != nil:
		return nil, err
	case res.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("the keys at %s are answered with %s", doc.Keys, res.Status)
	}
	keys, err := usable(body)
	if err == nil && len(keys) == 0 {
		err = fmt.Errorf("there is no public key for signatures at %s", doc.Keys)
	}
	return keys, err
}

// bounded limits where requests go and what comes back.
type bounded struct {
	s    *Issuers
	next *http.Transport
}

// RoundTrip implements http.RoundTripper.
func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	if !b.s.mayAsk(r.URL) {
		return nil, errors.New("only https URLs are asked")
	}
	res, err := b.next.RoundTrip(r)
	if err == nil {
		res.Body = http.MaxBytesReader(nil, res.Body, maxDocument)
	}
	return res, err
}

// CloseIdleConnections lets http.Client close them.
func (b bounded) CloseIdleConnections() { b.next.CloseIdleConnections() }

// mayAsk reports whether a URL may be asked: with TLS, or on loopback, for development.
func (s *Issuers) mayAsk(u *url.URL) bool {
	return u.Scheme == "https" || u.Scheme == "http" && s.cfg.AllowPrivate && (&Token{Issuer: u.Host}).OnLoopback()
}

// marshal returns keys as a JWK set.
func marshal(keys []jose.JSONWebKey) ([]byte, error) {
	if keys == nil {
		keys = []jose.JSONWebKey{}
	}
	return json.Marshal(jose.JSONWebKeySet{Keys: keys})
}

// refusePrivate checks the address right before the connection is made, so that an earlier
// resolution of the name does not matter.
func refusePrivate(_, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil || !egress.Public(at.Addr()) {
		return errAddress
	}
	return nil
}
