package keymat

import (
	"bytes"
	"crypto/rand"
	"errors"
	"maps"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func randomKey(t testing.TB) []byte {
	t.Helper()
	b := make([]byte, KeySize)
	_, _ = rand.Read(b)
	return b
}

func testHeader() Header {
	return Header{Cell: [8]byte{1, 2}, Key: [16]byte{3, 4}, Version: [16]byte{5, 6}}
}

type goldenMessage struct {
	Name, Material, Cluster, Key, Version, Plaintext, Blob string
	Context                                                map[string]string
}

// The blobs were made by a separate implementation. They open for ever.
func TestGoldenMessages(t *testing.T) {
	var golden []goldenMessage
	readJSON(t, "testdata/messages-v1.json", &golden)
	if len(golden) != 6 {
		t.Fatalf("%d messages, want 6", len(golden))
	}
	for _, g := range golden {
		t.Run(g.Name, func(t *testing.T) {
			blob := unhex(t, g.Blob)
			h, err := ParseHeader(blob)
			if err != nil {
				t.Fatal(err)
			}
			want := Header{[8]byte(unhex(t, g.Cluster)), [16]byte(unhex(t, g.Key)), [16]byte(unhex(t, g.Version))}
			if h != want {
				t.Errorf("header = %x, want %x", h, want)
			}
			got, err := OpenMessage(unhex(t, g.Material), blob, g.Context)
			if err != nil || !bytes.Equal(got, unhex(t, g.Plaintext)) {
				t.Errorf("opened to %x, %v", got, err)
			}
		})
	}
}

func TestMessageRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		material := randomKey(t)
		plaintext := rapid.SliceOfN(rapid.Byte(), 1, 4096).Draw(rt, "plaintext")
		context := rapid.MapOfN(rapid.String(), rapid.String(), 0, 20).Draw(rt, "context")
		blob, err := SealMessage(material, testHeader(), plaintext, context)
		if err != nil {
			rt.Fatal(err)
		}
		if len(blob) != len(plaintext)+MessageOverhead {
			rt.Fatalf("%d bytes became %d", len(plaintext), len(blob))
		}
		got, err := OpenMessage(material, blob, maps.Clone(context))
		if err != nil || !bytes.Equal(got, plaintext) {
			rt.Fatalf("opened to %x, %v", got, err)
		}
	})
}

func TestMessageOverheadIsDocumented(t *testing.T) {
	if MessageOverhead != 135 {
		t.Errorf("MessageOverhead = %d, want 135", MessageOverhead)
	}
}

func TestMessageContext(t *testing.T) {
	material := randomKey(t)
	contexts := []map[string]string{
		nil,
		{"": ""},
		{"a": ""},
		{"": "a"},
		{"a": "b"},
		{"A": "b"},
		{"a": "b", "c": "d"},
		{"a": "d", "c": "b"},
		{"ab": ""},
		{"a": "b\x00\x00\x00\x01c\x00\x00\x00\x01d"},
		{"a\x00\x00\x00\x01b": ""},
		{"a": "b "},
		{"\u00e9": "x"}, // composed and decomposed are different
		{"e\u0301": "x"},
		{"\xff": "x"},
		{"\ufffd": "x"},
	}
	for i, sealed := range contexts {
		blob, err := SealMessage(material, testHeader(), []byte("plain"), sealed)
		if err != nil {
			t.Fatal(err)
		}
		for j, c := range contexts {
			got, err := OpenMessage(material, blob, c)
			if i == j && (err != nil || string(got) != "plain") {
				t.Errorf("context %q: %v", c, err)
			}
			if i != j && (!errors.Is(err, ErrCiphertext) || got != nil) {
				t.Errorf("sealed with %q, opened with %q: %v", sealed, c, err)
			}
		}
	}
	blob, _ := SealMessage(material, testHeader(), []byte("plain"), nil)
	if _, err := OpenMessage(material, blob, map[string]string{}); err != nil {
		t.Errorf("an empty context is not the same as none: %v", err)
	}
	blob, _ = SealMessage(material, testHeader(), []byte("plain"), map[string]string{})
	if _, err := OpenMessage(material, blob, nil); err != nil {
		t.Errorf("no context is not the same as an empty one: %v", err)
	}
}

