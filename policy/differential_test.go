package policy

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	diffSeed = flag.Uint64("policy.seed", 0, "seed of the differential test; 0 draws one")
	diffRuns = flag.Int("policy.decisions", 100_000, "decisions to compare in the differential test")
)

const (
	diffRole  = "arn:aws:iam::111122223333:role/svc/app"
	diffAlias = "arn:aws:kms:us-east-1:111122223333:alias/app"
)

var (
	diffPrincipals = []string{
		"arn:aws:iam::111122223333:root", "arn:aws:iam::444455556666:root", "arn:aws-cn:iam::111122223333:root",
		"arn:aws:iam::111122223333:user/alice", "arn:aws:iam::111122223333:user/staff/alice", "arn:aws:iam::111122223333:user/Alice",
		"arn:aws:iam::111122223333:role/app", diffRole, "arn:aws:iam::111122223333:role/alice",
		"arn:aws:sts::111122223333:assumed-role/app/s1", "arn:aws:sts::111122223333:assumed-role/app/s2",
		"arn:aws:sts::111122223333:federated-user/alice",
		"arn:aws:iam::444455556666:user/alice", "arn:aws:iam::444455556666:role/app", "arn:aws:sts::444455556666:assumed-role/app/s1",
		"arn:aws-cn:iam::111122223333:user/alice",
	}
	// diffCallers are drawn more often than the others.
	diffCallers = []string{"arn:aws:iam::111122223333:user/alice", "arn:aws:sts::111122223333:assumed-role/app/s1", "arn:aws:iam::444455556666:user/alice"}
	// diffIDs are unique ids of users and roles, whatever their names are.
	diffIDs = map[PrincipalKind][]string{
		KindUser: {"AIDAAAAAAAAAAAAAAAA1", "AIDAAAAAAAAAAAAAAAA2"},
		KindRole: {"AROAAAAAAAAAAAAAAAA1", "AROAAAAAAAAAAAAAAAA2"}, KindAssumedRole: {"AROAAAAAAAAAAAAAAAA1", "AROAAAAAAAAAAAAAAAA2"},
	}
	// diffDeleted are unique ids in the place of names.
	diffDeleted   = []string{"AIDAAAAAAAAAAAAAAAA1", "AIDAAAAAAAAAAAAAAAA2", "AROAAAAAAAAAAAAAAAA1", "AROAAAAAAAAAAAAAAAA1:s1", "AROAAAAAAAAAAAAAAAA2:s1"}
	diffServices  = []string{"backup.example.com", "logs.example.com"}
	diffProviders = []string{"arn:aws:iam::111122223333:oidc-provider/id.example.com", "arn:aws:iam::111122223333:oidc-provider/id.example.com/two"}
	diffActions   = []string{"kms:Encrypt", "kms:Decrypt", "kms:ReEncryptFrom", "kms:ReEncryptTo", "kms:GenerateDataKey", "kms:GenerateDataKeyPair", "kms:Sign"}
	diffResources = []string{testKey, "arn:aws:kms:us-east-1:111122223333:key/mrk-1234abcd12ab34cd56ef1234567890ab", "arn:aws:kms:us-east-1:444455556666:key/1234abcd-12ab-34cd-56ef-1234567890ab"}
	diffTimes     = []string{"2026-07-01T12:00:00Z", "2026-07-01T12:00:00.25Z", "2026-07-01T12:00:01Z", "2026-07-01T14:00+02:00", "2026-07-01", "2026-07", "1782907200", "1782907201"}

	// diffKeys are condition keys with values that a request or a document may
	// have. Keys of other types than their values' test what an operator does with
	// values that it cannot read.
	diffKeys = map[string][]string{
		"aws:username":                {"alice", "Alice", "bob", "ALICE", "é*", "a"},
		"aws:PrincipalTag/Team":       {"blue", "Blue", "red", "bl*", "key", "111122223333", "us-east-1:1"},
		"aws:TagKeys":                 {"team", "Team", "cost", "owner"},
		"aws:SourceIp":                {"10.1.2.3", "::ffff:10.1.2.3", "10.1.3.4", "2001:db8::1", "192.0.2.1", "nowhere"},
		"aws:SecureTransport":         {"true", "false", "True", "maybe"},
		"aws:SourceArn":               {"arn:aws:s3:::alice", "arn:aws:sns:us-east-1:111122223333:a:b", testKey, "not an ARN", "arn:aws:sns:us-east-1:444455556666:alice"},
		"kms:RotationPeriodInDays":    {"90", "365", "90.0", "-1", "90.5", "many", "9007199254740993", "9007199254740992", "007"},
		"kms:ValidTo":                 diffTimes,
		"kms:EncryptionContext:Stage": {"prod", "Prod", "test", "prod-1", "日本"},
		"test:Blob":                   {"QQ==", "QUI=", "?", "QkI="},
		"aws:CurrentTime":             nil,
		"aws:EpochTime":               nil,
	}
	diffKeyNames = slices.Sorted(func(yield func(string) bool) {
		for key := range diffKeys {
			if !yield(key) {
				return
			}
		}
	})
	diffVariables = []string{"${aws:username}", "${aws:PrincipalTag/team}", "${aws:principaltag/TEAM, 'blue'}", "${aws:TagKeys}", "${*}", "${?}", "${$}", "${aws:CurrentTime}", "${aws:EpochTime,'0'}"}
	diffOperators = slices.Sorted(func(yield func(string) bool) {
		for name := range operators {
			if !yield(name) {
				return
			}
		}
	})
)

