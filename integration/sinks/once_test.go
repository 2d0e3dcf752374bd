package sinks

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// TestRsyslog streams the log to Debian's rsyslog over TLS.
func TestRsyslog(t *testing.T) {
	t.Parallel()
	p, sink := rsyslog(t)
	deliver(t, p, sink, false)
}

// TestCollector streams the log to OpenTelemetry's collector.
func TestCollector(t *testing.T) {
	t.Parallel()
	p, sink := collector(t)
	deliver(t, p, sink, true)
}

// world is a cluster that streams to a program.
type world struct {
	t   *testing.T
	c   *harness.Cluster
	key string
	p   *program
}

// deliver has a program that is stopped, started and slow, while the leader changes and is
// killed, receive each record of the log. A program that confirms what it receives gets none
// twice unless the leader is killed; one that does not may get some again after a broken
// connection. A leader that hands over has the next one send none again.
func deliver(t *testing.T, p *program, sink string, confirms bool) {
	p.start()
	w := &world{t: t, p: p}
	w.c, w.key = clusterWith(t, write(t, filepath.Join(t.TempDir(), "sinks.json"), `{"sinks": [`+sink+`]}`))
	w.work(30)
	w.all("the program runs")

	p.stop()
	w.work(30)
	w.c.Eventually("waiting for a failure to be shown", func(ctx context.Context) error {
		s, err := sinkAt(ctx, w.c.Leader(), "program")
		if err == nil && (s.GetError() == nil || s.GetLag() == 0) {
			err = fmt.Errorf("the sink is %v", s)
		}
		return err
	})
	p.start()
	w.all("it was stopped and started")

	quick := p.slow()
	w.work(60)
	quick()
	w.all("it was slow")
	before := repeated(p.received())
	if confirms && before > 0 {
		t.Errorf("%d records were delivered again while one node led", before)
	}

	from := w.c.Leader()
	w.during(func() {
		w.c.Eventually("handing the leadership over", func(ctx context.Context) error {
			_, err := harness.Administration(from).TransferLeadership(ctx, &kmspb.TransferLeadershipRequest{})
			return err
		})
	})
	w.work(30)
	w.all("the leadership was handed over")
	if after := repeated(p.received()); after != before {
		t.Errorf("%d records were delivered again when the leadership was handed over", after-before)
	}

	lost := w.c.Leader()
	w.during(lost.Kill)
	w.work(30)
	w.all("the leader was killed")
	t.Logf("%d records were delivered again after a broken connection, and %d after the leader was killed", before, repeated(p.received())-before)
	lost.Start()
	lost.Unseal()
	w.c.WaitReady(lost)
	w.compare()
}

// work makes requests, each of which leaves a record.
func (w *world) work(n int) {
	w.t.Helper()
	kms := w.c.Leader().KMS()
	for range n {
		w.c.Eventually("making a request", func(ctx context.Context) error {
			_, err := kms.Encrypt(ctx, &kmspb.EncryptRequest{KeyId: &w.key, Plaintext: []byte("x")})
			return err
		})
	}
}

// during makes requests on all nodes while something is done. Some of them may fail.
func (w *world) during(do func()) {
	ctx, cancel := context.WithCancel(w.t.Context())
	var all sync.WaitGroup
	for _, n := range w.c.Nodes {
		kms := n.KMS()
		all.Go(func() {
			for ctx.Err() == nil {
				short, cancel := context.WithTimeout(ctx, 2*time.Second)
				_, _ = kms.Encrypt(short, &kmspb.EncryptRequest{KeyId: &w.key, Plaintext: []byte("x")})
				cancel()
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
	do()
	cancel()
	all.Wait()
}

// all waits until the program has all records that there are now.
func (w *world) all(when string) {
	w.t.Helper()
	var size uint64
	w.c.Eventually("asking for the size of the log", func(ctx context.Context) error {
		s, err := w.c.Leader().Status(ctx)
		size = s.GetAudit().GetSize()
		return err
	})
	w.c.Eventually(fmt.Sprintf("waiting for %d records when %s", size, when), func(context.Context) error {
		got := w.p.received()
		for i := range size {
			if _, ok := got[i]; !ok {
				return fmt.Errorf("record %d is missing", i)
			}
		}
		return nil
	})
	w.t.Logf("%s: the first %d records are there", when, size)
}

// compare holds what the program has against the log.
func (w *world) compare() {
	w.t.Helper()
	lines := harness.ReadAudit(w.t, w.c.Leader(), 0)
	w.all("the log was read")
	got := w.p.received()
	for i, line := range lines {
		var record struct {
			EventID string `json:"eventID"`
		}
		if err := json.Unmarshal([]byte(line.Raw), &record); err != nil {
			w.t.Fatal(err)
		}
		if d := got[uint64(i)]; record.EventID == "" || d.eventID != record.EventID || d.line != line.Raw {
			w.t.Errorf("record %d was delivered with the id %q as\n%s\nand is\n%s", i, d.eventID, d.line, line.Raw)
		}
	}
}
