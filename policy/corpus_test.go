package policy

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const testKey = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"

// corpusPolicies are the policies of a request.
type corpusPolicies struct {
	Policy   json.RawMessage   `json:"policy"` // of the key
	Trust    json.RawMessage   `json:"trust"`
	Identity []json.RawMessage `json:"identity"`
	Boundary json.RawMessage   `json:"boundary"`
	Session  []json.RawMessage `json:"session"`
	Grantee  string            `json:"grantee"`
	// IDs are the unique ids that the key policy or trust policy is bound to; if absent, it
	// is not bound.
	IDs map[string]string `json:"ids"`
}

// A corpusFile is a set of policies of testdata/decisions with requests and
// their decisions.
type corpusFile struct {
	About string `json:"about"`
	corpusPolicies
	Now      string          `json:"now"` // of requests that have none
	Context  map[string]any  `json:"context"`
	Requests []corpusRequest `json:"requests"`
}

// A corpusRequest is a request. Its policies and its context are those of the
// file, except for what it gives itself.
type corpusRequest struct {
	About string `json:"about"`
	corpusPolicies
	Without   []string       `json:"without"`   // fields of the file's policies that do not apply
	Principal string         `json:"principal"` // an ARN, a service, or a provider; "" is the zero Principal
	Role      string         `json:"role"`      // given to WithRole
	ID        string         `json:"id"`        // the principal's unique id
	Action    string         `json:"action"`
	Resource  *string        `json:"resource"` // testKey if absent
	Now       string         `json:"now"`
	Context   map[string]any `json:"context"` // a string or a list of strings; null removes a key
	Want      string         `json:"want"`
	Reason    string         `json:"reason"`
	Index     int            `json:"index"`     // of the policy
	Statement *int           `json:"statement"` // NoStatement if absent
	Asked     []string       `json:"asked"`     // the keys that Evaluate asks for; not checked if absent
	Holds     []string       `json:"holds"`     // the time in which the decision holds, [from, to]; not checked if absent
}

// corpusContext is the Context of a request. It notes what is asked.
type corpusContext struct {
	values   map[string][]string
	now      time.Time
	asked    []string
	from, to time.Time // of all intervals together
}

func (c *corpusContext) Values(key string) []string {
	c.asked = append(c.asked, key)
	return c.values[key]
}

func (c *corpusContext) Now() time.Time { return c.now }

func (c *corpusContext) Holds(from, to time.Time) {
	if from.After(c.from) {
		c.from = from
	}
	if !to.IsZero() && (c.to.IsZero() || to.Before(c.to)) {
		c.to = to
	}
}

func readCorpus(t testing.TB) map[string]corpusFile {
	t.Helper()
	names, err := filepath.Glob("testdata/decisions/*.json")
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string]corpusFile)
	for _, name := range names {
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var file corpusFile
		dec := json.NewDecoder(strings.NewReader(string(raw)))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&file); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		files[strings.TrimSuffix(filepath.Base(name), ".json")] = file
	}
	return files
}

type corpusDocument struct {
	kind Kind
	text string
}

// documents lists the documents of a set of policies.
func (p corpusPolicies) documents() (list []corpusDocument) {
	add := func(kind Kind, docs ...json.RawMessage) {
		for _, d := range docs {
			if d != nil {
				list = append(list, corpusDocument{kind, string(d)})
			}
		}
	}
	add(KeyPolicy, p.Policy)
	add(TrustPolicy, p.Trust)
	add(IdentityPolicy, p.Identity...)
	add(IdentityPolicy, p.Boundary)
	add(SessionPolicy, p.Session...)
	return list
}

// corpusDocuments lists all documents of the corpus.
func corpusDocuments(t testing.TB) (list []corpusDocument) {
	t.Helper()
	for _, file := range readCorpus(t) {
		list = append(list, file.documents()...)
		for _, r := range file.Requests {
			list = append(list, r.documents()...)
		}
	}
	slices.SortFunc(list, func(a, b corpusDocument) int { return strings.Compare(a.text, b.text) })
	return slices.Compact(list)
}

