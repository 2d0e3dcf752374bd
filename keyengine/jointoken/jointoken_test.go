package jointoken

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

func sample() *Token {
	return &Token{Generation: 7, Cluster: [16]byte{1}, ID: [16]byte{2}, Authority: [32]byte{3}, Expires: time.Unix(1_800_000_000, 0),
		Node: "node-4", Address: "10.0.0.4:7602", Names: []string{"kms.example.com", "10.0.0.9"}}
}

func TestRoundTrip(t *testing.T) {
	mac := bytes.Repeat([]byte{9}, MACSize)
	for _, names := range [][]string{nil, {"a"}, {"kms.example.com", "10.0.0.9"}} {
		want := sample()
		want.Names = names
		text := Encode(want.Body(), mac)
		got, body, tag, err := Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if len(got.Names) == 0 {
			got.Names = nil
		}
		if !reflect.DeepEqual(got, want) || !bytes.Equal(body, want.Body()) || !bytes.Equal(tag, mac) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}

// TestMalformed: everything that is not exactly a token is refused, in particular other texts
// that a lenient decoder would read as the same token.
func TestMalformed(t *testing.T) {
	mac := make([]byte, MACSize)
	good := Encode(sample().Body(), mac)
	long := sample()
	long.Node = strings.Repeat("a", maxNode+1)
	many := sample()
	many.Names = strings.Split(strings.Repeat("a ", MaxNames)+"a", " ")
	far := sample().Body()
	copy(far[69:], bytes.Repeat([]byte{0xff}, 8))
	other := sample().Body()
	other[0] = 2
	for name, text := range map[string]string{
		"empty": "", "no prefix": strings.TrimPrefix(good, prefix), "only the prefix": prefix, "a line break": good[:40] + "\n" + good[40:], "padded": good + "=",
		"cut": good[:len(good)-50], "another format": Encode(other, mac), "a long id": Encode(long.Body(), mac), "too many names": Encode(many.Body(), mac),
		"no address": Encode(sample().Body()[:fixed+8], mac), "too far in the future": Encode(far, mac), "an empty name": Encode(append(sample().Body(), 0, 0), mac),
		"a name beyond the end": Encode(append(sample().Body(), 0, 200), mac), "too long": prefix + strings.Repeat("A", MaxText),
	} {
		if _, _, _, err := Parse(text); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: got error %v, want ErrMalformed", name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Encode(sample().Body(), make([]byte, MACSize)))
	f.Add(prefix)
	f.Fuzz(func(t *testing.T, text string) {
		token, body, mac, err := Parse(text)
		if err != nil {
			return
		}
		if Encode(body, mac) != text || !bytes.Equal(token.Body(), body) {
			t.Errorf("%q is not the only text of its token", text)
		}
	})
}
