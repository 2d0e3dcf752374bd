package policy

import (
	"encoding/base64"
	"encoding/json"
	"math/big"
	"net"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// A second evaluator, written from the rules in DESIGN.md alone, which works on
// decoded JSON, sentence by sentence, over all statements and without regard to
// cost. It shares no code with the package.

// A plainRequest names its principal by ARN, and the role of a session by its
// ARN too, with the unique id of the user or role. The values of the context have
// their keys in lower case.
type plainRequest struct {
	principal, role, id, action, resource string
	values                                map[string][]string
	now                                   time.Time
}

type plainPolicies struct {
	resource          any // of a key or a role; nil if there is none
	trust             bool
	ids               map[string]string // unique ids of the names in resource; nil if they count as they are
	grantee           string
	identity, session []any
	boundary          any
}

type plainAnswer struct {
	effect, reason    string
	policy, statement int
}

type plainCaller struct {
	plainRequest
	kind, account, partition, name string
	bounded                        bool
	ids                            map[string]string
}

// plainCallerOf takes the principal's ARN apart.
func plainCallerOf(r plainRequest, bounded bool) plainCaller {
	c := plainCaller{plainRequest: r, bounded: bounded}
	parts := strings.SplitN(r.principal, ":", 6)
	if len(parts) < 6 {
		c.kind = "service"
		return c
	}
	c.partition, c.account = parts[1], parts[4]
	c.kind, _, _ = strings.Cut(parts[5], "/")
	c.name = parts[5][strings.LastIndex(parts[5], "/")+1:]
	if c.kind == "assumed-role" {
		c.name = strings.Split(parts[5], "/")[1]
	}
	return c
}

// plainLower lowers the letters that a document can contain.
func plainLower(s string) string {
	const upper, lower = "ABCDEFGHIJKLMNOPQRSTUVWXYZÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑÒÓÔÕÖØÙÚÛÜÝÞ", "abcdefghijklmnopqrstuvwxyzàáâãäåæçèéêëìíîïðñòóôõöøùúûüýþ"
	return strings.Map(func(r rune) rune {
		if i := slices.Index([]rune(upper), r); i >= 0 {
			return []rune(lower)[i]
		}
		return r
	}, s)
}

func (c *plainCaller) isAccount(name string) bool {
	return c.account != "" && (name == c.account || name == "arn:"+c.partition+":iam::"+c.account+":root")
}

// isNamed says whether a name in a policy is that of the caller, or that of the
// role of the caller's session. A name of a user, a role or a session of a role
// that has a unique id counts by it.
func (c *plainCaller) isNamed(name string) (self, role bool) {
	id, session, isSession := strings.Cut(name, ":")
	switch {
	case strings.HasPrefix(name, "AIDA"):
		return c.kind == "user" && name == c.id, false
	case strings.HasPrefix(name, "AROA") && isSession:
		return c.kind == "assumed-role" && id == c.id && strings.HasSuffix(c.principal, "/"+session), false
	case strings.HasPrefix(name, "AROA"):
		return c.kind == "role" && name == c.id, c.kind == "assumed-role" && name == c.id
	}
	if id, bound := c.ids[name]; bound {
		if _, session, isSession := strings.Cut(name, ":assumed-role/"); isSession {
			_, session, _ = strings.Cut(session, "/")
			id += ":" + session
		}
		return c.isNamed(id)
	}
	return name == c.principal, c.role != "" && name == c.role
}

// isListed says whether the caller is among names, and whether its role is.
func (c *plainCaller) isListed(names []string) (self, role bool) {
	for _, name := range names {
		s, r := c.isNamed(name)
		self, role = self || s, role || r
	}
	return self, role
}

func plainList(v any) []string {
	switch v := v.(type) {
	case nil:
		return nil
	case string:
		return []string{v}
	case bool, json.Number:
		b, _ := json.Marshal(v)
		return []string{string(b)}
	default:
		var list []string
		for _, item := range v.([]any) {
			list = append(list, plainList(item)...)
		}
		return list
	}
}

func plainStatements(doc any) []map[string]any {
	if doc == nil {
		return nil
	}
	var list []map[string]any
	switch s := doc.(map[string]any)["Statement"].(type) {
	case map[string]any:
		list = append(list, s)
	case []any:
		for _, item := range s {
			list = append(list, item.(map[string]any))
		}
	}
	return list
}

// plainEvaluate implements the order of evaluation.
func plainEvaluate(p plainPolicies, r plainRequest) plainAnswer {
	c := plainCallerOf(r, p.boundary != nil)
	c.ids = p.ids
	resource := strings.SplitN(r.resource, ":", 6)
	local := len(resource) == 6 && c.account == resource[4] && c.partition == resource[1]
	resourceReason := "key-policy"
	if p.trust {
		resourceReason = "trust-policy"
	}

	// An explicit Deny anywhere decides.
	type located struct {
		reason string
		at     int
		doc    any
	}
	all := []located{{resourceReason, 0, p.resource}}
	for i, d := range p.identity {
		all = append(all, located{"identity-policy", i, d})
	}
	all = append(all, located{"permissions-boundary", 0, p.boundary})
	for i, d := range p.session {
		all = append(all, located{"session-policy", i, d})
	}
	for _, l := range all {
		for i, s := range plainStatements(l.doc) {
			if s["Effect"] == "Deny" && c.statementMatches(l.doc, s) && (s["Principal"] == nil && s["NotPrincipal"] == nil || c.denyReaches(s)) {
				return plainAnswer{"ExplicitDeny", l.reason, l.at, i}
			}
		}
	}

	// What the caller's own policies allow.
	find := func(docs []any) (int, int, bool) {
		for at, doc := range docs {
			for i, s := range plainStatements(doc) {
				if s["Effect"] == "Allow" && c.statementMatches(doc, s) {
					return at, i, true
				}
			}
		}
		return 0, 0, false
	}
	limited := func() (string, bool) {
		if p.boundary != nil {
			if _, _, ok := find([]any{p.boundary}); !ok {
				return "permissions-boundary", true
			}
		}
		if len(p.session) > 0 {
			if _, _, ok := find(p.session); !ok {
				return "session-policy", true
			}
		}
		return "", false
	}
	own := func() plainAnswer {
		at, i, ok := find(p.identity)
		if c.kind == "root" {
			at, i, ok = 0, -1, true
		}
		if !ok {
			return plainAnswer{"ImplicitDeny", "identity-policy", 0, -1}
		}
		if reason, limited := limited(); limited {
			return plainAnswer{"ImplicitDeny", reason, 0, -1}
		}
		return plainAnswer{"Allow", "identity-policy", at, i}
	}
	if p.resource == nil {
		return own()
	}

	// How the resource's policy, or a grant, reaches the caller.
	by := map[string]plainAnswer{}
	note := func(way string, a plainAnswer) {
		if _, ok := by[way]; !ok && way != "" {
			by[way] = a
		}
	}
	for i, s := range plainStatements(p.resource) {
		if s["Effect"] == "Allow" && c.statementMatches(p.resource, s) {
			for _, way := range c.allowReaches(s["Principal"]) {
				note(way, plainAnswer{"Allow", resourceReason, 0, i})
			}
		}
	}
	if p.grantee != "" {
		element := map[string]any{"AWS": p.grantee}
		c.ids = nil // they are those of the document
		if strings.Contains(p.grantee, ".") && !strings.Contains(p.grantee, ":") {
			element = map[string]any{"Service": p.grantee}
		}
		for _, way := range c.allowReaches(element) {
			note(way, plainAnswer{"Allow", "grant", 0, -1})
		}
	}
	first := func(ways ...string) (plainAnswer, bool) {
		best, found := plainAnswer{}, false
		for _, way := range ways {
			a, ok := by[way]
			// A grant comes after all statements.
			if ok && (!found || best.reason == "grant" || a.reason != "grant" && a.statement < best.statement) {
				best, found = a, true
			}
		}
		return best, found
	}
	if c.kind == "service" || c.kind == "oidc-provider" {
		if a, ok := first("direct"); ok {
			return a
		}
		return plainAnswer{"ImplicitDeny", resourceReason, 0, -1}
	}
	if !local {
		a, ok := first("direct", "role", "account")
		if !ok {
			return plainAnswer{"ImplicitDeny", resourceReason, 0, -1}
		}
		if o := own(); o.effect != "Allow" {
			return o
		}
		return a
	}
	_, isLimited := limited()
	if p.boundary == nil && len(p.session) == 0 {
		// A role is as good as its session.
		if a, ok := first("direct", "role"); ok {
			return a
		}
	}
	if a, ok := first("direct"); ok {
		return a
	}
	if a, ok := first("role"); ok {
		if isLimited {
			reason, _ := limited()
			return plainAnswer{"ImplicitDeny", reason, 0, -1}
		}
		return a
	}
	if a, ok := first("account"); ok {
		if o := own(); o.effect != "Allow" {
			return o
		}
		return a
	}
	return plainAnswer{"ImplicitDeny", resourceReason, 0, -1}
}

// allowReaches lists the ways in which an Allow for a Principal element reaches
// the caller.
func (c *plainCaller) allowReaches(element any) (ways []string) {
	external := c.kind == "service" || c.kind == "oidc-provider"
	if element == "*" {
		element = map[string]any{"AWS": "*"}
	}
	named, _ := element.(map[string]any)
	for _, p := range plainList(named["AWS"]) {
		self, role := c.isNamed(p)
		switch {
		case external:
		case p == "*" || self && c.kind != "role", c.kind == "root" && c.isAccount(p):
			ways = append(ways, "direct")
		case role, self:
			ways = append(ways, "role")
		case c.isAccount(p):
			ways = append(ways, "account")
		}
	}
	if c.kind == "service" && slices.Contains(plainList(named["Service"]), c.principal) ||
		c.kind == "oidc-provider" && slices.Contains(plainList(named["Federated"]), c.principal) {
		ways = append(ways, "direct")
	}
	return ways
}

// denyReaches reports whether a Deny's Principal or NotPrincipal covers the
// caller.
func (c *plainCaller) denyReaches(s map[string]any) bool {
	if not, ok := s["NotPrincipal"].(map[string]any); ok {
		if c.bounded {
			return true
		}
		aws := plainList(not["AWS"])
		account := slices.ContainsFunc(aws, c.isAccount)
		listed, role := c.isListed(aws)
		switch c.kind {
		case "service":
			return !slices.Contains(plainList(not["Service"]), c.principal)
		case "oidc-provider":
			return !slices.Contains(plainList(not["Federated"]), c.principal)
		case "root":
			return !account
		case "assumed-role":
			return !account || !listed || !role
		default:
			return !account || !listed
		}
	}
	if s["Principal"] == "*" {
		return true
	}
	for kind, v := range s["Principal"].(map[string]any) {
		for _, p := range plainList(v) {
			self, role := c.isNamed(p)
			_, bound := c.ids[p]
			sameRoleName := kind == "AWS" && c.kind == "assumed-role" && !bound &&
				strings.HasPrefix(p, "arn:"+c.partition+":iam::"+c.account+":role/") && strings.HasSuffix(p, "/"+c.name)
			if p == "*" || self || role || c.isAccount(p) || sameRoleName {
				return true
			}
		}
	}
	return false
}

// statementMatches evaluates all elements but the principals.
func (c *plainCaller) statementMatches(doc any, s map[string]any) bool {
	deny := s["Effect"] == "Deny"
	variables := doc.(map[string]any)["Version"] == "2012-10-17"
	actionIn := func(list any) bool {
		return slices.ContainsFunc(plainList(list), func(p string) bool { return slowGlob(strings.ToLower(p), strings.ToLower(c.action)) })
	}
	if !(s["Action"] != nil && actionIn(s["Action"]) || s["NotAction"] != nil && !actionIn(s["NotAction"])) {
		return false
	}
	trust := s["Resource"] == nil && s["NotResource"] == nil && c.action == "sts:AssumeRole" && (s["Principal"] != nil || s["NotPrincipal"] != nil)
	if !trust {
		matches, open := false, false
		for _, element := range []string{"Resource", "NotResource"} {
			for _, text := range plainList(s[element]) {
				pattern, ok := c.symbols(text, true, variables)
				matches = matches || ok && symbolsMatch(pattern, c.resource)
				open = open || !ok
			}
		}
		switch {
		case s["Resource"] == nil && s["NotResource"] == nil:
			return false
		case s["Resource"] != nil && !matches, s["NotResource"] != nil && matches:
			return false
		case s["NotResource"] != nil && open && !deny:
			return false
		}
	}
	conditions, _ := s["Condition"].(map[string]any)
	for operator, block := range conditions {
		for key, values := range block.(map[string]any) {
			if !c.conditionHolds(operator, key, plainList(values), variables, deny) {
				return false
			}
		}
	}
	return true
}

func (c *plainCaller) valuesOf(key string) []string {
	switch strings.ToLower(key) {
	case "aws:currenttime":
		return []string{c.now.UTC().Truncate(time.Second).Format("2006-01-02T15:04:05Z")}
	case "aws:epochtime":
		return []string{big.NewInt(c.now.Unix()).String()}
	}
	return c.values[strings.ToLower(key)]
}

// conditionHolds evaluates one key of one operator. Whatever cannot be told is
// doubt: false for an Allow, true for a Deny.
func (c *plainCaller) conditionHolds(operator, key string, want []string, variables, doubt bool) bool {
	values := c.valuesOf(key)
	if operator == "Null" {
		return slices.ContainsFunc(want, func(w string) bool { return strings.EqualFold(w, "true") == (len(values) == 0) })
	}
	name, forAny := strings.CutPrefix(operator, "ForAnyValue:")
	name, forAll := strings.CutPrefix(name, "ForAllValues:")
	name, ifExists := strings.CutSuffix(name, "IfExists")
	base := strings.Replace(name, "Not", "", 1)
	negated := base != name
	one := func(value string) bool {
		open := false
		for _, w := range want {
			match, known := c.compare(base, value, w, variables)
			switch {
			case known && match:
				return !negated
			case !known && (negated || !c.typed(base, value)):
				open = true
			}
		}
		if open {
			return doubt
		}
		return negated
	}
	switch {
	case len(values) == 0 && ifExists:
		return true
	case forAny:
		return slices.ContainsFunc(values, one)
	case forAll:
		return !slices.ContainsFunc(values, func(v string) bool { return !one(v) })
	case len(values) == 0:
		return negated
	case len(values) > 1:
		return doubt
	default:
		return one(values[0])
	}
}

// typed reports whether a value can be what the operator compares.
func (c *plainCaller) typed(base, value string) bool {
	switch {
	case strings.HasPrefix(base, "String"):
		return true
	case strings.HasPrefix(base, "Arn"):
		return strings.HasPrefix(value, "arn:") && strings.Count(value, ":") >= 5
	default:
		_, known := c.compare(base, value, plainSample[base], true)
		return known
	}
}

// plainSample has a valid value for each operator, to find out whether another
// one is.
var plainSample = map[string]string{
	"NumericEquals": "1", "NumericLessThan": "1", "NumericLessThanEquals": "1", "NumericGreaterThan": "1", "NumericGreaterThanEquals": "1",
	"DateEquals": "2026-01-01", "DateLessThan": "2026-01-01", "DateLessThanEquals": "2026-01-01", "DateGreaterThan": "2026-01-01", "DateGreaterThanEquals": "2026-01-01",
	"Bool": "true", "BinaryEquals": "QQ==", "IpAddress": "10.0.0.1",
}

// compare compares one value of the request with one of the document.
func (c *plainCaller) compare(base, value, want string, variables bool) (match, known bool) {
	number := regexp.MustCompile(`^-?[0-9]+(\.[0-9]+)?$`)
	sign, ordered := 0, false
	switch base {
	case "StringEquals", "StringLike":
		pattern, ok := c.symbols(want, base == "StringLike", variables)
		return ok && symbolsMatch(pattern, value), ok
	case "StringEqualsIgnoreCase":
		pattern, ok := c.symbols(want, false, variables)
		text := ""
		for _, s := range pattern {
			text += string(s.r)
		}
		return ok && plainLower(text) == plainLower(value), ok
	case "ArnEquals", "ArnLike":
		return c.compareARN(value, want, variables)
	case "Bool":
		v := strings.ToLower(value)
		return v == strings.ToLower(want), v == "true" || v == "false"
	case "BinaryEquals":
		a, err := base64.StdEncoding.DecodeString(value)
		b, _ := base64.StdEncoding.DecodeString(want)
		return string(a) == string(b), err == nil
	case "IpAddress":
		return compareIP(value, want)
	}
	if strings.HasPrefix(base, "Numeric") {
		a, ok := new(big.Rat).SetString(value)
		b, okay := new(big.Rat).SetString(want)
		if ordered = number.MatchString(value) && ok && okay; ordered {
			sign = a.Cmp(b)
		}
	} else {
		a, ok := plainDate(value)
		b, okay := plainDate(want)
		if ordered = ok && okay; ordered {
			sign = a.Compare(b)
		}
	}
	if !ordered {
		return false, false
	}
	switch {
	case strings.HasSuffix(base, "LessThan"):
		return sign < 0, true
	case strings.HasSuffix(base, "LessThanEquals"):
		return sign <= 0, true
	case strings.HasSuffix(base, "GreaterThan"):
		return sign > 0, true
	case strings.HasSuffix(base, "GreaterThanEquals"):
		return sign >= 0, true
	default:
		return sign == 0, true
	}
}

func plainDate(s string) (time.Time, bool) {
	if regexp.MustCompile(`^[0-9]{9,12}$`).MatchString(s) {
		n, _ := new(big.Int).SetString(s, 10)
		return time.Unix(n.Int64(), 0), n.Int64() <= 253402300799
	}
	for _, layout := range []string{"2006-01", "2006-01-02", "2006-01-02T15:04Z07:00", "2006-01-02T15:04:05Z07:00"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, true
		}
	}
	return time.Time{}, false
}

