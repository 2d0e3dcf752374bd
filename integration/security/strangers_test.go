package security

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/keyengine/accesskey"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// strangers are many hosts without a credential, until they are stopped.
type strangers struct {
	t    *testing.T
	ctx  context.Context
	stop func()
	run  func(func())

	connections, requests atomic.Int64
}

func newStrangers(t *testing.T) *strangers {
	s := &strangers{t: t}
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	s.ctx, s.stop = ctx, func() { cancel(); all.Wait() }
	t.Cleanup(s.stop)
	s.run = func(f func()) { all.Go(f) }
	return s
}

// address is one of 24, of which the i-th attacker has one.
func address(i int) *net.TCPAddr { return &net.TCPAddr{IP: net.IPv4(127, 0, 10, byte(1+i%24))} }

// connect opens connections that never say a word, as fast as one can, and keeps
// the newest ones open.
func (s *strangers) connect(addr string, keep int) {
	s.run(func() {
		var open []net.Conn
		defer func() {
			for _, c := range open {
				c.Close()
			}
		}()
		for i := 0; s.ctx.Err() == nil; i++ {
			d := net.Dialer{LocalAddr: address(i), Timeout: time.Second}
			c, err := d.DialContext(s.ctx, "tcp", addr)
			if err != nil {
				time.Sleep(time.Millisecond)
				continue
			}
			s.connections.Add(1)
			open = append(open, c)
			if len(open) > keep {
				open[0].Close()
				open = open[1:]
				time.Sleep(2 * time.Millisecond) // there are other users of the machine
			}
		}
	})
}

// ask sends requests signed with access keys that do not exist, to both faces.
func (s *strangers) ask(f *harness.Face, n *harness.Node, i int) {
	d := net.Dialer{LocalAddr: address(i)}
	tr := &http.Transport{TLSClientConfig: f.TLS(), DialContext: d.DialContext, ForceAttemptHTTP2: true}
	s.t.Cleanup(tr.CloseIdleConnections)
	key := func(j int) string {
		account, _ := fsm.ParseAccount(harness.Account)
		return accesskey.ID(accesskey.LongTerm, account, [accesskey.Noise]byte{1: byte(i), 3: byte(j >> 8), 4: byte(j)})
	}
	s.run(func() {
		for j := 0; s.ctx.Err() == nil; j++ {
			c := kms.New(kms.Options{
				BaseEndpoint: aws.String("https://" + n.AWS), Region: harness.Region, HTTPClient: &http.Client{Transport: tr}, Retryer: aws.NopRetryer{},
				Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
					return aws.Credentials{AccessKeyID: key(j), SecretAccessKey: "secret"}, nil
				}),
			})
			c.ListKeys(s.ctx, &kms.ListKeysInput{})
			s.requests.Add(1)
		}
	})
	s.run(func() {
		for j := 0; s.ctx.Err() == nil; j++ {
			c, err := client.Dial(s.ctx, client.Config{
				Address: n.GRPC, TLS: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: f.Roots}, AccessKeyID: key(j), SecretAccessKey: client.Secret("secret"),
			})
			if err != nil {
				continue
			}
			c.KMS().ListKeys(s.ctx, &kmspb.ListKeysRequest{})
			c.Close()
			s.requests.Add(1)
		}
	})
}

