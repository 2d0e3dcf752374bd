// Package bench measures Encrypt on a cluster of three nodes and compares it with
// bare echo servers of the same bytes. It starts all of them on this machine and puts
// them under load in turn.
package bench

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/cmd/conclave/internal/certs"
	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/localcluster"
	"github.com/conclavekms/conclave/cmd/conclave/process"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// What --check requires of the results.
const (
	checkConcurrency = 64
	minRatio         = 0.19                 // of an echo's throughput, at checkConcurrency
	minFill          = 16.0                 // records in a Raft entry, at checkConcurrency
	maxIdleLatency   = 3 * time.Millisecond // median at concurrency 1
	rounds           = 3
	payload          = 1024
)

// Plan says what to measure.
type Plan struct {
	Duration    time.Duration // for each figure, for all rounds together
	Concurrency []int         // numbers of concurrent requests
	Check       bool          // the results will be given to Verdict
	Note        func(format string, args ...any)
}

// Validate returns a usage error if the plan cannot be measured.
func (b *Plan) Validate() error {
	if b.Duration < 300*time.Millisecond {
		return cli.Usagef("--duration must be at least 300ms")
	}
	for _, n := range b.Concurrency {
		if n < 1 || n > 1024 {
			return cli.Usagef("--concurrency must be from 1 to 1024")
		}
	}
	if b.Check && (!slices.Contains(b.Concurrency, 1) || !slices.Contains(b.Concurrency, checkConcurrency)) {
		return cli.Usagef("--check requires concurrency 1 and %d", checkConcurrency)
	}
	return nil
}

// Point is a printed result: Encrypt over one face at one concurrency, and the
// corresponding echo.
type Point struct {
	Face            string  `json:"face"`
	Concurrency     int     `json:"concurrency"`
	Rate            float64 `json:"operations_per_second"`
	P50             float64 `json:"p50_ms"`
	P99             float64 `json:"p99_ms"`
	CPU             float64 `json:"cpu_seconds_per_1000"`
	RecordsPerEntry float64 `json:"records_per_entry"`
	EchoRate        float64 `json:"echo_operations_per_second"`
	EchoP50         float64 `json:"echo_p50_ms"`
	EchoP99         float64 `json:"echo_p99_ms"`
	EchoCPU         float64 `json:"echo_cpu_seconds_per_1000"`
	Ratio           float64 `json:"ratio"`
}

// Measure starts everything, measures, and stops everything. It calls Note to report
// progress and, if something fails, the end of the nodes' logs.
func (b *Plan) Measure(ctx context.Context) (points []Point, err error) {
	c, err := localcluster.New(3)
	if err != nil {
		return nil, err
	}
	var echo *process.Process
	defer func() {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = echo.Stop(ending) // it has nothing to lose
		if err != nil && ctx.Err() == nil {
			for _, log := range c.LastLogs() {
				b.Note("%s", log)
			}
		}
		err = errors.Join(err, c.Close())
	}()
	b.Note("starting three nodes and the echoes")
	key, err := b.start(ctx, c)
	if err != nil {
		return nil, err
	}
	targets, echo, err := b.targets(ctx, c, key)
	if err != nil {
		return nil, err
	}
	for _, workers := range b.Concurrency {
		b.Note("measuring at concurrency %d", workers)
		got, err := b.rounds(ctx, targets, workers)
		if err != nil {
			return nil, err
		}
		points = append(points, got...)
	}
	return points, nil
}

// start starts and unseals the cluster, and creates a key.
func (b *Plan) start(ctx context.Context, c *localcluster.Cluster) (key string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := c.StartOpen(ctx); err != nil {
		return "", err
	}
	cl, err := c.Connect(ctx, c.Nodes[0])
	if err != nil {
		return "", err
	}
	defer cl.Close()
	r, err := cl.KMS().CreateKey(ctx, &kmspb.CreateKeyRequest{})
	if err != nil {
		return "", cli.Explain("creating a key", c.Nodes[0].GRPC, err)
	}
	return r.GetKeyMetadata().GetKeyId(), nil
}