// compareIP uses package net, which treats an IPv4-mapped address as IPv4.
func compareIP(value, want string) (match, known bool) {
	value, zone, zoned := strings.Cut(value, "%")
	ip := net.ParseIP(value)
	if zoned && (zone == "" || !strings.Contains(value, ":") || strings.Contains(value, ".")) {
		return false, false // a zone belongs to an IPv6 address
	}
	if ip == nil {
		return false, false
	}
	address, bits, isRange := strings.Cut(want, "/")
	base := net.ParseIP(address)
	if !isRange {
		return base.Equal(ip), true
	}
	_, network, err := net.ParseCIDR(want)
	if err != nil {
		return false, true
	}
	if strings.Contains(address, ":") && base.To4() != nil { // mapped
		n, _ := new(big.Int).SetString(bits, 10)
		if n.Int64() < 96 {
			return false, true
		}
		network = &net.IPNet{IP: base.To4(), Mask: net.CIDRMask(int(n.Int64())-96, 32)}
	}
	v4 := len(network.Mask) == 4
	return v4 == (ip.To4() != nil) && network.Contains(ip), true
}

// compareARN compares part by part.
func (c *plainCaller) compareARN(value, want string, variables bool) (match, known bool) {
	parts := strings.SplitN(value, ":", 6)
	if len(parts) < 6 || parts[0] != "arn" {
		return false, false
	}
	var held []string
	masked := want
	if variables {
		masked = variable.ReplaceAllStringFunc(want, func(v string) string {
			held = append(held, v)
			return "\x00"
		})
	}
	patterns := strings.SplitN(masked, ":", 6)
	for i := range patterns {
		for strings.Contains(patterns[i], "\x00") {
			patterns[i] = strings.Replace(patterns[i], "\x00", held[0], 1)
			held = held[1:]
		}
	}
	var symbolized [][]symbol
	if len(patterns) < 6 {
		whole, ok := c.symbols(want, true, variables)
		if !ok {
			return false, false
		}
		symbolized = append(symbolized, nil)
		for _, s := range whole {
			if last := len(symbolized) - 1; s == (symbol{':', literal}) && last < 5 {
				symbolized = append(symbolized, nil)
			} else {
				symbolized[last] = append(symbolized[last], s)
			}
		}
		if len(symbolized) < 6 {
			return false, true
		}
	} else {
		ok := true
		for _, p := range patterns {
			s, resolved := c.symbols(p, true, variables)
			symbolized = append(symbolized, s)
			ok = ok && resolved
			if resolved && !symbolsMatch(s, parts[len(symbolized)-1]) {
				return false, true // whatever the others are
			}
		}
		if !ok {
			return false, false
		}
	}
	for i := range parts {
		if !symbolsMatch(symbolized[i], parts[i]) {
			return false, true
		}
	}
	return true, true
}

