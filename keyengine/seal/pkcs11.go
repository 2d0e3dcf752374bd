//go:build pkcs11

package seal

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"time"

	"github.com/conclavekms/conclave/keyengine/internal/hsm"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
)

// pkcs11Seal is a seal whose key is in a token. It encrypts with AES-256-GCM there.
type pkcs11Seal struct {
	tokenKey
	open     func() (*hsm.Module, error)
	patience time.Duration // with open
	digest   [32]byte      // key for the digests of PINs

	mu      sync.Mutex // one use at a time, each bounded by package hsm
	loaded  *hsm.Module
	opening chan opened
	// refused is the digest of the PIN that the token has refused. It is not tried again,
	// since a few wrong ones lock the token, and the node tries to be unsealed for ever.
	refused []byte
}

// opened is the result of open.
type opened struct {
	module *hsm.Module
	err    error
}

// sealToken is how package hsm is told of the one token.
const sealToken = "seal"

// moduleTimeout bounds how long a caller waits for the module to be loaded.
const moduleTimeout = 5 * time.Second

var errPINRefused = errors.New("the token has refused the PIN in the file, which is not tried again before it changes")

func openPKCS11(k tokenKey) (Seal, error) {
	p := &pkcs11Seal{tokenKey: k, patience: moduleTimeout}
	p.open = func() (*hsm.Module, error) { return hsm.Open(k.module, map[string]string{sealToken: k.token}) }
	_, _ = rand.Read(p.digest[:]) // never fails: crypto/rand ends the process instead
	return p, nil
}

// Name implements Seal. Tokens with the same label are the same one for it, as those of
// a replicated HSM are.
func (p *pkcs11Seal) Name() string {
	return "pkcs11:" + url.PathEscape(p.token) + "/" + url.PathEscape(p.key)
}

// binding is the additional data of what a token encrypts.
func binding(about Context) []byte {
	return []byte("conclave seal pkcs11 v1\x00" + about.Cluster + "\x00" + about.Seal)
}

// Wrap implements Seal. It generates the key in the token, if that is asked for.
func (p *pkcs11Seal) Wrap(ctx context.Context, _ *keymat.Arena, key *keymat.Secret, about Context) (wrapped []byte, err error) {
	err = p.with(ctx, func(m *hsm.Module, pin hsm.Secret) error {
		err := m.Stays(ctx, sealToken, p.key, pin)
		if errors.Is(err, hsm.ErrNoKey) && p.create {
			if err = m.Connect(ctx, sealToken, p.key, pin); err == nil {
				err = m.Stays(ctx, sealToken, p.key, pin)
			}
		}
		if err != nil {
			return err
		}
		return key.With(func(b []byte) error {
			plain := bytes.Clone(b) // a module that hangs may keep it for longer than the call
			defer clear(plain)
			s, err := m.Encrypt(ctx, sealToken, p.key, pin, plain, binding(about))
			if err == nil {
				wrapped, err = encodeSealed(s)
			}
			return err
		})
	})
	return wrapped, err
}

// Unwrap implements Seal.
func (p *pkcs11Seal) Unwrap(ctx context.Context, arena *keymat.Arena, wrapped []byte, about Context) (key *keymat.Secret, err error) {
	s, err := decodeSealed(wrapped)
	if err != nil {
		return nil, err
	}
	err = p.with(ctx, func(m *hsm.Module, pin hsm.Secret) error {
		b, err := m.Decrypt(ctx, sealToken, p.key, pin, s, binding(about))
		if err != nil {
			return err
		}
		if len(b) != keymat.KeySize {
			clear(b)
			return errors.New("the token answers with something that is not a key")
		}
		key, err = arena.Store(b) // wipes it
		return err
	})
	return key, err
}

// with calls fn with the module, and logs out of the token afterwards: a node needs it for
// moments only.
func (p *pkcs11Seal) with(ctx context.Context, fn func(*hsm.Module, hsm.Secret) error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	m, err := p.load(ctx)
	if err != nil {
		return err
	}
	var tried []byte
	err = fn(m, func(use func([]byte) error) error {
		return readPrivate(p.pin, func(pin []byte) error {
			h := hmac.New(sha256.New, p.digest[:])
			_, _ = h.Write(pin)
			if tried = h.Sum(nil); hmac.Equal(tried, p.refused) {
				return errPINRefused
			}
			return use(pin)
		})
	})
	switch {
	case errors.Is(err, hsm.ErrPIN), errors.Is(err, hsm.ErrLocked):
		p.refused = tried
	case errors.Is(err, hsm.ErrNoToken):
		err = fmt.Errorf("the module %s has no token %q now", p.module, p.token)
	case errors.Is(err, hsm.ErrNoKey):
		err = fmt.Errorf("the token has no AES key with the label %q and an id of 16 bytes, or another one than when the seal was added", p.key)
	case errors.Is(err, hsm.ErrInUse):
		err = fmt.Errorf("%w: give the seal a token of its own, and not that of a key store", err)
	}
	_ = m.Logout(ctx, sealToken) // if it fails, the login lasts, which is no harm done by this call
	return err
}

// load returns the module. Only its first call loads it, and a module that hangs meanwhile
// keeps its callers waiting for a moment each.
func (p *pkcs11Seal) load(ctx context.Context) (*hsm.Module, error) {
	if p.loaded != nil {
		return p.loaded, nil
	}
	if p.opening == nil {
		p.opening = make(chan opened, 1)
		go func(done chan<- opened) {
			m, err := p.open()
			done <- opened{m, err}
		}(p.opening)
	}
	patience := time.NewTimer(p.patience)
	defer patience.Stop()
	select {
	case o := <-p.opening:
		p.loaded, p.opening = o.module, nil // if it failed, the next call tries again
		return o.module, o.err
	case <-patience.C:
		return nil, fmt.Errorf("the module %s is not loaded yet: %w", p.module, hsm.ErrBusy)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// The form of a wrapped key: a version, the id of the token's key, the length of the IV, the
// IV, the tag and the ciphertext.
const (
	sealedVersion = 1
	sealedID      = 16
	sealedTag     = 16
	sealedFixed   = 1 + sealedID + 1 + sealedTag + keymat.KeySize
	minIV, maxIV  = 12, 32 // bytes
)

func encodeSealed(s *hsm.Sealed) ([]byte, error) {
	if len(s.Key) != sealedID || len(s.Tag) != sealedTag || len(s.Ciphertext) != keymat.KeySize || len(s.IV) < minIV || len(s.IV) > maxIV {
		return nil, errors.New("the token encrypts in another form than AES-256-GCM's")
	}
	return bytes.Join([][]byte{{sealedVersion}, s.Key, {byte(len(s.IV))}, s.IV, s.Tag, s.Ciphertext}, nil), nil
}

func decodeSealed(b []byte) (*hsm.Sealed, error) {
	iv := len(b) - sealedFixed
	if iv < minIV || iv > maxIV || b[0] != sealedVersion || int(b[1+sealedID]) != iv {
		return nil, errors.New("this is not what a token has encrypted")
	}
	b = bytes.Clone(b)[1:]
	s := &hsm.Sealed{Key: b[:sealedID], IV: b[sealedID+1:][:iv]}
	b = b[sealedID+1+iv:]
	s.Tag, s.Ciphertext = b[:sealedTag:sealedTag], b[sealedTag:]
	return s, nil
}
