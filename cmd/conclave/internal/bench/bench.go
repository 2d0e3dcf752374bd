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
	"math"
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
	payload          = 1024
)

// A figure is the median of at least minRounds rounds, none of which takes much longer than
// maxRound: many short rounds tell more about a ratio than a few long ones.
const (
	minRounds = 3
	maxRound  = 3 * time.Second
)

// Plan says what to measure.
type Plan struct {
	Duration    time.Duration // for each figure, for all rounds together
	Concurrency []int         // numbers of concurrent requests
	User        bool          // measure Encrypt of a user with two managed policies too
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
	User            *AsUser `json:"user,omitempty"` // nil without Plan.User
}

// AsUser is Encrypt of a user with two managed policies at the same point. The ratios compare
// it with the root user's, which was measured right before and after it. Each has its standard
// error, as far as the rounds differ: that of a median of as many normally distributed values.
type AsUser struct {
	Rate      float64 `json:"operations_per_second"`
	P50       float64 `json:"p50_ms"`
	P99       float64 `json:"p99_ms"`
	CPU       float64 `json:"cpu_seconds_per_1000"`
	RateRatio float64 `json:"operations_ratio"`
	RateError float64 `json:"operations_ratio_error"`
	CPURatio  float64 `json:"cpu_ratio"`
	CPUError  float64 `json:"cpu_ratio_error"`
}

// principal is a user with an access key, or the root user.
type principal struct{ accessKeyID, secret string }

// face is a face of the nodes that is measured.
type face struct {
	name       string
	root, echo *target
	user       *target // nil without Plan.User
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
	who := []principal{{c.AccessKeyID, c.SecretAccessKey}}
	if b.User {
		user, err := newUser(ctx, c)
		if err != nil {
			return nil, err
		}
		who = append(who, user)
	}
	faces, echo, err := b.faces(ctx, c, key, who)
	if err != nil {
		return nil, err
	}
	for _, workers := range b.Concurrency {
		b.Note("measuring at concurrency %d", workers)
		got, err := b.rounds(ctx, faces, workers)
		if err != nil {
			return nil, err
		}
		points = append(points, got...)
	}
	return points, nil
}

