package upgrade

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/smithy-go/middleware"

	"github.com/conclavekms/conclave/cmd/conclave/node"
	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// direct are clients of single nodes that never retry. None of their calls may fail.
type direct struct {
	t       *testing.T
	h       *harness.History
	stop    chan struct{}
	once    sync.Once
	workers sync.WaitGroup
	done    atomic.Int64
}

func startDirect(t *testing.T, c *harness.Cluster, h *harness.History, nodes []*harness.Node) *direct {
	d := &direct{t: t, h: h, stop: make(chan struct{})}
	roots := harness.RootsOf(t, c)
	for _, n := range nodes {
		sdk := kms.New(kms.Options{
			BaseEndpoint: aws.String("https://" + n.AWS), Region: harness.Region, Retryer: aws.NopRetryer{},
			HTTPClient: awshttp.NewBuildableClient().WithTransportOptions(func(tr *http.Transport) {
				tr.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
			}),
			Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
				return aws.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: c.Secret()}, nil
			}),
		})
		d.workers.Go(func() { d.work(n, sdk) })
	}
	t.Cleanup(d.end)
	return d
}

func (d *direct) end() {
	d.once.Do(func() { close(d.stop) })
	d.workers.Wait()
}

func (d *direct) work(n *harness.Node, sdk *kms.Client) {
	var key *string
	for i := 0; ; i++ {
		select {
		case <-d.stop:
			return
		default:
		}
		name, call := "Encrypt", func(ctx context.Context) (middleware.Metadata, error) {
			out, err := sdk.Encrypt(ctx, &kms.EncryptInput{KeyId: key, Plaintext: fmt.Appendf(nil, "%s-%d", n.ID, i)})
			if err != nil {
				return middleware.Metadata{}, err
			}
			return out.ResultMetadata, nil
		}
		if key == nil {
			name, call = "CreateKey", func(ctx context.Context) (middleware.Metadata, error) {
				out, err := sdk.CreateKey(ctx, &kms.CreateKeyInput{})
				if err != nil {
					return middleware.Metadata{}, err
				}
				key = out.KeyMetadata.KeyId
				return out.ResultMetadata, nil
			}
		}
		if o := d.h.SDK(context.Background(), n, name, call); o.Code != "" {
			d.t.Errorf("a client of %s, which was not restarted, saw a failure: %s", n.ID, o)
			return
		}
		d.done.Add(1)
	}
}

// enablePeerUnseal enables peer-assisted unsealing and waits until all nodes can be unsealed
// so.
func enablePeerUnseal(t *testing.T, c *harness.Cluster, agreements uint32) {
	t.Helper()
	admin := harness.Administration(c.Nodes[0])
	c.Finalize()
	if _, err := admin.SetPeerUnseal(t.Context(), &kmspb.SetPeerUnsealRequest{Agreements: agreements}); err != nil {
		t.Fatal(err)
	}
	c.Eventually("waiting for return keys", func(ctx context.Context) error {
		r, err := admin.GetPeerUnseal(ctx, &kmspb.GetPeerUnsealRequest{})
		if err == nil && len(r.GetState().GetNodes()) != len(c.Nodes) {
			err = errors.New("some are missing")
		}
		return err
	})
}

// restartAll restarts all nodes gracefully under load, the leader last. Clients that retry
// see no failure, and clients of the other nodes see none even without retries.
func restartAll(t *testing.T, c *harness.Cluster, peers bool) {
	r := &rolling{t: t, c: c, h: harness.NewHistory(), b: startBalancer(t, c), seed: harness.NewSeed(t)}
	for _, n := range r.order() {
		var others []*harness.Node
		for _, o := range c.Nodes {
			if o != n {
				others = append(others, o)
			}
		}
		l, d := startClients(t, c, r.b, r.h, 4), startDirect(t, c, r.h, others)
		l.await(50)
		began := time.Now()
		n.Stop()
		stopped := time.Since(began)
		n.Start()
		if !peers {
			n.Unseal()
		}
		c.WaitReady(n)
		took := time.Since(began)
		l.await(50)
		l.finish()
		d.end()
		c.NoFaults()
		t.Logf("node %s stopped in %v and served again after %v; %d calls through the balancer and %d without retries succeeded", n.ID, stopped.Round(time.Millisecond), took.Round(time.Millisecond), l.done.Load(), d.done.Load())
	}
	c.Converged()
	harness.Witnessed(t, c, r.h)
	helped := 0
	for _, rec := range c.Nodes[0].ReadLog(0) {
		if rec.Name == "UnsealByPeers" {
			helped++
		}
	}
	if want := map[bool]int{true: len(c.Nodes)}[peers]; helped != want {
		t.Errorf("the log has %d records of nodes that were unsealed by their peers, want %d", helped, want)
	}
}

// TestRollingRestart restarts all nodes of a cluster under load. With peer-assisted
// unsealing nobody has to do anything.
func TestRollingRestart(t *testing.T) {
	harness.NotWithRaces(t)
	for _, peers := range []bool{true, false} {
		t.Run(fmt.Sprintf("peers=%v", peers), func(t *testing.T) {
			opts := harness.Options{Processes: harness.Full()}
			if !opts.Processes {
				opts.Configure = func(n *harness.Node, cfg *node.Config) { cfg.OpsListen = n.Ops } // for the balancer
			}
			c := harness.NewCluster(t, 3, opts)
			if peers {
				enablePeerUnseal(t, c, 2)
			}
			restartAll(t, c, peers)
		})
	}
}
