package shamir

import (
	"bytes"
	"crypto/rand"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

var named = []error{ErrEmpty, ErrTooLong, ErrTruncated, ErrFormat, ErrVersion, ErrChecksum}

// encoding is what the texts are in, by the standard library.
var encoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

func textOf(s Share) string { return string(s.AppendText(make([]byte, 0, TextSize))) }

func envelopeOf(s Share) [envelopeSize]byte {
	t := new(scratch)
	s.envelope(t)
	return t.envelope
}

// TestBase32 holds our own against the standard library's.
func TestBase32(t *testing.T) {
	for range 1000 {
		var e, back [envelopeSize]byte
		rand.Read(e[:])
		var text [encodedLen]byte
		encode32(text[:], e[:])
		if want := encoding.EncodeToString(e[:]); string(text[:]) != want {
			t.Fatalf("got %s, want %s", text, want)
		}
		if decode32(back[:], text[:]); back != e {
			t.Fatalf("%s was read as another", text)
		}
	}
}

func isNamed(err error) bool {
	for _, n := range named {
		if errors.Is(err, n) {
			return true
		}
	}
	return false
}

func sameShare(a, b Share) bool {
	return a.set == b.set && a.index == b.index && a.live() && b.live() && a.cell.v.b == b.cell.v.b
}

func TestParseTolerates(t *testing.T) {
	_, shares := deal(t, newSet(2, 3))
	text := textOf(shares[1])
	if len(text) != 139 {
		t.Errorf("text has %d characters, documented are 139", len(text))
	}
	grouped := ""
	for i, c := range text {
		if i%5 == 0 {
			grouped += " "
		}
		grouped += string(c)
	}
	for name, in := range map[string]string{
		"as is":       text,
		"upper case":  strings.ToUpper(text),
		"new line":    text + "\r\n",
		"wrapped":     "\n  " + text[:40] + "\n\t" + text[40:99] + "\r\n" + text[99:],
		"grouped":     grouped,
		"padded long": strings.Repeat(" ", 3000) + text,
	} {
		got, err := ParseShare([]byte(in))
		if err != nil || !sameShare(got, shares[1]) {
			t.Errorf("%s: %v", name, err)
		}
		got, err = ParseShare([]byte(in))
		if err != nil || !sameShare(got, shares[1]) {
			t.Errorf("%s as bytes: %v", name, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	_, shares := deal(t, newSet(2, 3))
	text := textOf(shares[0])
	body := strings.TrimPrefix(text, textPrefix)
	for _, tc := range []struct {
		name, in string
		want     error
	}{
		{"empty", "", ErrEmpty},
		{"white space", " \n\t\r ", ErrEmpty},
		{"1 MB", strings.Repeat("a", 1<<20), ErrTooLong},
		{"1 MB of white space", strings.Repeat(" ", 1<<20), ErrTooLong},
		{"share and 1 MB", text + strings.Repeat("a", 1<<20), ErrTooLong},
		{"one character more", text + "a", ErrTooLong},
		{"twice", text + text, ErrTooLong},
		{"two shares on two lines", text + "\n" + text, ErrTooLong},
		{"version 2", textName + "2-" + body, ErrVersion},
		{"version 12", textName + "12-" + body, ErrVersion},
		{"version 0", textName + "0-" + body, ErrVersion},
		{"version x", textName + "x-" + body, ErrFormat},
		{"version 1000", textName + "1000-" + body, ErrFormat},
		{"no version", textName + "-" + body, ErrFormat},
		{"no prefix", body, ErrFormat},
		{"other prefix", "conclave-token-1-" + body, ErrFormat},
		{"digit 0", textPrefix + "0" + body[1:], ErrFormat},
		{"digit 1", textPrefix + "1" + body[1:], ErrFormat},
		{"invalid UTF-8", textPrefix + "\xff" + body[1:], ErrFormat},
		{"no-break space", textPrefix + "\u00a0" + body, ErrFormat},
		{"NUL", text + "\x00", ErrFormat},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, err := ParseShare([]byte(tc.in))
			if !errors.Is(err, tc.want) || s != (Share{}) {
				t.Fatalf("err = %v, want %v", err, tc.want)
			}
			if strings.Contains(err.Error(), body[:8]) || strings.Contains(err.Error(), "\xff") {
				t.Errorf("error quotes its input: %q", err)
			}
		})
	}
	for i := range text {
		if _, err := ParseShare([]byte(text[:i])); i == 0 && !errors.Is(err, ErrEmpty) || i > 0 && !errors.Is(err, ErrTruncated) {
			t.Errorf("first %d characters: err = %v, want ErrTruncated", i, err)
		}
		if _, err := ParseShare([]byte(text[:i] + text[i+1:])); !isNamed(err) {
			t.Errorf("without character %d: err = %v", i, err)
		}
	}
}

func TestEveryTextBitFlip(t *testing.T) {
	_, shares := deal(t, newSet(3, 5))
	text := textOf(shares[2])
	for i := range len(text) * 8 {
		b := []byte(text)
		b[i/8] ^= 1 << (i % 8)
		got, err := ParseShare(b)
		if err == nil {
			// Only a change of case is no change.
			if !sameShare(got, shares[2]) || !strings.EqualFold(string(b), text) {
				t.Errorf("bit %d of the text: taken for a share", i)
			}
		} else if !isNamed(err) || got != (Share{}) {
			t.Errorf("bit %d of the text: %v", i, err)
		}
	}
}

func TestEveryBinaryBitFlip(t *testing.T) {
	_, shares := deal(t, newSet(3, 5))
	for i := range envelopeSize * 8 {
		e := envelopeOf(shares[2])
		e[i/8] ^= 1 << (i % 8)
		want := ErrChecksum
		if i < 8 {
			want = ErrVersion
		}
		if _, err := ParseShare([]byte(textPrefix + encoding.EncodeToString(e[:]))); !errors.Is(err, want) {
			t.Errorf("bit %d of the envelope: err = %v, want %v", i, err, want)
		}
	}
}

// A right checksum does not make impossible numbers acceptable.
func TestParseRefusesImpossibleNumbers(t *testing.T) {
	_, shares := deal(t, newSet(3, 5))
	for _, n := range [][3]byte{{0, 5, 1}, {6, 5, 1}, {3, 5, 0}, {3, 5, 6}, {0, 0, 0}, {0, 0, 1}, {1, 0, 1}} {
		e := envelopeOf(shares[0])
		copy(e[33:], n[:])
		sum := new(scratch).checksum(e[:envelopeSize-checksumSize])
		copy(e[envelopeSize-checksumSize:], sum[:])
		if _, err := ParseShare([]byte(textPrefix + encoding.EncodeToString(e[:]))); !errors.Is(err, ErrFormat) {
			t.Errorf("threshold, count, index = %v: err = %v, want ErrFormat", n, err)
		}
	}
}

func TestCommitmentBindsEverything(t *testing.T) {
	_, shares := deal(t, newSet(3, 5))
	want := Commitment(shares[0])
	for name, change := range map[string]func(*Share){
		"cluster":   func(s *Share) { s.set.Cluster[15] ^= 1 },
		"set":       func(s *Share) { s.set.Set[0] ^= 1 },
		"threshold": func(s *Share) { s.set.Threshold++ },
		"count":     func(s *Share) { s.set.Count++ },
		"index":     func(s *Share) { s.index++ },
		"value":     func(s *Share) { s.cell.v.b[31] ^= 0x80 },
	} {
		s := shares[0].clone()
		change(&s)
		if Commitment(s) == want {
			t.Errorf("%s is not bound", name)
		}
	}
	if all := Commitments(shares); len(all) != 5 || all[0] != want || all[1] == want {
		t.Error("Commitments differs from Commitment")
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

func TestWipe(t *testing.T) {
	_, shares := deal(t, newSet(2, 3))
	s := shares[0]
	v := s.cell.v
	s.Wipe()
	if *v != (value{}) {
		t.Error("Wipe left the value")
	}
	if shares[0].live() {
		t.Error("a copy outlived Wipe")
	}
	s.Wipe()
	Share{}.Wipe()
	mustPanic(t, "Text", func() { _ = textOf(s) })
	mustPanic(t, "Commitment", func() { Commitment(s) })
	mustPanic(t, "Text of the zero Share", func() { _ = textOf(Share{}) })
}

func TestNothingPrintsShares(t *testing.T) {
	set := SetInfo{Threshold: 2, Count: 3} // random ids could look like the value
	_, shares := deal(t, set)
	for i := range shares[0].cell.v.b {
		shares[0].cell.v.b[i] = 0xa5
	}
	c, err := NewCollector(set, Commitments(shares))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Add(shares[0]); err != nil {
		t.Fatal(err)
	}
	s := shares[0]
	hidden := struct {
		s Share
		p *Share
		l []Share
		m map[string]Share
		c *Collector
	}{s, &s, []Share{s}, map[string]Share{"a": s}, c}
	shown := struct {
		S Share
		P *Share
		L []Share
		C *Collector
	}{s, &s, []Share{s}, c}
	leaks := func(what, out string) {
		// Four times the value's byte, as other bytes printed here are hashes.
		for _, secret := range []string{"a5a5a5a5", "A5A5A5A5", "165 165 165 165", "165,165,165,165", "a5, 0xa5, 0xa5",
			"a5 a5 a5 a5", "A5 A5 A5 A5", "\xa5\xa5\xa5\xa5", "¥ ¥ ¥ ¥", "U+00A5 U+00A5 U+00A5", "245 245 245 245",
			"10100101 10100101 10100101", "uws2ljnf"} {
			if strings.Contains(out, secret) {
				t.Errorf("%s shows a share: %.300q", what, out)
			}
		}
	}
	for _, v := range []any{s, &s, []Share{s}, c, hidden, &hidden, shown, &shown, &ShareError{1, ErrWrongShare}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "% x", "%X", "%#x", "%d", "%o", "%b", "%p", "%t", "%c", "%U", "%z"} {
			leaks(verb, fmt.Sprintf(verb, v))
		}
		leaks("Sprint", fmt.Sprint(v))
		j, err := json.Marshal(v)
		if err != nil {
			t.Errorf("json: %v", err)
		}
		leaks("json", string(j))
		for _, h := range []func(*bytes.Buffer) slog.Handler{
			func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) },
			func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, nil) },
		} {
			var b bytes.Buffer
			slog.New(h(&b)).Info("x", "v", v)
			leaks("slog", b.String())
		}
	}
	for _, v := range []any{s, &s, c} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			if got := fmt.Sprintf(verb, v); got != redacted {
				t.Errorf("%s of %T = %q, want %q", verb, v, got, redacted)
			}
		}
	}
	if j, _ := json.Marshal(shown); !strings.Contains(string(j), redacted) {
		t.Errorf("json = %s, want the word redacted", j)
	}
}

func FuzzParseShare(f *testing.F) {
	set := SetInfo{Threshold: 2, Count: 3}
	shares, err := Split(bytes.NewReader(bytes.Repeat([]byte{9}, 64)), bytes.Repeat([]byte{7}, SecretSize), set)
	if err != nil {
		f.Fatal(err)
	}
	text := textOf(shares[0])
	for _, seed := range []string{"", text, strings.ToUpper(text), " " + text + "\n", text[:50], "conclave-share-2-abc", textPrefix, text + text} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		s, err := ParseShare([]byte(in))
		if err != nil {
			if !isNamed(err) || s != (Share{}) {
				t.Fatalf("unnamed error or half a share: %v", err)
			}
			return
		}
		stripped := strings.ToLower(strings.Map(func(r rune) rune {
			if strings.ContainsRune(" \t\r\n\v\f", r) {
				return -1
			}
			return r
		}, in))
		if textOf(s) != stripped {
			t.Fatalf("parsed %q, which is not what Text gives", in)
		}
	})
}
