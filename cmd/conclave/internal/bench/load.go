package bench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// load is one kind of request, for one worker. Connections are made before the
// measurement begins.
type load interface {
	do(ctx context.Context) error
	close()
}

// sample is one measurement of one target at one concurrency.
type sample struct {
	Rate float64 // operations a second
	P50  time.Duration
	P99  time.Duration
	CPU  float64 // processor time of the servers for 1,000 operations, in seconds
	Fill float64 // records in a Raft entry; 0 if there are none
}

// target is a server to put under load.
type target struct {
	name string
	pids []int
	// ops are the addresses of the nodes' metrics; none for an echo.
	ops  []string
	open func(ctx context.Context, worker int) (load, error)
}

// warmUp precedes each measurement and is not part of it.
const warmUp = 250 * time.Millisecond

// measure puts a target under load. Each worker sends its next request when the
// last one is answered.
func (t *target) measure(ctx context.Context, workers int, d time.Duration) (s sample, err error) {
	loads := make([]load, workers)
	defer func() {
		for _, l := range loads {
			if l != nil {
				l.close()
			}
		}
	}()
	for i := range loads {
		if loads[i], err = t.open(ctx, i); err != nil {
			return s, fmt.Errorf("%s: %w", t.name, err)
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var measuring, done atomic.Bool
	times := make([][]time.Duration, workers)
	var wg sync.WaitGroup
	for i, l := range loads {
		wg.Go(func() {
			mine := make([]time.Duration, 0, 4096)
			for !done.Load() && ctx.Err() == nil {
				began, counts := time.Now(), measuring.Load()
				if err := l.do(ctx); err != nil {
					cancel(fmt.Errorf("%s: %w", t.name, err))
					return
				}
				// Count only requests that are entirely within the window.
				if counts && !done.Load() {
					mine = append(mine, time.Since(began))
				}
			}
			times[i] = mine
		})
	}
	if pause(ctx, warmUp) == nil {
		var cpu, cpuEnd float64
		var records, recordsEnd histogram
		cpu, err = processorTime(t.pids)
		if err == nil {
			records, err = recordsPerEntry(ctx, t.ops)
		}
		measuring.Store(true)
		began := time.Now()
		if err == nil {
			err = pause(ctx, d)
		}
		done.Store(true)
		took := time.Since(began)
		if err == nil {
			cpuEnd, err = processorTime(t.pids)
		}
		if err == nil {
			recordsEnd, err = recordsPerEntry(ctx, t.ops)
		}
		wg.Wait()
		all := slices.Concat(times...)
		slices.Sort(all)
		if err == nil && len(all) == 0 {
			err = fmt.Errorf("%s: no operation completed in %s", t.name, d)
		}
		if err == nil {
			s = sample{
				Rate: float64(len(all)) / took.Seconds(),
				P50:  quantile(all, 0.50), P99: quantile(all, 0.99),
				CPU: (cpuEnd - cpu) / float64(len(all)) * 1000,
			}
			if entries := recordsEnd.count - records.count; entries > 0 {
				s.Fill = (recordsEnd.sum - records.sum) / entries
			}
		}
	}
	wg.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return s, cause
	}
	return s, err
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// quantile of sorted values.
func quantile(sorted []time.Duration, q float64) time.Duration {
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// clockTicks is how many ticks Linux counts for a second of processor time, on
// every architecture that Go supports.
const clockTicks = 100

// processorTime returns the processor time that these processes have used so
// far, in seconds.
func processorTime(pids []int) (float64, error) {
	var ticks float64
	for _, pid := range pids {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, err
		}
		// The second field may contain spaces; it ends at the last parenthesis.
		_, rest, ok := strings.Cut(string(raw[max(0, bytes.LastIndexByte(raw, ')')):]), " ")
		fields := strings.Fields(rest)
		if !ok || len(fields) < 13 {
			return 0, fmt.Errorf("/proc/%d/stat has an unexpected format", pid)
		}
		for _, f := range fields[11:13] { // utime, stime
			n, err := strconv.ParseFloat(f, 64)
			if err != nil {
				return 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
			}
			ticks += n
		}
	}
	return ticks / clockTicks, nil
}

type histogram struct{ sum, count float64 }

const recordsMetric = "conclave_raft_entry_records"

// recordsPerEntry adds up the histograms of all nodes, as only the leader's has
// observations.
func recordsPerEntry(ctx context.Context, ops []string) (h histogram, err error) {
	for _, addr := range ops {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/metrics", nil)
		if err != nil {
			return h, err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return h, err
		}
		err = h.add(io.LimitReader(resp.Body, 16<<20))
		resp.Body.Close()
		if err != nil {
			return h, fmt.Errorf("%s/metrics: %w", addr, err)
		}
	}
	return h, nil
}

// add reads the histogram from Prometheus's text format.
func (h *histogram) add(r io.Reader) error {
	found := false
	for lines := bufio.NewScanner(r); lines.Scan(); {
		name, value, ok := strings.Cut(lines.Text(), " ")
		if !ok {
			continue
		}
		name, _, _ = strings.Cut(name, "{")
		var to *float64
		switch name {
		case recordsMetric + "_sum":
			to = &h.sum
		case recordsMetric + "_count":
			to = &h.count
		default:
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return err
		}
		*to += v
		found = true
	}
	if !found {
		return errors.New("there is no " + recordsMetric)
	}
	return nil
}