// start starts and unseals the cluster, raises its feature level and creates a key.
func (b *Plan) start(ctx context.Context, c *localcluster.Cluster) (key string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := c.StartOpen(ctx); err != nil {
		return "", err
	}
	if err := c.Finalize(ctx); err != nil {
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

// faces returns Encrypt of the given principals and its echo, for gRPC and for HTTPS. The
// first principal is the root user, and there may be another one.
func (b *Plan) faces(ctx context.Context, c *localcluster.Cluster, key string, who []principal) (faces [2]face, echo *process.Process, err error) {
	dir := c.Nodes[0].TLS
	plan := certs.Plan{Dir: dir, DNS: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}}
	ca, err := plan.LoadCA()
	if err != nil {
		return faces, nil, err
	}
	if err := plan.Issue(ca, pki.KindNode, "echo", "echo"); err != nil {
		return faces, nil, err
	}
	ports, err := localcluster.FreePorts(2)
	if err != nil {
		return faces, nil, err
	}
	echo, err = localcluster.Self([]string{"PATH=" + os.Getenv("PATH")}, filepath.Join(c.Dir, "echo.log"), "bench-echo", "--grpc", ports[0], "--http", ports[1], "--dir", dir)
	if err != nil {
		return faces, nil, err
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
		return faces, echo, err
	}
	var pids []int
	var ops, https []string
	var echoes []*client.Client
	for _, n := range c.Nodes {
		pids, ops, https = append(pids, n.Process.PID()), append(ops, n.Ops), append(https, n.AWS)
		// The same number of connections as to the nodes.
		cl, err := c.Connect(ctx, &localcluster.Node{GRPC: ports[0], TLS: dir})
		if err != nil {
			return faces, echo, err
		}
		echoes = append(echoes, cl)
	}
	err = localcluster.Poll(ctx, func() (bool, error) {
		if echo.Ended() {
			return false, fmt.Errorf("echo server: %w", echo.Err())
		}
		return echoes[0].Conn().Invoke(ctx, echoMethod, request, new(kmspb.EncryptRequest)) == nil, nil
	})
	if err != nil {
		return faces, echo, err
	}
	echoPID := []int{echo.PID()}
	overHTTP := func(addr string, p principal) (load, error) {
		conn, err := dialHTTP(ctx, addr, tlsConfig, newSignedRequests(p.accessKeyID, p.secret, "us-east-1", addr))
		if err != nil {
			return nil, err
		}
		return &httpLoad{conn, body}, nil
	}
	faces = [2]face{
		{name: "gRPC", echo: &target{"gRPC echo", echoPID, nil, func(_ context.Context, w int) (load, error) {
			return &echoLoad{echoes[w%len(echoes)], request}, nil
		}}},
		{name: "HTTPS", echo: &target{"HTTPS echo", echoPID, nil, func(context.Context, int) (load, error) {
			return overHTTP(ports[1], who[0])
		}}},
	}
	for i, p := range who {
		var clients []*client.Client
		for _, n := range c.Nodes {
			cl, err := localcluster.ConnectAs(ctx, n, p.accessKeyID, p.secret)
			if err != nil {
				return faces, echo, err
			}
			clients = append(clients, cl)
		}
		for j, open := range [...]func(context.Context, int) (load, error){
			func(_ context.Context, w int) (load, error) {
				return &grpcLoad{clients[w%len(clients)].KMS(), request}, nil
			},
			func(_ context.Context, w int) (load, error) { return overHTTP(https[w%len(https)], p) },
		} {
			t := &target{faces[j].name, pids, ops, open}
			if i == 0 {
				faces[j].root = t
			} else {
				t.name += " as a user"
				faces[j].user = t
			}
		}
	}
	return faces, echo, nil
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
func (b *Plan) rounds(ctx context.Context, faces [2]face, workers int) ([]Point, error) {
	var got [2]samples
	rounds := max(minRounds, int(b.Duration/maxRound)) | 1 // odd, so that one is the median
	for range rounds {
		for i, f := range faces {
			for _, step := range got[i].turn(f, b.Duration/time.Duration(rounds)) {
				s, err := step.measure(ctx, workers, step.duration)
				if err != nil {
					return nil, err
				}
				*step.into = append(*step.into, s)
			}
		}
	}
	var points []Point
	for i, f := range faces {
		e, echo := medians(got[i].root), medians(got[i].echo)
		points = append(points, Point{
			Face: f.name, Concurrency: workers,
			Rate: e.Rate, P50: ms(e.P50), P99: ms(e.P99), CPU: e.CPU, RecordsPerEntry: e.Fill,
			EchoRate: echo.Rate, EchoP50: ms(echo.P50), EchoP99: ms(echo.P99), EchoCPU: echo.CPU,
			Ratio: e.Rate / echo.Rate, User: got[i].asUser(),
		})
	}
	return points, nil
}

// samples are those of a face, in the order in which they were taken.
type samples struct{ root, user, echo []sample }

// step is one measurement of a target.
type step struct {
	*target
	duration time.Duration
	into     *[]sample
}

// turn returns what is measured of a face in the next round, each target for d. The user is
// measured between two halves of the root user, so that what changes steadily meanwhile, such as
// other load on the machine, affects both alike. In every other round it is the other way around,
// because the servers did nothing before the first half.
func (s *samples) turn(f face, d time.Duration) []step {
	root, echo := step{f.root, d, &s.root}, step{f.echo, d, &s.echo}
	if f.user == nil {
		return []step{root, echo}
	}
	root.duration = d / 2
	user := step{f.user, d / 2, &s.user}
	if len(s.echo)%2 == 1 {
		return []step{user, root, root, user, echo}
	}
	return []step{root, user, user, root, echo}
}

// asUser compares the user with the root user, round by round. Each round has two samples of
// either.
func (s *samples) asUser() *AsUser {
	if len(s.user) == 0 {
		return nil
	}
	ratios := make([]sample, len(s.user)/2)
	for i := range ratios {
		u, r := s.user[2*i:2*i+2], s.root[2*i:2*i+2]
		ratios[i] = sample{Rate: (u[0].Rate + u[1].Rate) / (r[0].Rate + r[1].Rate), CPU: (u[0].CPU + u[1].CPU) / (r[0].CPU + r[1].CPU)}
	}
	u, ratio := medians(s.user), medians(ratios)
	return &AsUser{
		Rate: u.Rate, P50: ms(u.P50), P99: ms(u.P99), CPU: u.CPU,
		RateRatio: ratio.Rate, RateError: medianError(ratios, func(s sample) float64 { return s.Rate }),
		CPURatio: ratio.CPU, CPUError: medianError(ratios, func(s sample) float64 { return s.CPU }),
	}
}

// medianError returns the standard error of the median of a figure of at least two samples: for
// a normal distribution, √(π/2) times that of the mean.
func medianError(s []sample, figure func(sample) float64) float64 {
	var mean, squares float64
	for i := range s {
		mean += figure(s[i]) / float64(len(s))
	}
	for i := range s {
		squares += (figure(s[i]) - mean) * (figure(s[i]) - mean)
	}
	n := float64(len(s))
	return math.Sqrt(math.Pi / 2 * squares / (n - 1) / n)
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
