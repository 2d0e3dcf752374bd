package lint

import (
	"maps"
	"slices"
	"strings"

	"github.com/conclavekms/conclave/policy"
)

// covers reports whether a pattern matches everything that another one matches.
// It is false in some cases where it does, but never true where it does not: a
// star of the other pattern has to fall under a star.
func covers(pattern, other string) bool {
	fixed, rest, wild := strings.Cut(pattern, "*")
	switch {
	case strings.Contains(pattern, "?"):
	case !wild:
		return pattern == other
	case rest == "":
		return strings.HasPrefix(other, fixed)
	}
	row, next := make([]bool, len(other)+1), make([]bool, len(other)+1)
	row[0] = true
	for i := range len(pattern) {
		for j := range next {
			switch {
			case pattern[i] == '*':
				next[j] = row[j] || j > 0 && next[j-1]
			case j == 0:
				next[j] = false
			case pattern[i] == '?':
				next[j] = row[j-1] && other[j-1] != '*'
			default:
				next[j] = row[j-1] && pattern[i] == other[j-1]
			}
		}
		row, next = next, row
	}
	return row[len(other)]
}

// fits reports whether a pattern matches a text of the given shape, in which a
// star is any text without ':' and '/'.
func fits(pattern, shape string) bool {
	row, next := make([]bool, len(shape)+1), make([]bool, len(shape)+1)
	for i := 0; i <= len(pattern); i++ {
		for j := range next {
			switch {
			case i == 0:
				next[j] = j == 0 || next[j-1] && shape[j-1] == '*'
			case pattern[i-1] == '*':
				next[j] = row[j] || j > 0 && next[j-1]
			case j == 0:
				next[j] = false
			case shape[j-1] == '*':
				next[j] = next[j-1] || row[j] && pattern[i-1] != ':' && pattern[i-1] != '/'
			default:
				next[j] = row[j-1] && (pattern[i-1] == shape[j-1] || pattern[i-1] == '?')
			}
		}
		row, next = next, row
	}
	return row[len(shape)]
}

// maxSteps limits the steps in which patterns are compared with each other, so
// that no document takes longer than a second or so.
const maxSteps = 100_000_000

// covers is the function, within the limit of steps. Beyond it, nothing covers
// anything, and fewer findings are made.
func (l *linter) covers(pattern, other string) bool {
	if l.steps += 20 + len(pattern)*len(other)/4; l.steps > maxSteps {
		return false
	}
	return covers(pattern, other)
}

// coversAny reports whether one of the action patterns covers an action. All of
// them are in lower case.
func (l *linter) coversAny(patterns list, action string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return l.covers(p, action) })
}

// coverage finds statements that another one makes superfluous: an Allow of
// what is denied anyway, and an Allow or Deny that is repeated.
func (l *linter) coverage() {
	for i := range l.statements {
		s := &l.statements[i]
		for j := range l.statements {
			o := &l.statements[j]
			if i == j || !l.coversStatement(o, s) {
				continue
			}
			if o.deny() && !s.deny() {
				l.add(Warning, "unreachable", s, "", "Statement[%d] denies all that this one allows", j)
				break
			}
			if o.deny() == s.deny() && (j < i || !l.coversStatement(s, o)) {
				l.add(Suggestion, "redundant", s, "", "Statement[%d] says the same and more", j)
				break
			}
		}
	}
}

// coversStatement reports whether o matches every request that s matches. Only
// statements without Not elements can, and without conditions or with the same.
func (l *linter) coversStatement(o, s *statement) bool {
	if l.steps += 100; l.steps > maxSteps {
		return false
	}
	if o.NotAction != nil || o.NotResource != nil || o.NotPrincipal != nil || s.NotAction != nil || s.NotResource != nil || s.NotPrincipal != nil {
		return false
	}
	if len(o.Condition) > 0 && !maps.EqualFunc(o.Condition, s.Condition, func(a, b map[string]list) bool {
		return maps.EqualFunc(a, b, func(a, b list) bool { return slices.Equal(a, b) })
	}) {
		return false
	}
	for _, a := range s.Action {
		if !l.coversAny(o.Action, a) {
			return false
		}
	}
	for _, r := range s.Resource {
		if strings.Contains(r, "${") && !slices.Contains(o.Resource, r) && !slices.Contains(o.Resource, "*") {
			return false
		}
		if !slices.ContainsFunc(o.Resource, func(p string) bool { return p == r || !strings.Contains(p, "${") && l.covers(p, r) }) {
			return false
		}
	}
	return o.Principal.covers(s.Principal, o.deny())
}

