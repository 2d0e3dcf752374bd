package peerunseal

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// TestRotationsMeanwhile: while a node is down, the root key and the keyring are replaced. When it
// comes back, the others unseal it with the keyring of today, and every node opens everything that
// was encrypted before and since.
func TestRotationsMeanwhile(t *testing.T) {
	t.Parallel()
	c := enabled(t, 3, 2, harness.Options{})
	created, err := c.Nodes[0].KMS().CreateKey(t.Context(), &kmspb.CreateKeyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	key := created.GetKeyMetadata().GetKeyId()
	blobs := make(map[string][]byte)
	encrypt := func(n *harness.Node, text string) {
		t.Helper()
		res, err := n.KMS().Encrypt(t.Context(), &kmspb.EncryptRequest{KeyId: &key, Plaintext: []byte(text)})
		if err != nil {
			t.Fatal(err)
		}
		blobs[text] = res.GetCiphertextBlob()
	}
	down := c.Nodes[2]
	encrypt(down, "by the node, before")
	down.Stop()

	op := c.Nodes[0].Operator()
	for _, kind := range []kmspb.KeyChangeKind{kmspb.KeyChangeKind_KEY_CHANGE_KIND_ROTATE_ROOT, kmspb.KeyChangeKind_KEY_CHANGE_KIND_ROTATE_KEYRING} {
		var k *kmspb.KeyChange
		// The other nodes may have to elect a leader first.
		c.Eventually("beginning "+kind.String(), func(ctx context.Context) error {
			res, err := op.BeginKeyChange(ctx, &kmspb.BeginKeyChangeRequest{Kind: kind})
			k = res.GetCeremony()
			return err
		})
		done := false
		for _, share := range c.Shares[:harness.Threshold] {
			if k, done, err = client.SubmitKeyChangeShare(t.Context(), op, k, []byte(share)); err != nil {
				t.Fatal(err)
			}
		}
		if !done {
			t.Fatalf("%v is not done", kind)
		}
		encrypt(c.Nodes[1], "since "+kind.String())
	}
	down.Start()
	c.WaitReady()
	c.Eventually("waiting for the record of the unsealing", func(context.Context) error {
		if len(events(t, c.Nodes[0], "UnsealByPeers")) != 1 {
			return errors.New("there is none")
		}
		return nil
	})
	encrypt(down, "by the node, since")
	for _, n := range c.Nodes {
		for text, blob := range blobs {
			c.Eventually(fmt.Sprintf("decrypting %q at %s", text, n.ID), func(ctx context.Context) error {
				res, err := n.KMS().Decrypt(ctx, &kmspb.DecryptRequest{CiphertextBlob: blob})
				if err == nil && string(res.GetPlaintext()) != text {
					t.Fatalf("%s decrypts %q as %q", n.ID, text, res.GetPlaintext())
				}
				return err
			})
		}
		res, err := n.Operator().GetKeyChange(t.Context(), &kmspb.GetKeyChangeRequest{})
		if k := res.GetCeremony(); err != nil || k.GetGeneration() != 2 || k.GetShareSet().GetEpoch() != 2 {
			t.Errorf("%s has %v, %v", n.ID, k, err)
		}
	}
	// Everybody starts from the new keys, too.
	down.Stop()
	down.Start()
	c.WaitReady()
	enrolled(c, 3)
	c.NoFaults()
	c.Converged()
}