func TestMessageEveryBitAndTruncation(t *testing.T) {
	material := randomKey(t)
	context := map[string]string{"k": "v"}
	blob, err := SealMessage(material, testHeader(), []byte("thirty-three bytes of a plaintext"), context)
	if err != nil {
		t.Fatal(err)
	}
	for i := range len(blob) * 8 {
		b := bytes.Clone(blob)
		b[i/8] ^= 1 << (i % 8)
		if got, err := OpenMessage(material, b, context); err != ErrCiphertext || got != nil {
			t.Fatalf("bit %d flipped: %v", i, err)
		}
	}
	for i := range blob {
		if got, err := OpenMessage(material, blob[:i], context); err != ErrCiphertext || got != nil {
			t.Fatalf("first %d bytes: %v", i, err)
		}
		if _, err := ParseHeader(blob[:i]); i <= MessageOverhead && err != ErrCiphertext {
			t.Fatalf("header of the first %d bytes: %v", i, err)
		}
		if got, err := OpenMessage(material, blob[i+1:], context); err != ErrCiphertext || got != nil {
			t.Fatalf("without the first %d bytes: %v", i+1, err)
		}
		inserted := append(append(bytes.Clone(blob[:i]), 0), blob[i:]...)
		if got, err := OpenMessage(material, inserted, context); err != ErrCiphertext || got != nil {
			t.Fatalf("with a byte inserted at %d: %v", i, err)
		}
	}
	for _, b := range [][]byte{nil, {}, append(bytes.Clone(blob), 0), make([]byte, MaxMessage+1), bytes.Repeat(blob, 200)} {
		if got, err := OpenMessage(material, b, context); err != ErrCiphertext || got != nil {
			t.Errorf("%d bytes: %v", len(b), err)
		}
	}
}

func TestMessageSplice(t *testing.T) {
	material, other := randomKey(t), randomKey(t)
	h2 := testHeader()
	h2.Version[15] ^= 1
	a, _ := SealMessage(material, testHeader(), []byte("plain a"), nil)
	b, _ := SealMessage(material, testHeader(), []byte("plain b"), nil)
	c, _ := SealMessage(material, h2, []byte("plain c"), nil)
	if _, err := OpenMessage(other, a, nil); err != ErrCiphertext {
		t.Errorf("wrong material: %v", err)
	}
	for _, cut := range []int{offSuite, offCell, offKey, offVersion, offSalt, offCommitment, messageHeader, messageHeader + gcmNonce} {
		for _, pair := range [][2][]byte{{a, b}, {b, a}, {a, c}, {c, a}} {
			if bytes.Equal(pair[0][:cut], pair[1][:cut]) {
				continue // the same header: nothing was spliced
			}
			spliced := append(bytes.Clone(pair[0][:cut]), pair[1][cut:]...)
			if _, err := OpenMessage(material, spliced, nil); err != ErrCiphertext {
				t.Errorf("spliced at %d: %v", cut, err)
			}
		}
	}
}

// A body that opens under the derived key is refused when the commitment is not
// the material's: the commitment is compared, and first.
func TestMessageCommitmentIsChecked(t *testing.T) {
	material := randomKey(t)
	blob, err := SealMessage(material, testHeader(), []byte("plain"), nil)
	if err != nil {
		t.Fatal(err)
	}
	forged := bytes.Clone(blob[:messageHeader])
	forged[offCommitment] ^= 1
	key := Derive(material, labelEnc, append(bytes.Clone(forged[offSalt:offCommitment]), forged[:offSalt]...), KeySize)
	aead := newAEAD(key)
	aad := messageAAD(nil, forged, nil)
	forged = aead.Seal(forged, nil, []byte("plain"), aad)
	if _, err := aead.Open(nil, nil, forged[messageHeader:], aad); err != nil {
		t.Fatalf("the forgery does not open at all: %v", err)
	}
	if got, err := OpenMessage(material, forged, nil); err != ErrCiphertext || got != nil {
		t.Errorf("forged commitment: %v", err)
	}
}

func TestMessageFresh(t *testing.T) {
	material := randomKey(t)
	salts, nonces, commitments := map[string]bool{}, map[string]bool{}, map[string]bool{}
	const n = 5000
	for range n {
		blob, err := SealMessage(material, testHeader(), []byte{1}, nil)
		if err != nil {
			t.Fatal(err)
		}
		salts[string(blob[offSalt:offCommitment])] = true
		commitments[string(blob[offCommitment:messageHeader])] = true
		nonces[string(blob[messageHeader:messageHeader+gcmNonce])] = true
	}
	if len(salts) != n || len(nonces) != n || len(commitments) != n {
		t.Errorf("%d salts, %d nonces, %d commitments of %d messages", len(salts), len(nonces), len(commitments), n)
	}
}

