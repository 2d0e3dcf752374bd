package policy

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"os"
	"testing"
)

type managedPolicy struct {
	Name     string          `json:"name"`
	Version  string          `json:"version"`
	Document json.RawMessage `json:"document"`
}

// managedPolicies reads AWS's managed policies.
func managedPolicies(t testing.TB) (list []managedPolicy) {
	t.Helper()
	f, err := os.Open("testdata/managed-policies.jsonl.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(z)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var p managedPolicy
		if err := json.Unmarshal(lines.Bytes(), &p); err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	if len(list) < 1500 {
		t.Fatalf("%d managed policies, want more than 1500", len(list))
	}
	return list
}

// TestManagedPolicies: every managed policy of AWS is understood as a whole, is
// decided like by the plain evaluator in every role that it can have, and lists
// the condition keys that it asks for.
func TestManagedPolicies(t *testing.T) {
	caller := mustPrincipal(t, "arn:aws:sts::111122223333:assumed-role/app/s1")
	requests := []plainRequest{
		{action: "kms:CreateKey", resource: "*"},
		{action: "kms:CreateAlias", resource: diffAlias, values: map[string][]string{"aws:resourceaccount": {"111122223333"}, "aws:principalaccount": {"111122223333"}}},
		{action: "iam:PassRole", resource: "arn:aws:iam::111122223333:role/service-role/x", values: map[string][]string{"iam:passedtoservice": {"glue.amazonaws.com"}}},
		{action: "ec2:CreateTags", resource: "arn:aws:ec2:us-east-1:111122223333:instance/i-1", values: map[string][]string{"aws:tagkeys": {"Name", "team"}, "ec2:createaction": {"RunInstances"}}},
	}
	conditions, allowed := 0, 0
	step := 1
	if testing.Short() {
		step = 5 // one goroutine, for which the race detector has no use: make test takes all
	}
	for i, p := range managedPolicies(t) {
		if i%step != 0 {
			continue
		}
		doc, err := Parse(IdentityPolicy, p.Document)
		if err != nil {
			t.Errorf("%s: %v", p.Name, err)
			continue
		}
		listed := make(map[string]bool)
		for _, key := range doc.ContextKeys() {
			listed[lowerASCII(key)] = true
		}
		conditions += len(listed)
		plain := plainDocument(t, p.Document)
		for _, r := range requests {
			r.principal, r.role = caller.ARN, caller.Role
			context := &corpusContext{values: r.values}
			req := Request{caller, r.action, r.resource, context}
			d := Evaluate(req, Policies{Identity: []*Document{doc}, Boundary: doc, Session: []*Document{doc}})
			got := plainAnswer{d.Effect.String(), d.Reason.String(), d.Policy, d.Statement}
			want := plainEvaluate(plainPolicies{identity: []any{plain}, boundary: plain, session: []any{plain}}, r)
			if got != want {
				t.Errorf("%s, %s: got %+v, want %+v", p.Name, r.action, got, want)
			}
			if d.Allowed() {
				allowed++
			}
			for _, key := range context.asked {
				if !listed[key] {
					t.Errorf("%s, %s: asked for %s, which is not among ContextKeys", p.Name, r.action, key)
				}
			}
		}
	}
	t.Logf("%d condition keys, %d allowed requests", conditions, allowed)
	if conditions < 1000/step || allowed < 50/step {
		t.Errorf("%d condition keys and %d allowed requests in all: the test tests little", conditions, allowed)
	}
}