func pick(rng *rand.Rand, from []string) string { return from[rng.IntN(len(from))] }

// blur makes a pattern from a text, which mostly matches it.
func blur(rng *rand.Rand, text string, keep int) string {
	if rng.IntN(3) == 0 || len(text) <= keep {
		return text
	}
	b := []rune(text)
	for range 1 + rng.IntN(4) {
		i := min(keep+rng.IntN(max(len(b)-keep, 1)), len(b)-1)
		switch rng.IntN(4) {
		case 0: // some '?'
			b[i] = '?'
		case 1, 2: // '*' for a run
			j := i + rng.IntN(len(b)-i+1)
			b = slices.Concat(b[:i], []rune("*"), b[j:])
		case 3: // a slip
			b[i] = rune("abX1-"[rng.IntN(5)])
		}
	}
	return string(b)
}

// insertVariable replaces a part of a text by a variable, sometimes.
func insertVariable(rng *rand.Rand, text string, keep int) string {
	if rng.IntN(4) > 0 {
		return text
	}
	v := pick(rng, diffVariables)
	b := []rune(text)
	if rng.IntN(3) == 0 || len(b) <= keep {
		return string(b[:min(keep, len(b))]) + v
	}
	i := keep + rng.IntN(len(b)-keep)
	return string(b[:i]) + v + string(b[min(i+rng.IntN(6), len(b)):])
}

// someOf returns one string or a list.
func someOf(rng *rand.Rand, list []string) any {
	if len(list) == 1 && rng.IntN(2) == 0 {
		return list[0]
	}
	return list
}

func randomPrincipals(rng *rand.Rand, not bool) any {
	if !not && rng.IntN(6) == 0 {
		return "*"
	}
	m := make(map[string]any)
	var aws []string
	for range 1 + rng.IntN(3) {
		switch rng.IntN(8) {
		case 0:
			if !not {
				aws = append(aws, "*")
				continue
			}
			fallthrough
		case 1, 2:
			aws = append(aws, []string{"111122223333", "444455556666", "arn:aws:iam::111122223333:root"}[rng.IntN(3)])
		case 3, 4:
			aws = append(aws, pick(rng, diffCallers))
		case 5:
			aws = append(aws, pick(rng, append(diffDeleted, diffPrincipals...)))
		default:
			aws = append(aws, pick(rng, diffPrincipals))
		}
	}
	if not && rng.IntN(2) == 0 { // everything that a session needs
		aws = append(aws, "111122223333", "arn:aws:sts::111122223333:assumed-role/app/s1", "arn:aws:iam::111122223333:role/app", "arn:aws:iam::111122223333:user/alice")
	}
	m["AWS"] = someOf(rng, aws)
	if rng.IntN(4) == 0 {
		m["Service"] = pick(rng, diffServices)
	}
	if rng.IntN(4) == 0 {
		m["Federated"] = diffProviders[:1+rng.IntN(2)]
	}
	return m
}