// TestStrangersBudget: three nodes with 1,024 descriptors each. From 24 addresses
// strangers open connections to every port that never say a word, more than there
// are descriptors, and ask with access keys that do not exist. Clients old and new
// are answered on both faces, operators too, a node that was killed comes back,
// nothing of the strangers is written to the log, and memory stays what it was.
func TestStrangersBudget(t *testing.T) {
	t.Parallel()
	const files = 1024
	c := harness.NewCluster(t, 3, harness.Options{Processes: true, Files: files})
	created, err := c.Nodes[0].KMS().CreateKey(t.Context(), &kmspb.CreateKeyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	key := created.GetKeyMetadata().KeyId
	leader := c.Leader()
	var before [3]float64
	for i, n := range c.Nodes {
		before[i] = harness.Metric(t, n, "process_resident_memory_bytes")
		if open := harness.Metric(t, n, `conclave_connections_limit{class="client"}`); open > files {
			t.Errorf("%s would let in %.0f connections", n.ID, open)
		}
	}
	s := newStrangers(t)
	for i, n := range c.Nodes {
		for _, addr := range []string{n.AWS, n.GRPC, n.Peer, n.Ops} {
			s.connect(addr, files*3/10)
		}
		s.ask(harness.NewFace(t, c, n), n, 2*i)
		s.ask(harness.NewFace(t, c, n), n, 2*i+1)
	}
	c.Eventually("strangers have their share of every port", func(context.Context) error {
		for _, n := range c.Nodes {
			for _, face := range []string{"aws", "grpc", "peer", "ops"} {
				if harness.Metric(t, n, `conclave_connections_evicted_total{face="`+face+`"}`) < 20 {
					return fmt.Errorf("few connections came to %s of %s", face, n.ID)
				}
			}
		}
		return nil
	})

	entries, size := harness.Metric(t, leader, "conclave_raft_last_index"), harness.Records(t, leader)
	took := make(map[string][]time.Duration)
	timed := func(what string, f func(context.Context) error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		began := time.Now()
		if err := f(ctx); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		took[what] = append(took[what], time.Since(began))
	}
	honest := uint64(0)
	everywhere := func() {
		for _, n := range c.Running() {
			timed("Encrypt, AWS", func(ctx context.Context) error {
				_, err := n.SDK().Encrypt(ctx, &kms.EncryptInput{KeyId: key, Plaintext: []byte("x")})
				return err
			})
			timed("Encrypt, gRPC", func(ctx context.Context) error {
				_, err := n.KMS().Encrypt(ctx, &kmspb.EncryptRequest{KeyId: key, Plaintext: []byte("x")})
				return err
			})
			honest += 2
			timed("operator status", func(ctx context.Context) error {
				_, err := n.Operator().Status(ctx, &kmspb.StatusRequest{})
				return err
			})
			if open := harness.Metric(t, n, "process_open_fds"); open > files-64 {
				t.Errorf("%s has %.0f of %d descriptors open", n.ID, open, files)
			}
		}
	}
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); {
		everywhere()
		for _, n := range c.Nodes { // who comes for the first time
			d := &net.Dialer{}
			tr := &http.Transport{TLSClientConfig: harness.NewFace(t, c, n).TLS(), DialContext: d.DialContext}
			fresh := kms.New(kms.Options{
				BaseEndpoint: aws.String("https://" + n.AWS), Region: harness.Region, HTTPClient: &http.Client{Transport: tr}, Retryer: aws.NopRetryer{},
				Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
					return aws.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: c.Secret()}, nil
				}),
			})
			timed("Encrypt, new connection", func(ctx context.Context) error {
				_, err := fresh.Encrypt(ctx, &kms.EncryptInput{KeyId: key, Plaintext: []byte("x")})
				return err
			})
			honest++
			tr.CloseIdleConnections()
		}
	}
	written, recorded := harness.Metric(t, leader, "conclave_raft_last_index")-entries, harness.Records(t, leader)-size
	t.Logf("%d connections and %d requests of strangers; %.0f entries for %d records, of which %d are honest requests'",
		s.connections.Load(), s.requests.Load(), written, recorded, honest)
	// Sessions of the harness's clients make a record as well.
	if recorded > honest+6 || written > float64(honest)+16 {
		t.Errorf("strangers wrote to the log: %.0f entries, %d records for %d requests", written, recorded, honest)
	}

	// A node that was killed finds its way back through its peers' port.
	victim := c.Nodes[(leader.Index+1)%3]
	victim.Kill()
	victim.Start()
	timed("a killed node comes back", func(context.Context) error {
		victim.Unseal()
		c.WaitReady(victim)
		return nil
	})
	everywhere()
	timed("operator seal", func(ctx context.Context) error {
		_, err := victim.Operator().Seal(ctx, &kmspb.SealRequest{})
		return err
	})
	s.stop()
	for what, d := range took {
		slices.Sort(d)
		t.Logf("%s: %d times, median %v, the slowest %v", what, len(d), d[len(d)/2].Round(time.Millisecond), d[len(d)-1].Round(time.Millisecond))
	}
	for i, n := range c.Nodes {
		after := harness.Metric(t, n, "process_resident_memory_bytes")
		t.Logf("%s: resident memory %.0f MiB before, %.0f MiB after", n.ID, before[i]/(1<<20), after/(1<<20))
		if n != victim && after > before[i]+maxGrowth {
			t.Errorf("%s grew by %.0f MiB", n.ID, (after-before[i])/(1<<20))
		}
	}
	c.NoFaults()
}
