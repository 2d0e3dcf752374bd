package lint

import (
	"regexp"
	"slices"
	"strings"

	"github.com/conclavekms/conclave/policy"
)

// limiting are the condition keys that say who calls, or for whom. A condition
// on one of them limits a statement for everybody.
var limiting = []string{
	"aws:principalaccount", "aws:principalarn", "aws:principalorgid", "aws:principalorgpaths", "aws:userid", "aws:username",
	"aws:sourceaccount", "aws:sourcearn", "aws:sourceorgid", "aws:sourceorgpaths", "aws:sourcevpc", "aws:sourcevpce", "aws:sourceip", "aws:vpcsourceip",
	"kms:calleraccount", "sts:externalid",
}

// limits reports whether the statement has a condition on one of the keys that
// a request without it, or with any value, does not satisfy.
func (s *statement) limits(keys ...string) bool {
	return slices.ContainsFunc(s.each(), func(c condition) bool {
		return c.positive() && slices.Contains(keys, strings.ToLower(c.key)) && !slices.Contains(c.values, "*")
	})
}

// principals finds principals that are broader than they look.
func (l *linter) principals(s *statement) {
	if s.NotPrincipal != nil {
		l.add(Suggestion, "not-principal", s, "NotPrincipal", "denies everybody who is not listed with account, role and session, and everybody with a permissions boundary; a condition on aws:PrincipalArn is clearer")
	}
	if s.deny() {
		return
	}
	if slices.Contains(s.Principal.AWS, "*") && !s.limits(limiting...) {
		if len(s.each()) == 0 {
			l.add(Error, "public-principal", s, "Principal", "allows everybody, in every account, without a condition")
		} else {
			l.add(Warning, "public-principal", s, "Principal", "allows everybody, in every account; the conditions do not limit who calls")
		}
	}
	if len(s.Principal.Service) > 0 && l.kind == policy.KeyPolicy && !s.limits("aws:sourceaccount", "aws:sourcearn", "aws:sourceorgid", "aws:sourceorgpaths") {
		l.add(Warning, "confused-deputy", s, "Principal.Service", "allows the service to act for anybody; limit it with aws:SourceArn or aws:SourceAccount")
	}
	for _, provider := range s.Principal.Federated {
		p, err := policy.ParseProvider(provider)
		if err != nil || !strings.Contains(provider, ":oidc-provider/") {
			continue
		}
		if name := strings.ToLower(p.Name); !s.limits(name + ":sub") {
			l.add(Warning, "any-subject", s, "Principal.Federated", "allows every identity of %s; limit it with a condition on %s:sub", p.Name, p.Name)
		} else if !s.limits(name + ":aud") {
			l.add(Warning, "any-audience", s, "Principal.Federated", "accepts tokens of %s that were made for others; limit it with a condition on %s:aud", p.Name, p.Name)
		}
	}
	for _, name := range s.Principal.AWS {
		p, err := policy.ParsePrincipal(name)
		if err != nil || l.known.Account == "" || p.Account == l.known.Account {
			continue
		}
		if l.kind == policy.TrustPolicy && p.Kind == policy.KindRoot && !s.limits("sts:externalid", "aws:principalarn", "aws:principalorgid") {
			l.add(Suggestion, "no-external-id", s, "Principal.AWS", "whoever account %s lets assume roles can assume this one; sts:ExternalId or aws:PrincipalArn would narrow it", p.Account)
		}
		if l.kind == policy.KeyPolicy && len(s.each()) == 0 && l.coversAny(s.Action, "kms:putkeypolicy") {
			l.add(Warning, "foreign-administrator", s, "Principal.AWS", "gives the administration of the key to %s of another account, which can never use all of it", shorten(name))
		}
	}
}

// breadth finds actions and resources that are broader than they look.
func (l *linter) breadth(s *statement) {
	if s.deny() {
		return
	}
	if s.NotAction != nil {
		l.add(Warning, "allow-not-action", s, "NotAction", "allows every action but these, also those that will exist one day")
	}
	if s.NotResource != nil {
		l.add(Warning, "allow-not-resource", s, "NotResource", "allows every resource but these, also those that will exist one day")
	}
	if l.kind == policy.KeyPolicy || l.kind == policy.TrustPolicy || len(s.each()) > 0 || !slices.Contains(s.Resource, "*") {
		return
	}
	switch {
	case slices.Contains(s.Action, "*"):
		l.add(Warning, "allow-everything", s, "Action", "allows every action on every resource")
	case l.coversAny(s.Action, "kms:decrypt") || l.coversAny(s.Action, "kms:reencryptfrom"):
		l.add(Warning, "decrypt-with-all-keys", s, "Resource", "allows decryption with every key that leaves it to identity policies; name the keys")
	}
}

