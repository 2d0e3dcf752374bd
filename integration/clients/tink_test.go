package clients

import (
	"bytes"
	"testing"

	"github.com/tink-crypto/tink-go-awskms/v3/integration/awskms"
	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"
)

// TestTink encrypts by Tink: by the key itself, in envelopes, and a keyset that
// lies encrypted.
func TestTink(t *testing.T) {
	overBoth(t, func(t *testing.T, s *server) {
		s.use(t)
		c := client(t)
		arn := key(t, c)
		remote := func(arn string) tink.AEAD {
			t.Helper()
			uri := "aws-kms://" + arn
			k, err := awskms.NewClientWithOptions(t.Context(), uri)
			if err != nil {
				t.Fatal(err)
			}
			a, err := k.GetAEAD(uri)
			if err != nil {
				t.Fatal(err)
			}
			return a
		}
		kek := remote(arn)
		for name, a := range map[string]tink.AEAD{
			"direct": kek, "envelope": aead.NewKMSEnvelopeAEAD2(aead.AES256GCMKeyTemplate(), kek),
		} {
			ciphertext, err := a.Encrypt([]byte("plaintext"), []byte("associated"))
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if got, err := a.Decrypt(ciphertext, []byte("associated")); err != nil || string(got) != "plaintext" {
				t.Errorf("%s: %q, %v", name, got, err)
			}
			if _, err := a.Decrypt(ciphertext, []byte("another")); err == nil {
				t.Errorf("%s: it decrypts with other associated data", name)
			}
		}

		handle, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
		if err != nil {
			t.Fatal(err)
		}
		var stored bytes.Buffer
		if err := handle.WriteWithAssociatedData(keyset.NewBinaryWriter(&stored), kek, []byte("keyset")); err != nil {
			t.Fatal(err)
		}
		raw := stored.Bytes()
		read := func(with tink.AEAD) (*keyset.Handle, error) {
			return keyset.ReadWithAssociatedData(keyset.NewBinaryReader(bytes.NewReader(raw)), with, []byte("keyset"))
		}
		again, err := read(remote(arn))
		if err != nil {
			t.Fatal(err)
		}
		if got, want := again.KeysetInfo().GetPrimaryKeyId(), handle.KeysetInfo().GetPrimaryKeyId(); got != want {
			t.Errorf("the keyset has key %d, want %d", got, want)
		}
		if _, err := read(remote(key(t, c))); err == nil {
			t.Error("another key opens the keyset")
		}
		disable(t, c, arn)
		if _, err := read(kek); err == nil {
			t.Error("a disabled key opens the keyset")
		}
	})
}
