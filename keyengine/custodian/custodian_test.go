package custodian

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	agearmor "filippo.io/age/armor"
	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"github.com/conclavekms/conclave/integration/optional"
)

const share = "conclave-share-1-abcdefghijklmnopqrstuvwxyz"

// now is after the keys of these tests were made.
func now() time.Time { return time.Now().Add(time.Minute) }

func encrypted(t *testing.T, public []byte, kind Kind) string {
	t.Helper()
	k, err := Parse(public, now())
	if err != nil {
		t.Fatal(err)
	}
	if k.Kind() != kind {
		t.Errorf("kind %s, want %s", k.Kind(), kind)
	}
	text, err := k.Encrypt([]byte(share))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(text, share[8:20]) || !strings.HasPrefix(text, "-----BEGIN ") {
		t.Errorf("got %q, want ASCII armour", text)
	}
	again, err := k.Encrypt([]byte(share))
	if err != nil || again == text {
		t.Errorf("two encryptions are equal, or %v", err)
	}
	return text
}

func TestHPKE(t *testing.T) {
	private, err := Generate()
	if err != nil {
		t.Fatal(err)
	}
	text, err := private.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if private, err = ParsePrivate(text); err != nil {
		t.Fatal(err)
	}
	message := encrypted(t, []byte(private.Public()+"\n"), HPKE)
	for _, form := range []string{message, "From: node\r\n\r\n" + strings.ReplaceAll(message, "\n", "\r\n")} { // as mail has it
		if got, err := private.Decrypt([]byte(form)); err != nil || string(got) != share {
			t.Errorf("got %q, %v", got, err)
		}
	}

	other, err := Generate()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Decrypt([]byte(message)); !errors.Is(err, ErrDecrypt) {
		t.Errorf("with another key: %v", err)
	}
	block, _ := pem.Decode([]byte(message))
	for i := range block.Bytes {
		changed := pem.Block{Type: block.Type, Bytes: bytes.Clone(block.Bytes)}
		changed.Bytes[i] ^= 1
		if _, err := private.Decrypt(pem.EncodeToMemory(&changed)); !errors.Is(err, ErrDecrypt) {
			t.Errorf("with byte %d changed: %v", i, err)
		}
	}
	for _, wrong := range []string{"", "x", "-----BEGIN AGE ENCRYPTED FILE-----\n", "-----BEGIN PGP MESSAGE-----\n", strings.Repeat("a", MaxEncrypted+1)} {
		if _, err := private.Decrypt([]byte(wrong)); !errors.Is(err, ErrDecrypt) {
			t.Errorf("%.40q: %v", wrong, err)
		}
	}
	if s := fmt.Sprintf("%v %+v %s", private, private, private); strings.TrimSpace(strings.ReplaceAll(s, redacted, "")) != "" {
		t.Errorf("formatted as %s", s)
	}
}

// TestHPKEFromPEM: keys that openssl makes serve, too.
func TestHPKEFromPEM(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := ParsePrivate(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})
	if got, err := private.Decrypt([]byte(encrypted(t, text, HPKE))); err != nil || string(got) != share {
		t.Errorf("got %q, %v", got, err)
	}
	one, err1 := Parse(text, now())
	other, err2 := Parse([]byte(private.Public()), now())
	if err1 != nil || err2 != nil || one.Fingerprint() != other.Fingerprint() {
		t.Errorf("the same key has different fingerprints: %v, %v", err1, err2)
	}
}

func TestAge(t *testing.T) {
	x, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	hybrid, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	for public, identity := range map[string]age.Identity{x.Recipient().String(): x, hybrid.Recipient().String(): hybrid} {
		message := encrypted(t, []byte(public+"\n"), Age)
		r, err := age.Decrypt(agearmor.NewReader(strings.NewReader(message)), identity)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || string(got) != share {
			t.Errorf("got %q, %v", got, err)
		}
	}
}

// pgpKey returns a new key and its public part, armoured.
func pgpKey(t *testing.T, cfg packet.Config) (*openpgp.Entity, []byte) {
	t.Helper()
	e, err := openpgp.NewEntity("Alice", "", "alice@example.org", &cfg)
	if err != nil {
		t.Fatal(err)
	}
	return e, armoured(t, openpgp.PublicKeyType, e.Serialize)
}

