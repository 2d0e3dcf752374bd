package security

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// canaries looks for secrets in whatever form they may have been written. A part
// of a secret counts as much as the whole.
type canaries struct {
	first [1 << 16]bool // whether a needle begins with these two bytes
	by    map[uint64][]needle
	count int
}

type needle struct {
	form []byte
	what string // which secret, and how it is written
}

// pieceSize is how much of a secret is looked for at a time.
const pieceSize = 16

// add has the scan look for a secret of at least pieceSize bytes.
func (c *canaries) add(what string, secret []byte) {
	if len(secret) < pieceSize {
		panic("a secret so short is found by chance: " + what)
	}
	for off := 0; off < len(secret); off += pieceSize {
		piece := secret[min(off, len(secret)-pieceSize):][:pieceSize]
		for form, text := range writtenAs(piece) {
			c.needle(what+", bytes from "+strconv.Itoa(off)+", "+form, text)
		}
	}
}

func (c *canaries) needle(what string, form []byte) {
	if c.by == nil {
		c.by = make(map[uint64][]needle)
	}
	c.first[binary.LittleEndian.Uint16(form)] = true
	k := binary.LittleEndian.Uint64(form)
	c.by[k] = append(c.by[k], needle{form: form, what: what})
	c.count++
}

// writtenAs are the forms that bytes may take in a text, without what depends on
// the bytes around them.
func writtenAs(b []byte) map[string][]byte {
	forms := map[string][]byte{
		"raw": bytes.Clone(b), "hex": []byte(hex.EncodeToString(b)), "HEX": []byte(strings.ToUpper(hex.EncodeToString(b))),
		"reversed": reversed(b),
	}
	var quoted, numbers []string
	for _, v := range b {
		numbers = append(numbers, strconv.Itoa(int(v)))
		quoted = append(quoted, fmt.Sprintf(`\x%02x`, v))
	}
	forms["numbers"] = []byte(strings.Join(numbers, ","))
	forms["numbers of Go"] = []byte(strings.Join(numbers, " "))
	forms["escapes"] = []byte(strings.Join(quoted, ""))
	for shift := range 3 {
		padded := append(make([]byte, shift), b...)
		// Characters that hold bits of what comes before or after are left out.
		from, to := (8*shift+5)/6, 8*len(padded)/6
		forms[fmt.Sprintf("base64 at %d", shift)] = []byte(base64.RawStdEncoding.EncodeToString(padded)[from:to])
		forms[fmt.Sprintf("base64url at %d", shift)] = []byte(base64.RawURLEncoding.EncodeToString(padded)[from:to])
	}
	return forms
}

func reversed(b []byte) []byte {
	r := make([]byte, len(b))
	for i, v := range b {
		r[len(b)-1-i] = v
	}
	return r
}

// in returns what was found in data, each needle once.
func (c *canaries) in(data []byte) []string {
	var found []string
	seen := make(map[string]bool)
	for i := 0; i+8 <= len(data); i++ {
		if !c.first[binary.LittleEndian.Uint16(data[i:])] {
			continue
		}
		for _, n := range c.by[binary.LittleEndian.Uint64(data[i:])] {
			if bytes.HasPrefix(data[i:], n.form) && !seen[n.what] {
				seen[n.what] = true
				found = append(found, fmt.Sprintf("%s, at byte %d", n.what, i))
			}
		}
	}
	return found
}

var zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}

// inFile scans data, and what is compressed in it.
func (c *canaries) inFile(data []byte) (found []string, frames int) {
	found = c.in(data)
	for off := 0; ; {
		i := bytes.Index(data[off:], zstdMagic)
		if i < 0 {
			return found, frames
		}
		off += i
		if plain, err := unpack(data[off:]); err == nil || len(plain) > 0 {
			frames++
			for _, f := range c.in(plain) {
				found = append(found, f+" of what is compressed at byte "+strconv.Itoa(off))
			}
		}
		off += len(zstdMagic)
	}
}

func unpack(data []byte) ([]byte, error) {
	z, err := zstd.NewReader(bytes.NewReader(data), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	var out bytes.Buffer
	_, err = out.ReadFrom(z)
	return out.Bytes(), err
}

// inDir scans all files below a directory. It reports how much there was.
func (c *canaries) inDir(t *testing.T, dir string) (found []string, size int64, frames int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		f, n := c.inFile(data)
		for _, f := range f {
			found = append(found, path+": "+f)
		}
		for _, f := range c.in([]byte(path)) {
			found = append(found, "the name of "+path+": "+f)
		}
		size, frames = size+int64(len(data)), frames+n
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found, size, frames
}

// randomText is a printable secret, with nothing in it that an encoder would
// change.
func randomText(n int) string {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz234567"
	b := make([]byte, n)
	rand.Read(b)
	for i := range b {
		b[i] = letters[int(b[i])%len(letters)]
	}
	return string(b)
}

// TestCanaryControl plants a secret in each form, between other bytes and in a
// compressed file, and has it found; and finds nothing where nothing is.
func TestCanaryControl(t *testing.T) {
	secret := make([]byte, 40)
	rand.Read(secret)
	var c canaries
	c.add("secret", secret)
	noise := make([]byte, 1<<16)
	rand.Read(noise)
	if found := c.in(noise); len(found) != 0 {
		t.Errorf("found %v in noise", found)
	}
	for around := range 4 {
		before, after := noise[:100+around], noise[1000:1100]
		whole := bytes.Join([][]byte{before, secret, after}, nil)
		for form, text := range map[string][]byte{
			"raw": whole, "hex": []byte(hex.EncodeToString(whole)), "HEX": []byte(strings.ToUpper(hex.EncodeToString(whole))),
			"base64": []byte(base64.StdEncoding.EncodeToString(whole)), "base64url": []byte(base64.RawURLEncoding.EncodeToString(whole)),
			"numbers": fmt.Append(nil, whole), "JSON": []byte(strings.ReplaceAll(fmt.Sprint(whole), " ", ",")),
		} {
			if len(c.in(text)) == 0 {
				t.Errorf("a secret in %s, after %d bytes, is not found", form, len(before))
			}
			z, err := zstd.NewWriter(nil)
			if err != nil {
				t.Fatal(err)
			}
			packed := z.EncodeAll(text, bytes.Clone(noise[:77]))
			if found, frames := c.inFile(packed); frames == 0 || len(found) == 0 {
				t.Errorf("a secret in %s, compressed, is not found", form)
			}
		}
		if len(c.in(bytes.Join([][]byte{before, secret[10:40], after}, nil))) == 0 {
			t.Errorf("most of a secret is not found")
		}
	}
}
