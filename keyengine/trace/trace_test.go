package trace

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestParseParent(t *testing.T) {
	t.Parallel()
	const good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for _, v := range []string{good, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-the-future-brings"} {
		if p, ok := ParseParent([]string{v}); !ok || p.TraceID[0] != 0x0a || p.TraceID[15] != 0x9c || p.SpanID[0] != 0xb7 || p.SpanID[7] != 0x31 {
			t.Errorf("%q is read as %x, %v", v, p, ok)
		}
	}
	for name, values := range map[string][]string{
		"none": nil, "two": {good, good}, "empty": {""}, "short": {good[:54]}, "longer": {good + "-00"}, "endless": {good + "-" + strings.Repeat("a", 1<<20)},
		"capitals": {strings.ToUpper(good)}, "no trace": {"00-00000000000000000000000000000000-b7ad6b7169203331-01"},
		"no span":        {"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01"},
		"not a version":  {"ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
		"not hex":        {"00-0af7651916cd43dd8448eb211c80319x-b7ad6b7169203331-01"},
		"no flags":       {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-zz"},
		"other dashes":   {"00_0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331_01"},
		"a line break":   {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0\n"},
		"joined behind":  {strings.Replace(good, "00", "01", 1) + "x"},
		"bytes of UTF-8": {"00-\u00e9af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
	} {
		if p, ok := ParseParent(values); ok || p != (Parent{}) {
			t.Errorf("%s: %.80q is read as %x", name, values, p)
		}
	}
}

// TestParts: the parts of a request follow each other, and computing begins with the last decision
// that allowed something.
func TestParts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var done []*Done
		tracer := New(1, func(d *Done) { done = append(done, d) })
		work := func() { time.Sleep(time.Millisecond) }
		evaluate := func(r *Request, allowed ...bool) {
			r.Next(Decide)
			for _, ok := range allowed {
				work()
				r.Decided(ok)
			}
			work()
			r.Stop()
		}
		const ms = time.Millisecond
		for name, tt := range map[string]struct {
			do   func(r *Request)
			want []Part
		}{
			"allowed": {func(r *Request) {
				r.Next(Verify)
				work()
				r.Stop()
				work()
				evaluate(r, true)
				r.Next(Commit)
				work()
			}, []Part{{Verify, 0, ms}, {Decide, 2 * ms, 3 * ms}, {Compute, 3 * ms, 4 * ms}, {Commit, 4 * ms, 5 * ms}}},
			"denied":         {func(r *Request) { evaluate(r, false) }, []Part{{Decide, 0, 2 * ms}}},
			"half allowed":   {func(r *Request) { evaluate(r, true, false) }, []Part{{Decide, 0, 3 * ms}}},
			"allowed twice":  {func(r *Request) { evaluate(r, true, true) }, []Part{{Decide, 0, 2 * ms}, {Compute, 2 * ms, 3 * ms}}},
			"refused before": {func(r *Request) { evaluate(r) }, []Part{{Decide, 0, ms}}},
		} {
			done = nil
			r := tracer.Begin("aws", [16]byte{1}, nil)
			tt.do(r)
			r.Known()
			r.End("kms.KMS/Encrypt")
			r.End("again")
			r.Next(Commit)
			if len(done) != 1 || !slices.Equal(done[0].Parts, tt.want) || done[0].Operation != "Encrypt" || done[0].Took != tt.want[len(tt.want)-1].End {
				t.Errorf("%s: got %+v, want the parts %v", name, done, tt.want)
			}
		}
		done = nil
		r := tracer.Begin("aws", [16]byte{1}, nil)
		r.Failed("MissingAuthenticationToken", false)
		r.End("Encrypt")
		if len(done) != 0 {
			t.Errorf("the request of a stranger is passed on")
		}
	})
}

// TestSample: the share of requests that are traced is the node's, whatever callers say.
func TestSample(t *testing.T) {
	t.Parallel()
	tracer := New(0.25, func(*Done) {})
	n := 0
	for range 10_000 {
		if tracer.Begin("aws", [16]byte{}, []string{"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}) != nil {
			n++
		}
	}
	if n < 2000 || n > 3000 { // more than eleven standard deviations
		t.Errorf("of 10000 requests, %d are traced", n)
	}
}

// untraced does what is done with a request that is not traced.
func untraced(tracer *Tracer) {
	r := tracer.Begin("aws", [16]byte{}, nil)
	r.Next(Verify)
	r.Stop()
	r.Known()
	r.Next(Decide)
	r.Decided(true)
	r.Stop()
	r.Next(Commit)
	r.Stop()
	r.Failed("x", true)
	r.End("Encrypt")
}

// TestOffCostsNothing: without traces, a request does not allocate for them.
func TestOffCostsNothing(t *testing.T) {
	for name, tracer := range map[string]*Tracer{"no traces": nil, "a request that is not traced": New(0, nil)} {
		if n := testing.AllocsPerRun(1000, func() { untraced(tracer) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkOff(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		untraced(nil)
	}
}

func BenchmarkOn(b *testing.B) {
	b.ReportAllocs()
	tracer := New(1, func(*Done) {})
	for b.Loop() {
		untraced(tracer)
	}
}
