package sigv4

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// Signer signs requests to one service in one Region.
type Signer struct {
	AccessKeyID, Region, Service string
	// SignedHeaders are the headers that are signed: names in lower case, in
	// alphabetical order, joined by ";". "host" and "x-amz-date" must be among them.
	SignedHeaders string
	// SigningKey writes the signing key of a day, Region and service to dst, which is
	// KeySize bytes long and wiped after use. Secret returns one for a secret in
	// ordinary memory.
	SigningKey func(dst []byte, date, region, service string) error
}

// Sign sets the headers X-Amz-Date and Authorization. payload is the whole body, and
// r.ContentLength its length if "content-length" is signed. It fails if a header that
// is to be signed is missing, if the request has a query string, or with the error of
// SigningKey.
func (s *Signer) Sign(r *http.Request, payload []byte, now time.Time) error {
	if host, _, ok := signedNames(s.SignedHeaders); !ok || !host || !lists(s.SignedHeaders, "x-amz-date") {
		return fmt.Errorf("sigv4: signed headers %q are not in alphabetical order or lack host or x-amz-date", s.SignedHeaders)
	}
	if r.URL.RawQuery != "" || r.URL.ForceQuery {
		return errors.New("sigv4: a request with a query string cannot be signed")
	}
	stamp := now.UTC().Format(TimeFormat)
	date := stamp[:len(dateFormat)]
	r.Header[HeaderDate] = []string{stamp}
	sum := sha256.Sum256(payload)
	var hash [2 * sha256.Size]byte
	hex.Encode(hash[:], sum[:])
	canonical, err := appendCanonical(make([]byte, 0, 768), r, "", s.SignedHeaders, hash[:])
	if err != nil {
		return fmt.Errorf("sigv4: %w", err)
	}
	text := appendStringToSign(canonical, canonical, stamp, date, s.Region, s.Service)[len(canonical):]
	var key [KeySize]byte
	defer clear(key[:])
	if err := s.SigningKey(key[:], date, s.Region, s.Service); err != nil {
		return err
	}
	var tag [sha256.Size]byte
	b := append(make([]byte, 0, 384), Algorithm+" Credential="+s.AccessKeyID+"/"...)
	b = appendScope(b, date, s.Region, s.Service)
	b = append(b, ", SignedHeaders="+s.SignedHeaders+", Signature="...)
	b = hex.AppendEncode(b, appendSignature(tag[:0], key[:], text))
	r.Header[HeaderAuthorization] = []string{string(b)}
	return nil
}

// Secret returns a SigningKey function for a secret in ordinary memory, which is good
// enough for tools and tests. The function keeps the key that it derived last, and is
// safe for concurrent use.
func Secret(secret string) func(dst []byte, date, region, service string) error {
	type scope struct{ date, region, service string }
	var (
		mu   sync.Mutex
		last scope
		key  [KeySize]byte
	)
	return func(dst []byte, date, region, service string) error {
		mu.Lock()
		defer mu.Unlock()
		if s := (scope{date, region, service}); s != last {
			Derive(key[:], []byte(secret), date, region, service)
			last = s
		}
		copy(dst, key[:])
		return nil
	}
}
