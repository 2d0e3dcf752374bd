package bench

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"math"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
)

// TestSignerAgainstSDK compares the benchmark's requests with those of AWS's
// SDK.
func TestSignerAgainstSDK(t *testing.T) {
	const id, secret, region = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "eu-west-1"
	s := newSignedRequests(id, secret, region, "127.0.0.1:7600")
	body := []byte(`{"KeyId":"alias/x"}`)
	first := time.Date(2026, 11, 23, 23, 59, 59, 0, time.UTC)
	for _, now := range []time.Time{first, first.Add(time.Second), first.Add(2 * time.Second)} { // over midnight
		raw, err := s.append(nil, now, "TrentService.Encrypt", body)
		if err != nil {
			t.Fatal(err)
		}
		got, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
		if err != nil {
			t.Fatal(err)
		}
		sent, err := io.ReadAll(got.Body)
		if err != nil || !bytes.Equal(sent, body) {
			t.Fatalf("body %q, %v", sent, err)
		}
		want, err := http.NewRequest(http.MethodPost, "https://127.0.0.1:7600/", nil)
		if err != nil {
			t.Fatal(err)
		}
		want.Header.Set("Content-Type", got.Header.Get("Content-Type"))
		want.Header.Set("X-Amz-Target", got.Header.Get("X-Amz-Target"))
		digest := sha256.Sum256(body)
		creds := aws.Credentials{AccessKeyID: id, SecretAccessKey: secret}
		if err := v4.NewSigner().SignHTTP(t.Context(), creds, want, hex.EncodeToString(digest[:]), "kms", region, now); err != nil {
			t.Fatal(err)
		}
		if g, w := got.Header.Get("Authorization"), want.Header.Get("Authorization"); g != w {
			t.Errorf("at %s:\n got %s\nwant %s", now, g, w)
		}
	}
}

func TestHistogram(t *testing.T) {
	text := `# HELP conclave_raft_entry_records x
conclave_raft_entry_records_bucket{le="1"} 3
conclave_raft_entry_records_sum 120
conclave_raft_entry_records_count{node="a"} 1e+01
conclave_raft_entry_records_other 7
`
	var h histogram
	for range 2 {
		if err := h.add(strings.NewReader(text)); err != nil {
			t.Fatal(err)
		}
	}
	if want := (histogram{240, 20}); h != want {
		t.Errorf("got %+v, want %+v", h, want)
	}
	if err := h.add(strings.NewReader("go_goroutines 7\n")); err == nil {
		t.Error("a node without the metric is taken for one without records")
	}
}

func TestProcessorTime(t *testing.T) {
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		t.Skip("needs Linux's /proc")
	}
	before, err := processorTime([]int{os.Getpid()})
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for now := before; now < before+0.05; now, err = processorTime([]int{os.Getpid()}) {
		if err != nil {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatalf("busy for ten seconds, yet used %.2f s", now-before)
		}
	}
	if _, err := processorTime([]int{-1}); err == nil {
		t.Error("no error for a process that is not there")
	}
}

func TestMedians(t *testing.T) {
	got := medians([]sample{{Rate: 9, P50: 1, Fill: 5}, {Rate: 1, P50: 3, Fill: 4}, {Rate: 5, P50: 2, Fill: 6}})
	if want := (sample{Rate: 5, P50: 2, Fill: 5}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	sorted := make([]time.Duration, 100)
	for i := range sorted {
		sorted[i] = time.Duration(i)
	}
	if got := quantile(sorted, 0.99); got != 99 {
		t.Errorf("p99 of 0..99 is %d", got)
	}
	if got := quantile(sorted[:1], 0.99); got != 0 {
		t.Errorf("p99 of one value is %d", got)
	}
}

func TestVerdict(t *testing.T) {
	good := []Point{
		{Face: "gRPC", Concurrency: 1, Ratio: 0.01, P50: 3, RecordsPerEntry: 1},
		{Face: "gRPC", Concurrency: 64, Ratio: 0.19, P50: 50, RecordsPerEntry: 16},
		{Face: "gRPC", Concurrency: 256, Ratio: 0.1, P50: 500, RecordsPerEntry: 2},
	}
	if err := Verdict(good); err != nil {
		t.Errorf("good results are refused: %v", err)
	}
	for _, c := range []struct {
		bad  Point
		want string
	}{
		{Point{Face: "HTTPS", Concurrency: 64, Ratio: 0.18, RecordsPerEntry: 20}, "0.18 of the echo's throughput"},
		{Point{Face: "HTTPS", Concurrency: 64, Ratio: 0.3, RecordsPerEntry: 15.9}, "15.9 records in a Raft entry"},
		{Point{Face: "HTTPS", Concurrency: 1, P50: 3.01}, "a median of 3.01 ms"},
	} {
		err := Verdict(append(good, c.bad))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want an error that says %q", err, c.want)
		}
	}
}