// effect finds statements that match nothing.
func (l *linter) effect(s *statement) {
	if l.kind != policy.KeyPolicy {
		return
	}
	switch {
	case s.Action == nil && s.NotAction == nil:
		l.add(Warning, "no-effect", s, "Action", "missing, so the statement matches nothing")
	case s.Resource == nil && s.NotResource == nil:
		l.add(Warning, "no-effect", s, "Resource", "missing, so the statement matches nothing")
	}
	for _, r := range s.Resource {
		if r != "*" && !couldBeKey(r) {
			l.add(Warning, "no-key", s, "Resource", `%q is not a key; in a key policy "*" is the key itself`, shorten(r))
		}
	}
}

// couldBeKey reports whether a resource pattern may match the ARN of a key.
func couldBeKey(pattern string) bool {
	return fits(variable.ReplaceAllString(pattern, "*"), "arn:*:kms:*:*:key/*")
}

var variable = regexp.MustCompile(`\$\{[^}]*\}`)

// names finds actions and condition keys that do not exist.
func (l *linter) names(s *statement) {
	element, actions := "Action", s.Action
	if s.NotAction != nil {
		element, actions = "NotAction", s.NotAction
	}
	for _, a := range actions {
		if l.actions == nil || a == "*" || slices.ContainsFunc(l.actions, func(known string) bool { return l.covers(a, known) }) || l.steps > maxSteps {
			continue
		}
		service, _, _ := strings.Cut(a, ":")
		if slices.ContainsFunc(l.actions, func(known string) bool { return strings.HasPrefix(known, service+":") }) {
			l.add(Warning, "unknown-action", s, element, "%q is not an action", shorten(a))
		} else {
			l.add(Suggestion, "unknown-service", s, element, "%q is an action of a service that does not exist here", shorten(a))
		}
	}
	for _, c := range s.each() {
		if _, ok := l.known.key(c.key); !ok {
			l.add(Warning, "unknown-key", s, "Condition."+c.operator, "%q is not a condition key, so no request has it", shorten(c.key))
		}
	}
}

// typeOf is the type of value that an operator compares, if it is not text.
func typeOf(base string) KeyType {
	switch {
	case strings.HasPrefix(base, "Numeric"):
		return TypeNumeric
	case strings.HasPrefix(base, "Date"):
		return TypeDate
	case base == "Bool":
		return TypeBool
	case base == "BinaryEquals":
		return TypeBinary
	case strings.HasSuffix(base, "IpAddress"):
		return TypeIP
	case strings.HasPrefix(base, "Arn"):
		return TypeARN
	default:
		return TypeUnknown
	}
}

// conditions finds conditions that do not do what they seem to.
func (l *linter) conditions(s *statement) {
	if s.Condition != nil && len(s.each()) == 0 {
		l.add(Suggestion, "empty-condition", s, "Condition", "is empty, so it is always true")
	}
	for _, c := range s.each() {
		element, base := "Condition."+c.operator, c.base()
		key, known := l.known.key(c.key)
		set := c.operator != c.base() && strings.HasPrefix(c.operator, "For")
		switch {
		case key.Multivalued && !set && base != "Null":
			outcome := "matches only requests with a single value"
			if s.deny() {
				outcome = "matches every request with several values"
			}
			l.add(Warning, "multivalued-key", s, element, "%q can have several values; without ForAnyValue or ForAllValues the statement %s", shorten(c.key), outcome)
		case set && known && l.known.Keys != nil && !key.Multivalued:
			l.add(Warning, "set-of-one", s, element, "%q has one value at most, and needs neither ForAnyValue nor ForAllValues", shorten(c.key))
		case strings.HasPrefix(c.operator, "ForAllValues:") && !s.deny() && !s.requires(c.key):
			l.add(Warning, "for-all-values", s, element, `is true for requests without %q; add {"Null": {%q: "false"}} if the key has to be there`, shorten(c.key), shorten(c.key))
		}
		if t := typeOf(base); known && key.Type != TypeUnknown && t != TypeUnknown && t != key.Type && (key.Type != TypeString || t == TypeIP || t == TypeDate || t == TypeBool) &&
			!strings.EqualFold(c.key, "aws:EpochTime") {
			l.add(Warning, "wrong-operator", s, element, "the values of %q are not what this operator compares", shorten(c.key))
		}
		if strings.HasPrefix(base, "String") && strings.Contains(base, "Equals") {
			for _, v := range c.values {
				if strings.ContainsAny(strings.NewReplacer("${*}", "", "${?}", "").Replace(v), "*?") {
					l.add(Warning, "wildcard-in-equals", s, element, "%q is compared as it is; StringLike has wildcards", shorten(v))
				}
			}
		}
	}
}

// requires reports whether the statement has a condition that the key is there.
func (s *statement) requires(key string) bool {
	return slices.ContainsFunc(s.each(), func(c condition) bool {
		return strings.EqualFold(c.key, key) && (c.positive() || c.base() == "Null" && !slices.ContainsFunc(c.values, func(v string) bool { return strings.EqualFold(v, "true") }))
	})
}