// targets returns Encrypt and its echo, for gRPC and for HTTPS.
func (b *Plan) targets(ctx context.Context, c *localcluster.Cluster, key string) (pairs [2][2]*target, echo *process.Process, err error) {
	dir := c.Nodes[0].TLS
	plan := certs.Plan{Dir: dir, DNS: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}}
	ca, err := plan.LoadCA()
	if err != nil {
		return pairs, nil, err
	}
	if err := plan.Issue(ca, pki.KindNode, "echo", "echo"); err != nil {
		return pairs, nil, err
	}
	ports, err := localcluster.FreePorts(2)
	if err != nil {
		return pairs, nil, err
	}
	echo, err = localcluster.Self([]string{"PATH=" + os.Getenv("PATH")}, filepath.Join(c.Dir, "echo.log"), "bench-echo", "--grpc", ports[0], "--http", ports[1], "--dir", dir)
	if err != nil {
		return pairs, nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca.CertPEM())
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, NextProtos: []string{"http/1.1"}}

	plaintext := make([]byte, payload)
	rand.Read(plaintext)
	request := &kmspb.EncryptRequest{KeyId: &key, Plaintext: plaintext}
	body, err := json.Marshal(struct {
		KeyId     string
		Plaintext []byte
	}{key, plaintext})
	if err != nil {
		return pairs, echo, err
	}
	var pids []int
	var ops, https []string
	var clients, echoes []*client.Client
	for _, n := range c.Nodes {
		pids, ops, https = append(pids, n.Process.PID()), append(ops, n.Ops), append(https, n.AWS)
		cl, err := c.Connect(ctx, n)
		if err != nil {
			return pairs, echo, err
		}
		// The same number of connections as to the nodes.
		other, err := c.Connect(ctx, &localcluster.Node{GRPC: ports[0], TLS: dir})
		if err != nil {
			return pairs, echo, err
		}
		clients, echoes = append(clients, cl), append(echoes, other)
	}
	err = localcluster.Poll(ctx, func() (bool, error) {
		if echo.Ended() {
			return false, fmt.Errorf("echo server: %w", echo.Err())
		}
		return echoes[0].Conn().Invoke(ctx, echoMethod, request, new(kmspb.EncryptRequest)) == nil, nil
	})
	if err != nil {
		return pairs, echo, err
	}
	echoPID := []int{echo.PID()}
	overHTTP := func(addr string) (load, error) {
		conn, err := dialHTTP(ctx, addr, tlsConfig, newSignedRequests(c.AccessKeyID, c.SecretAccessKey, "us-east-1", addr))
		if err != nil {
			return nil, err
		}
		return &httpLoad{conn, body}, nil
	}
	pairs[0] = [2]*target{
		{"gRPC", pids, ops, func(_ context.Context, w int) (load, error) {
			return &grpcLoad{clients[w%len(clients)].KMS(), request}, nil
		}},
		{"gRPC echo", echoPID, nil, func(_ context.Context, w int) (load, error) {
			return &echoLoad{echoes[w%len(echoes)], request}, nil
		}},
	}
	pairs[1] = [2]*target{
		{"HTTPS", pids, ops, func(_ context.Context, w int) (load, error) { return overHTTP(https[w%len(https)]) }},
		{"HTTPS echo", echoPID, nil, func(context.Context, int) (load, error) { return overHTTP(ports[1]) }},
	}
	return pairs, echo, nil
}

type grpcLoad struct {
	kms     kmspb.KMSClient
	request *kmspb.EncryptRequest
}

func (l *grpcLoad) do(ctx context.Context) error {
	_, err := l.kms.Encrypt(ctx, l.request)
	return err
}
func (*grpcLoad) close() {}

type echoLoad struct {
	client  *client.Client
	request *kmspb.EncryptRequest
}

func (l *echoLoad) do(ctx context.Context) error {
	return l.client.Conn().Invoke(ctx, echoMethod, l.request, new(kmspb.EncryptRequest))
}
func (*echoLoad) close() {}

type httpLoad struct {
	conn *httpConn
	body []byte
}

func (l *httpLoad) do(context.Context) error { return l.conn.do("TrentService.Encrypt", l.body) }
func (l *httpLoad) close()                   { l.conn.close() }

// rounds measures all targets at one concurrency, in turn, so that other load
// on the machine affects all of them equally.
func (b *Plan) rounds(ctx context.Context, pairs [2][2]*target, workers int) ([]Point, error) {
	var got [2][2][]sample
	for range rounds {
		for i, pair := range pairs {
			for j, t := range pair {
				s, err := t.measure(ctx, workers, b.Duration/rounds)
				if err != nil {
					return nil, err
				}
				got[i][j] = append(got[i][j], s)
			}
		}
	}
	var points []Point
	for i, pair := range pairs {
		e, echo := medians(got[i][0]), medians(got[i][1])
		points = append(points, Point{
			Face: pair[0].name, Concurrency: workers,
			Rate: e.Rate, P50: ms(e.P50), P99: ms(e.P99), CPU: e.CPU, RecordsPerEntry: e.Fill,
			EchoRate: echo.Rate, EchoP50: ms(echo.P50), EchoP99: ms(echo.P99), EchoCPU: echo.CPU,
			Ratio: e.Rate / echo.Rate,
		})
	}
	return points, nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// medians returns the median of each figure separately.
func medians(s []sample) sample {
	return sample{
		Rate: median(s, func(s sample) float64 { return s.Rate }),
		P50:  median(s, func(s sample) time.Duration { return s.P50 }),
		P99:  median(s, func(s sample) time.Duration { return s.P99 }),
		CPU:  median(s, func(s sample) float64 { return s.CPU }),
		Fill: median(s, func(s sample) float64 { return s.Fill }),
	}
}

func median[T cmp.Ordered](s []sample, figure func(sample) T) T {
	all := make([]T, len(s))
	for i := range s {
		all[i] = figure(s[i])
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// Verdict returns an error that lists all results that are too low.
func Verdict(points []Point) error {
	var faults []error
	for _, p := range points {
		if p.Concurrency == checkConcurrency && p.Ratio < minRatio {
			faults = append(faults, fmt.Errorf("%s at %d: %.2f of the echo's throughput, want %.2f", p.Face, p.Concurrency, p.Ratio, minRatio))
		}
		if p.Concurrency == checkConcurrency && p.RecordsPerEntry < minFill {
			faults = append(faults, fmt.Errorf("%s at %d: %.1f records in a Raft entry, want %.0f", p.Face, p.Concurrency, p.RecordsPerEntry, minFill))
		}
		if p.Concurrency == 1 && p.P50 > ms(maxIdleLatency) {
			faults = append(faults, fmt.Errorf("%s at 1: a median of %.2f ms, want %.0f", p.Face, p.P50, ms(maxIdleLatency)))
		}
	}
	return errors.Join(faults...)
}
