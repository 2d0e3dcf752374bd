package peerunseal

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/conclavekms/conclave/cmd/conclave/node"
	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// TestSealsByKMSAndFile: a cluster is unsealed by a key of another Conclave cluster, migrates
// to a key file with the custodians' shares, and back to the shares. All nodes may start at
// once.
func TestSealsByKMSAndFile(t *testing.T) {
	outer := harness.NewCluster(t, 1, harness.Options{})
	key, err := outer.Nodes[0].KMS().CreateKey(t.Context(), &kmspb.CreateKeyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	// The nodes find credentials as AWS's SDK does.
	t.Setenv("AWS_ACCESS_KEY_ID", outer.AccessKeyID)
	t.Setenv("AWS_SECRET_ACCESS_KEY", outer.Secret())
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	byKMS := fmt.Sprintf("awskms:%s?region=%s&endpoint=%s&ca=%s", key.GetKeyMetadata().GetKeyId(), harness.Region,
		url.QueryEscape("https://"+outer.Nodes[0].AWS), url.QueryEscape(outer.CAFile()))
	file := filepath.Join(t.TempDir(), "seal.key")
	if err := os.WriteFile(file, []byte(base64.StdEncoding.EncodeToString([]byte("0123456789abcdef0123456789abcdef"))), 0o600); err != nil {
		t.Fatal(err)
	}
	var seals atomic.Pointer[[]string]
	seals.Store(new([]string))
	c := harness.NewCluster(t, 3, harness.Options{Configure: func(_ *harness.Node, cfg *node.Config) { cfg.Seals = *seals.Load() }})
	admin := func() kmspb.ClusterClient { return harness.Administration(c.Nodes[0]) }
	c.Finalize()
	has := func(kind string) (name string) {
		t.Helper()
		c.Eventually("waiting for a seal", func(ctx context.Context) error {
			r, err := admin().ListSeals(ctx, &kmspb.ListSealsRequest{})
			if err != nil {
				return err
			}
			for _, s := range r.GetSeals() {
				if strings.HasPrefix(s.GetName(), kind) && s.GetConfigured() {
					name = s.GetName()
					return nil
				}
			}
			return fmt.Errorf("there are %v", r.GetSeals())
		})
		return name
	}
	restart := func() {
		for _, n := range c.Nodes {
			n.Stop()
		}
		for _, n := range c.Nodes {
			n.Start()
		}
	}
	// The custodians unseal one node with the seal.
	seals.Store(&[]string{byKMS})
	c.Nodes[0].Stop()
	c.Nodes[0].Start()
	waits(c, c.Nodes[0], "the custodians have to unseal a node that is configured with it")
	c.Nodes[0].Unseal()
	kms := has("awskms:")
	restart()
	c.WaitReady()

	// To a file, with their shares.
	seals.Store(&[]string{"file:" + file})
	restart()
	waits(c, c.Nodes[0], "the custodians have to unseal a node that is configured with it")
	c.Nodes[0].Unseal()
	c.Unseal()
	c.WaitReady()
	has("file:")
	if _, err := admin().RemoveSeal(t.Context(), &kmspb.RemoveSealRequest{Name: kms}); err != nil {
		t.Fatal(err)
	}
	restart()
	c.WaitReady()

	// The old seal opens nothing any more.
	seals.Store(&[]string{byKMS})
	c.Nodes[2].Stop()
	c.Nodes[2].Start()
	waits(c, c.Nodes[2], "the custodians have to unseal a node that is configured with it")
	// Back to the shares alone.
	seals.Store(new([]string))
	restart()
	c.Unseal()
	c.WaitReady()
	if got := events(t, c.Nodes[0], "UnsealBySeal"); len(got) < 6 { // more if a node was quicker than the custodians
		t.Errorf("the log has %d records of nodes that seals have unsealed, want at least 6: %v", len(got), got)
	}
	c.NoFaults()
}