func randomActions(rng *rand.Rand, trust bool) any {
	var list []string
	for range 1 + rng.IntN(3) {
		action := pick(rng, diffActions)
		if trust {
			action = pick(rng, []string{"sts:AssumeRole", "sts:TagSession"})
		}
		switch rng.IntN(6) {
		case 0, 1:
			if action = "kms:*"; trust {
				action = "sts:*"
			}
		case 2:
			action = strings.ToUpper(action)
		case 3:
			action = blur(rng, action, len("kms:"))
			if strings.HasSuffix(action, ":") {
				action += "*"
			}
		}
		list = append(list, action)
	}
	return someOf(rng, list)
}

func randomResources(rng *rand.Rand) any {
	var list []string
	for range 1 + rng.IntN(3) {
		resource := "*"
		if rng.IntN(2) == 0 {
			resource = blur(rng, pick(rng, diffResources), len("arn:aws:kms:us-east-1:"))
			resource = insertVariable(rng, resource, len("arn:aws:kms:us-east-1:"))
			if strings.Count(resource, ":") < 5 && !strings.Contains(resource, "*") {
				resource = "*"
			}
		}
		list = append(list, resource)
	}
	return someOf(rng, list)
}

// randomCondition returns an operator, a key and values that the operator can
// take.
func randomCondition(rng *rand.Rand, kind Kind) (operator, key string, values any) {
	operator = pick(rng, diffOperators)
	op := operators[operator]
	suitable := map[family][]string{
		familyNumeric: {"kms:RotationPeriodInDays", "aws:EpochTime"}, familyDate: {"aws:CurrentTime", "aws:EpochTime", "kms:ValidTo"},
		familyBool: {"aws:SecureTransport"}, familyBinary: {"test:Blob"}, familyIP: {"aws:SourceIp"}, familyARN: {"aws:SourceArn"},
	}[op.family]
	if key = pick(rng, diffKeyNames); suitable != nil && rng.IntN(8) > 0 {
		key = pick(rng, suitable)
	}
	if op.family == familyNumeric && key == "aws:CurrentTime" {
		key = "aws:EpochTime"
	}
	vocabulary := diffKeys[key]
	switch op.family {
	case familyNumeric:
		vocabulary = []string{"90", "365", "90.5", "-1", "9007199254740992", "0"}
		if key == "aws:EpochTime" {
			vocabulary = []string{"1782907200", "1782907200.5", "1782907201", "0", "-5"}
		}
	case familyDate:
		vocabulary = diffTimes
	case familyBool, familyNull:
		vocabulary = []string{"true", "false", "True"}
	case familyBinary:
		vocabulary = []string{"QQ==", "QUI="}
	case familyIP:
		vocabulary = []string{"10.1.2.3", "10.0.0.0/8", "10.1.2.3/24", "::ffff:10.1.0.0/112", "2001:db8::/32", "::/0", "0.0.0.0/0", "2001:db8::1", "::ffff:192.0.2.1"}
	case familyARN:
		vocabulary = []string{"arn:aws:s3:::alice", "arn:aws:sns:*:*:*", "arn:aws:*:*:111122223333:*", "arn:*:s?s:us-east-1:*:a*", "arn:aws:s3:::${aws:username}",
			"arn:aws:sns:us-east-1:${aws:PrincipalTag/team}:*", "arn:aws:s3:::${aws:PrincipalTag/team, 'alice'}", "${aws:SourceArn}", "arn:aws:sns:${aws:PrincipalTag/Team}11122223333:a:b"}
	}
	if vocabulary == nil { // a clock as text
		vocabulary = []string{"2026-07-01T12:00:00Z", "1782907200", "2026-07-01T12:00:01Z"}
	}
	var list []string
	for range 1 + rng.IntN(3) {
		v := strings.ReplaceAll(pick(rng, vocabulary), "日本", "??") // which no document may have
		switch op.family {
		case familyLike:
			v = insertVariable(rng, blur(rng, v, 0), 0)
		case familyString, familyFold:
			v = insertVariable(rng, v, 0)
		}
		list = append(list, v)
	}
	if op.family != familyNull {
		switch rng.IntN(8) {
		case 0, 1:
			operator = "ForAnyValue:" + operator
		case 2, 3:
			if kind != KeyPolicy || !strings.HasPrefix(key, "kms:EncryptionContext:") {
				operator = "ForAllValues:" + operator
			}
		}
		if rng.IntN(4) == 0 {
			operator += "IfExists"
		}
	}
	if rng.IntN(8) == 0 {
		key = strings.ToUpper(key)
	}
	values = someOf(rng, list)
	if op.family == familyBool && len(list) == 1 && list[0] != "True" && rng.IntN(2) == 0 {
		values = list[0] == "true"
	}
	if op.family == familyNumeric && len(list) == 1 && rng.IntN(2) == 0 {
		values = json.Number(list[0])
	}
	return operator, key, values
}

