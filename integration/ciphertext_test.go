package integration

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport"
)

// TestCiphertextBits changes a real ciphertext in every way that is one step from
// it. Each is refused with one and the same error, by its type and its message.
func TestCiphertextBits(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("many cases that take the same ways, one after the other: make test runs it")
	}
	c := harness.NewCluster(t, 1, harness.Options{})
	n := c.Nodes[0]
	ctx := t.Context()
	newKey := func(n *harness.Node) *string {
		t.Helper()
		out, err := n.SDK().CreateKey(ctx, &kms.CreateKeyInput{})
		if err != nil {
			t.Fatal(err)
		}
		return out.KeyMetadata.KeyId
	}
	ec := map[string]string{"of": "this"}
	plaintext := []byte("four")
	encrypt := func(n *harness.Node, key *string, ec map[string]string) []byte {
		t.Helper()
		out, err := n.SDK().Encrypt(ctx, &kms.EncryptInput{KeyId: key, Plaintext: plaintext, EncryptionContext: ec})
		if err != nil {
			t.Fatal(err)
		}
		return out.CiphertextBlob
	}
	key, other := newKey(n), newKey(n)
	blob := encrypt(n, key, ec)

	type variant struct {
		name string
		blob []byte
		ec   map[string]string
	}
	var variants []variant
	add := func(b []byte, ec map[string]string, format string, args ...any) {
		variants = append(variants, variant{fmt.Sprintf(format, args...), b, ec})
	}
	for bit := range 8 * len(blob) {
		b := bytes.Clone(blob)
		b[bit/8] ^= 1 << (bit % 8)
		add(b, ec, "bit %d of byte %d changed", bit%8, bit/8)
	}
	for size := 1; size < len(blob); size++ {
		add(blob[:size], ec, "cut to %d bytes", size)
		add(blob[size:], ec, "without its first %d bytes", size)
	}
	for _, more := range [][]byte{{0}, {0xff}, blob, make([]byte, 1000)} {
		add(append(bytes.Clone(blob), more...), ec, "%d bytes more", len(more))
		add(append(bytes.Clone(more), blob...), ec, "%d bytes before it", len(more))
	}
	// Pieces of two: of the same key, of another, of another context, of another
	// cluster.
	elsewhere := harness.NewCluster(t, 1, harness.Options{})
	for name, second := range map[string][]byte{
		"the same key": encrypt(n, key, ec), "another key": encrypt(n, other, ec), "another context": encrypt(n, key, map[string]string{"of": "that"}),
		"another cluster": encrypt(elsewhere.Nodes[0], newKey(elsewhere.Nodes[0]), ec),
	} {
		if len(second) != len(blob) {
			t.Fatalf("a ciphertext of %s has %d bytes, want %d", name, len(second), len(blob))
		}
		// Where both are the same before or behind, so is what is put together.
		for at := 1; at < len(blob); at++ {
			for _, b := range [][]byte{append(bytes.Clone(blob[:at]), second[at:]...), append(bytes.Clone(second[:at]), blob[at:]...)} {
				if !bytes.Equal(b, blob) && !bytes.Equal(b, second) {
					add(b, ec, "joined at byte %d with one of %s", at, name)
				}
			}
		}
		if name == "another cluster" || name == "another context" {
			add(second, ec, "one of %s", name)
		}
	}
	for name, ec := range map[string]map[string]string{
		"none": nil, "another value": {"of": "thIs"}, "another name": {"oF": "this"}, "one more": {"of": "this", "": ""}, "moved": {"o": "fthis"},
		"joined": {"ofthis": ""},
	} {
		add(blob, ec, "the context is: %s", name)
	}

	work := make(chan variant)
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			for v := range work {
				_, err := n.SDK().Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: v.blob, EncryptionContext: v.ec})
				silent(t, "Decrypt: "+v.name, err)
				if len(v.name)%16 == 0 { // some
					_, err = n.SDK().ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: v.blob, SourceEncryptionContext: v.ec, DestinationKeyId: other})
					silent(t, "ReEncrypt: "+v.name, err)
				}
			}
		})
	}
	for _, v := range variants {
		work <- v
	}
	close(work)
	all.Wait()
	t.Logf("%d variants of a ciphertext of %d bytes", len(variants), len(blob))
	dec, err := n.SDK().Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob, EncryptionContext: ec})
	if err != nil || !bytes.Equal(dec.Plaintext, plaintext) {
		t.Errorf("the ciphertext itself: %v", err)
	}
	c.NoFaults()
}

func silent(t *testing.T, what string, err error) {
	t.Helper()
	invalid, ok := errors.AsType[*types.InvalidCiphertextException](err)
	if !ok {
		t.Errorf("%s: got %v, want InvalidCiphertextException", what, err)
	} else if want := transport.Lookup(kmsapi.ErrInvalidCiphertext).Message; invalid.ErrorMessage() != want {
		t.Errorf("%s: the error says %q, want %q", what, invalid.ErrorMessage(), want)
	}
}
