package webidentity

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
)

const (
	// MaxToken is the length of the longest token, in bytes, as in AWS.
	MaxToken = 20_000
	// skew is how far in the future a token may have been issued.
	skew = 5 * time.Minute
	// maxClaims and maxValues bound the claims that become condition keys, and their values.
	maxClaims = 64
	// maxSubject and maxAudience bound a subject and an audience, in bytes. They are in
	// records.
	maxSubject, maxAudience = 400, 255
	maxValues               = 100
	// minRSA and maxRSA bound the length of an issuer's RSA keys, in bits.
	minRSA, maxRSA = 2048, 8192
)

var (
	// ErrMalformed: it is not a token of a kind that is accepted.
	ErrMalformed = errors.New("not a signed token")
	// ErrExpired: the token has expired.
	ErrExpired = errors.New("the token has expired")
	// ErrSignature: none of the keys made the signature, or the token is not valid yet, or
	// lacks a claim.
	ErrSignature = errors.New("the token does not verify")
)

// algorithms are those whose keys an issuer can publish.
var algorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

// Token is a token that has not been verified.
type Token struct {
	// Issuer is the URL of the issuer that the token names, without its scheme.
	Issuer string
	// Insecure is set if the scheme is http and not https.
	Insecure bool
	// KeyID names one of the issuer's keys; "" if the token does not say which it needs.
	KeyID string

	raw, url  string
	algorithm string
}

// Parse returns what a token says of its issuer. It verifies nothing.
func Parse(raw string) (*Token, error) {
	if len(raw) > MaxToken {
		return nil, ErrMalformed
	}
	jws, err := jose.ParseSignedCompact(raw, algorithms)
	if err != nil || len(jws.Signatures) != 1 {
		return nil, ErrMalformed
	}
	var claims struct {
		Issuer string `json:"iss"`
	}
	if json.Unmarshal(jws.UnsafePayloadWithoutVerification(), &claims) != nil {
		return nil, ErrMalformed
	}
	h := jws.Signatures[0].Header
	t := &Token{KeyID: h.KeyID, raw: raw, url: claims.Issuer, algorithm: h.Algorithm}
	var ok bool
	if t.Issuer, ok = strings.CutPrefix(t.url, "https://"); ok {
		return t, nil
	}
	if t.Issuer, t.Insecure = strings.CutPrefix(t.url, "http://"); t.Insecure {
		return t, nil
	}
	return nil, ErrMalformed
}

// OnLoopback reports whether the issuer is on this machine, where it needs no TLS.
func (t *Token) OnLoopback() bool {
	host, _, _ := strings.Cut(t.Issuer, "/")
	if at, err := netip.ParseAddrPort(host); err == nil {
		return at.Addr().IsLoopback()
	}
	name, _, _ := strings.Cut(host, ":")
	return name == "localhost"
}

// Claims are what a verified token says.
type Claims struct {
	Subject  string
	Audience []string
	Expires  time.Time
	// Values has the claims that are texts, numbers, booleans, or lists of texts, as texts,
	// by their names with the letters A to Z in lower case.
	Values map[string][]string

	// The tags and the source identity that the issuer gives sessions, in AWS's claims.
	Tags           map[string]string
	Transitive     []string
	SourceIdentity string
}

// session are AWS's claims for a session.
type session struct {
	Tags struct {
		Principal  map[string][]string `json:"principal_tags"`
		Transitive []string            `json:"transitive_tag_keys"`
	} `json:"https://aws.amazon.com/tags"`
	SourceIdentity string `json:"https://aws.amazon.com/source_identity"`
}

// Verify verifies a token at a time with the keys of its issuer, a JWK set. Whose audience
// it is for is left to the caller.
func (t *Token) Verify(ctx context.Context, jwks []byte, now time.Time) (*Claims, error) {
	keys, err := publicKeys(jwks, t.KeyID, t.algorithm)
	if err != nil {
		return nil, err
	}
	supported := make([]string, len(algorithms))
	for i, a := range algorithms {
		supported[i] = string(a)
	}
	v := oidc.NewVerifier(t.url, &oidc.StaticKeySet{PublicKeys: keys}, &oidc.Config{
		SupportedSigningAlgs: supported, SkipClientIDCheck: true, Now: func() time.Time { return now },
	})
	token, err := v.Verify(ctx, t.raw)
	if _, ok := errors.AsType[*oidc.TokenExpiredError](err); ok {
		return nil, ErrExpired
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSignature, err)
	}
	switch {
	case token.Subject == "" || len(token.Subject) > maxSubject:
		return nil, fmt.Errorf("%w: its subject has %d bytes", ErrSignature, len(token.Subject))
	case !now.Before(token.Expiry): // the library takes a token in the instant in which it expires
		return nil, ErrExpired
	case token.IssuedAt.After(now.Add(skew)):
		return nil, fmt.Errorf("%w: it was issued in the future", ErrSignature)
	}
	c := &Claims{Subject: token.Subject, Expires: token.Expiry}
	for _, a := range token.Audience {
		if len(a) <= maxAudience && len(c.Audience) < maxValues {
			c.Audience = append(c.Audience, a)
		}
	}
	var all map[string]json.RawMessage
	var own session
	if err := errors.Join(token.Claims(&all), token.Claims(&own)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSignature, err)
	}
	c.Values = values(all)
	c.Values["sub"], c.Values["aud"] = []string{c.Subject}, c.Audience
	c.Transitive, c.SourceIdentity = own.Tags.Transitive, own.SourceIdentity
	for k, v := range own.Tags.Principal {
		if len(v) != 1 {
			return nil, fmt.Errorf("%w: the tag %q has %d values", ErrSignature, k, len(v))
		}
		if c.Tags == nil {
			c.Tags = make(map[string]string)
		}
		c.Tags[k] = v[0]
	}
	return c, nil
}