func TestMessageLimits(t *testing.T) {
	material := randomKey(t)
	for _, n := range []int{0, MaxMessage - MessageOverhead + 1} {
		if _, err := SealMessage(material, testHeader(), make([]byte, n), nil); !errors.Is(err, ErrSize) {
			t.Errorf("plaintext of %d bytes: err = %v, want ErrSize", n, err)
		}
	}
	longest := make([]byte, MaxMessage-MessageOverhead)
	blob, err := SealMessage(material, testHeader(), longest, nil)
	if err != nil || len(blob) != MaxMessage {
		t.Fatalf("longest plaintext: %d bytes, %v", len(blob), err)
	}
	if got, err := OpenMessage(material, blob, nil); err != nil || !bytes.Equal(got, longest) {
		t.Errorf("longest ciphertext: %v", err)
	}
	for _, n := range []int{0, 16, 31, 33, 64} {
		if _, err := SealMessage(make([]byte, n), testHeader(), []byte{1}, nil); !errors.Is(err, ErrMaterial) {
			t.Errorf("sealing with material of %d bytes: err = %v", n, err)
		}
		if _, err := OpenMessage(make([]byte, n), blob, nil); !errors.Is(err, ErrMaterial) {
			t.Errorf("opening with material of %d bytes: err = %v", n, err)
		}
	}
	mustPanic(t, "sealing with zeros", func() { _, _ = SealMessage(make([]byte, 32), testHeader(), []byte{1}, nil) })
	mustPanic(t, "opening with zeros", func() { _, _ = OpenMessage(make([]byte, 32), blob, nil) })
}

func TestParseHeaderLimits(t *testing.T) {
	blob, err := SealMessage(randomKey(t), testHeader(), make([]byte, MaxMessage-MessageOverhead), nil)
	if err != nil {
		t.Fatal(err)
	}
	if h, err := ParseHeader(blob); err != nil || h != testHeader() {
		t.Errorf("longest: %x, %v", h, err)
	}
	for name, change := range map[string]func([]byte) []byte{
		"one byte longer": func(b []byte) []byte { return append(b, 0) },
		"no body":         func(b []byte) []byte { return b[:MessageOverhead] },
		"format 0":        func(b []byte) []byte { b[0] = 0; return b },
		"format 2":        func(b []byte) []byte { b[0] = 2; return b },
		"suite 0":         func(b []byte) []byte { b[2] = 0; return b },
		"suite 257":       func(b []byte) []byte { b[1] = 1; return b },
	} {
		if h, err := ParseHeader(change(bytes.Clone(blob))); err != ErrCiphertext || h != (Header{}) {
			t.Errorf("%s: %x, %v", name, h, err)
		}
	}
}

func FuzzOpenMessage(f *testing.F) {
	var golden []goldenMessage // fixed, as the fuzzer's processes must agree
	readJSON(f, "testdata/messages-v1.json", &golden)
	material, good := unhex(f, golden[1].Material), unhex(f, golden[1].Blob)
	if len(golden[1].Context) != 0 {
		f.Fatal("the second golden message has a context")
	}
	f.Add([]byte{}, "", "")
	f.Add(good, "", "")
	f.Add(good, "a", "b")
	f.Add(good[:MessageOverhead], "", "")
	f.Add(append(bytes.Clone(good), 0), "", "")
	f.Fuzz(func(t *testing.T, blob []byte, k, v string) {
		context := map[string]string{k: v}
		if k == "" && v == "" {
			context = nil
		}
		h, herr := ParseHeader(blob)
		if herr != nil && (herr != ErrCiphertext || h != (Header{})) {
			t.Fatalf("ParseHeader: %x, %v", h, herr)
		}
		got, err := OpenMessage(material, blob, context)
		if err != nil {
			if err != ErrCiphertext || got != nil || context == nil && bytes.Equal(blob, good) {
				t.Fatalf("OpenMessage: %v", err)
			}
			return
		}
		if herr != nil || !bytes.Equal(blob, good) || context != nil {
			t.Fatalf("opened %x with %q", blob, context)
		}
	})
}

func BenchmarkSealMessage1KiB(b *testing.B) {
	material, plaintext := randomKey(b), make([]byte, 1024)
	context := map[string]string{"tenant": "7", "purpose": "bench"}
	h := testHeader()
	b.SetBytes(1024)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := SealMessage(material, h, plaintext, context); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpenMessage1KiB(b *testing.B) {
	material := randomKey(b)
	context := map[string]string{"tenant": "7", "purpose": "bench"}
	blob, err := SealMessage(material, testHeader(), make([]byte, 1024), context)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(1024)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := OpenMessage(material, blob, context); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMessageAAD(b *testing.B) {
	for _, n := range []int{0, 1, 8, 64} {
		context := map[string]string{}
		for i := range n {
			context["key"+strconv.Itoa(i)] = strings.Repeat("v", 20)
		}
		blob, scratch := make([]byte, messageHeader), make([]byte, 256)
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				messageAAD(scratch[:0], blob, context)
			}
		})
	}
}
