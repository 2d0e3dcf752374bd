package policy_test

import (
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/conclavekms/conclave/policy"
)

const keyARN = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"

const keyPolicy = `{
  "Version": "2012-10-17",
  "Statement": [
    {
      "Sid": "App",
      "Effect": "Allow",
      "Principal": {"AWS": "arn:aws:iam::111122223333:role/app"},
      "Action": ["kms:Encrypt", "kms:Decrypt"],
      "Resource": "*"
    },
    {
      "Sid": "NoDeletion",
      "Effect": "Deny",
      "Principal": "*",
      "Action": "kms:ScheduleKeyDeletion",
      "Resource": "*"
    }
  ]
}`

// A policy is parsed once, and lists the principals that it names.
func ExampleParse() {
	doc, err := policy.Parse(policy.KeyPolicy, []byte(keyPolicy))
	if err != nil {
		log.Fatal(err)
	}
	for _, p := range doc.Principals() {
		fmt.Println(p)
	}
	// Output:
	// arn:aws:iam::111122223333:role/app
}

// Parse refuses what it does not fully understand, and says where it is.
func ExampleParse_error() {
	_, err := policy.Parse(policy.KeyPolicy, []byte(`{"Version": "2012-10-17", "Statement": {
		"Effect": "Permit", "Principal": "*", "Action": "kms:Encrypt", "Resource": "*"}}`))
	fmt.Println(err)
	if syntax, ok := errors.AsType[*policy.SyntaxError](err); ok {
		fmt.Printf("statement %d, element %s, malformed: %t\n", syntax.Statement, syntax.Element, errors.Is(err, policy.ErrMalformed))
	}
	// Output:
	// malformed policy document: Statement[0].Effect: want "Allow" or "Deny", in exactly this form
	// statement 0, element Effect, malformed: true
}

func ExampleEvaluate() {
	doc, err := policy.Parse(policy.KeyPolicy, []byte(keyPolicy))
	if err != nil {
		log.Fatal(err)
	}
	app, err := policy.ParsePrincipal("arn:aws:iam::111122223333:role/app")
	if err != nil {
		log.Fatal(err)
	}
	for _, action := range []string{"kms:Decrypt", "kms:Sign", "kms:ScheduleKeyDeletion"} {
		d := policy.Evaluate(policy.Request{Principal: app, Action: action, Resource: keyARN}, policy.Policies{Resource: doc})
		fmt.Printf("%s: %s by %s, statement %d %q\n", action, d.Effect, d.Reason, d.Statement, d.Sid)
	}
	// Output:
	// kms:Decrypt: Allow by key-policy, statement 0 "App"
	// kms:Sign: ImplicitDeny by key-policy, statement -1 ""
	// kms:ScheduleKeyDeletion: ExplicitDeny by key-policy, statement 1 "NoDeletion"
}

// The message is that of AWS, which clients and people look for.
func ExampleDecision_Explain() {
	doc, err := policy.Parse(policy.KeyPolicy, []byte(keyPolicy))
	if err != nil {
		log.Fatal(err)
	}
	app, err := policy.ParsePrincipal("arn:aws:iam::111122223333:role/app")
	if err != nil {
		log.Fatal(err)
	}
	for _, action := range []string{"kms:Sign", "kms:ScheduleKeyDeletion"} {
		req := policy.Request{Principal: app, Action: action, Resource: keyARN}
		fmt.Println(policy.Evaluate(req, policy.Policies{Resource: doc}).Explain(req))
	}
	// Output:
	// User: arn:aws:iam::111122223333:role/app is not authorized to perform: kms:Sign on resource: arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab because no resource-based policy allows the kms:Sign action
	// User: arn:aws:iam::111122223333:role/app is not authorized to perform: kms:ScheduleKeyDeletion on resource: arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab with an explicit deny in a resource-based policy
}

// A key policy that the caller could not change again is refused before it is
// in force.
func ExampleLockoutSafe() {
	admin, err := policy.ParsePrincipal("arn:aws:iam::111122223333:root")
	if err != nil {
		log.Fatal(err)
	}
	for _, text := range []string{keyPolicy, policy.DefaultKeyPolicy("aws", "111122223333")} {
		doc, err := policy.Parse(policy.KeyPolicy, []byte(text))
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(policy.LockoutSafe(policy.Policies{Resource: doc}, admin, keyARN, nil))
	}
	// Output:
	// false
	// true
}

// values is a Context for a request at a given time.
type values map[string][]string

func (v values) Values(key string) []string { return v[key] }
func (values) Now() time.Time               { return time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC) }
func (values) Holds(from, to time.Time) {
	fmt.Printf("as long as it is before %s\n", to.Format(time.DateOnly))
}

// Trace says of each statement why it does not match.
func ExampleTrace() {
	account, err := policy.Parse(policy.KeyPolicy, []byte(policy.DefaultKeyPolicy("aws", "111122223333")))
	if err != nil {
		log.Fatal(err)
	}
	own, err := policy.Parse(policy.IdentityPolicy, []byte(`{"Version": "2012-10-17", "Statement": [
		{"Sid": "Trial", "Effect": "Allow", "Action": "kms:*", "Resource": "*", "Condition": {"DateLessThan": {"aws:CurrentTime": "2026-08-01"}}},
		{"Sid": "Office", "Effect": "Deny", "Action": "*", "Resource": "*", "Condition": {"NotIpAddress": {"aws:SourceIp": "192.0.2.0/24"}}}]}`))
	if err != nil {
		log.Fatal(err)
	}
	alice, err := policy.ParsePrincipal("arn:aws:iam::111122223333:user/alice")
	if err != nil {
		log.Fatal(err)
	}
	req := policy.Request{Principal: alice, Action: "kms:Encrypt", Resource: keyARN, Context: values{"aws:sourceip": {"198.51.100.7"}}}
	decision, steps := policy.Trace(req, policy.Policies{Resource: account, Identity: []*policy.Document{own}})
	fmt.Println(decision.Effect, decision.Reason, decision.Sid)
	for _, s := range steps {
		fmt.Println(s.Reason, s.Sid, s.Effect, s.Matched)
	}
	// Output:
	// as long as it is before 2026-08-01
	// ExplicitDeny identity-policy Office
	// key-policy Enable IAM User Permissions Allow true
	// identity-policy Trial Allow true
	// identity-policy Office ExplicitDeny true
}