// values returns the claims as the values of condition keys. Two claims whose names differ
// only in their case would be one key, whose value nobody could foresee: neither counts.
func values(claims map[string]json.RawMessage) map[string][]string {
	out := make(map[string][]string)
	seen := make(map[string]int)
	for name := range claims {
		seen[lower(name)]++
	}
	for name, raw := range claims {
		if len(out) == maxClaims || seen[lower(name)] > 1 {
			continue
		}
		if v := textsOf(raw); v != nil {
			out[lower(name)] = v
		}
	}
	return out
}

// textsOf returns the values of a claim as texts, or nil if it is of another kind.
func textsOf(raw json.RawMessage) []string {
	var v any
	d := json.NewDecoder(strings.NewReader(string(raw)))
	d.UseNumber()
	if d.Decode(&v) != nil {
		return nil
	}
	switch v := v.(type) {
	case string:
		return []string{v}
	case bool:
		return []string{strconv.FormatBool(v)}
	case json.Number:
		return []string{v.String()}
	case []any:
		if len(v) > maxValues {
			return nil
		}
		list := make([]string, len(v))
		for i := range v {
			text, ok := v[i].(string)
			if !ok {
				return nil
			}
			list[i] = text
		}
		return list
	}
	return nil
}

// lower returns a text with the letters A to Z in lower case, as condition keys are compared.
func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}

// maxKeys bounds the keys of a set that are looked at.
const maxKeys = 64

// usable returns the keys of a JWK set that can verify tokens. It leaves out keys of kinds
// that are not known, as issuers may publish them too.
func usable(jwks []byte) ([]jose.JSONWebKey, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(jwks, &set); err != nil {
		return nil, fmt.Errorf("not a JWK set: %w", err)
	}
	var keys []jose.JSONWebKey
	for _, raw := range set.Keys {
		var k jose.JSONWebKey
		if len(keys) == maxKeys {
			break
		}
		if k.UnmarshalJSON(raw) != nil || k.Use != "" && k.Use != "sig" || !k.IsPublic() || !k.Valid() {
			continue
		}
		switch p := k.Key.(type) {
		case *rsa.PublicKey:
			if n := p.N.BitLen(); n < minRSA || n > maxRSA {
				continue
			}
		case *ecdsa.PublicKey, ed25519.PublicKey:
		default:
			continue
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// matching returns the keys that a token can be signed with: those with its key id, or all
// if it names none.
func matching(keys []jose.JSONWebKey, id string) []jose.JSONWebKey {
	if id == "" {
		return keys
	}
	return slices.DeleteFunc(slices.Clone(keys), func(k jose.JSONWebKey) bool { return k.KeyID != id })
}

// publicKeys returns the keys of a JWK set that may have signed a token with that key id and
// algorithm.
func publicKeys(jwks []byte, id, algorithm string) (list []crypto.PublicKey, err error) {
	keys, err := usable(jwks)
	if err != nil {
		return nil, err
	}
	for _, k := range matching(keys, id) {
		if k.Algorithm == "" || k.Algorithm == algorithm {
			list = append(list, k.Key)
		}
	}
	return list, nil
}

// CheckKeys checks that a JWK set, such as from a file, has keys that can verify tokens, and
// none that is secret.
func CheckKeys(jwks []byte) error {
	keys, err := usable(jwks)
	switch {
	case err != nil:
		return err
	case len(keys) == 0:
		return errors.New("the JWK set has no public key for signatures")
	case len(keys) == maxKeys: // the set may have more, which would not be looked at
		return fmt.Errorf("the JWK set has %d keys or more", maxKeys)
	}
	// Those who send a private key have mistaken the file. It must not be stored, also if it is
	// of a kind that is not known.
	var set struct {
		Keys []struct {
			D any `json:"d"`
			K any `json:"k"`
		} `json:"keys"`
	}
	if err := json.Unmarshal(jwks, &set); err != nil {
		return fmt.Errorf("not a JWK set: %w", err)
	}
	for _, k := range set.Keys {
		if k.D != nil || k.K != nil {
			return errors.New("the JWK set has a key that is secret")
		}
	}
	return nil
}
