package policy

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const testKey = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"

// A corpusFile is a policy of testdata/decisions with requests and their
// decisions.
type corpusFile struct {
	About    string          `json:"about"`
	Policy   json.RawMessage `json:"policy"`
	Requests []struct {
		Principal string  `json:"principal"` // "" is the zero Principal
		Role      string  `json:"role"`      // given to WithRole
		Action    string  `json:"action"`
		Resource  *string `json:"resource"` // testKey if absent
		Want      string  `json:"want"`
		Reason    string  `json:"reason"`
		Statement *int    `json:"statement"` // NoStatement if absent
	} `json:"requests"`
}

func TestDecisionCorpus(t *testing.T) {
	files, err := filepath.Glob("testdata/decisions/*.json")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 10 {
		t.Fatalf("found %d files of decisions, want at least 10", len(files))
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".json"), func(t *testing.T) {
			raw, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			var file corpusFile
			dec := json.NewDecoder(strings.NewReader(string(raw)))
			dec.DisallowUnknownFields()
			if err := dec.Decode(&file); err != nil {
				t.Fatal(err)
			}
			doc, err := Parse(file.Policy)
			if err != nil {
				t.Fatalf("Parse: %v", err)
			}
			sids := sidsOf(t, file.Policy)
			for i, r := range file.Requests {
				req := Request{Action: r.Action, Resource: testKey}
				if r.Principal != "" {
					req.Principal = mustPrincipal(t, r.Principal)
				}
				if r.Role != "" {
					if req.Principal, err = req.Principal.WithRole(r.Role); err != nil {
						t.Fatalf("request %d: %v", i, err)
					}
				}
				if r.Resource != nil {
					req.Resource = *r.Resource
				}
				got := Evaluate(req, Policies{Key: doc})
				wantStatement, wantSid := NoStatement, ""
				if r.Statement != nil {
					wantStatement, wantSid = *r.Statement, sids[*r.Statement]
				}
				want := fmt.Sprintf("%s %s %d %q", r.Want, r.Reason, wantStatement, wantSid)
				if diff := cmp.Diff(want, show(got)); diff != "" {
					t.Errorf("request %d, %s %q by %s (-want +got):\n%s", i, r.Action, req.Resource, r.Principal, diff)
				}
				if got.Allowed() != (r.Want == "Allow") {
					t.Errorf("request %d: Allowed() = %v for %s", i, got.Allowed(), show(got))
				}
			}
		})
	}
}

func show(d Decision) string {
	return fmt.Sprintf("%s %s %d %q", d.Effect, d.Reason, d.Statement, d.Sid)
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
	var sids []string
	for _, s := range list.Statement {
		sids = append(sids, s.Sid)
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
	d, err := Parse([]byte(doc))
	if err != nil {
		t.Fatalf("Parse: %v\n%s", err, doc)
	}
	return d
}
