package kmsapi

import (
	"reflect"
	"strings"
	"testing"
)

type outer struct {
	Blob   []byte `kms:"public"`
	Inner  *inner
	Inners []inner
}

type inner struct {
	Text *string
	Deep *deep
}

type deep struct {
	Plaintext []byte `kms:"secret"`
}

// TestWipe: of an answer the secrets are overwritten at every depth, and nothing else; of a
// request all blobs.
func TestWipe(t *testing.T) {
	v := outer{Blob: []byte("blob"), Inner: &inner{Deep: &deep{Plaintext: []byte("p")}}, Inners: []inner{{}, {Deep: &deep{Plaintext: []byte("q")}}}}
	s := OutputSchema[outer]()
	public := v.Blob
	s.Wipe(&v)
	if string(public) != "blob" {
		t.Error("an answer's public blob was overwritten")
	}
	if v.Inner.Deep.Plaintext[0] != 0 || v.Inners[1].Deep.Plaintext[0] != 0 {
		t.Error("an answer's secrets were left")
	}
	s.WipeAll(&v)
	if string(public) != "\x00\x00\x00\x00" {
		t.Error("a request's blob was left")
	}
	for _, other := range []any{nil, (*outer)(nil), outer{}, &inner{}, new(*outer)} { // nothing to wipe
		s.Wipe(other)
		s.WipeAll(other)
	}
}

// TestOf: a schema is of one type.
func TestOf(t *testing.T) {
	s := OutputSchema[outer]()
	for _, v := range []any{nil, outer{}, &inner{}, (*inner)(nil), new(*outer)} {
		if _, err := s.Of(v); err == nil {
			t.Errorf("%T is taken for a structure of the schema", v)
		}
	}
	if v, err := s.Of((*outer)(nil)); err != nil || v.IsValid() {
		t.Errorf("a nil pointer: got %v, %v", v, err)
	}
}

func TestSimilar(t *testing.T) {
	s := InputSchema[EncryptInput]()
	for name, want := range map[string]string{"keyid": "KeyId", "KEY_ID": "KeyId", "key-id": "KeyId", "KeyId": "KeyId", "Key": "", "": ""} {
		if got := s.Similar(name); got != want {
			t.Errorf("Similar(%q) = %q, want %q", name, got, want)
		}
	}
}

// TestClosed: a structure is closed if a member of it narrows, and so is everything inside of
// that member, but not what stands beside it.
func TestClosed(t *testing.T) {
	type limits struct {
		Deep *deep
	}
	type narrow struct {
		Limits *limits `kms:"narrows"`
		Open   *inner
	}
	s := OutputSchema[narrow]()
	limit, open := s.Members[0].Inner, s.Members[1].Inner
	if !s.Closed || !limit.Closed || !limit.Members[0].Inner.Closed || open.Closed {
		t.Errorf("closed: %v, inside %v and %v, beside %v", s.Closed, limit.Closed, limit.Members[0].Inner.Closed, open.Closed)
	}
}

type endless struct{ Inner *endless }

// TestNoSchema: what no member can be is found when the schema is compiled.
func TestNoSchema(t *testing.T) {
	for _, v := range []any{
		struct{ A int }{}, struct{ A string }{}, struct{ A *int64 }{}, struct{ A [][]byte }{}, struct{ A map[string]int }{}, struct{ A []int32 }{},
		struct{ A *[]string }{}, struct{ a *string }{}, struct{ A any }{}, struct{ A []*inner }{}, endless{}, 7,
		struct{ A []byte }{},
		struct {
			A []byte `kms:"secret,public"`
		}{},
		struct {
			A *string `kms:"public"`
		}{},
		struct {
			A *string `kms:"secret,log"`
		}{},
		struct {
			A *bool `kms:"default=yes"`
		}{},
		struct {
			A *string `kms:"name="`
		}{},
		struct {
			A *string `kms:"len=..4"`
		}{},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%T has a schema", v)
				}
			}()
			compile(reflect.TypeOf(v), place{})
		}()
	}
}

// TestNumberMap: outputs may have a map of numbers, inputs not.
func TestNumberMap(t *testing.T) {
	type numbers struct {
		A map[string]int32 `kms:"nolog"`
	}
	if m := OutputSchema[numbers]().Members[0]; m.Kind != KindNumberMap {
		t.Errorf("kind %d", m.Kind)
	}
	defer func() {
		if recover() == nil {
			t.Error("an input may have a map of numbers")
		}
	}()
	InputSchema[numbers]()
}

// TestName: a member has the name that its tag says, and no other.
func TestName(t *testing.T) {
	s := OutputSchema[struct {
		Arn *string `kms:"name=arn"`
	}]()
	if _, ok := s.Index([]byte("Arn")); ok || s.Members[0].Name != "arn" || s.Members[0].Label != "arn" {
		t.Errorf("member %+v", s.Members[0])
	}
	if i, ok := s.Index([]byte("arn")); !ok || i != 0 {
		t.Error("there is no arn")
	}
}

// TestLowerBoundOnly: a length without an upper bound is unlimited upwards.
func TestLowerBoundOnly(t *testing.T) {
	type text struct {
		A *string `kms:"len=2..,nolog"`
	}
	s := InputSchema[text]()
	if err := s.Validate(&text{new(strings.Repeat("a", 1<<20))}); err != nil {
		t.Error(err)
	}
	if err := s.Validate(&text{new("a")}); err == nil {
		t.Error("a text that is too short is valid")
	}
}
