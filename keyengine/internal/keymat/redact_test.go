package keymat

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

// The pattern can stand in no address, no hash and no text by chance.
func pattern() []byte { return bytes.Repeat([]byte{0xd7, 0x3c, 0x91, 0xe5}, 8) }

// forms are ways in which bytes of the pattern come out of a formatter.
func forms() []string {
	p := pattern()[:8]
	return []string{
		string(p), hex.EncodeToString(p[:4]), strings.ToUpper(hex.EncodeToString(p[:4])),
		"215 60 145 229", "215,60,145,229", "0xd7, 0x3c", "d7 3c 91", "D7 3C 91", "327 74 221", "11010111 111100",
		"U+00D7 U+003C", base64.StdEncoding.EncodeToString(p)[:8], "×", "\\xd7",
	}
}

func TestNothingPrintsSecrets(t *testing.T) {
	a := newArena(t, 64<<10)
	ring := NewKeyring(a, [16]byte{1})
	if err := ring.Add(1, store(t, a, pattern())); err != nil {
		t.Fatal(err)
	}
	mac, err := ring.DeriveMAC(1, PurposeSession)
	if err != nil {
		t.Fatal(err)
	}
	sealer, err := ring.AuditKey(1, [16]byte{1}) // a random salt could look like the pattern
	if err != nil {
		t.Fatal(err)
	}
	cache := NewCache(4)
	id := CacheID{Key: [16]byte{1}}
	if err := cache.Use(id, func() (*Secret, error) { return store(t, a, pattern()), nil }, func([]byte) error { return nil }); err != nil {
		t.Fatal(err)
	}
	s := store(t, a, pattern())

	hidden := struct {
		s     *Secret
		l     []*Secret
		m     map[string]*Secret
		a     *Arena
		ring  *Keyring
		mac   *MACKey
		b     *BodySealer
		cache *Cache
	}{s, []*Secret{s}, map[string]*Secret{"a": s}, a, ring, mac, sealer, cache}
	shown := struct {
		S     *Secret
		L     []*Secret
		A     *Arena
		Ring  *Keyring
		MAC   *MACKey
		B     *BodySealer
		Cache *Cache
	}{s, []*Secret{s}, a, ring, mac, sealer, cache}

	leaks := func(v any, what, out string) {
		for _, f := range forms() {
			if strings.Contains(out, f) {
				t.Errorf("%s of %T shows a secret as %q: %.300q", what, v, f, out)
			}
		}
	}
	own := []any{s, a, ring, mac, sealer, cache}
	for _, v := range append(own, []*Secret{s}, hidden, &hidden, shown, &shown) {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "% x", "%X", "%#x", "%d", "%o", "%b", "%p", "%t", "%c", "%U", "%e", "%z"} {
			leaks(v, verb, fmt.Sprintf(verb, v))
		}
		leaks(v, "Sprint", fmt.Sprint(v))
		j, err := json.Marshal(v)
		if err != nil {
			t.Errorf("json of %T: %v", v, err)
		}
		leaks(v, "json", string(j))
		var b bytes.Buffer
		slog.New(slog.NewTextHandler(&b, nil)).Info("x", "v", v)
		slog.New(slog.NewJSONHandler(&b, nil)).Info("x", "v", v)
		leaks(v, "slog", b.String())
	}
	for _, v := range own {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
			if got := fmt.Sprintf(verb, v); got != redactedText {
				t.Errorf("%s of %T = %q, want %q", verb, v, got, redactedText)
			}
		}
		if j, err := v.(json.Marshaler).MarshalJSON(); err != nil || string(j) != `"`+redactedText+`"` {
			t.Errorf("MarshalJSON of %T = %s, %v", v, j, err)
		}
		if j, _ := json.Marshal(v); string(j) != `"`+redactedText+`"` {
			t.Errorf("json of %T = %s", v, j)
		}
	}

	// The test itself can see what it looks for.
	for _, verb := range []string{"%v", "%s", "%x", "% x", "%#v", "%d"} {
		out := fmt.Sprintf(verb, pattern())
		found := false
		for _, f := range forms() {
			found = found || strings.Contains(out, f)
		}
		if !found {
			t.Errorf("%s of the pattern is not recognized: %q", verb, out)
		}
	}
}
