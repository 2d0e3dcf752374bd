// Package trace measures the parts of requests. Nothing in it leaves the process: package
// traceexport sends what was measured to a collector.
//
// A request that is not traced has a nil *Request, whose methods do nothing and cost nothing.
package trace

import (
	"encoding/hex"
	"math/rand/v2"
	"strings"
	"sync"
	"time"
)

// Names of parts of requests.
const (
	Verify  = "verify"  // who sent the request
	Decide  = "decide"  // whether the sender may do that
	Compute = "compute" // the cryptography, and everything else that makes the answer
	Commit  = "commit"  // until a majority of the nodes has the record
	Leader  = "leader"  // the leader does the rest, because of conflicts
)

// maxParts bounds the parts of a request. One that conflicts with others has several of a name.
const maxParts = 32

// Part is a part of a request, between two times after its start.
type Part struct {
	Name       string
	Start, End time.Duration
}

// Parent is where a trace of another system has called.
type Parent struct {
	TraceID [16]byte
	SpanID  [8]byte
}

// Done is a request that was answered.
type Done struct {
	// Operation is the method that was called, of those that the API has; "" if it was none.
	Operation string
	// API is that of the request: "aws", "query" or "grpc".
	API   string
	ID    [16]byte
	Start time.Time
	Took  time.Duration
	// Failure is the name of the error that was answered, "" if there was none. Fault means
	// that the error is the node's and not the caller's.
	Failure string
	Fault   bool
	Parent  Parent // zero for none
	Parts   []Part
}

// Tracer decides which requests are traced. It is safe for concurrent use. A nil Tracer traces
// none.
type Tracer struct {
	ratio float64
	done  func(*Done)
}

// New returns a Tracer for a share of all requests, from 0 to 1. It passes those that were
// answered to done, which must not block.
func New(ratio float64, done func(*Done)) *Tracer { return &Tracer{ratio, done} }

// Begin begins a request, whose header traceparent may have said something. It returns nil if
// the request is not traced. That does not depend on anything that the caller says.
func (t *Tracer) Begin(api string, id [16]byte, traceparent []string) *Request {
	if t == nil || rand.Float64() >= t.ratio {
		return nil
	}
	r := &Request{tracer: t, done: Done{API: api, ID: id, Start: time.Now()}}
	r.done.Parent, _ = ParseParent(traceparent)
	return r
}

// ParseParent parses the header traceparent of W3C Trace Context. Only its ids count: the flag by
// which a caller says that it records the trace is ignored.
func ParseParent(values []string) (p Parent, ok bool) {
	// version "-" trace-id "-" parent-id "-" flags; a later version may go on behind that.
	if len(values) != 1 || len(values[0]) < 55 || len(values[0]) > 256 {
		return Parent{}, false
	}
	v := values[0]
	if strings.ContainsAny(v[:55], "ABCDEF") || v[2] != '-' || v[35] != '-' || v[52] != '-' || len(v) > 55 && (v[:2] == "00" || v[55] != '-') {
		return Parent{}, false
	}
	var version, flags [1]byte
	for _, f := range []struct {
		to   []byte
		from string
	}{{version[:], v[:2]}, {p.TraceID[:], v[3:35]}, {p.SpanID[:], v[36:52]}, {flags[:], v[53:55]}} {
		if _, err := hex.Decode(f.to, []byte(f.from)); err != nil {
			return Parent{}, false
		}
	}
	if version[0] == 0xff || p.TraceID == [16]byte{} || p.SpanID == [8]byte{} {
		return Parent{}, false
	}
	return p, true
}

// Request is a request that is traced. One goroutine at a time works on it.
type Request struct {
	tracer *Tracer

	mu      sync.Mutex
	done    Done
	known   bool
	over    bool
	part    string        // that is under way; "" for none
	began   time.Duration // when it began
	decided time.Duration // when the last decision was made that allowed something; 0 for none
}

// Next ends the part that is under way, and begins another one.
func (r *Request) Next(part string) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.end()
	r.part, r.began, r.decided = part, now, 0
}

// Stop ends the part that is under way.
func (r *Request) Stop() {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.end()
}

// Decided notes that it was decided whether the caller may do something. What follows the last
// decision in the part Decide is the part Compute, if the caller may.
func (r *Request) Decided(allowed bool) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.decided = 0; allowed {
		r.decided = time.Since(r.done.Start)
	}
}

// Known notes that the request's sender is authenticated.
func (r *Request) Known() {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known = true
}

// Failed notes the name of the error that is answered, and whether it is the node's fault.
func (r *Request) Failed(name string, fault bool) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.over {
		r.done.Failure, r.done.Fault = name, fault
	}
}

// End ends a request that is answered, given its operation or SERVICE/OPERATION. It is passed on if its sender is known: strangers must not
// be able to fill a collector.
func (r *Request) End(operation string) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return
	}
	r.done.Took, r.over = r.end(), true
	if r.done.Operation = operation[strings.LastIndexByte(operation, '/')+1:]; r.known {
		r.tracer.done(&r.done)
	}
}

// end ends the part that is under way, and returns the time.
func (r *Request) end() (now time.Duration) {
	now = time.Since(r.done.Start)
	if r.part == Decide && r.decided != 0 {
		r.add(Decide, r.began, r.decided)
		r.part, r.began = Compute, r.decided
	}
	if r.part != "" {
		r.add(r.part, r.began, now)
	}
	r.part = ""
	return now
}

func (r *Request) add(part string, start, end time.Duration) {
	if !r.over && len(r.done.Parts) < maxParts {
		r.done.Parts = append(r.done.Parts, Part{part, start, end})
	}
}