// over returns p with what is absent taken from file, except for the fields in
// without.
func (p corpusPolicies) over(file corpusPolicies, without []string) corpusPolicies {
	has := func(field string) bool { return !slices.Contains(without, field) }
	if p.Policy == nil && has("policy") {
		p.Policy = file.Policy
	}
	if p.Trust == nil && has("trust") {
		p.Trust = file.Trust
	}
	if p.Identity == nil && has("identity") {
		p.Identity = file.Identity
	}
	if p.Boundary == nil && has("boundary") {
		p.Boundary = file.Boundary
	}
	if p.Session == nil && has("session") {
		p.Session = file.Session
	}
	if p.Grantee == "" && has("grantee") {
		p.Grantee = file.Grantee
	}
	if p.IDs == nil && has("ids") {
		p.IDs = file.IDs
	}
	return p
}

// parse parses the documents. A document that is an empty object is the zero
// Document.
func (p corpusPolicies) parse(t *testing.T) (policies Policies) {
	t.Helper()
	parse := func(kind Kind, raw json.RawMessage) *Document {
		if raw == nil {
			return nil
		}
		if string(raw) == "{}" {
			return &Document{}
		}
		d, err := Parse(kind, raw)
		if err != nil {
			t.Fatalf("Parse: %v\n%s", err, raw)
		}
		return d
	}
	policies.Resource = parse(KeyPolicy, p.Policy)
	if p.Trust != nil {
		policies.Resource = parse(TrustPolicy, p.Trust)
	}
	if p.IDs != nil {
		var err error
		if policies.Resource, err = policies.Resource.Bind(p.IDs); err != nil {
			t.Fatal(err)
		}
	}
	for _, raw := range p.Identity {
		policies.Identity = append(policies.Identity, parse(IdentityPolicy, raw))
	}
	policies.Boundary = parse(IdentityPolicy, p.Boundary)
	for _, raw := range p.Session {
		policies.Session = append(policies.Session, parse(SessionPolicy, raw))
	}
	if p.Grantee != "" {
		g := mustGrantee(t, p.Grantee)
		policies.Grantee = &g
	}
	return policies
}