// A symbol is a character of a pattern, or a wildcard.
type symbol struct {
	r    rune
	kind int
}

const (
	literal = iota
	oneCharacter
	anyCharacters
)

var variable = regexp.MustCompile(`\$\{([^},]*)(?:, *'([^']*)' *)?\}`)

// symbols expands the variables of a text. It is false if one has no value.
func (c *plainCaller) symbols(text string, wild, variables bool) (list []symbol, ok bool) {
	add := func(s string, wild bool) {
		for _, r := range s {
			switch {
			case wild && r == '*':
				list = append(list, symbol{r, anyCharacters})
			case wild && r == '?':
				list = append(list, symbol{r, oneCharacter})
			default:
				list = append(list, symbol{r, literal})
			}
		}
	}
	for variables {
		at := variable.FindStringSubmatchIndex(text)
		if at == nil {
			break
		}
		add(text[:at[0]], wild)
		key := text[at[2]:at[3]]
		values := c.valuesOf(key)
		switch {
		case key == "*" || key == "?" || key == "$":
			add(key, false)
		case len(values) == 1:
			add(values[0], false)
		case len(values) == 0 && at[4] >= 0:
			add(text[at[4]:at[5]], false)
		default:
			return nil, false
		}
		text = text[at[1]:]
	}
	add(text, wild)
	return list, true
}

// symbolsMatch is slowGlob for symbols.
func symbolsMatch(pattern []symbol, t string) bool {
	text := []rune(t)
	row := make([]bool, len(text)+1)
	row[0] = true
	for _, s := range pattern {
		next := make([]bool, len(text)+1)
		for i := range next {
			if s.kind == anyCharacters {
				next[i] = row[i] || i > 0 && next[i-1]
			} else {
				next[i] = i > 0 && row[i-1] && (s.kind == oneCharacter || s.r == text[i-1])
			}
		}
		row = next
	}
	return row[len(text)]
}

// plainDocument decodes a document.
func plainDocument(t testing.TB, doc []byte) any {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(string(doc)))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		t.Fatal(err)
	}
	return v
}
