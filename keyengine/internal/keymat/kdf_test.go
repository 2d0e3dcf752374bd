package keymat

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/conclavekms/conclave/integration/optional"
)

type kdfVector struct {
	Key, Label, Context, Output string
	Length                      int
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func readJSON(t testing.TB, path string, v any) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, v); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// The vectors were made by OpenSSL's KBKDF.
func TestDeriveVectors(t *testing.T) {
	var vectors []kdfVector
	readJSON(t, "testdata/kbkdf.json", &vectors)
	if len(vectors) != 9 {
		t.Fatalf("%d vectors, want 9", len(vectors))
	}
	for _, v := range vectors {
		got := Derive(unhex(t, v.Key), v.Label, unhex(t, v.Context), v.Length)
		if hex.EncodeToString(got) != v.Output {
			t.Errorf("label %q, %d bytes:\ngot  %x\nwant %s", v.Label, v.Length, got, v.Output)
		}
	}
}

// From the CAVP file KDFCTR_gen.rsp, [PRF=HMAC_SHA256] [CTRLOCATION=BEFORE_FIXED]
// [RLEN=32_BITS], COUNT=0.
func TestCounterModeCAVP(t *testing.T) {
	key := unhex(t, "dd1d91b7d90b2bd3138533ce92b272fbf8a369316aefe242e659cc0ae238afe0")
	fixed := unhex(t, "01322b96b30acd197979444e468e1c5c6859bf1b1cf951b7e725303e237e46b864a145fab25e517b08f8683d0315bb2911d80a0e8aba17f3b413faac")
	out := make([]byte, 16)
	newKDF(key).counterMode(out, append(make([]byte, 4), fixed...))
	if got, want := hex.EncodeToString(out), "10621342bfb0fd40046c0e29f2cfdbf0"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestDeriveAgainstOpenSSL(t *testing.T) {
	openssl := optional.Program(t, "openssl")
	if out, err := exec.Command(openssl, "version").Output(); err != nil || !strings.HasPrefix(string(out), "OpenSSL 3") {
		optional.Skip(t, "openssl has no KBKDF: %s", out)
	}
	for i, n := range []int{1, 31, 32, 33, 64, 500} {
		key := bytes.Repeat([]byte{byte(i + 1), 0xff, 0}, 11)
		context := bytes.Repeat([]byte{byte(i), 'c'}, i+1)
		out, err := exec.Command(openssl, "kdf", "-binary", "-keylen", strconv.Itoa(n),
			"-kdfopt", "mac:HMAC", "-kdfopt", "digest:SHA256", "-kdfopt", "mode:COUNTER",
			"-kdfopt", "hexkey:"+hex.EncodeToString(key), "-kdfopt", "salt:label "+strconv.Itoa(n),
			"-kdfopt", "hexinfo:"+hex.EncodeToString(context), "KBKDF").Output()
		if err != nil {
			t.Fatalf("openssl: %v", err)
		}
		if got := Derive(key, "label "+strconv.Itoa(n), context, n); !bytes.Equal(got, out) {
			t.Errorf("%d bytes: got %x, openssl %x", n, got, out)
		}
	}
}

func mustPanic(t *testing.T, name string, fn func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Errorf("%s did not panic", name)
		}
	}()
	fn()
}

func TestDerivePanics(t *testing.T) {
	key := bytes.Repeat([]byte{1}, 32)
	mustPanic(t, "zero key", func() { Derive(make([]byte, 32), "a", nil, 32) })
	mustPanic(t, "no key", func() { Derive(nil, "a", nil, 32) })
	mustPanic(t, "short key", func() { Derive(key[:15], "a", nil, 32) })
	mustPanic(t, "no label", func() { Derive(key, "", nil, 32) })
	mustPanic(t, "zero byte in label", func() { Derive(key, "a\x00", nil, 32) })
	mustPanic(t, "length 0", func() { Derive(key, "a", nil, 0) })
	mustPanic(t, "huge length", func() { Derive(key, "a", nil, 1<<17) })
	mustPanic(t, "zero AES key", func() { newAEAD(make([]byte, 32)) })
}

// One kdf gives for each label what a fresh one gives.
func TestKDFReuse(t *testing.T) {
	key := bytes.Repeat([]byte{7}, 32)
	k := newKDF(key)
	for range 2 {
		for _, label := range []string{"enc", "commit"} {
			got := make([]byte, 40)
			k.derive(got, label, []byte("con"), []byte("text"))
			if want := Derive(key, label, []byte("context"), 40); !bytes.Equal(got, want) {
				t.Errorf("%s: got %x, want %x", label, got, want)
			}
		}
	}
	if k.sum != [32]byte{} {
		t.Error("derived bytes were left behind")
	}
}
