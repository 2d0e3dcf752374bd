//go:build pkcs11

package hsm

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/miekg/pkcs11"
)

const (
	// slots is the maximum number of calls in flight for one token, including abandoned
	// ones.
	slots = 16
	// timeout is that of one call.
	timeout = 5 * time.Second
	idSize  = 16
	ivSize  = 12
	tagSize = 16
	maxMade = 16 // maximum number of keys with one label that are considered
)

var (
	// ErrNoToken means that no token has that name, or that it is not present.
	ErrNoToken = errors.New("hsm: no such token")
	// ErrPIN means that the token does not accept the PIN.
	ErrPIN = errors.New("hsm: wrong PIN")
	// ErrLocked means that the token's PIN is locked.
	ErrLocked = errors.New("hsm: PIN is locked")
	// ErrNoKey means that the token does not have the key.
	ErrNoKey = errors.New("hsm: no such key in the token")
	// ErrInUse means that another part of the process is logged in to the token.
	ErrInUse = errors.New("hsm: the process uses the token for something else")
	// ErrLeaves means that the key can be taken out of the token.
	ErrLeaves = errors.New("hsm: the key can be extracted from the token")
	// ErrBusy means that the module did not answer in time.
	ErrBusy = errors.New("hsm: no answer in time")
)

// Module is a loaded PKCS #11 module with the tokens that may be used. It is safe for
// concurrent use.
type Module struct {
	ctx    *pkcs11.Ctx
	ours   bool // initialised by this Module
	tokens map[string]*token
	check  [32]byte // key for the digests of PINs
}

// token is a token in the operator's configuration.
type token struct {
	label string
	busy  chan struct{}

	mu     sync.RWMutex
	pin    [sha256.Size]byte     // digest of the PIN of the login
	anchor *pkcs11.SessionHandle // session that keeps the login
}

// Open loads a module. tokens maps the names that callers use to the labels of tokens.
func Open(path string, tokens map[string]string) (*Module, error) {
	ctx := pkcs11.New(path)
	if ctx == nil {
		return nil, fmt.Errorf("PKCS #11 module %s cannot be loaded", path)
	}
	m := &Module{ctx: ctx, tokens: make(map[string]*token)}
	_, _ = rand.Read(m.check[:]) // never fails: crypto/rand ends the process instead
	switch err := ctx.Initialize(); {
	case err == nil:
		m.ours = true
	case !is(err, pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED):
		ctx.Destroy()
		return nil, fmt.Errorf("PKCS #11 module %s: %w", path, err)
	}
	for name, label := range tokens {
		m.tokens[name] = &token{label: label, busy: make(chan struct{}, slots)}
	}
	return m, nil
}

// Close finalises the module. Calls in flight fail.
func (m *Module) Close() {
	if m.ours {
		_ = m.ctx.Finalize()
	}
}

// Secret calls use with a PIN.
type Secret func(use func(pin []byte) error) error

// Has checks that a token is configured and present.
func (m *Module) Has(ctx context.Context, name string) error {
	return m.do(ctx, name, func(t *token) error {
		_, err := m.slot(t)
		return err
	})
}

// Connect logs in again, so that the PIN is tried, and generates a key with that label if
// the token has none.
func (m *Module) Connect(ctx context.Context, name, label string, pin Secret) error {
	return m.do(ctx, name, func(t *token) error {
		t.mu.Lock()
		defer t.mu.Unlock()
		m.logout(t)
		if err := m.login(t, pin); err != nil {
			return err
		}
		return m.session(t, func(s pkcs11.SessionHandle) error {
			_, _, err := m.current(s, label)
			if errors.Is(err, ErrNoKey) {
				err = m.generate(s, label)
			}
			return err
		})
	})
}

// Logout ends the login. The next call logs in again.
func (m *Module) Logout(ctx context.Context, name string) error {
	return m.do(ctx, name, func(t *token) error {
		t.mu.Lock()
		defer t.mu.Unlock()
		m.logout(t)
		return nil
	})
}

