//go:build pkcs11

package seal

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/conclavekms/conclave/integration/softhsm"
	"github.com/conclavekms/conclave/keyengine/internal/hsm"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
)

// tokenSeal makes a token and returns the description of a seal with a key of it, and the file
// with its PIN.
func tokenSeal(t *testing.T, more string) (token softhsm.Token, text, pin string) {
	t.Helper()
	token = softhsm.NewToken(t)
	// SoftHSM finds new tokens only when it is initialised, and seals are not closed: the first
	// one that initialises it does so for the others, and ends that with the test.
	m, err := hsm.Open(token.Module, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	pin = filepath.Join(t.TempDir(), "pin")
	write(t, pin, token.PIN+"\n")
	return token, fmt.Sprintf("pkcs11:%s?token=%s&key=a%%20key&pin=%s%s", token.Module, url.QueryEscape(token.Label), pin, more), pin
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestTokenSeal: a key that stays in a token unseals a node, and what it has wrapped is bound
// to the cluster and the seal.
func TestTokenSeal(t *testing.T) {
	f := newFixture(t, 2)
	_, text, _ := tokenSeal(t, "")
	f.start(t, parse(t, text))
	f.custodians(t)
	if len(f.s.List()) != 0 || !strings.Contains(f.log.String(), "has no AES key with the label") {
		t.Errorf("without create=true, the seals are %v\n%s", f.s.List(), f.log.String())
	}
	s := parse(t, text+"&create=true")
	f.start(t, s)
	f.custodians(t)
	if l := f.s.List(); len(l) != 1 || l[0].Name != s.Name() || !strings.HasSuffix(s.Name(), "/a%20key") {
		t.Fatalf("seals %v, want %s\n%s", l, s.Name(), f.log.String())
	}
	f.start(t, parse(t, text)) // create is no longer needed
	if f.s.step(t.Context()); f.node.Vault.Sealed() {
		t.Fatalf("the node is sealed: %q", f.s.Status())
	}

	wrapped := f.cluster().Seals[0].WrappedKey
	arena := f.node.Vault.Arena()
	right := about(f.cluster(), s.Name())
	for name, c := range map[string]Context{
		"another cluster": {Cluster: right.Cluster[2:] + right.Cluster[:2], Seal: right.Seal},
		"another seal":    {Cluster: right.Cluster, Seal: right.Seal + "x"},
	} {
		if _, err := s.Unwrap(t.Context(), arena, wrapped, c); err == nil {
			t.Errorf("%s: it is unwrapped", name)
		}
	}
	for i := range wrapped {
		bad := bytes.Clone(wrapped)
		bad[i] ^= 1
		if _, err := s.Unwrap(t.Context(), arena, bad, right); err == nil {
			t.Errorf("with byte %d changed, it is unwrapped", i)
		}
	}
	for n := range len(wrapped) {
		if _, err := s.Unwrap(t.Context(), arena, wrapped[:n], right); err == nil {
			t.Errorf("the first %d bytes are unwrapped", n)
		}
	}
}

// TestTokenKeyThatLeaves: a key that can be taken out of its token is not used.
func TestTokenKeyThatLeaves(t *testing.T) {
	for name, tt := range map[string]struct {
		sensitive, extractable, taken bool
	}{
		"stays":       {sensitive: true, taken: true},
		"readable":    {},
		"extractable": {sensitive: true, extractable: true},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, 2)
			token, text, _ := tokenSeal(t, "&create=true")
			generate(t, token, tt.sensitive, tt.extractable)
			f.start(t, parse(t, text))
			f.custodians(t)
			if taken := len(f.s.List()) == 1; taken != tt.taken || !taken && !strings.Contains(f.log.String(), hsm.ErrLeaves.Error()) {
				t.Errorf("seals %v\n%s", f.s.List(), f.log.String())
			}
		})
	}
}

