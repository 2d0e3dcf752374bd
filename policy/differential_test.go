package policy

import (
	"encoding/json"
	"flag"
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

// A plainStatement is a statement as lists of strings. The evaluator below
// works on these and on whole strings, and shares no code with the package.
type plainStatement struct {
	deny                           bool
	principals, actions, resources []string
}

// plainRequest names its principal by ARN, and the role of a session by its
// ARN too.
type plainRequest struct{ principal, role, action, resource string }

type plainAnswer struct {
	effect, reason string
	statement      int
}

// plainEvaluate implements the specification, sentence by sentence, over all
// statements and without regard to cost.
func plainEvaluate(statements []plainStatement, r plainRequest) plainAnswer {
	part := func(arn string, i int) string { return strings.Split(arn, ":")[i] }
	account := part(r.principal, 4)
	accountNames := []string{account, "arn:" + part(r.principal, 1) + ":iam::" + account + ":root"}
	isRoot := slices.Contains(accountNames, r.principal)
	sameAccount := account == part(r.resource, 4) && part(r.principal, 1) == part(r.resource, 1)

	var denies, direct, delegating []int
	for i, s := range statements {
		about := slices.ContainsFunc(s.actions, func(p string) bool { return slowGlob(lowerASCII(p), lowerASCII(r.action)) }) &&
			slices.ContainsFunc(s.resources, func(p string) bool { return slowGlob(p, r.resource) })
		if !about {
			continue
		}
		for _, p := range s.principals {
			isAccount := slices.Contains(accountNames, p)
			isSelf := p == "*" || p == r.principal && !isRoot || r.role != "" && p == r.role
			sameRoleName := r.role != "" && strings.HasPrefix(p, "arn:"+part(r.principal, 1)+":iam::"+account+":role/") &&
				strings.HasSuffix(p, "/"+r.role[strings.LastIndex(r.role, "/")+1:])
			switch {
			case s.deny && (isSelf || isAccount || sameRoleName):
				denies = append(denies, i)
			case !s.deny && isSelf:
				direct = append(direct, i)
			case !s.deny && isAccount:
				delegating = append(delegating, i)
			}
		}
	}
	either := slices.Sorted(slices.Values(slices.Concat(direct, delegating)))
	switch {
	case len(denies) > 0:
		return plainAnswer{"ExplicitDeny", "key-policy", denies[0]}
	case isRoot && len(either) > 0:
		return plainAnswer{"Allow", "key-policy", either[0]}
	case sameAccount && len(direct) > 0:
		return plainAnswer{"Allow", "key-policy", direct[0]}
	case len(either) > 0:
		return plainAnswer{"ImplicitDeny", "identity-policy", -1}
	default:
		return plainAnswer{"ImplicitDeny", "key-policy", -1}
	}
}

// render writes the statements as a document, choosing randomly among
// equivalent forms.
func render(rng *rand.Rand, statements []plainStatement) []byte {
	list := func(ss []string) any {
		if len(ss) == 1 && rng.IntN(2) == 0 {
			return ss[0]
		}
		return ss
	}
	var out []map[string]any
	for _, s := range statements {
		m := map[string]any{"Effect": "Allow", "Principal": map[string]any{"AWS": list(s.principals)}}
		if s.deny {
			m["Effect"] = "Deny"
		}
		if len(s.principals) == 1 && s.principals[0] == "*" && rng.IntN(2) == 0 {
			m["Principal"] = "*"
		}
		if len(s.actions) > 0 {
			m["Action"] = list(s.actions)
		}
		if len(s.resources) > 0 {
			m["Resource"] = list(s.resources)
		}
		out = append(out, m)
	}
	doc := map[string]any{"Version": "2012-10-17", "Statement": out}
	if len(out) == 1 && rng.IntN(2) == 0 {
		doc["Statement"] = out[0]
	}
	b, err := json.Marshal(doc)
	if err != nil {
		panic(err)
	}
	return b
}

var (
	diffPrincipals = []string{
		"arn:aws:iam::111122223333:root", "arn:aws:iam::444455556666:root", "arn:aws-cn:iam::111122223333:root",
		"arn:aws:iam::111122223333:user/alice", "arn:aws:iam::111122223333:user/staff/alice", "arn:aws:iam::111122223333:user/Alice",
		"arn:aws:iam::111122223333:role/app", "arn:aws:iam::111122223333:role/svc/app", "arn:aws:iam::111122223333:role/alice",
		"arn:aws:sts::111122223333:assumed-role/app/s1", "arn:aws:sts::111122223333:assumed-role/app/s2",
		"arn:aws:sts::111122223333:federated-user/alice",
		"arn:aws:iam::444455556666:user/alice", "arn:aws:iam::444455556666:role/app", "arn:aws:sts::444455556666:assumed-role/app/s1",
		"arn:aws-cn:iam::111122223333:user/alice",
	}
	diffActions   = []string{"kms:Encrypt", "kms:Decrypt", "kms:ReEncryptFrom", "kms:ReEncryptTo", "kms:GenerateDataKey", "kms:GenerateDataKeyPair", "kms:Sign"}
	diffResources = []string{testKey, "arn:aws:kms:us-east-1:111122223333:key/mrk-1234abcd12ab34cd56ef1234567890ab", "arn:aws:kms:us-east-1:444455556666:key/1234abcd-12ab-34cd-56ef-1234567890ab"}
)

func pick(rng *rand.Rand, from []string) string { return from[rng.IntN(len(from))] }

// blur makes a pattern from a text, which mostly matches it.
func blur(rng *rand.Rand, text string, keep int) string {
	if rng.IntN(3) == 0 {
		return text
	}
	b := []byte(text)
	for range 1 + rng.IntN(4) {
		i := keep + rng.IntN(len(b)-keep)
		switch rng.IntN(4) {
		case 0: // some '?'
			b[i] = '?'
		case 1, 2: // '*' for a run
			j := i + rng.IntN(len(b)-i+1)
			b = slices.Concat(b[:i], []byte("*"), b[j:])
		case 3: // a slip
			b[i] = "abX1-"[rng.IntN(5)]
		}
	}
	return string(b)
}

func randomStatement(rng *rand.Rand) plainStatement {
	s := plainStatement{deny: rng.IntN(4) == 0}
	for range 1 + rng.IntN(3) {
		switch rng.IntN(8) {
		case 0:
			s.principals = append(s.principals, "*")
		case 1:
			s.principals = append(s.principals, []string{"111122223333", "444455556666"}[rng.IntN(2)])
		default:
			s.principals = append(s.principals, pick(rng, diffPrincipals))
		}
	}
	for range rng.IntN(4) { // sometimes none
		action := pick(rng, diffActions)
		switch rng.IntN(6) {
		case 0:
			action = "*"
		case 1:
			action = strings.ToUpper(action)
		case 2, 3:
			action = blur(rng, action, len("kms:"))
			if action == "kms:" {
				action = "kms:*"
			}
		}
		s.actions = append(s.actions, action)
	}
	for range rng.IntN(4) {
		resource := "*"
		if rng.IntN(2) == 0 {
			resource = blur(rng, pick(rng, diffResources), len("arn:aws:kms:us-east-1:"))
			if strings.Count(resource, ":") < 5 && !strings.Contains(resource, "*") {
				resource = "*"
			}
		}
		s.resources = append(s.resources, resource)
	}
	return s
}

func TestEvaluateEqualsSpecification(t *testing.T) {
	seed := *diffSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("replay with -policy.seed=%d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	counts := make(map[string]int)
	const perPolicy = 10
	for range *diffRuns / perPolicy {
		var statements []plainStatement
		for range 1 + rng.IntN(5) {
			statements = append(statements, randomStatement(rng))
		}
		doc := render(rng, statements)
		parsed, err := Parse(KeyPolicy, doc)
		if err != nil {
			t.Fatalf("Parse: %v\n%s", err, doc)
		}
		for range perPolicy {
			r := plainRequest{principal: pick(rng, diffPrincipals), action: pick(rng, diffActions), resource: pick(rng, diffResources)}
			req := Request{mustPrincipal(t, r.principal), r.action, r.resource, nil}
			if req.Principal.Kind == KindAssumedRole {
				r.role = "arn:aws:iam::" + req.Principal.Account + ":role/app"
				if rng.IntN(2) == 0 {
					r.role = "arn:aws:iam::" + req.Principal.Account + ":role/svc/app"
				}
				if req.Principal, err = req.Principal.WithRole(r.role); err != nil {
					t.Fatal(err)
				}
			}
			d := Evaluate(req, Policies{Resource: parsed})
			got := plainAnswer{d.Effect.String(), d.Reason.String(), d.Statement}
			want := plainEvaluate(statements, r)
			if got != want {
				t.Fatalf("got %+v, want %+v\nrequest %+v\npolicy %s", got, want, r, doc)
			}
			counts[want.effect+" "+want.reason]++
			if d.Allowed() {
				denyDominates(t, rng, statements, req, r)
			}
		}
	}
	t.Log(counts)
	for _, outcome := range []string{"Allow key-policy", "ExplicitDeny key-policy", "ImplicitDeny key-policy", "ImplicitDeny identity-policy"} {
		if counts[outcome] < *diffRuns/100 {
			t.Errorf("only %d of %d decisions were %s: the test tests little", counts[outcome], *diffRuns, outcome)
		}
	}
}

// denyDominates inserts a matching Deny anywhere into a policy that allows.
func denyDominates(t *testing.T, rng *rand.Rand, statements []plainStatement, req Request, r plainRequest) {
	t.Helper()
	names := []string{"*", r.principal, req.Principal.Account}
	if r.role != "" {
		names = append(names, r.role)
	}
	deny := plainStatement{true, []string{pick(rng, names)}, []string{r.action}, []string{r.resource}}
	at := rng.IntN(len(statements) + 1)
	doc := render(rng, slices.Insert(slices.Clone(statements), at, deny))
	parsed, err := Parse(KeyPolicy, doc)
	if err != nil {
		t.Fatalf("Parse: %v\n%s", err, doc)
	}
	if d := Evaluate(req, Policies{Resource: parsed}); d.Effect != ExplicitDeny || d.Statement != at {
		t.Fatalf("with a Deny at %d: %s\nrequest %+v\npolicy %s", at, show(d), r, doc)
	}
}
