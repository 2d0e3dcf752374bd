package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cluster"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// What --check holds the results against.
const (
	checkConcurrency = 64
	minRatio         = 0.2                  // of an echo's throughput, at checkConcurrency
	minFill          = 16.0                 // records in a Raft entry, at checkConcurrency
	maxIdleLatency   = 3 * time.Millisecond // median at concurrency 1
	benchRounds      = 3
	benchPayload     = 1024
)

func (a *app) benchCommand() *cobra.Command {
	var b bench
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure Encrypt on three nodes beside bare echo servers",
		Long: `Bench starts three nodes on this machine, with TLS and fsync, and measures Encrypt
of 1 KiB over gRPC and over HTTPS with signed requests, spread over the nodes. In
the same run it measures a bare mTLS gRPC echo and a bare HTTPS echo of the same
bytes, in turn with Encrypt, so that the ratio says what Conclave costs on this
machine. Each figure is the median of three rounds.

With --check it exits with 1 when, at concurrency 64, Encrypt has less than a
fifth of an echo's throughput or fewer than 16 records share a Raft entry, or
when the median at concurrency 1 is more than 3 ms.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := b.validate(); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			b.app = a
			return b.run(ctx)
		},
	}
	f := cmd.Flags()
	f.DurationVar(&b.duration, "duration", 5*time.Second, "time for each figure, its three rounds together")
	f.IntSliceVar(&b.concurrency, "concurrency", []int{1, 16, 64, 256}, "how many requests are under way at once")
	f.BoolVar(&b.json, "json", false, "print JSON")
	f.BoolVar(&b.check, "check", false, "exit with 1 when results are too low")
	return cmd
}

type bench struct {
	app         *app
	duration    time.Duration
	concurrency []int
	json, check bool
}

func (b *bench) validate() error {
	if b.duration < 300*time.Millisecond {
		return usagef("--duration: at least 300ms")
	}
	for _, n := range b.concurrency {
		if n < 1 || n > 1024 {
			return usagef("--concurrency: 1 to 1024")
		}
	}
	if b.check && (!slices.Contains(b.concurrency, 1) || !slices.Contains(b.concurrency, checkConcurrency)) {
		return usagef("--check needs concurrency 1 and %d", checkConcurrency)
	}
	return nil
}

// benchPoint is what is printed: Encrypt by one face at one concurrency, and its
// echo.
type benchPoint struct {
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

func (b *bench) run(ctx context.Context) error {
	points, err := b.measure(ctx)
	if err != nil {
		return err
	}
	if err := b.print(points); err != nil {
		return err
	}
	if b.check {
		return verdict(points)
	}
	return nil
}

// measure starts everything, measures, and stops everything.
func (b *bench) measure(ctx context.Context) (points []benchPoint, err error) {
	c, err := newLocalCluster(3)
	if err != nil {
		return nil, err
	}
	var echo *child
	defer func() {
		echo.signal(syscall.SIGTERM)
		echo.wait(5 * time.Second)
		if err != nil && ctx.Err() == nil {
			for _, n := range c.nodes {
				if n.process != nil {
					b.app.note("the end of the log of %s:\n%s", n.id, n.process.lastLog())
				}
			}
		}
		err = errors.Join(err, c.close())
	}()
	b.app.note("starting three nodes and the echoes")
	key, err := b.start(ctx, c)
	if err != nil {
		return nil, err
	}
	targets, echo, err := b.targets(ctx, c, key)
	if err != nil {
		return nil, err
	}
	for _, workers := range b.concurrency {
		b.app.note("measuring at concurrency %d", workers)
		got, err := b.rounds(ctx, targets, workers)
		if err != nil {
			return nil, err
		}
		points = append(points, got...)
	}
	return points, nil
}

// start opens the cluster and makes a key.
func (b *bench) start(ctx context.Context, c *localCluster) (key string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := c.startAll(ctx); err != nil {
		return "", err
	}
	if err := c.found(ctx, 1, 1); err != nil {
		return "", err
	}
	if _, err := c.submit(ctx, c.nodes[0], c.shares[0]); err != nil {
		return "", err
	}
	for _, n := range c.nodes {
		if err := n.ready(ctx); err != nil {
			return "", err
		}
	}
	cl, err := c.connect(ctx, c.nodes[0])
	if err != nil {
		return "", err
	}
	defer cl.Close()
	r, err := cl.KMS().CreateKey(ctx, &kmspb.CreateKeyRequest{})
	if err != nil {
		return "", explain("creating a key", c.nodes[0].grpc, err)
	}
	return r.GetKeyMetadata().GetKeyId(), nil
}

// targets are gRPC and HTTPS: Encrypt, and its echo.
func (b *bench) targets(ctx context.Context, c *localCluster, key string) (pairs [2][2]*target, echo *child, err error) {
	dir := c.nodes[0].tls
	plan := certPlan{dir: dir, dns: []string{"localhost"}, ips: []net.IP{net.IPv4(127, 0, 0, 1)}}
	ca, err := plan.loadCA()
	if err != nil {
		return pairs, nil, err
	}
	if err := plan.issue(ca, cluster.KindNode, "echo", "echo"); err != nil {
		return pairs, nil, err
	}
	ports, err := freePorts(2)
	if err != nil {
		return pairs, nil, err
	}
	echo, err = startChild([]string{"PATH=" + os.Getenv("PATH")}, filepath.Join(c.dir, "echo.log"), "bench-echo", "--grpc", ports[0], "--http", ports[1], "--dir", dir)
	if err != nil {
		return pairs, nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca.CertPEM())
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, NextProtos: []string{"http/1.1"}}
	sign := signer{id: c.accessKeyID, secret: c.secret, region: "us-east-1"}

	plaintext := make([]byte, benchPayload)
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
	for _, n := range c.nodes {
		pids, ops, https = append(pids, n.process.cmd.Process.Pid), append(ops, n.ops), append(https, n.aws)
		cl, err := c.connect(ctx, n)
		if err != nil {
			return pairs, echo, err
		}
		// As many connections as to the nodes.
		other, err := c.connect(ctx, &localNode{grpc: ports[0], tls: dir})
		if err != nil {
			return pairs, echo, err
		}
		clients, echoes = append(clients, cl), append(echoes, other)
	}
	err = poll(ctx, func() (bool, error) {
		if echo.ended() {
			return false, errors.New("the echo server ended:\n" + echo.lastLog())
		}
		return echoes[0].Conn().Invoke(ctx, echoMethod, request, new(kmspb.EncryptRequest)) == nil, nil
	})
	if err != nil {
		return pairs, echo, err
	}
	echoPID := []int{echo.cmd.Process.Pid}
	overHTTP := func(addr string) (load, error) {
		conn, err := dialHTTP(ctx, addr, tlsConfig, sign)
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

// rounds measures everything at one concurrency, in turn, so that what else the
// machine does falls on all alike.
func (b *bench) rounds(ctx context.Context, pairs [2][2]*target, workers int) ([]benchPoint, error) {
	var got [2][2][]sample
	for range benchRounds {
		for i, pair := range pairs {
			for j, t := range pair {
				s, err := t.measure(ctx, workers, b.duration/benchRounds)
				if err != nil {
					return nil, err
				}
				got[i][j] = append(got[i][j], s)
			}
		}
	}
	var points []benchPoint
	for i, pair := range pairs {
		e, echo := medians(got[i][0]), medians(got[i][1])
		points = append(points, benchPoint{
			Face: pair[0].name, Concurrency: workers,
			Rate: e.Rate, P50: ms(e.P50), P99: ms(e.P99), CPU: e.CPU, RecordsPerEntry: e.Fill,
			EchoRate: echo.Rate, EchoP50: ms(echo.P50), EchoP99: ms(echo.P99), EchoCPU: echo.CPU,
			Ratio: e.Rate / echo.Rate,
		})
	}
	return points, nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// medians takes each figure's median by itself.
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

func (b *bench) print(points []benchPoint) error {
	b.app.output = "table"
	if b.json {
		b.app.output = "json"
	}
	return b.app.print(points, func(w io.Writer) {
		line(w, "ENCRYPT 1 KiB", "CLIENTS", "OPS/S", "P50 MS", "P99 MS", "CPU S/1000", "RECORDS/ENTRY", "ECHO OPS/S", "ECHO P50", "ECHO P99", "ECHO CPU", "RATIO")
		for _, p := range points {
			line(w, p.Face, p.Concurrency, fmt.Sprintf("%.0f", p.Rate), fmt.Sprintf("%.2f", p.P50), fmt.Sprintf("%.2f", p.P99),
				fmt.Sprintf("%.3f", p.CPU), fmt.Sprintf("%.1f", p.RecordsPerEntry),
				fmt.Sprintf("%.0f", p.EchoRate), fmt.Sprintf("%.2f", p.EchoP50), fmt.Sprintf("%.2f", p.EchoP99), fmt.Sprintf("%.3f", p.EchoCPU),
				fmt.Sprintf("%.2f", p.Ratio))
		}
	})
}

// verdict is every way in which the results are too low.
func verdict(points []benchPoint) error {
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
