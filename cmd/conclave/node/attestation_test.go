package node_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/conclavekms/conclave/cmd/conclave/node"
	"github.com/conclavekms/conclave/keyengine/attesttest"
)

// TestEnclave: AWS's client, with an attestation document, gets an answer that
// only the enclave can decrypt, from a node that trusts the root of the
// document.
func TestEnclave(t *testing.T) {
	enclave, err := attesttest.NewEnclave(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cfg := single(t, t.TempDir())
	cfg.AttestationRoots = filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(cfg.AttestationRoots, enclave.Root().PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	n := start(t, cfg)
	c := sdk(n, found(t, n))
	key, err := c.CreateKey(t.Context(), &kms.CreateKeyInput{})
	if err != nil {
		t.Fatal(err)
	}
	ct, err := c.Encrypt(t.Context(), &kms.EncryptInput{KeyId: key.KeyMetadata.KeyId, Plaintext: []byte("hello")})
	if err != nil {
		t.Fatal(err)
	}
	decrypt := &kms.DecryptInput{CiphertextBlob: ct.CiphertextBlob, Recipient: &types.RecipientInfo{
		KeyEncryptionAlgorithm: types.KeyEncryptionMechanismRsaesOaepSha256, AttestationDocument: enclave.Document(time.Now()),
	}}
	got, err := c.Decrypt(t.Context(), decrypt)
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := enclave.Open(got.CiphertextForRecipient); err != nil || string(plain) != "hello" || got.Plaintext != nil {
		t.Errorf("the enclave finds %q, %v, and %q in the clear", plain, err, got.Plaintext)
	}

	without := start(t, single(t, t.TempDir()))
	c = sdk(without, found(t, without))
	_, err = c.GenerateRandom(t.Context(), &kms.GenerateRandomInput{NumberOfBytes: aws.Int32(1), Recipient: decrypt.Recipient})
	if err == nil || !strings.Contains(err.Error(), "UnsupportedOperationException: Recipient is not supported by this node: it was started without --attestation-roots.") {
		t.Errorf("a node without roots answers %v", err)
	}
}

// TestAttestationRoots: with an invalid file a node does not start, as it would
// refuse every enclave.
func TestAttestationRoots(t *testing.T) {
	for name, tt := range map[string]struct{ content, want string }{
		"empty":   {"", "there is no certificate"},
		"wrong":   {"garbage", "not PEM"},
		"no file": {"", "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := single(t, t.TempDir())
			cfg.AttestationRoots = filepath.Join(t.TempDir(), "roots.pem")
			if name != "no file" {
				if err := os.WriteFile(cfg.AttestationRoots, []byte(tt.content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			n, err := node.Start(t.Context(), cfg)
			if err == nil {
				_ = n.Stop(context.Background())
				t.Fatal("the node started")
			}
			if !strings.Contains(err.Error(), "attestation roots: ") || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q in it", err, tt.want)
			}
		})
	}
}
