package conformance

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/cmd/conclave/node"
	"github.com/conclavekms/conclave/integration/awsmodel"
	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/integration/xksproxy"
	"github.com/conclavekms/conclave/keyengine/attesttest"
)

// TestConformanceOutputs makes calls of every operation that succeed, and holds the
// bytes of each answer against the model: the members that it has are exactly those
// that the model has for the case, and each is of the type that it says.
func TestConformanceOutputs(t *testing.T) {
	t.Parallel()
	m := awsmodel.Load(t)
	e, err := attesttest.NewEnclave(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	roots := filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(roots, e.Root().PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	proxy := xksproxy.Start(t)
	ca := filepath.Join(t.TempDir(), "xks.pem")
	if err := os.WriteFile(ca, proxy.CA(), 0o600); err != nil {
		t.Fatal(err)
	}
	c := harness.NewCluster(t, 1, harness.Options{
		Regions: []string{harness.Region, harness.SecondRegion},
		Configure: func(_ *harness.Node, cfg *node.Config) {
			cfg.AttestationRoots, cfg.XKSCA, cfg.XKSAllowPrivateEndpoints = roots, ca, true
		},
	})
	c.MakePrincipals("user/somebody", "role/some")
	w := &exampleWorld{t: t, f: harness.NewFace(t, c, c.Nodes[0]), enclave: e, proxy: proxy, answers: make(map[string]map[string]any)}
	called, seen := make(map[string]bool), make(map[string]bool)
	for _, e := range examples {
		raw := w.call(&e)
		called[e.op] = true
		out := m.Operations[e.op].Output
		if out == nil {
			if len(raw) != 0 {
				t.Errorf("%s: the answer has a body: %q", e.name(), raw)
			}
			continue
		}
		d := json.NewDecoder(bytes.NewReader(raw))
		d.UseNumber()
		var v any
		if err := d.Decode(&v); err != nil {
			t.Fatalf("%s: %v: %q", e.name(), err, raw)
		}
		w.answers[e.name()], _ = v.(map[string]any)
		a := answer{model: m, with: e.with, met: make(map[string]bool)}
		a.value(m.Shapes[out.Shape], v, "", false)
		for _, name := range e.with {
			if !a.met[name] {
				a.faults = append(a.faults, name+" is missing")
			}
		}
		for _, fault := range a.faults {
			t.Errorf("%s: %s\n%.2000s", e.name(), fault, raw)
		}
		maps.Copy(seen, a.met)
	}
	for _, op := range m.Names() {
		if !called[op] {
			t.Errorf("no example shows a successful %s", op)
		}
	}
	for name := range optional {
		shape, member, _ := strings.Cut(name, ".")
		if s := m.Shapes[shape]; s == nil || !slices.ContainsFunc(s.Members, func(mm awsmodel.Member) bool { return mm.Name == member }) {
			t.Errorf("%s is said to be optional, and is not in the model", name)
		}
		if out := slices.Contains(never, name); seen[name] == out {
			t.Errorf("%s: some answer has it: %v, and none is said to have it: %v", name, seen[name], out)
		}
	}
	c.NoFaults()
}

// example is a call that succeeds.
type example struct {
	op string
	// of tells the examples of an operation apart.
	of string
	in func(*exampleWorld) harness.Members
	// with are the members of optional that the answer has.
	with   []string
	region string // harness.Region if empty
}

func (e *example) name() string { return strings.TrimSpace(e.op + " " + e.of) }

// exampleWorld is what the examples make and use, one after the other.
type exampleWorld struct {
	t       *testing.T
	f       *harness.Face
	enclave *attesttest.Enclave
	proxy   *xksproxy.Proxy
	answers map[string]map[string]any
}

func (w *exampleWorld) call(e *example) []byte {
	w.t.Helper()
	in := harness.Members{}
	if e.in != nil {
		in = e.in(w)
	}
	body, err := json.Marshal(in)
	if err != nil {
		w.t.Fatal(err)
	}
	w.f.Region = e.region
	a, err := w.f.Send(w.f.Signed("TrentService."+e.op, string(body)))
	if err != nil {
		w.t.Fatalf("%s: %v", e.name(), err)
	}
	if a.Status != http.StatusOK {
		w.t.Fatalf("%s: %d %s: %s", e.name(), a.Status, a.Type, a.Message)
	}
	if got := a.Header.Get("Content-Type"); got != "application/x-amz-json-1.1" {
		w.t.Errorf("%s: Content-Type %q", e.name(), got)
	}
	if id := a.Header.Get("x-amzn-RequestId"); len(id) != 36 {
		w.t.Errorf("%s: request id %q", e.name(), id)
	}
	return a.Body
}

// of is a member of an answer that came before, by its path.
func (w *exampleWorld) of(example, path string) any {
	w.t.Helper()
	var v any = w.answers[example]
	for name := range strings.SplitSeq(path, ".") {
		m, _ := v.(map[string]any)
		v = m[name]
	}
	if v == nil {
		w.t.Fatalf("the answer of %s has no %s", example, path)
	}
	return v
}

// blob is such a member that is a blob.
func (w *exampleWorld) blob(example, path string) []byte {
	w.t.Helper()
	text, _ := w.of(example, path).(string)
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		w.t.Fatalf("%s of %s: %v", path, example, err)
	}
	return b
}

// key is the id of a key that CreateKey made.
func (w *exampleWorld) key(of string) string {
	w.t.Helper()
	return w.of("CreateKey "+of, "KeyMetadata.KeyId").(string)
}

// answer holds one against the model.
type answer struct {
	model  *awsmodel.Model
	with   []string
	met    map[string]bool // members of optional
	faults []string
}

func (a *answer) fault(format string, args ...any) {
	a.faults = append(a.faults, fmt.Sprintf(format, args...))
}

// value checks a value. In lists, optional members need not be in every item.
func (a *answer) value(s *awsmodel.Shape, v any, path string, listed bool) {
	ok := false
	switch s.Type {
	case "string":
		var text string
		if text, ok = v.(string); ok {
			for _, c := range s.Broken(text) {
				if !slices.Contains(freeTexts, path) {
					a.fault("%s is %q: %s", path, text, c)
				}
			}
		}
	case "integer":
		var n json.Number
		if n, ok = v.(json.Number); ok {
			i, err := n.Int64()
			if c := s.Bounds("value", int(i)); err != nil || c != "" {
				a.fault("%s is %s: %s", path, n, c)
			}
		}
	case "boolean":
		_, ok = v.(bool)
	case "timestamp":
		var n json.Number
		if n, ok = v.(json.Number); ok {
			// Seconds, the milliseconds as a fraction: no milliseconds, no exponent.
			seconds, err := n.Float64()
			_, fraction, _ := strings.Cut(n.String(), ".")
			at := time.Unix(int64(seconds), 0)
			if err != nil || strings.ContainsAny(n.String(), "eE") || len(fraction) > 3 || at.Before(time.Now().Add(-time.Hour)) || at.After(time.Now().AddDate(10, 0, 0)) {
				a.fault("%s is %s, no time in seconds", path, n)
			}
		}
	case "blob":
		var text string
		if text, ok = v.(string); ok {
			b, err := base64.StdEncoding.Strict().DecodeString(text)
			if c := s.Bounds("length", len(b)); err != nil || c != "" {
				a.fault("%s is no blob: %v %s", path, err, c)
			}
		}
	case "list":
		var list []any
		if list, ok = v.([]any); ok {
			for _, item := range list {
				a.value(a.model.Shapes[s.Member.Shape], item, path+"[]", true)
			}
		}
	case "map":
		var pairs map[string]any
		if pairs, ok = v.(map[string]any); ok {
			for _, item := range pairs {
				a.value(a.model.Shapes[s.Value.Shape], item, path+"{}", listed)
			}
		}
	case "structure":
		var members map[string]any
		if members, ok = v.(map[string]any); ok {
			a.structure(s, members, path, listed)
		}
	}
	if !ok {
		a.fault("%s is a %T, not a %s", path, v, s.Type)
	}
}

func (a *answer) structure(s *awsmodel.Shape, v map[string]any, path string, listed bool) {
	known := make(map[string]bool)
	for _, mm := range s.Members {
		known[mm.Name] = true
		name := s.Name + "." + mm.Name
		item, there := v[mm.Name]
		_, may := optional[name]
		must := !may || !listed && slices.Contains(a.with, name)
		switch {
		case !there && must:
			a.fault("%s.%s is missing", path, mm.Name)
		case there && may && !slices.Contains(a.with, name):
			a.fault("%s.%s is there, which is for another case: %s", path, mm.Name, optional[name])
		case there:
			a.met[name] = true
			a.value(a.model.Shapes[mm.Shape], item, path+"."+mm.Name, listed)
		}
	}
	for name := range v {
		if !known[name] {
			a.fault("%s.%s is no member of the model's", path, name)
		}
	}
}