func randomStatement(rng *rand.Rand, kind Kind) map[string]any {
	s := map[string]any{"Effect": "Allow"}
	if rng.IntN(4) == 0 {
		s["Effect"] = "Deny"
	}
	element := func(name string, v any) {
		if rng.IntN(6) == 0 {
			name = "Not" + name
		}
		s[name] = v
	}
	if kind.hasPrincipals() {
		if s["Effect"] == "Deny" && rng.IntN(3) == 0 {
			s["NotPrincipal"] = randomPrincipals(rng, true)
		} else {
			s["Principal"] = randomPrincipals(rng, false)
		}
	}
	if kind != KeyPolicy || rng.IntN(16) > 0 {
		element("Action", randomActions(rng, kind == TrustPolicy))
	}
	if kind != TrustPolicy && (kind != KeyPolicy || rng.IntN(16) > 0) {
		element("Resource", randomResources(rng))
	}
	if rng.IntN(3) == 0 {
		blocks := make(map[string]any)
		for range 1 + rng.IntN(2) {
			operator, key, values := randomCondition(rng, kind)
			blocks[operator] = map[string]any{key: values}
		}
		s["Condition"] = blocks
	}
	return s
}

// randomDocument makes a document as text.
func randomDocument(rng *rand.Rand, kind Kind) []byte {
	var statements []any
	for range 1 + rng.IntN(3) {
		statements = append(statements, randomStatement(rng, kind))
	}
	return renderDocument(rng, statements)
}

func renderDocument(rng *rand.Rand, statements []any) []byte {
	doc := map[string]any{"Version": "2012-10-17", "Statement": statements}
	switch rng.IntN(16) {
	case 0:
		delete(doc, "Version")
	case 1:
		doc["Version"] = "2008-10-17"
	}
	if len(statements) == 1 && rng.IntN(2) == 0 {
		doc["Statement"] = statements[0]
	}
	b, err := json.Marshal(doc)
	if err != nil {
		panic(err)
	}
	if doc["Version"] != version2012 && strings.Contains(string(b), `"${aws:SourceArn}"`) {
		return renderDocument(rng, statements) // without variables, this is no ARN
	}
	return b
}

func mustKind(t testing.TB, kind Kind, doc []byte) *Document {
	t.Helper()
	d, err := Parse(kind, doc)
	if err != nil {
		t.Fatalf("Parse: %v\n%s", err, doc)
	}
	return d
}

// randomPolicies makes a set of policies for both evaluators. about is the
// kind of the resource's policy, or nil if the resource has none.
func randomPolicies(t *testing.T, rng *rand.Rand, about *Kind) (Policies, plainPolicies, string) {
	var p Policies
	var plain plainPolicies
	var text strings.Builder
	document := func(kind Kind) (*Document, any) {
		b := randomDocument(rng, kind)
		fmt.Fprintf(&text, "%s: %s\n", kind, b)
		return mustKind(t, kind, b), plainDocument(t, b)
	}
	if about != nil {
		p.Resource, plain.resource = document(*about)
		plain.trust = *about == TrustPolicy
		if rng.IntN(2) == 0 {
			plain.ids = make(map[string]string)
			for _, named := range p.Resource.Principals() {
				if named.HasID() && named.ID == "" {
					plain.ids[named.ARN] = pick(rng, diffIDs[named.Kind])
				}
			}
			var err error
			if p.Resource, err = p.Resource.Bind(plain.ids); err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&text, "with the unique ids %v\n", plain.ids)
		}
		if *about == KeyPolicy && rng.IntN(4) == 0 {
			plain.grantee = pick(rng, slices.Concat(diffPrincipals, diffServices, diffDeleted))
			g := mustGrantee(t, plain.grantee)
			p.Grantee = &g
			fmt.Fprintf(&text, "grantee: %s\n", plain.grantee)
		}
	}
	for range rng.IntN(3) {
		d, v := document(IdentityPolicy)
		p.Identity, plain.identity = append(p.Identity, d), append(plain.identity, v)
	}
	if rng.IntN(4) == 0 {
		fmt.Fprint(&text, "boundary as ")
		p.Boundary, plain.boundary = document(IdentityPolicy)
	}
	if rng.IntN(4) == 0 {
		for range 1 + rng.IntN(2) {
			d, v := document(SessionPolicy)
			p.Session, plain.session = append(p.Session, d), append(plain.session, v)
		}
	}
	return p, plain, text.String()
}

