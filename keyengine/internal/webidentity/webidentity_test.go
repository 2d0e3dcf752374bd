package webidentity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"github.com/conclavekms/conclave/keyengine/issuertest"
)

// clock is a clock that only tests move.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// patient is a timeout that a loaded machine keeps.
const patient = 30 * time.Second

func newIssuers(t *testing.T, i *issuertest.Issuer, c *clock) *Issuers {
	s := NewIssuers(Config{AllowPrivate: true, Roots: i.Roots(), Timeout: patient}, c.Now)
	t.Cleanup(s.Close)
	return s
}

// verify verifies a token with keys that are fetched.
func verify(t *testing.T, s *Issuers, raw string, now time.Time) (*Claims, error) {
	t.Helper()
	token, err := Parse(raw)
	if err != nil {
		return nil, err
	}
	keys, err := s.Keys(t.Context(), token)
	if err != nil {
		return nil, err
	}
	return token.Verify(t.Context(), keys, now)
}

func TestAlgorithms(t *testing.T) {
	t.Parallel()
	i, c := issuertest.New(t), newClock()
	s := newIssuers(t, i, c)
	for _, alg := range []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"} {
		i.Rotate(alg)
		c.Advance(fetchEvery)
		claims, err := verify(t, s, i.Sign(i.Claims(c.Now(), "ann", "app")), c.Now())
		if err != nil {
			t.Errorf("%s: %v", alg, err)
			continue
		}
		if claims.Subject != "ann" || !cmp.Equal(claims.Audience, []string{"app"}) || claims.Expires.Unix() != c.Now().Add(time.Hour).Unix() {
			t.Errorf("%s: got claims %+v", alg, claims)
		}
	}
}

// What is not signed by a key of the issuer, or is not valid now, is refused.
func TestRefusedTokens(t *testing.T) {
	t.Parallel()
	i, c := issuertest.New(t), newClock()
	s := newIssuers(t, i, c)
	now := c.Now()
	good := i.Claims(now, "ann", "app")
	stranger, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signed := i.Sign(good)
	parts := strings.Split(signed, ".")
	raw := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	var public jose.JSONWebKeySet
	if err := json.Unmarshal(i.Keys(), &public); err != nil {
		t.Fatal(err)
	}
	secret := public.Keys[0].Key.(*rsa.PublicKey).N.Bytes()
	for name, tt := range map[string]struct {
		token string
		want  error
	}{
		"good":                       {signed, nil},
		"almost expired":             {i.Sign(good.With(issuertest.Claims{"exp": now.Unix() + 1})), nil},
		"expired now":                {i.Sign(good.With(issuertest.Claims{"exp": now.Unix()})), ErrExpired},
		"expired":                    {i.Sign(good.With(issuertest.Claims{"exp": now.Unix() - 1})), ErrExpired},
		"no expiry":                  {i.Sign(good.With(issuertest.Claims{"exp": nil})), ErrExpired},
		"not yet":                    {i.Sign(good.With(issuertest.Claims{"nbf": now.Unix() + 301})), ErrSignature},
		"almost":                     {i.Sign(good.With(issuertest.Claims{"nbf": now.Unix() + 300})), nil},
		"issued in the future":       {i.Sign(good.With(issuertest.Claims{"iat": now.Unix() + 301})), ErrSignature},
		"no subject":                 {i.Sign(good.With(issuertest.Claims{"sub": nil})), ErrSignature},
		"long subject":               {i.Sign(good.With(issuertest.Claims{"sub": strings.Repeat("s", 401)})), ErrSignature},
		"no issuer":                  {i.Sign(good.With(issuertest.Claims{"iss": nil})), ErrMalformed},
		"issuer with another scheme": {i.Sign(good.With(issuertest.Claims{"iss": "ftp://x"})), ErrMalformed},
		"stranger":                   {i.SignWith(stranger, "key-1", "RS256", good), ErrSignature},
		"unknown key":                {i.SignWith(stranger, "key-9", "RS256", good), ErrSignature},
		"another algorithm":          {i.SignWith(curve, "key-1", "ES256", good), ErrSignature},
		"shared key":                 {i.SignWith(secret[:64], "key-1", "HS512", good), ErrMalformed},
		"other payload":              {parts[0] + "." + raw(`{"iss":"`+i.URL+`","sub":"bob","aud":"app","exp":9999999999}`) + "." + parts[2], ErrSignature},
		"no signature":               {parts[0] + "." + parts[1] + ".", ErrSignature},
		"none":                       {raw(`{"alg":"none"}`) + "." + parts[1] + ".", ErrMalformed},
		"two parts":                  {parts[0] + "." + parts[1], ErrMalformed},
		"empty":                      {"", ErrMalformed},
		"not base64":                 {"a.b.c", ErrMalformed},
		"not JSON":                   {raw("x") + "." + raw("y") + "." + raw("z"), ErrMalformed},
		"serialised as JSON":         {`{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`, ErrMalformed},
		"too long":                   {signed + strings.Repeat("A", MaxToken), ErrMalformed},
		"critical header":            {raw(`{"alg":"RS256","kid":"key-1","crit":["x"],"x":1}`) + "." + parts[1] + "." + parts[2], ErrSignature},
		"tags with several values":   {i.Sign(good.With(issuertest.Claims{"https://aws.amazon.com/tags": map[string]any{"principal_tags": map[string]any{"a": []string{"b", "c"}}}})), ErrSignature},
	} {
		c.Advance(fetchEvery)
		if _, err := verify(t, s, tt.token, now); !errors.Is(err, tt.want) || tt.want == nil && err != nil {
			t.Errorf("%s: got error %v, want %v", name, err, tt.want)
		}
	}
}

