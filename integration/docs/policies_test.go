package docs

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/policy"
)

// exampleKey is the key that the requests in docs/policies.md are about.
const exampleKey = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"

// exampleContext has the condition keys of a request in docs/policies.md.
type exampleContext map[string]string

func (c exampleContext) Values(key string) []string {
	if v, ok := c[key]; ok {
		return []string{v}
	}
	return nil
}

func (c exampleContext) Now() time.Time {
	t, _ := time.Parse(time.RFC3339, c["aws:currenttime"])
	return t
}

func (exampleContext) Holds(time.Time, time.Time) {}

// TestPolicyExamples decides the requests of the examples in docs/policies.md.
func TestPolicyExamples(t *testing.T) {
	page, err := os.ReadFile("../../docs/policies.md")
	if err != nil {
		t.Fatal(err)
	}
	_, examples, ok := strings.Cut(string(page), "\n## Examples\n")
	examples, _, ended := strings.Cut(examples, "\n## ")
	if !ok || !ended {
		t.Fatal("docs/policies.md has no examples")
	}
	sections := strings.Split(examples, "\n### ")[1:]
	if len(sections) < 10 {
		t.Errorf("there are %d examples, want at least 10", len(sections))
	}
	block := regexp.MustCompile("(?s)```json ([a-z-]+)\n(.*?)```")
	row := regexp.MustCompile("(?m)^\\| `(arn:[^`]+)` \\| `([^`]+)` \\| ?(.*?) ?\\| (Allow|Deny) \\|$")
	for _, s := range sections {
		title, body, _ := strings.Cut(s, "\n")
		t.Run(title, func(t *testing.T) {
			var p policy.Policies
			parse := func(kind policy.Kind, text string) *policy.Document {
				doc, err := policy.Parse(kind, []byte(text))
				if err != nil {
					t.Fatalf("%v\n%s", err, text)
				}
				return doc
			}
			for _, b := range block.FindAllStringSubmatch(body, -1) {
				switch b[1] {
				case "key-policy":
					p.Resource = parse(policy.KeyPolicy, b[2])
				case "identity-policy":
					p.Identity = append(p.Identity, parse(policy.IdentityPolicy, b[2]))
				case "boundary":
					p.Boundary = parse(policy.IdentityPolicy, b[2])
				case "session-policy":
					p.Session = append(p.Session, parse(policy.SessionPolicy, b[2]))
				default:
					t.Fatalf("no kind of policy: %s", b[1])
				}
			}
			rows := row.FindAllStringSubmatch(body, -1)
			if n := strings.Count(body, "\n| `arn:"); n != len(rows) || n < 2 {
				t.Fatalf("%d of %d requests can be read", len(rows), n)
			}
			var decisions []string
			for _, r := range rows {
				who, err := policy.ParsePrincipal(r[1])
				if err != nil {
					t.Fatal(err)
				}
				c := exampleContext{}
				for _, pair := range strings.Split(r[3], ", ") {
					if key, value, ok := strings.Cut(strings.Trim(pair, "` "), "="); ok {
						c[strings.ToLower(key)] = value
					}
				}
				d := policy.Evaluate(policy.Request{Principal: who, Action: r[2], Resource: exampleKey, Context: c}, p)
				decisions = append(decisions, r[4])
				if d.Allowed() != (r[4] == "Allow") {
					t.Errorf("%s by %s with %v: got %v by %v", r[2], r[1], c, d.Effect, d.Reason)
				}
			}
			if !slices.Contains(decisions, "Allow") || !slices.Contains(decisions, "Deny") {
				t.Error("the example does not show both decisions")
			}
		})
	}
}