// do runs f when a slot for the token is free. If ctx ends first, do returns, and f
// occupies its slot until the module returns.
func (m *Module) do(ctx context.Context, name string, f func(*token) error) error {
	t := m.tokens[name]
	if t == nil {
		return ErrNoToken
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	select {
	case t.busy <- struct{}{}:
	case <-ctx.Done():
		return ErrBusy
	}
	done := make(chan error, 1)
	go func() {
		defer func() { <-t.busy }()
		done <- f(t)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ErrBusy
	}
}

// with runs f in its own session, logged in.
func (m *Module) with(ctx context.Context, name string, pin Secret, f func(pkcs11.SessionHandle) error) error {
	return m.do(ctx, name, func(t *token) error {
		in, err := m.loggedIn(t, pin)
		if err != nil {
			return err
		}
		if !in {
			if err := m.relogin(t, pin); err != nil {
				return err
			}
		}
		t.mu.RLock()
		err = m.session(t, f)
		t.mu.RUnlock()
		if is(err, pkcs11.CKR_USER_NOT_LOGGED_IN) || is(err, pkcs11.CKR_DEVICE_REMOVED) || is(err, pkcs11.CKR_TOKEN_NOT_PRESENT) {
			// The token was removed. Make the next call log in again.
			t.mu.Lock()
			m.logout(t)
			t.mu.Unlock()
		}
		return err
	})
}

func (m *Module) relogin(t *token, pin Secret) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	m.logout(t)
	return m.login(t, pin)
}

func (m *Module) digest(pin []byte) (sum [sha256.Size]byte) {
	h := hmac.New(sha256.New, m.check[:])
	_, _ = h.Write(pin)
	h.Sum(sum[:0])
	return sum
}

// loggedIn reports whether the token is logged in with that PIN.
func (m *Module) loggedIn(t *token, pin Secret) (in bool, err error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	err = pin(func(b []byte) error {
		sum := m.digest(b)
		in = t.anchor != nil && hmac.Equal(sum[:], t.pin[:])
		return nil
	})
	return in, err
}

func (m *Module) login(t *token, pin Secret) error {
	slot, err := m.slot(t)
	if err != nil {
		return err
	}
	s, err := m.ctx.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return fmt.Errorf("hsm: opening a session: %w", err)
	}
	err = pin(func(b []byte) error {
		err := m.ctx.Login(s, pkcs11.CKU_USER, string(b))
		if err == nil {
			t.pin, t.anchor = m.digest(b), &s
		}
		return err
	})
	if err == nil {
		return nil
	}
	_ = m.ctx.CloseSession(s)
	switch {
	case is(err, pkcs11.CKR_PIN_INCORRECT), is(err, pkcs11.CKR_PIN_INVALID), is(err, pkcs11.CKR_PIN_LEN_RANGE):
		return ErrPIN
	case is(err, pkcs11.CKR_PIN_LOCKED):
		return ErrLocked
	case is(err, pkcs11.CKR_USER_ALREADY_LOGGED_IN):
		return ErrInUse
	}
	return fmt.Errorf("hsm: logging in: %w", err)
}

// logout also ends a login by another part of the process, because only the current PIN
// counts.
func (m *Module) logout(t *token) {
	if t.anchor != nil {
		_ = m.ctx.Logout(*t.anchor)
		_ = m.ctx.CloseSession(*t.anchor)
		t.anchor, t.pin = nil, [sha256.Size]byte{}
	}
}

func (m *Module) session(t *token, f func(pkcs11.SessionHandle) error) error {
	slot, err := m.slot(t)
	if err != nil {
		return err
	}
	s, err := m.ctx.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return fmt.Errorf("hsm: opening a session: %w", err)
	}
	defer func() { _ = m.ctx.CloseSession(s) }()
	return f(s)
}

// slot returns the slot of a token.
func (m *Module) slot(t *token) (uint, error) {
	all, err := m.ctx.GetSlotList(true)
	if err != nil {
		return 0, fmt.Errorf("hsm: listing slots: %w", err)
	}
	for _, s := range all {
		if info, err := m.ctx.GetTokenInfo(s); err == nil && strings.TrimRight(info.Label, " \x00") == t.label {
			return s, nil
		}
	}
	return 0, ErrNoToken
}

func is(err error, code pkcs11.Error) bool {
	e, ok := errors.AsType[pkcs11.Error](err)
	return ok && e == code
}
