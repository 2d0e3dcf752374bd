package auditevents

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/transport/kmspb"
)

var update = flag.Bool("update", false, "write the tables of docs/audit-events.md")

const (
	page  = "../../docs/audit-events.md"
	below = "<!-- What follows is written by a test. -->\n"
)

// TestPage: docs/audit-events.md has the list, word for word.
func TestPage(t *testing.T) {
	raw, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	text, tables, ok := strings.Cut(string(raw), below)
	if !ok {
		t.Fatalf("%s has no line %q", page, below)
	}
	want := written()
	if *update {
		if err := os.WriteFile(page, []byte(text+below+want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if tables != want {
		t.Errorf("%s is not what the list says; write it with -update", page)
	}
}

// written returns the tables of the page.
func written() string {
	var b strings.Builder
	for _, of := range []struct{ eventType, title string }{
		{Operator, "Operators, ceremonies and members"}, {Call, "Callers"}, {Service, "The service itself"},
	} {
		fmt.Fprintf(&b, "\n## %s: `%s`\n\n| Event | Written when | By | Fields |\n| --- | --- | --- | --- |\n", of.title, of.eventType)
		for i := range All {
			if e := &All[i]; e.Type == of.eventType {
				fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", e.Name, e.When, by(e), cells(e))
			}
		}
	}
	b.WriteString("\n## Calls of the gRPC API\n\n| Call | Records | No record |\n| --- | --- | --- |\n")
	for _, name := range slices.Sorted(maps.Keys(Calls)) {
		c := Calls[name]
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", name, quoted(c.Events), c.None)
	}
	return b.String()
}

func by(e *Event) string {
	switch {
	case e.Automatic:
		return "the service"
	case e.Type == Operator:
		return "an operator"
	}
	return "a caller"
}

func cells(e *Event) string {
	var parts []string
	for _, of := range []struct {
		what  string
		names []string
	}{{"parameters", e.Parameters}, {"response", e.Response}, {"details", e.Details}} {
		if len(of.names) > 0 {
			parts = append(parts, of.what+" "+quoted(of.names))
		}
	}
	return strings.Join(parts, "; ")
}

func quoted(names []string) string {
	var q []string
	for _, n := range names {
		q = append(q, "`"+n+"`")
	}
	return strings.Join(q, ", ")
}

// TestList: each event is in the list once, and says when it is written.
func TestList(t *testing.T) {
	seen := make(map[string]bool)
	for _, e := range All {
		if id := e.Type + e.Name; seen[id] || e.Name == "" || e.When == "" {
			t.Errorf("%+v is there twice, or has no name or occasion", e)
		} else {
			seen[id] = true
		}
	}
}

// TestCallsAreListed: each call of the gRPC API has a row, which names events that there are, or
// says why there are none.
func TestCallsAreListed(t *testing.T) {
	left := maps.Clone(Calls)
	row := func(name string) {
		c, ok := left[name]
		if !ok {
			t.Errorf("%s has no row in Calls: say what it leaves in the audit log", name)
		}
		delete(left, name)
		if len(c.Events) == 0 && c.None == "" {
			t.Errorf("%s has no events, and does not say why", name)
		}
		for _, e := range c.Events {
			if Find(e, Operator) == nil && Find(e, Call) == nil {
				t.Errorf("%s leaves %s, which is not in the list", name, e)
			}
		}
	}
	for _, s := range []grpc.ServiceDesc{
		kmspb.Operator_ServiceDesc, kmspb.Cluster_ServiceDesc, kmspb.Joining_ServiceDesc, kmspb.Session_ServiceDesc, kmspb.Credentials_ServiceDesc,
		kmspb.Accounts_ServiceDesc, kmspb.Usage_ServiceDesc, kmspb.CertificateMappings_ServiceDesc, kmspb.Audit_ServiceDesc,
	} {
		short := s.ServiceName[strings.LastIndexByte(s.ServiceName, '.')+1:]
		for _, m := range s.Methods {
			row(short + "/" + m.MethodName)
		}
		for _, m := range s.Streams {
			row(short + "/" + m.StreamName)
		}
	}
	for name := range left {
		t.Errorf("there is no call %s", name)
	}
}

// TestNamesInCode: every name that the code gives to an event is in the list, and every name in
// the list is somewhere in the code.
func TestNamesInCode(t *testing.T) {
	used := make(map[string]bool)  // names of events, by what they are passed to
	texts := make(map[string]bool) // all texts
	for _, dir := range []string{"../../keyengine", "../../cmd/conclave/node", "../../transport"} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if d.IsDir() && d.Name() == "auditevents" {
				return fs.SkipDir
			}
			if d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.HasSuffix(path, ".pb.go") {
				return nil
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.BasicLit:
					if s, err := strconv.Unquote(n.Value); err == nil && n.Kind == token.STRING {
						texts[s] = true
					}
				case *ast.CallExpr:
					if name := eventOf(n); name != "" {
						used[name] = true
					}
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(used) < 30 {
		t.Fatalf("found only %d names: the test does not find them any more", len(used))
	}
	for name := range used {
		if !slices.ContainsFunc(All, func(e Event) bool { return e.Name == name }) {
			t.Errorf("the event %s is not in the list", name)
		}
	}
	parts := []string{"Begin", "Complete", "Cancel", "Expire", "Submit"} // of ceremonies, before what they are for
	for _, e := range All {
		composed := slices.ContainsFunc(parts, func(p string) bool { return strings.HasPrefix(e.Name, p) && texts[p] })
		if !texts[e.Name] && !composed {
			t.Errorf("%s is in the list, and nowhere in the code", e.Name)
		}
	}
}

// eventOf returns the name that a call gives to an event; "" if it does not.
func eventOf(c *ast.CallExpr) string {
	at := map[string]int{"Event": 0, "ServiceEvent": 0, "requested": 2, "byRoot": 2}
	var name string
	switch f := c.Fun.(type) {
	case *ast.SelectorExpr:
		name = f.Sel.Name
	case *ast.Ident:
		name = f.Name
	}
	i, ok := at[name]
	if !ok || len(c.Args) <= i {
		return ""
	}
	lit, ok := c.Args[i].(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return ""
	}
	s, err := strconv.Unquote(lit.Value)
	if err != nil {
		return ""
	}
	return s
}

// TestCheck: a record that is not as the list says is found.
func TestCheck(t *testing.T) {
	good := func() *auditpb.Record {
		return &auditpb.Record{EventName: "ConfirmTime", EventType: Operator, Identity: &auditpb.Identity{Type: "ConclaveOperator"},
			RequestParameters: []*auditpb.Field{{Name: "until"}}}
	}
	if err := Check(good()); err != nil {
		t.Error(err)
	}
	for what, spoil := range map[string]func(*auditpb.Record){
		"name":      func(r *auditpb.Record) { r.EventName = "Confirm" },
		"type":      func(r *auditpb.Record) { r.EventType = Service },
		"nobody":    func(r *auditpb.Record) { r.Identity = nil },
		"caller":    func(r *auditpb.Record) { r.Identity.Type = "Root" },
		"read-only": func(r *auditpb.Record) { r.ReadOnly = true },
		"parameter": func(r *auditpb.Record) {
			r.RequestParameters = append(r.RequestParameters, &auditpb.Field{Name: "share"})
		},
		"response": func(r *auditpb.Record) { r.ResponseElements = r.RequestParameters },
	} {
		r := good()
		spoil(r)
		if Check(r) == nil {
			t.Errorf("a record with a wrong %s is taken for good", what)
		}
	}
}