func TestBenchValidate(t *testing.T) {
	for _, b := range []Plan{
		{Duration: time.Millisecond, Concurrency: []int{1}},
		{Duration: time.Second, Concurrency: []int{0}},
		{Duration: time.Second, Concurrency: []int{1, 16}, Check: true},
	} {
		coded, ok := errors.AsType[*cli.CodedError](b.Validate())
		if !ok || coded.Code != cli.ExitUsage {
			t.Errorf("%+v: %v, want an error of usage", b, b.Validate())
		}
	}
}

// The ratios of a user are those of the samples of each round, not of medians that are from
// different rounds.
func TestAsUser(t *testing.T) {
	s := samples{
		root: []sample{{Rate: 100, CPU: 1}, {Rate: 300, CPU: 1}, {Rate: 1000, CPU: 4}, {Rate: 1000, CPU: 4}, {Rate: 10, CPU: 2}, {Rate: 10, CPU: 2}},
		user: []sample{{Rate: 90, CPU: 1}, {Rate: 290, CPU: 2}, {Rate: 900, CPU: 5}, {Rate: 900, CPU: 5}, {Rate: 5, CPU: 2}, {Rate: 5, CPU: 2}},
	}
	if got := s.asUser(); got.RateRatio != 0.9 || got.CPURatio != 1.25 || got.Rate != 290 || got.CPU != 2 {
		t.Errorf("got %+v, want ratios of 0.9 and 1.25, and the user's own medians", *got)
	}
	// Deviations of 0.1, -0.1 and 0 from the mean.
	even := []sample{{Rate: 1.1, CPU: 2}, {Rate: 0.9, CPU: 2}, {Rate: 1, CPU: 2}}
	if got, want := medianError(even, func(s sample) float64 { return s.Rate }), 1.2533*0.1/math.Sqrt(3); math.Abs(got-want) > 1e-5 {
		t.Errorf("the standard error is %f, want %f", got, want)
	}
	if got := medianError(even, func(s sample) float64 { return s.CPU }); got != 0 {
		t.Errorf("the standard error of equal samples is %f", got)
	}
	if got := s.asUser(); got.RateError <= 0 || got.CPUError <= 0 || got.RateError == got.CPUError {
		t.Errorf("got %+v, want the errors of both ratios", *got)
	}
	if (&samples{root: s.root}).asUser() != nil {
		t.Error("there is a user where none was measured")
	}
	root, user, echo := &target{name: "root"}, &target{name: "user"}, &target{name: "echo"}
	for range 2 {
		for _, want := range []string{"root user user root echo ", "user root root user echo "} {
			spent := make(map[*target]time.Duration)
			var order string
			for _, step := range s.turn(face{root: root, user: user, echo: echo}, 4*time.Second) {
				spent[step.target] += step.duration
				order += step.name + " "
			}
			if order != want || spent[root] != 4*time.Second || spent[user] != 4*time.Second || spent[echo] != 4*time.Second {
				t.Errorf("a round is %s, for %v; want %s", order, spent, want)
			}
			s.echo = append(s.echo, sample{})
		}
	}
	if got := s.turn(face{root: root, echo: echo}, time.Second); len(got) != 2 || got[0].target != root || got[1].target != echo {
		t.Errorf("a round without a user has %d steps, want root and echo", len(got))
	}
}
