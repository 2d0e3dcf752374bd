package custodian

import (
	"fmt"
	"io"
	"strings"

	"filippo.io/age"
	"filippo.io/age/armor"
)

// parseAge reads a recipient of age: an X25519 key, or a hybrid one with ML-KEM-768.
func parseAge(line string) (*Key, error) {
	if err := refusedByFIPS(Age); err != nil {
		return nil, err
	}
	var to age.Recipient
	var err error
	if strings.HasPrefix(line, "age1pq1") {
		to, err = age.ParseHybridRecipient(line)
	} else if strings.Contains(strings.TrimPrefix(line, "age1"), "1") { // the data part has no digit 1
		return nil, fmt.Errorf("%w: recipients of age plugins are not supported", ErrKey)
	} else {
		to, err = age.ParseX25519Recipient(line)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrKey, err)
	}
	return &Key{kind: Age, fingerprint: hashOf(line), encrypt: func(plaintext []byte) (string, error) {
		var out strings.Builder
		armoured := armor.NewWriter(&out)
		// EncryptReader encrypts in the buffer that it has read the share into, while Encrypt
		// leaves a copy of it behind.
		r, err := age.EncryptReader(&whole{plaintext}, to)
		if err != nil {
			return "", err
		}
		if _, err := io.Copy(armoured, r); err != nil {
			return "", err
		}
		if err := armoured.Close(); err != nil {
			return "", err
		}
		return oneNewline(out.String()), nil
	}}, nil
}

// whole is read as a whole: the end comes with the last bytes. Were it to come after them, the
// buffer would grow before it, and its former memory would keep the bytes.
type whole struct{ left []byte }

// Read implements io.Reader.
func (w *whole) Read(b []byte) (n int, err error) {
	n = copy(b, w.left)
	if w.left = w.left[n:]; len(w.left) == 0 {
		err = io.EOF
	}
	return n, err
}

// oneNewline returns a text with one newline at its end.
func oneNewline(text string) string { return strings.TrimRight(text, "\n") + "\n" }
