package security

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/conclavekms/conclave/integration/harness"
)

// reclaimed is how soon at the latest a node ends a connection whose client does
// not get on with its request.
const reclaimed = 25 * time.Second

// TestSlowClients opens many connections to each port that send nothing, or a
// byte now and then, more from one address than it may have. The node serves
// honest clients at the same address meanwhile, keeps no more than that share and
// ends the others by itself: at once for newer ones, or when their time is over.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	each := 100
	c := harness.NewCluster(t, 1, harness.Options{Processes: true})
	n := c.Nodes[0]
	f := harness.NewFace(t, c, n)
	created, err := n.SDK().CreateKey(t.Context(), &kms.CreateKeyInput{})
	if err != nil {
		t.Fatal(err)
	}
	key := created.KeyMetadata.KeyId
	before := harness.Metric(t, n, "process_resident_memory_bytes")
	const strangers = `conclave_connections_open{class="stranger",face="aws"}`
	share := harness.Metric(t, n, `conclave_connections_limit{class="stranger"}`) / 2 / 4 // of the AWS API, of one source
	size := harness.Records(t, n)

	// Begun as a request of somebody who can sign, which is looked at only once all
	// of it is there.
	r := f.Signed("TrentService.Encrypt", strings.Repeat("x", 1000))
	var head strings.Builder
	fmt.Fprintf(&head, "POST / HTTP/1.1\r\nHost: %s\r\nContent-Length: 1000\r\n", n.AWS)
	for name, values := range r.Header {
		fmt.Fprintf(&head, "%s: %s\r\n", name, values[0])
	}
	head.WriteString("\r\n")

	hello := append([]byte{22, 3, 1, 1, 0, 1, 0, 0, 0xfc, 3, 3}, make([]byte, 32)...)
	kinds := []struct {
		name, addr string
		tls        bool
		send       []byte // at once
		drip       byte   // now and then
	}{
		{"AWS, nothing", n.AWS, false, nil, 0},
		{"AWS, half a handshake", n.AWS, false, hello, 0},
		{"AWS, a handshake byte by byte", n.AWS, false, hello[:5], 1},
		{"AWS, no request", n.AWS, true, nil, 0},
		{"AWS, headers byte by byte", n.AWS, true, []byte("POST / HTTP/1.1\r\nX-Slow: "), 'x'},
		{"AWS, half of the body", n.AWS, true, []byte(head.String() + strings.Repeat("x", 500)), 0},
		{"AWS, the body byte by byte", n.AWS, true, []byte(head.String()), 'x'},
		{"gRPC, nothing", n.GRPC, false, nil, 0},
		{"gRPC, half a handshake", n.GRPC, false, hello, 0},
		{"peer, nothing", n.Peer, false, nil, 0},
		{"peer, half a handshake", n.Peer, false, hello, 0},
	}
	var mu sync.Mutex
	lasted := make(map[string][]time.Duration)
	var slow sync.WaitGroup
	for _, k := range kinds {
		for range each {
			slow.Go(func() {
				d, err := stall(f, k.addr, k.tls, k.send, k.drip)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					t.Errorf("%s: %v", k.name, err)
					return
				}
				lasted[k.name] = append(lasted[k.name], d)
			})
		}
	}
	stop := make(chan struct{})
	var honest sync.WaitGroup
	var took []time.Duration
	var attempts int // the SDK asks again when an answer came too late to be given
	var most float64
	honest.Go(func() {
		for {
			most = max(most, harness.Metric(t, n, strangers))
			begun := time.Now()
			out, err := n.SDK().Encrypt(t.Context(), &kms.EncryptInput{KeyId: key, Plaintext: []byte("x")})
			if err != nil {
				t.Errorf("an honest client meanwhile: %v", err)
				return
			}
			if results, ok := retry.GetAttemptResults(out.ResultMetadata); ok {
				attempts += len(results.Results)
			}
			took = append(took, time.Since(begun))
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	slow.Wait()
	close(stop)
	honest.Wait()
	for _, k := range kinds {
		if d := lasted[k.name]; len(d) > 0 {
			t.Logf("%s: ended after %v at most", k.name, slices.Max(d).Round(time.Millisecond))
		}
	}
	slices.Sort(took)
	if len(took) < 20 {
		t.Fatalf("void: %d honest requests", len(took))
	}
	t.Logf("%d honest requests meanwhile: median %v, the slowest %v", len(took), took[len(took)/2], took[len(took)-1])
	if took[len(took)*9/10] > 2*time.Second {
		t.Errorf("one honest request in ten took %v or more", took[len(took)*9/10])
	}
	after := harness.Metric(t, n, "process_resident_memory_bytes")
	t.Logf("resident memory: %.0f MiB before, %.0f MiB after", before/(1<<20), after/(1<<20))
	if after > before+maxGrowth {
		t.Errorf("the node grew from %.0f to %.0f MiB", before/(1<<20), after/(1<<20))
	}
	if open := harness.Metric(t, n, strangers); open > 4 {
		t.Errorf("%.0f connections of strangers are open", open)
	}
	if most > share {
		t.Errorf("%.0f connections of one source were open, its share is %.0f", most, share)
	}
	if evicted := harness.Metric(t, n, `conclave_connections_evicted_total{face="aws"}`); evicted == 0 {
		t.Error("void: no connection had to go for a newer one")
	}
	grown := make(map[string]int)
	for _, r := range n.ReadLog(size) {
		grown[r.Name]++
	}
	if now := grown["Encrypt"]; now < len(took) || now > attempts {
		t.Errorf("the audit log grew by %v for %d requests in %d attempts", grown, len(took), attempts)
	}
	for name, records := range grown {
		// Reading the log leaves records of its own, those of the unsealing may come
		// late, and answers may come too late.
		if !slices.Contains([]string{"Encrypt", "ListKeys", "CreateSession", "ReadAudit", "SubmitShare", "Unseal", "StartNode", "AnswersWithheld"}, name) {
			t.Errorf("the audit log has %d new records of %s", records, name)
		}
	}
	harness.Usable(t, n)
	c.NoFaults()
}

// stall opens a connection and does nothing much with it. It returns how long the
// node bore it.
func stall(f *harness.Face, addr string, secure bool, send []byte, drip byte) (time.Duration, error) {
	begun := time.Now()
	conn, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	conn.SetDeadline(begun.Add(reclaimed + 5*time.Second))
	if secure {
		cfg := f.TLS()
		cfg.ServerName = "localhost"
		s := tls.Client(conn, cfg)
		if err := s.Handshake(); err != nil {
			if isTimeout(err) {
				return 0, fmt.Errorf("handshake: %w", err)
			}
			return time.Since(begun), nil // it had to go for a newer one
		}
		conn = s
	}
	if _, err := conn.Write(send); err != nil {
		return time.Since(begun), nil // likewise
	}
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, conn)
		ended <- err
	}()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			if isTimeout(err) {
				return 0, errors.New("the node keeps the connection")
			}
			if d := time.Since(begun); d > reclaimed {
				return 0, fmt.Errorf("the node kept the connection for %v", d)
			}
			return time.Since(begun), nil
		case <-tick.C:
			if drip != 0 {
				conn.Write([]byte{drip}) // the reader sees whether the node has had enough
			}
		}
	}
}
