package canary

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// TestControl plants a secret in each form, between other bytes and in a
// compressed file, and has it found; and finds nothing where nothing is.
func TestControl(t *testing.T) {
	secret := make([]byte, 40)
	rand.Read(secret)
	var c Set
	c.Add("secret", secret)
	noise := make([]byte, 1<<16)
	rand.Read(noise)
	if found := c.In(noise); len(found) != 0 {
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
			if len(c.In(text)) == 0 {
				t.Errorf("a secret in %s, after %d bytes, is not found", form, len(before))
			}
			z, err := zstd.NewWriter(nil)
			if err != nil {
				t.Fatal(err)
			}
			packed := z.EncodeAll(text, bytes.Clone(noise[:77]))
			if found, frames := c.InFile(packed); frames == 0 || len(found) == 0 {
				t.Errorf("a secret in %s, compressed, is not found", form)
			}
		}
		if len(c.In(bytes.Join([][]byte{before, secret[10:40], after}, nil))) == 0 {
			t.Errorf("most of a secret is not found")
		}
	}
}