// generate makes the key of tokenSeal as an operator does.
func generate(t *testing.T, token softhsm.Token, sensitive, extractable bool) {
	t.Helper()
	ctx := pkcs11.New(token.Module)
	slots, err := ctx.GetSlotList(true)
	if err != nil {
		t.Fatal(err)
	}
	for _, slot := range slots {
		if info, err := ctx.GetTokenInfo(slot); err != nil || info.Label != token.Label {
			continue
		}
		s, err := ctx.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		if err == nil {
			err = ctx.Login(s, pkcs11.CKU_USER, token.PIN)
		}
		if err == nil {
			_, err = ctx.GenerateKey(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, []*pkcs11.Attribute{
				pkcs11.NewAttribute(pkcs11.CKA_LABEL, "a key"), pkcs11.NewAttribute(pkcs11.CKA_ID, make([]byte, sealedID)), pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, keymat.KeySize),
				pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, sensitive), pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, extractable),
			})
		}
		if err == nil {
			err = ctx.Logout(s)
		}
		if err == nil {
			err = ctx.CloseSession(s)
		}
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatal("the token is not there")
}

// TestTokenPIN: a PIN that the token refuses is tried once, and not again before it changes. A
// file that others can read is not used.
func TestTokenPIN(t *testing.T) {
	f := newFixture(t, 2)
	token, text, pin := tokenSeal(t, "&create=true")
	f.start(t, parse(t, text))
	f.custodians(t)
	write(t, pin, "another PIN")
	s := parse(t, text)
	f.start(t, s)
	for i, want := range []string{hsm.ErrPIN.Error(), errPINRefused.Error(), errPINRefused.Error()} {
		if f.s.step(t.Context()); !f.node.Vault.Sealed() || !strings.Contains(f.s.Status(), want) {
			t.Errorf("try %d: %q, want %q", i, f.s.Status(), want)
		}
	}
	write(t, pin, token.PIN)
	if err := os.Chmod(pin, 0o644); err != nil {
		t.Fatal(err)
	}
	if f.s.step(t.Context()); !f.node.Vault.Sealed() || !strings.Contains(f.s.Status(), "only its owner") {
		t.Errorf("with a PIN that others can read: %q", f.s.Status())
	}
	if err := os.Chmod(pin, 0o600); err != nil {
		t.Fatal(err)
	}
	if f.s.step(t.Context()); f.node.Vault.Sealed() {
		t.Errorf("with the right PIN: %q", f.s.Status())
	}
}

// TestTokenIsGone: a node whose module, token or key is missing, or whose module hangs, starts
// and says why it is sealed, within moments. The custodians unseal it.
func TestTokenIsGone(t *testing.T) {
	f := newFixture(t, 2)
	other := softhsm.NewToken(t)
	token, text, _ := tokenSeal(t, "&create=true")
	f.start(t, parse(t, text))
	f.custodians(t)
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	hanging := parse(t, text).(*pkcs11Seal)
	hanging.patience = 10 * time.Millisecond
	hanging.open = func() (*hsm.Module, error) { <-release; return nil, errors.New("never") }
	for name, tt := range map[string]struct {
		seal Seal
		want string
	}{
		"module":  {parse(t, strings.Replace(text, token.Module, "/none.so", 1)), "cannot be loaded"},
		"key":     {named{parse(t, strings.Replace(text, "a%20key", "another", 1)), parse(t, text).Name()}, "or another one than when the seal was added"},
		"token":   {named{parse(t, strings.Replace(text, url.QueryEscape(token.Label), "no+such", 1)), parse(t, text).Name()}, "has no token"},
		"another": {named{parse(t, strings.Replace(text, url.QueryEscape(token.Label), url.QueryEscape(other.Label), 1)), parse(t, text).Name()}, "or another one than when the seal was added"},
		"hanging": {hanging, "is not loaded yet"},
	} {
		t.Run(name, func(t *testing.T) {
			f.start(t, tt.seal)
			for range 2 {
				if f.s.step(t.Context()); !f.node.Vault.Sealed() || !strings.Contains(f.s.Status(), tt.want) {
					t.Errorf("the node says %q, want %q", f.s.Status(), tt.want)
				}
			}
			f.node.Unseal(f.shares...)
		})
	}
}

// named is a seal under the name of another one.
type named struct {
	Seal
	name string
}

func (n named) Name() string { return n.name }