func armoured(t *testing.T, kind string, write func(io.Writer) error) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := armor.Encode(&b, kind, nil)
	if err == nil {
		err = errors.Join(write(w), w.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestOpenPGP(t *testing.T) {
	for name, cfg := range map[string]packet.Config{
		"rsa":        {Algorithm: packet.PubKeyAlgoRSA, RSABits: 2048},
		"curve25519": {Algorithm: packet.PubKeyAlgoEdDSA, Curve: packet.Curve25519},
		"p256":       {Algorithm: packet.PubKeyAlgoECDSA, Curve: packet.CurveNistP256},
		"v6":         {Algorithm: packet.PubKeyAlgoEd25519, V6Keys: true},
	} {
		t.Run(name, func(t *testing.T) {
			e, public := pgpKey(t, cfg)
			binary, err := unarmour(public)
			if err != nil {
				t.Fatal(err)
			}
			for _, form := range [][]byte{public, binary} {
				block, err := armor.Decode(strings.NewReader(encrypted(t, form, OpenPGP)))
				if err != nil {
					t.Fatal(err)
				}
				m, err := openpgp.ReadMessage(block.Body, openpgp.EntityList{e}, nil, nil)
				if err != nil {
					t.Fatal(err)
				}
				if got, err := io.ReadAll(m.UnverifiedBody); err != nil || string(got) != share {
					t.Errorf("got %q, %v", got, err)
				}
			}
			k, err := Parse(public, now())
			if err != nil || k.Fingerprint() != fmt.Sprintf("%X", e.PrimaryKey.Fingerprint) {
				t.Errorf("fingerprint %s, %v", k.Fingerprint(), err)
			}
		})
	}
}

// TestRefusedKeys: what is no usable public key is refused, and the reason is said.
func TestRefusedKeys(t *testing.T) {
	x, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	private, err := Generate()
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := private.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdh.P384().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := x509.MarshalPKIXPublicKey(p384.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	e, good := pgpKey(t, packet.Config{})
	_, second := pgpKey(t, packet.Config{})
	goodRaw, err1 := unarmour(good)
	secondRaw, err2 := unarmour(second)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	_, short := pgpKey(t, packet.Config{KeyLifetimeSecs: 1})
	revoked, _ := pgpKey(t, packet.Config{})
	if err := revoked.RevokeKey(packet.KeyCompromised, "lost", nil); err != nil {
		t.Fatal(err)
	}
	var private1 bytes.Buffer
	if err := e.SerializePrivate(&private1, nil); err != nil {
		t.Fatal(err)
	}
	compressed := append([]byte{0xc8, 3, 1, 0, 0}, goodRaw...) // a packet with others in it
	crowd := goodRaw
	for range maxPackets {
		crowd = append(crowd, 0xcd, 1, 'x') // user ids
	}
	signing, _ := pgpKey(t, packet.Config{})
	signing.Subkeys = nil
	large := packet.NewRSAPublicKey(time.Now(), &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), maxRSA), E: 65537})
	for name, c := range map[string]struct {
		text []byte
		want string
	}{
		"empty":             {[]byte(" \n"), "empty"},
		"words":             {[]byte("alice"), "no recipient of age"},
		"ssh":               {[]byte("ssh-ed25519 AAAA"), "no recipient of age"},
		"long":              {bytes.Repeat([]byte("a"), MaxKey+1), "longer than"},
		"age identity":      {[]byte(x.String()), "private key"},
		"age typo":          {[]byte(x.Recipient().String()[:60] + "qq"), "malformed"},
		"two of age":        {[]byte(x.Recipient().String() + "\n" + x.Recipient().String()), ""},
		"age plugin":        {[]byte("age1yubikey1qwt50d05nh5vutpdzmlg5wn80xq5negm4uj9ghv0snvdd3yysf5yw3rhl3t"), "plugins"},
		"private PEM":       {pkcs8, "private key"},
		"P-384":             {pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: other}), "P-256"},
		"no base64":         {[]byte(hpkePrefix + "!"), "base64"},
		"no point":          {[]byte(hpkePrefix + base64.StdEncoding.EncodeToString(make([]byte, 65))), "point"},
		"pgp private":       {armoured(t, openpgp.PrivateKeyType, func(w io.Writer) error { return e.SerializePrivate(w, nil) }), "private key"},
		"pgp private named": {armoured(t, openpgp.PublicKeyType, func(w io.Writer) error { return e.SerializePrivate(w, nil) }), "private key"},
		"pgp private raw":   {private1.Bytes(), "private key"},
		"pgp message":       {armoured(t, "PGP MESSAGE", e.Serialize), "PGP MESSAGE"},
		"two of pgp":        {append(bytes.Clone(goodRaw), secondRaw...), "2 OpenPGP keys"},
		"pgp expired":       {short, "expired"},
		"pgp revoked":       {armoured(t, openpgp.PublicKeyType, revoked.Serialize), "revoked"},
		"pgp for signing":   {armoured(t, openpgp.PublicKeyType, signing.Serialize), "signatures only"},
		"pgp compressed":    {compressed, "no OpenPGP"},
		"pgp crowd":         {crowd, "parts"},
		"pgp large":         {armoured(t, openpgp.PublicKeyType, large.Serialize), "bits"},
		"pgp cut":           {goodRaw[:len(goodRaw)-9], ""},
		"noise":             {[]byte{0xff, 0xfe, 0x00, 0x80}, "no OpenPGP"},
	} {
		if _, err := Parse(c.text, now()); !errors.Is(err, ErrKey) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want an error with %q", name, err, c.want)
		}
	}
}