// mustGrantee parses the grantee of a grant: a caller, or the unique id of one.
func mustGrantee(t *testing.T, s string) Principal {
	t.Helper()
	g, err := ParseUniqueID(s)
	if err != nil {
		g, err = ParseCaller(s)
	}
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// deciding returns the document with the statement that decided.
func (p corpusPolicies) deciding(d Decision) json.RawMessage {
	switch d.Reason {
	case ReasonKeyPolicy:
		return p.Policy
	case ReasonTrustPolicy:
		return p.Trust
	case ReasonIdentityPolicy:
		return p.Identity[d.Policy]
	case ReasonBoundary:
		return p.Boundary
	case ReasonSessionPolicy:
		return p.Session[d.Policy]
	default:
		return nil
	}
}

// context makes the Context of a request.
func (r *corpusRequest) context(t *testing.T, file *corpusFile) *corpusContext {
	t.Helper()
	c := &corpusContext{values: make(map[string][]string), now: time.Date(2026, 7, 1, 12, 0, 0, 500, time.UTC)}
	for _, now := range []string{file.Now, r.Now} {
		if now != "" {
			var err error
			if c.now, err = time.Parse(time.RFC3339Nano, now); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, values := range []map[string]any{file.Context, r.Context} {
		for key, v := range values {
			key = lowerASCII(key)
			switch v := v.(type) {
			case nil:
				delete(c.values, key)
			case string:
				c.values[key] = []string{v}
			case []any:
				list := []string{}
				for _, item := range v {
					list = append(list, item.(string))
				}
				c.values[key] = list
			default:
				t.Fatalf("context of %s: %v", key, v)
			}
		}
	}
	return c
}

func TestDecisionCorpus(t *testing.T) {
	files := readCorpus(t)
	if len(files) < 30 {
		t.Fatalf("found %d files of decisions, want at least 30", len(files))
	}
	total := 0
	for name, file := range files {
		total += len(file.Requests)
		t.Run(name, func(t *testing.T) {
			for i, r := range file.Requests {
				testDecision(t, i, &file, &r)
			}
		})
	}
	t.Logf("%d requests in %d files", total, len(files))
}

func testDecision(t *testing.T, i int, file *corpusFile, r *corpusRequest) {
	t.Helper()
	req := Request{Action: r.Action, Resource: testKey}
	var err error
	if p, err := ParseProvider(r.Principal); err == nil {
		req.Principal = p
	} else if r.Principal != "" {
		if req.Principal, err = ParseCaller(r.Principal); err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
	}
	if r.Role != "" {
		if req.Principal, err = req.Principal.WithRole(r.Role); err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
	}
	req.Principal.ID = r.ID
	if r.Resource != nil {
		req.Resource = *r.Resource
	}
	context := r.context(t, file)
	req.Context = context
	from := r.over(file.corpusPolicies, r.Without)
	policies := from.parse(t)
	got := Evaluate(req, policies)
	asked := slices.Sorted(slices.Values(context.asked))

	want := fmt.Sprintf("%s %s %d %d %q", r.Want, r.Reason, r.Index, NoStatement, "")
	if r.Statement != nil {
		want = fmt.Sprintf("%s %s %d %d %q", r.Want, r.Reason, r.Index, *r.Statement, sidsOf(t, from.deciding(got))[*r.Statement])
	}
	what := fmt.Sprintf("request %d, %s, %s %q by %s", i, r.About, r.Action, req.Resource, r.Principal)
	if diff := cmp.Diff(want, show(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
	if got.Allowed() != (r.Want == "Allow") {
		t.Errorf("%s: Allowed() = %v for %s", what, got.Allowed(), show(got))
	}
	if r.Asked != nil {
		if diff := cmp.Diff(r.Asked, append([]string{}, asked...)); diff != "" {
			t.Errorf("%s: keys asked for (-want +got):\n%s", what, diff)
		}
	}
	if len(slices.Compact(asked)) != len(context.asked) {
		t.Errorf("%s: asked for a key twice: %v", what, context.asked)
	}
	if r.Holds != nil {
		bound := func(at time.Time) string {
			if at.IsZero() {
				return ""
			}
			return at.UTC().Format(time.RFC3339)
		}
		if diff := cmp.Diff(r.Holds, []string{bound(context.from), bound(context.to)}); diff != "" {
			t.Errorf("%s: holds from, to (-want +got):\n%s", what, diff)
		}
	}
	checkTrace(t, what, req, policies, got)
}

// checkTrace checks that Trace decides as Evaluate did, and that its steps agree
// with the decision.
func checkTrace(t *testing.T, what string, req Request, policies Policies, got Decision) {
	t.Helper()
	traced, steps := Trace(req, policies)
	if traced != got {
		t.Errorf("%s: Trace decides %s, Evaluate %s", what, show(traced), show(got))
	}
	for _, s := range steps {
		if s.Matched != (s.Failed == ElementNone) || (s.Operator != "") != (s.Failed == ElementCondition) {
			t.Errorf("%s: inconsistent step %+v", what, s)
		}
		if s.Matched && s.Effect == ExplicitDeny && got.Effect != ExplicitDeny {
			t.Errorf("%s: %s, although this denies: %+v", what, show(got), s)
		}
	}
	if got.Statement != NoStatement && !slices.ContainsFunc(steps, func(s Step) bool {
		return s.Matched && s.Reason == got.Reason && s.Policy == got.Policy && s.Statement == got.Statement && s.Effect == got.Effect && s.Sid == got.Sid
	}) {
		t.Errorf("%s: no step for the deciding statement of %s: %+v", what, show(got), steps)
	}
}

func show(d Decision) string {
	return fmt.Sprintf("%s %s %d %d %q", d.Effect, d.Reason, d.Policy, d.Statement, d.Sid)
}

// sidsOf reads the Sids of a policy's statements with the standard library.
func sidsOf(t *testing.T, policy []byte) []string {
	t.Helper()
	type statement struct{ Sid string }
	var list struct{ Statement []statement }
	if err := json.Unmarshal(policy, &list); err != nil {
		var single struct{ Statement statement }
		if err := json.Unmarshal(policy, &single); err != nil {
			t.Fatal(err)
		}
		list.Statement = []statement{single.Statement}
	}
	sids := make([]string, 100) // a wrong number shows in the comparison
	for i, s := range list.Statement {
		sids[i] = s.Sid
	}
	return sids
}

func mustPrincipal(t testing.TB, s string) Principal {
	t.Helper()
	p, err := ParsePrincipal(s)
	if err != nil {
		t.Fatalf("ParsePrincipal(%q): %v", s, err)
	}
	return p
}

func mustParse(t testing.TB, doc string) *Document {
	t.Helper()
	d, err := Parse(KeyPolicy, []byte(doc))
	if err != nil {
		t.Fatalf("Parse: %v\n%s", err, doc)
	}
	return d
}
