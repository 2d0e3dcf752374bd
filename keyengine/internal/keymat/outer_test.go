package keymat

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

type goldenOuter struct {
	Name, Material, Cluster, Key, Version, IV, Tag, Metadata, Body, Blob string
	Context                                                              map[string]string
}

// The blobs were made by a separate implementation. They open for ever.
func TestGoldenOuter(t *testing.T) {
	var golden []goldenOuter
	readJSON(t, "testdata/outer-v1.json", &golden)
	if len(golden) != 3 {
		t.Fatalf("%d ciphertexts, want 3", len(golden))
	}
	for _, g := range golden {
		t.Run(g.Name, func(t *testing.T) {
			blob, material := unhex(t, g.Blob), unhex(t, g.Material)
			h, err := ParseOuterHeader(blob)
			if err != nil {
				t.Fatal(err)
			}
			if want := (Header{[8]byte(unhex(t, g.Cluster)), [16]byte(unhex(t, g.Key)), [16]byte(unhex(t, g.Version))}); h != want {
				t.Errorf("header = %x, want %x", h, want)
			}
			want := &Outer{IV: unhex(t, g.IV), Tag: unhex(t, g.Tag), Metadata: unhex(t, g.Metadata), Body: unhex(t, g.Body)}
			got, err := SplitOuter(material, blob, g.Context)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
			// There is nothing random in it.
			if again, err := JoinOuter(material, h, want, g.Context); err != nil || !bytes.Equal(again, blob) {
				t.Errorf("joined to %x, %v", again, err)
			}
		})
	}
}

func testOuter(metadata int) *Outer {
	return &Outer{
		IV: bytes.Repeat([]byte{1}, 12), Tag: bytes.Repeat([]byte{2}, 16), Metadata: bytes.Repeat([]byte{3}, metadata),
		Body: bytes.Repeat([]byte{4}, MessageOverhead+5),
	}
}

func TestOuterEveryBitAndTruncation(t *testing.T) {
	material, context := randomKey(t), map[string]string{"k": "v"}
	blob, err := JoinOuter(material, testHeader(), testOuter(3), context)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(b []byte, context map[string]string, what string, n int) {
		t.Helper()
		if o, err := SplitOuter(material, b, context); err != ErrCiphertext || o != nil {
			t.Fatalf("%s %d: %v", what, n, err)
		}
	}
	for i := range len(blob) * 8 {
		b := bytes.Clone(blob)
		b[i/8] ^= 1 << (i % 8)
		refused(b, context, "flipped bit", i)
	}
	for i := range blob {
		refused(blob[:i], context, "cut to", i)
		refused(blob[i+1:], context, "without the first and", i)
		refused(append(append(bytes.Clone(blob[:i]), 0), blob[i:]...), context, "byte inserted at", i)
	}
	refused(append(bytes.Clone(blob), 0), context, "bytes more:", 1)
	refused(bytes.Repeat(blob, 40), context, "repeated", 40)
	refused(blob, nil, "without context", 0)
	refused(blob, map[string]string{"k": "w"}, "another context", 0)
	if _, err := SplitOuter(randomKey(t), blob, context); err != ErrCiphertext {
		t.Errorf("other material: %v", err)
	}
}

// TestOuterApart: neither kind of ciphertext is taken for the other.
func TestOuterApart(t *testing.T) {
	material := randomKey(t)
	inner, err := SealMessage(material, testHeader(), []byte("x"), nil)
	if err != nil {
		t.Fatal(err)
	}
	o := testOuter(0)
	o.Body = inner
	blob, err := JoinOuter(material, testHeader(), o, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := SplitOuter(material, inner, nil); err != ErrCiphertext {
		t.Errorf("a message is split: %v", err)
	}
	if _, err := OpenMessage(material, blob, nil); err != ErrCiphertext {
		t.Errorf("an outer ciphertext opens: %v", err)
	}
	if _, err := ParseHeader(blob); err != ErrCiphertext {
		t.Errorf("its header: %v", err)
	}
	if _, err := ParseOuterHeader(inner); err != ErrCiphertext {
		t.Errorf("a message's header: %v", err)
	}
}

func TestOuterSizes(t *testing.T) {
	material := randomKey(t)
	for name, spoil := range map[string]func(*Outer){
		"IV of 13 bytes":   func(o *Outer) { o.IV = make([]byte, 13) },
		"no IV":            func(o *Outer) { o.IV = nil },
		"short tag":        func(o *Outer) { o.Tag = o.Tag[:15] },
		"much metadata":    func(o *Outer) { o.Metadata = make([]byte, MaxOuterMetadata+1) },
		"body of nothing":  func(o *Outer) { o.Body = o.Body[:MessageOverhead] },
		"body of too much": func(o *Outer) { o.Body = make([]byte, MaxMessage) },
	} {
		o := testOuter(0)
		spoil(o)
		if blob, err := JoinOuter(material, testHeader(), o, nil); !errors.Is(err, ErrSize) || blob != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := JoinOuter(material[:31], testHeader(), testOuter(0), nil); !errors.Is(err, ErrMaterial) {
		t.Errorf("short material: %v", err)
	}
	// The longest message that a caller can have encrypted fits.
	o := &Outer{IV: make([]byte, 16), Tag: make([]byte, 16), Metadata: make([]byte, MaxOuterMetadata), Body: make([]byte, 4096+MessageOverhead)}
	if _, err := JoinOuter(material, testHeader(), o, nil); err != nil {
		t.Errorf("4096 bytes: %v", err)
	}
}

func FuzzSplitOuter(f *testing.F) {
	var golden []goldenOuter // fixed, as the fuzzer's processes must agree
	readJSON(f, "testdata/outer-v1.json", &golden)
	material, good := unhex(f, golden[0].Material), unhex(f, golden[0].Blob)
	f.Add(good)
	f.Add(good[:minOuter-1])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, blob []byte) {
		h, herr := ParseOuterHeader(blob)
		if herr != nil && (herr != ErrCiphertext || h != (Header{})) {
			t.Fatalf("ParseOuterHeader: %x, %v", h, herr)
		}
		o, err := SplitOuter(material, blob, nil)
		if (err == nil) != bytes.Equal(blob, good) {
			t.Fatalf("split to %v, %v", o, err)
		}
	})
}