func TestCheck(t *testing.T) {
	var keys []*Key
	for range 2 {
		p, err := Generate()
		if err != nil {
			t.Fatal(err)
		}
		k, err := Parse([]byte(p.Public()), now())
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k)
	}
	for want, list := range map[string][]Custodian{
		"":              {{"Alice Ω", keys[0]}, {"bob", keys[1]}},
		"two custodian": {{"alice", keys[0]}, {"alice", keys[1]}},
		"the same key":  {{"alice", keys[0]}, {"bob", keys[0]}},
		"custodian 2: ": {{"alice", keys[0]}, {"", keys[1]}},
		"custodian 1: ": {{"a\x1b[2J", keys[0]}},
		"1 to 64 bytes": {{strings.Repeat("x", 65), keys[0]}},
		"printable":     {{" bob", keys[0]}},
	} {
		if err := Check(list); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error with %q", err, want)
		}
	}
}

func run(t *testing.T, stdin []byte, env []string, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, env...)
	var errs bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(stdin), &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, &errs)
	}
	return out
}

// TestAgeTool: custodians decrypt by age itself.
func TestAgeTool(t *testing.T) {
	optional.Program(t, "age")
	identity := filepath.Join(t.TempDir(), "key.txt")
	run(t, nil, nil, optional.Program(t, "age-keygen"), "-o", identity)
	message := encrypted(t, run(t, nil, nil, "age-keygen", "-y", identity), Age)
	if got := run(t, []byte(message), nil, "age", "--decrypt", "-i", identity); string(got) != share {
		t.Errorf("got %q", got)
	}
}

// TestGPG: custodians decrypt by GnuPG itself.
func TestGPG(t *testing.T) {
	gpg := optional.Program(t, "gpg")
	// A short path: that of the agent's socket is limited to about 100 bytes.
	home, err := os.MkdirTemp("", "gpg")
	if err != nil {
		t.Fatal(err)
	}
	env := []string{"GNUPGHOME=" + home}
	t.Cleanup(func() {
		_ = exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run() // the agent of this test only
		_ = os.RemoveAll(home)
	})
	for _, algorithm := range []string{"ed25519", "rsa3072"} {
		user := algorithm + "@example.org"
		common := []string{"--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""}
		run(t, nil, env, gpg, append(common, "--quick-generate-key", user, algorithm, "cert", "never")...)
		listing := string(run(t, nil, env, gpg, "--batch", "--with-colons", "--list-keys", user))
		_, rest, _ := strings.Cut(listing, "\nfpr:")
		fingerprint := strings.Trim(strings.SplitN(rest, "\n", 2)[0], ":")
		sub := "cv25519"
		if algorithm != "ed25519" {
			sub = algorithm
		}
		run(t, nil, env, gpg, append(common, "--quick-add-key", fingerprint, sub, "encr", "never")...)
		for _, form := range [][]string{{"--armor"}, nil} {
			public := run(t, nil, env, gpg, append(append([]string{"--batch"}, form...), "--export", user)...)
			k, err := Parse(public, now())
			if err != nil {
				t.Fatal(err)
			}
			if k.Fingerprint() != fingerprint {
				t.Errorf("fingerprint %s, and gpg shows %s", k.Fingerprint(), fingerprint)
			}
			if got := run(t, []byte(encrypted(t, public, OpenPGP)), env, gpg, append(common, "--decrypt")...); string(got) != share {
				t.Errorf("got %q", got)
			}
		}
	}
}

// FuzzParse: no key makes it fail in another way than by an error, or accepts what cannot be
// encrypted to.
func FuzzParse(f *testing.F) {
	p, err := Generate()
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(p.Public()))
	f.Add([]byte("age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"))
	e, err := openpgp.NewEntity("Alice", "", "alice@example.org", nil)
	if err != nil {
		f.Fatal(err)
	}
	var b bytes.Buffer
	if err := e.Serialize(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	at := now()
	f.Fuzz(func(t *testing.T, text []byte) {
		k, err := Parse(text, at)
		if err != nil {
			if !errors.Is(err, ErrKey) {
				t.Error(err)
			}
			return
		}
		if _, err := k.Encrypt([]byte(share)); err != nil {
			t.Errorf("accepted, and then: %v", err)
		}
	})
}
