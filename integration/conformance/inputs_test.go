package conformance

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/conclavekms/conclave/integration/awsmodel"
	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/keyengine"
)

// TestModelIsServed: the operations are those of AWS's model, each with an answer
// where AWS has one.
func TestModelIsServed(t *testing.T) {
	m := awsmodel.Load(t)
	for _, name := range m.Names() {
		if keyengine.OperationNamed(keyengine.KMS, name) == nil {
			t.Errorf("%s is not served", name)
		}
	}
	for _, op := range keyengine.OperationsOf(keyengine.KMS) {
		o := m.Operations[op.Name]
		if o == nil {
			t.Errorf("%s is served, and is no operation of AWS's", op.Name)
		} else if op.HasOutput() != (o.Output != nil) {
			t.Errorf("%s: has an output: %v", op.Name, op.HasOutput())
		}
	}
}

// TestConformanceInputs sends, for each operation and each member of its request,
// down to those of structures, lists and maps, requests in which that member alone
// is wrong, in every way that the model knows of, and requests that go to the very
// bounds. What has to be answered is computed from the model.
func TestConformanceInputs(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("many cases that take the same ways, one after the other: make test runs it")
	}
	m := awsmodel.Load(t)
	c := harness.NewCluster(t, 1, harness.Options{})
	f := harness.NewFace(t, c, c.Nodes[0])
	g := newDynamic(c.Nodes[0])
	for _, op := range m.Names() {
		cases := m.Cases(op)
		t.Run(op, func(t *testing.T) {
			t.Parallel()
			f := f.Of(t)
			for _, tc := range cases {
				code, message := m.Judge(op, tc.Body)
				judged(f, op, tc, code, message)
				if code != "SerializationException" {
					g.judged(t, op, tc, message)
				}
			}
		})
	}
	t.Cleanup(c.NoFaults)
}

// judged sends a request on the AWS face. No code is expected of requests with
// nothing wrong in their members; whether they succeed is another matter.
func judged(f *harness.Face, op string, tc awsmodel.Case, code, message string) {
	t := f.T
	t.Helper()
	body, err := json.Marshal(tc.Body)
	if err != nil {
		t.Fatal(err)
	}
	a, err := f.Send(f.Signed("TrentService."+op, string(body)))
	switch {
	case err != nil:
		t.Errorf("%s: %v", tc.What, err)
	case code == "":
		if a.Type == "SerializationException" || violated(a.Message) || a.Status >= 500 {
			t.Errorf("%s: got %d %s: %.300q, but nothing is wrong with the members\n%.200s", tc.What, a.Status, a.Type, a.Message, body)
		}
	case a.Status != 400 || a.Type != code:
		t.Errorf("%s: got %d %s: %.300q, want %s: %.300q\n%.200s", tc.What, a.Status, a.Type, a.Message, code, message, body)
	case code == "ValidationException" && a.Message != message:
		t.Errorf("%s: got the message\n%.600q, want\n%.600q", tc.What, a.Message, message)
	case a.Message == "":
		t.Errorf("%s: the %s says nothing", tc.What, code)
	}
}

// violated reports whether a message is one on members that are wrong.
func violated(message string) bool {
	return strings.Contains(message, " validation error detected: ") || strings.Contains(message, " validation errors detected: ")
}