func TestClaims(t *testing.T) {
	t.Parallel()
	i, c := issuertest.New(t), newClock()
	got, err := verify(t, newIssuers(t, i, c), i.Sign(i.Claims(c.Now(), "ann", "app").With(issuertest.Claims{
		"amr": []string{"pwd", "otp"}, "admin": true, "level": 7, "Team": "blue", "same": "1", "Same": "2", "sUB": "bob", "object": map[string]any{"a": 1}, "mixed": []any{"a", 1},
		"https://aws.amazon.com/tags":            map[string]any{"principal_tags": map[string]any{"Project": []string{"x"}}, "transitive_tag_keys": []string{"Project"}},
		"https://aws.amazon.com/source_identity": "ann@example.com",
	})), c.Now())
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]string{
		"amr": {"pwd", "otp"}, "admin": {"true"}, "level": {"7"}, "team": {"blue"}, "Team": nil, "same": nil, "object": nil, "mixed": nil,
		"sub": {got.Subject}, "aud": {"app"},
	} {
		if !cmp.Equal(got.Values[name], want) {
			t.Errorf("claim %s has values %v, want %v", name, got.Values[name], want)
		}
	}
	if got.Tags["Project"] != "x" || !cmp.Equal(got.Transitive, []string{"Project"}) || got.SourceIdentity != "ann@example.com" {
		t.Errorf("got tags %v, %v and source identity %q", got.Tags, got.Transitive, got.SourceIdentity)
	}
}

// Keys are fetched once and kept, again when a token names a new one, and no more often than
// the limit whatever strangers send.
func TestKeysAreKept(t *testing.T) {
	t.Parallel()
	i, c := issuertest.New(t), newClock()
	s := newIssuers(t, i, c)
	asked := func(want int64, when string) {
		t.Helper()
		if n := i.Requests.Load(); n != want {
			t.Errorf("%s: the issuer was asked %d times, want %d", when, n, want)
		}
	}
	good := func() error { _, err := verify(t, s, i.Sign(i.Claims(c.Now(), "ann", "app")), c.Now()); return err }
	for range 10 {
		if err := good(); err != nil {
			t.Fatal(err)
		}
	}
	asked(2, "ten tokens") // the discovery document and the keys
	old := i.Sign(i.Claims(c.Now(), "ann", "app"))
	i.Rotate("ES256")
	if err := good(); !errors.Is(err, ErrSignature) {
		t.Errorf("a new key right after a fetch: got error %v, want ErrSignature", err)
	}
	for range 10 {
		_ = good()
	}
	asked(2, "a new key within the limit")
	c.Advance(fetchEvery)
	if err := good(); err != nil {
		t.Errorf("a new key: %v", err)
	}
	asked(4, "a new key")
	c.Advance(fetchEvery)
	if _, err := verify(t, s, old, c.Now()); !errors.Is(err, ErrSignature) {
		t.Errorf("a key that was withdrawn: got error %v, want ErrSignature", err)
	}
	asked(6, "a withdrawn key")
	c.Advance(keysFresh)
	if err := good(); err != nil {
		t.Error(err)
	}
	asked(8, "old keys")

	// An issuer that does not answer for a while does no harm, and not for ever.
	i.Break(true)
	c.Advance(keysFresh)
	if err := good(); err != nil {
		t.Errorf("the issuer is broken: %v", err)
	}
	c.Advance(keysKept)
	if err := good(); !errors.Is(err, ErrUnreachable) {
		t.Errorf("the issuer is broken for long: got error %v, want ErrUnreachable", err)
	}
	i.Break(false)
	c.Advance(-24 * time.Hour) // a clock that is set back
	if err := good(); err != nil {
		t.Errorf("the clock was set back: %v", err)
	}
}

