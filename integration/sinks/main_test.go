// Package sinks has tests of the streams of the audit log to receivers that others wrote, and to
// ones that are broken or hostile, with nodes in processes of their own.
package sinks

import (
	"context"
	"testing"
	"time"

	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/transport/kmspb"
)

func TestMain(m *testing.M) { harness.Main(m) }

// clusterWith starts three nodes with a configuration of sinks, or without one, and makes a key.
func clusterWith(t *testing.T, config string) (c *harness.Cluster, key string) {
	t.Helper()
	opts := harness.Options{Processes: true}
	if config != "" {
		opts.Flags = []string{"--audit-sinks", config}
	}
	c = harness.NewCluster(t, 3, opts)
	c.Finalize()
	made, err := c.Leader().KMS().CreateKey(t.Context(), &kmspb.CreateKeyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return c, made.GetKeyMetadata().GetKeyId()
}

// sinkAt returns what the cluster says about one sink, asked on the node that leads.
func sinkAt(ctx context.Context, n *harness.Node, name string) (*kmspb.AuditSink, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	res, err := n.Audit().ListSinks(ctx, &kmspb.ListAuditSinksRequest{})
	if err != nil {
		return nil, err
	}
	for _, s := range res.GetSinks() {
		if s.GetName() == name {
			return s, nil
		}
	}
	return nil, nil
}