// covers reports whether all of the principals in s are in p. An account stands
// for its principals in a Deny only.
func (p principals) covers(s principals, deny bool) bool {
	for _, name := range s.AWS {
		if slices.Contains(p.AWS, name) || name != "*" && deny && slices.Contains(p.AWS, "*") {
			continue
		}
		named, err := policy.ParsePrincipal(name)
		if err != nil || !deny || !slices.ContainsFunc(p.AWS, func(a string) bool {
			account, err := policy.ParsePrincipal(a)
			return err == nil && account.Kind == policy.KindRoot && account.Account == named.Account && (account.Partition == "" || account.Partition == named.Partition)
		}) {
			return false
		}
	}
	for _, name := range s.Service {
		if !slices.Contains(p.Service, name) && !(deny && slices.Contains(p.AWS, "*")) {
			return false
		}
	}
	for _, name := range s.Federated {
		if !slices.Contains(p.Federated, name) && !(deny && slices.Contains(p.AWS, "*")) {
			return false
		}
	}
	return true
}

// everything is an identity policy that allows all actions.
var everything = func() *policy.Document {
	d, err := policy.Parse(policy.IdentityPolicy, []byte(`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"*","Resource":"*"}}`))
	if err != nil {
		panic(err)
	}
	return d
}()

// lockout finds key policies that nobody can replace, and those that only
// principals can replace which may be deleted one day. Conditions count as not
// met, so that an answer holds for every request.
func (l *linter) lockout() {
	const noAccount = "123456789012" // if the document names none
	candidates := l.parsed.Principals()
	if l.known.Account != "" {
		if p, err := policy.ParsePrincipal("arn:aws:iam::" + l.known.Account + ":root"); err == nil {
			candidates = append(candidates, p)
		}
	}
	if len(candidates) == 0 {
		p, err := policy.ParsePrincipal("arn:aws:iam::" + noAccount + ":root")
		if err != nil {
			panic(err)
		}
		candidates = append(candidates, p)
	}
	account, somebody := false, false
	for _, p := range candidates {
		if l.known.Account != "" && p.Account != l.known.Account {
			continue
		}
		if p.ARN == "" { // a bare account id does not call
			p, _ = policy.ParsePrincipal("arn:aws:iam::" + p.Account + ":root")
		}
		for _, key := range l.keysOf(p) {
			if policy.LockoutSafe(policy.Policies{Resource: l.parsed, Identity: []*policy.Document{everything}}, p, key, nil) {
				somebody = true
				account = account || p.Kind == policy.KindRoot
			}
		}
	}
	switch {
	case !somebody:
		l.add(Warning, "lock-out", nil, "", "nobody can replace this key policy, at least not in every case: no statement gives kms:PutKeyPolicy without a condition, or one denies it")
	case !account:
		l.add(Suggestion, "no-account-statement", nil, "", "only named users and roles can replace this key policy; if they are deleted, nobody can. A statement for the account prevents that")
	}
}

// keysOf returns ARNs of keys of a principal's account that the document may be
// about: those that it names, and any other.
func (l *linter) keysOf(p policy.Principal) []string {
	keys := []string{"arn:" + p.Partition + ":kms:us-east-1:" + p.Account + ":key/00000000-0000-0000-0000-000000000000"}
	for i := range l.statements {
		for _, r := range l.statements[i].Resource {
			if a, err := policy.ParseARN(r); err == nil && a.Account == p.Account && a.Service == "kms" && !strings.ContainsAny(r, "*?$") {
				keys = append(keys, r)
			}
		}
	}
	return keys
}
