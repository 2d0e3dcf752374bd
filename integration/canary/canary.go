// Package canary looks for secrets in files, logs, memory and traffic, in whatever form they may
// have been written there. It is for tests that secrets stay where they belong.
package canary

import (
	"bytes"
	"encoding/base32"
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

// Set looks for secrets in whatever form they may have been written. A part of a secret counts
// as much as the whole. The zero Set has no secrets.
type Set struct {
	// Count is the number of forms that it looks for.
	Count int

	first [1 << 16]bool // whether a needle begins with these two bytes
	by    map[uint64][]needle
}

type needle struct {
	form []byte
	what string // which secret, and how it is written
}

// pieceSize is how much of a secret is looked for at a time.
const pieceSize = 16

// Add has the scan look for a secret of at least pieceSize bytes.
func (c *Set) Add(what string, secret []byte) {
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

// AddShare has the scan look for the secret part of a custodian's share, as bytes and as text.
// Around it stand the ids of the cluster and of the set, which are no secrets.
func (c *Set) AddShare(t testing.TB, what, share string) {
	t.Helper()
	const before, value = 1 + 16 + 16 + 3, 32
	text := share[strings.LastIndexByte(share, '-')+1:]
	raw, err := base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding).DecodeString(text)
	if err != nil || len(raw) < before+value {
		t.Fatalf("%s is not what this test takes it for: %v", what, err)
	}
	c.Add(what, raw[before:before+value])
	secret := text[(8*before+4)/5 : 8*(before+value)/5]
	c.Add(what+" as text", []byte(secret))
	c.Add(what+" as capitals", []byte(strings.ToUpper(secret)))
}

func (c *Set) needle(what string, form []byte) {
	if c.by == nil {
		c.by = make(map[uint64][]needle)
	}
	c.first[binary.LittleEndian.Uint16(form)] = true
	k := binary.LittleEndian.Uint64(form)
	c.by[k] = append(c.by[k], needle{form: form, what: what})
	c.Count++
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

// In returns what was found in data, each needle once.
func (c *Set) In(data []byte) []string {
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

// InFile scans data, and what is compressed in it.
func (c *Set) InFile(data []byte) (found []string, frames int) {
	found = c.In(data)
	for off := 0; ; {
		i := bytes.Index(data[off:], zstdMagic)
		if i < 0 {
			return found, frames
		}
		off += i
		if plain, err := Unpack(data[off:]); err == nil || len(plain) > 0 {
			frames++
			for _, f := range c.In(plain) {
				found = append(found, f+" of what is compressed at byte "+strconv.Itoa(off))
			}
		}
		off += len(zstdMagic)
	}
}

// Unpack decompresses what zstd has compressed. With an error, it returns what it could read.
func Unpack(data []byte) ([]byte, error) {
	z, err := zstd.NewReader(bytes.NewReader(data), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	var out bytes.Buffer
	_, err = out.ReadFrom(z)
	return out.Bytes(), err
}

// InDir scans all files below a directory. It reports how much there was.
func (c *Set) InDir(t testing.TB, dir string) (found []string, size int64, frames int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		f, n := c.InFile(data)
		for _, f := range f {
			found = append(found, path+": "+f)
		}
		for _, f := range c.In([]byte(path)) {
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