// randomRequest makes a request for both evaluators.
func randomRequest(t *testing.T, rng *rand.Rand, about *Kind) (Request, plainRequest, *corpusContext) {
	r := plainRequest{action: pick(rng, diffActions), resource: pick(rng, diffResources), values: make(map[string][]string)}
	switch rng.IntN(16) {
	case 0:
		r.principal = pick(rng, diffServices)
	case 1:
		r.principal = pick(rng, diffProviders)
	case 2, 3, 4, 5, 6:
		r.principal = pick(rng, diffPrincipals)
	default:
		r.principal = pick(rng, diffCallers)
	}
	switch {
	case about == nil:
		r.action, r.resource = "kms:Encrypt", []string{"*", diffAlias}[rng.IntN(2)]
		// Services and identities of providers have no policies of their own, and
		// other accounts' aliases cannot be used at all.
		r.principal = pick(rng, diffPrincipals[3:12])
	case *about == TrustPolicy:
		r.action, r.resource = "sts:AssumeRole", diffRole
	}
	for key, vocabulary := range diffKeys {
		switch n := rng.IntN(8); {
		case vocabulary == nil || n < 2:
		case n == 2 || key == "aws:TagKeys":
			list := []string{}
			for range rng.IntN(4) {
				list = append(list, pick(rng, vocabulary))
			}
			r.values[lowerASCII(key)] = list
		default:
			r.values[lowerASCII(key)] = []string{pick(rng, vocabulary)}
		}
	}
	r.now = time.Unix(1782907200+int64(rng.IntN(5))-2, int64(rng.IntN(1e9)))

	context := &corpusContext{values: r.values, now: r.now}
	req := Request{Action: r.action, Resource: r.resource, Context: context}
	var err error
	if req.Principal, err = ParseProvider(r.principal); err != nil {
		if req.Principal, err = ParseCaller(r.principal); err != nil {
			t.Fatal(err)
		}
	}
	if req.Principal.Kind == KindAssumedRole {
		r.role = "arn:aws:iam::" + req.Principal.Account + pick(rng, []string{":role/app", ":role/svc/app"})
		if req.Principal, err = req.Principal.WithRole(r.role); err != nil {
			t.Fatal(err)
		}
	}
	if req.Principal.HasID() {
		r.id = pick(rng, diffIDs[req.Principal.Kind])
		req.Principal.ID = r.id
	}
	return req, r, context
}