// Many who wait for the same keys wait for one request, and each gives up with its context.
func TestKeysAreFetchedTogether(t *testing.T) {
	t.Parallel()
	i, c := issuertest.New(t), newClock()
	i.Hold = make(chan struct{})
	s := newIssuers(t, i, c)
	token := i.Sign(i.Claims(c.Now(), "ann", "app"))
	errs := make(chan error, 20)
	for range cap(errs) {
		go func() { _, err := verify(t, s, token, c.Now()); errs <- err }()
	}
	parsed, err := Parse(token)
	if err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Keys(gone, parsed); !errors.Is(err, ErrUnreachable) {
		t.Errorf("after the end of the context: got error %v, want ErrUnreachable", err)
	}
	close(i.Hold)
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if n := i.Requests.Load(); n != 2 {
		t.Errorf("the issuer was asked %d times, want 2", n)
	}
}

// Nodes do not call addresses that are not public, nor without TLS, unless they may.
func TestAddresses(t *testing.T) {
	t.Parallel()
	secure, plain, c := issuertest.New(t), issuertest.NewInsecure(t), newClock()
	for name, tt := range map[string]struct {
		issuer  *issuertest.Issuer
		private bool
		want    error
	}{
		"private":         {secure, false, ErrUnreachable},
		"private allowed": {secure, true, nil},
		"plain":           {plain, false, ErrUnreachable},
		"plain allowed":   {plain, true, nil},
	} {
		s := NewIssuers(Config{AllowPrivate: tt.private, Roots: secure.Roots(), Timeout: patient}, c.Now)
		_, err := verify(t, s, tt.issuer.Sign(tt.issuer.Claims(c.Now(), "ann", "app")), c.Now())
		s.Close()
		if !errors.Is(err, tt.want) || tt.want == nil && err != nil {
			t.Errorf("%s: got error %v, want %v", name, err, tt.want)
		}
		if tt.want != nil && tt.issuer.Requests.Load() > 2 {
			t.Errorf("%s: the issuer was asked", name)
		}
	}
	for issuer, want := range map[string]bool{
		"http://127.0.0.1:80/x": true, "http://localhost": true, "http://localhost:8080/a": true, "http://[::1]:80": true,
		"http://localhost.example.com": false, "http://127.0.0.1.example.com": false, "http://10.0.0.1:80": false, "https://example.com": true,
	} {
		s := NewIssuers(Config{AllowPrivate: true}, c.Now)
		token, err := Parse(secure.Sign(issuertest.Claims{"iss": issuer}))
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Accepts(token); got != want {
			t.Errorf("issuer %s is accepted: %v, want %v", issuer, got, want)
		}
		s.Close()
	}
}

func TestCheckKeys(t *testing.T) {
	t.Parallel()
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Skip(err)
	}
	set := func(k jose.JSONWebKey) []byte {
		b, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{k}})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(jose.JSONWebKey{Key: curve.Public(), KeyID: "a"})
	if err != nil {
		t.Fatal(err)
	}
	one := string(raw)
	for name, tt := range map[string]struct {
		keys []byte
		good bool
	}{
		"good":           {set(jose.JSONWebKey{Key: curve.Public(), KeyID: "a"}), true},
		"for encryption": {set(jose.JSONWebKey{Key: curve.Public(), KeyID: "a", Use: "enc"}), false},
		"private":        {set(jose.JSONWebKey{Key: curve, KeyID: "a"}), false},
		"shared":         {set(jose.JSONWebKey{Key: []byte("secret"), KeyID: "a"}), false},
		"weak":           {set(jose.JSONWebKey{Key: weak.Public(), KeyID: "a"}), false},
		"unknown beside": {[]byte(strings.Replace(string(set(jose.JSONWebKey{Key: curve.Public(), KeyID: "a"})), `[`, `[{"kty":"XYZ"},`, 1)), true},
		"secret beside":  {[]byte(strings.Replace(string(set(jose.JSONWebKey{Key: curve.Public(), KeyID: "a"})), `[`, `[{"kty":"XYZ","d":"AQ"},`, 1)), false},
		"many":           {[]byte(`{"keys":[` + strings.Repeat(one+",", maxKeys-2) + one + `]}`), true},
		"too many":       {[]byte(`{"keys":[` + strings.Repeat(one+",", maxKeys) + one + `]}`), false},
		"empty":          {[]byte(`{"keys":[]}`), false},
		"not JSON":       {[]byte(`keys`), false},
	} {
		if err := CheckKeys(tt.keys); (err == nil) != tt.good {
			t.Errorf("%s: got error %v", name, err)
		}
	}
}

// FuzzParse: no token makes the parser or the verifier panic, and none verifies that the
// issuer did not sign.
func FuzzParse(f *testing.F) {
	i := issuertest.New(f)
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	good := i.Sign(i.Claims(now, "ann", "app"))
	keys := i.Keys()
	f.Add(good, []byte(keys))
	f.Add("a.b.c", []byte(`{"keys":[]}`))
	f.Fuzz(func(t *testing.T, raw string, jwks []byte) {
		token, err := Parse(raw)
		if err != nil {
			return
		}
		_ = CheckKeys(jwks)
		if claims, err := token.Verify(t.Context(), keys, now); err == nil && claims.Subject != "ann" {
			t.Errorf("a forged token verifies: %q", raw)
		}
	})
}