// TestEvaluateEqualsSpecification compares the evaluator with the plain one,
// and checks what does not depend on what a policy says: an allowed request
// with a matching Deny anywhere is denied, the values of keys that were not
// asked for do not matter, the decision is the same at every time in the
// interval that was told, and Trace decides the same. With -short it compares a tenth of the
// decisions: there is one goroutine, for which the race detector has no use.
func TestEvaluateEqualsSpecification(t *testing.T) {
	seed := *diffSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("replay with -policy.seed=%d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	counts := make(map[string]int)
	const perPolicy = 10
	decisions := *diffRuns
	if testing.Short() {
		decisions /= 10
	}
	key, trust := KeyPolicy, TrustPolicy
	for range decisions / perPolicy {
		about := []*Kind{&key, &key, &key, &key, &trust, nil}[rng.IntN(6)]
		policies, plain, text := randomPolicies(t, rng, about)
		for range perPolicy {
			req, r, context := randomRequest(t, rng, about)
			d := Evaluate(req, policies)
			got := plainAnswer{d.Effect.String(), d.Reason.String(), d.Policy, d.Statement}
			want := plainEvaluate(plain, r)
			if got != want {
				t.Fatalf("got %+v, want %+v\nrequest %+v\n%s", got, want, r, text)
			}
			counts[want.effect+" "+want.reason]++
			onlyAskedMatters(t, rng, policies, req, context, d, text)
			if d.Allowed() {
				denyDominates(t, rng, policies, req)
			}
		}
	}
	t.Log(counts)
	for _, outcome := range []string{
		"Allow key-policy", "Allow trust-policy", "Allow identity-policy", "Allow grant",
		"ExplicitDeny key-policy", "ExplicitDeny trust-policy", "ExplicitDeny identity-policy", "ExplicitDeny permissions-boundary", "ExplicitDeny session-policy",
		"ImplicitDeny key-policy", "ImplicitDeny trust-policy", "ImplicitDeny identity-policy", "ImplicitDeny permissions-boundary", "ImplicitDeny session-policy",
	} {
		if counts[outcome] < decisions/1000 {
			t.Errorf("only %d of %d decisions were %s: the test tests little", counts[outcome], decisions, outcome)
		}
	}
}

// denyDominates adds a matching Deny to policies that allow a request.
func denyDominates(t *testing.T, rng *rand.Rand, policies Policies, req Request) {
	t.Helper()
	deny := map[string]any{"Effect": "Deny", "Action": req.Action, "Resource": req.Resource}
	kind := IdentityPolicy
	if policies.Resource != nil && rng.IntN(2) == 0 {
		kind = policies.Resource.kind
		names := []string{"*"}
		if req.Principal.Account != "" {
			names = append(names, req.Principal.Account)
		}
		switch req.Principal.Kind {
		case KindService, KindFederated:
		case KindAssumedRole:
			names = append(names, req.Principal.ARN, req.Principal.Role)
		default:
			names = append(names, req.Principal.ARN)
		}
		deny["Principal"] = map[string]any{"AWS": pick(rng, names)}
		if kind == TrustPolicy {
			delete(deny, "Resource")
		}
	}
	doc := mustKind(t, kind, renderDocument(rng, []any{deny}))
	want := ReasonIdentityPolicy
	if kind == IdentityPolicy {
		policies.Identity = append(slices.Clone(policies.Identity), doc)
	} else {
		want = policies.resourceReason()
		whole := *policies.Resource
		whole.denies = append(slices.Clone(whole.denies), doc.denies...)
		policies.Resource = &whole
	}
	if d := Evaluate(req, policies); d.Effect != ExplicitDeny || d.Reason != want {
		t.Fatalf("with a Deny added: %s\nrequest %+v", show(d), req)
	}
}

// onlyAskedMatters changes the values of keys that were not asked for, and the
// time within the interval that was told.
func onlyAskedMatters(t *testing.T, rng *rand.Rand, policies Policies, req Request, context *corpusContext, want Decision, text string) {
	t.Helper()
	asked := slices.Sorted(slices.Values(context.asked))
	if len(slices.Compact(slices.Clone(asked))) != len(asked) {
		t.Fatalf("asked twice: %v\n%s", asked, text)
	}
	if context.now.Before(context.from) || !context.to.IsZero() && !context.now.Before(context.to) {
		t.Fatalf("the time %v is not in [%v, %v)\n%s", context.now, context.from, context.to, text)
	}
	other := &corpusContext{values: make(map[string][]string), now: context.now.Add(time.Duration(rng.Int64N(int64(8*time.Second))) - 4*time.Second)}
	for key, vocabulary := range diffKeys {
		if name := lowerASCII(key); slices.Contains(asked, name) {
			other.values[name] = context.values[name]
		} else if vocabulary != nil && rng.IntN(2) == 0 {
			other.values[name] = []string{pick(rng, vocabulary)}
		}
	}
	if other.now.Before(context.from) {
		other.now = context.from
	}
	if !context.to.IsZero() && !other.now.Before(context.to) {
		other.now = context.to.Add(-1)
	}
	req.Context = other
	if got, _ := Trace(req, policies); got != want {
		t.Fatalf("with other values of keys that were not asked for, at %v in [%v, %v): %s, want %s\n%s", other.now, context.from, context.to, show(got), show(want), text)
	}
}
