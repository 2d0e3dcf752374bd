package permissions

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/conclavekms/conclave/policy"
	"github.com/conclavekms/conclave/transport/iampb"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// Access is what a principal may do with a key, by one statement or grant.
type Access struct {
	Principal string   `json:"principal"`
	Actions   []string `json:"actions"`
	By        string   `json:"by"`
	// If is what decides only when a request is made; "" if nothing does.
	If string `json:"if,omitempty"`
}

// Key is a key that principals may have access to.
type Key struct {
	ARN     policy.ARN
	Policy  string
	Grants  []*kmspb.GrantListEntry
	Actions []string // those that are looked at, such as kms:Encrypt
	// Values are the values of condition keys about the key, in lower case, such as
	// kms:keyspec. All tags are known if Tagged is set.
	Values map[string][]string
	Tagged bool
}

// known reports whether the value of a condition key about the key is known.
func (k *Key) known(key string) bool {
	_, ok := k.Values[key]
	return ok || k.Tagged && strings.HasPrefix(key, "aws:resourcetag/")
}

// Who returns who may do what with a key, and by what, given all policies of its account. It
// reports an error for a document that package policy does not accept.
func Who(key *Key, account *iampb.GetAccountAuthorizationDetailsResponse) ([]*Access, error) {
	f, err := newFacts(key, account)
	if err != nil {
		return nil, err
	}
	return f.list(), nil
}

// principalFacts is a principal with its policies.
type principalFacts struct {
	caller policy.Principal
	shown  string // in the answer
	// elsewhere is set for a principal of another account, whose own policies are not known.
	elsewhere bool
	values    map[string][]string // condition keys about the principal
	key       *Key
	identity  []*document
	boundary  *document
}

// Values implements policy.Context.
func (p *principalFacts) Values(key string) []string {
	if v := p.values[key]; v != nil {
		return v
	}
	return p.key.Values[key]
}

// Now implements policy.Context. Conditions on the time are never known, so it is not used.
func (p *principalFacts) Now() time.Time { return time.Time{} }

// Holds implements policy.Context.
func (p *principalFacts) Holds(from, to time.Time) {}

// known reports whether the value of a condition key is known of all requests by principals of
// the key's account.
func (f *facts) known(key string) bool {
	return aboutPrincipal(key) || f.key.known(key)
}

// aboutPrincipal reports whether a condition key is about the principal, of which it is known.
func aboutPrincipal(key string) bool {
	switch key {
	case "aws:principalarn", "aws:principalaccount", "aws:principaltype", "aws:username", "kms:calleraccount", "aws:resourceaccount":
		return true
	}
	return strings.HasPrefix(key, "aws:principaltag/")
}

// facts collects what policies say about a key.
type facts struct {
	key       *Key
	principal []*principalFacts
	// Of the key's policy: for principals of its account, and for those of others.
	own, others *document
}

// newFacts returns the facts of a key whose account is d's.
func newFacts(key *Key, d *iampb.GetAccountAuthorizationDetailsResponse) (*facts, error) {
	f := &facts{key: key}
	var err error
	if f.own, err = readDocument("key policy", policy.KeyPolicy, key.Policy, f.known); err != nil {
		return nil, err
	}
	if f.others, err = readDocument("key policy", policy.KeyPolicy, key.Policy, key.known); err != nil {
		return nil, err
	}
	if err := f.addAccount(d); err != nil {
		return nil, err
	}
	return f, f.addOthers()
}

// addAccount adds the root user, the users and the roles of the key's account.
func (f *facts) addAccount(d *iampb.GetAccountAuthorizationDetailsResponse) error {
	root := "arn:" + f.key.ARN.Partition + ":iam::" + f.key.ARN.Account + ":root"
	if err := f.add(root, root, nil, nil, nil); err != nil {
		return err
	}
	managed := make(map[string]*document)
	for _, p := range d.GetPolicies() {
		for _, v := range p.GetPolicyVersionList() {
			if v.GetIsDefaultVersion() {
				doc, err := readDocument("policy "+p.GetArn(), policy.IdentityPolicy, v.GetDocument(), f.known)
				if err != nil {
					return err
				}
				managed[p.GetArn()] = doc
			}
		}
	}
	find := func(arn string) (*document, error) {
		if doc := managed[arn]; doc != nil {
			return doc, nil
		}
		text, ok := policy.AWSManaged(arn)
		if !ok {
			return nil, fmt.Errorf("the server did not tell the document of %s", arn)
		}
		doc, err := readDocument("policy "+arn, policy.IdentityPolicy, text, f.known)
		managed[arn] = doc
		return doc, err
	}
	collect := func(of string, inline []*iampb.PolicyDetail, attached []*iampb.AttachedPolicy) (docs []*document, err error) {
		for _, p := range inline {
			doc, err := readDocument("policy "+p.GetPolicyName()+" of "+of, policy.IdentityPolicy, p.GetPolicyDocument(), f.known)
			if err != nil {
				return nil, err
			}
			docs = append(docs, doc)
		}
		for _, p := range attached {
			doc, err := find(p.GetPolicyArn())
			if err != nil {
				return nil, err
			}
			docs = append(docs, doc)
		}
		return docs, nil
	}
	boundaryOf := func(b *iampb.AttachedPermissionsBoundary) (*document, error) {
		if b.GetPermissionsBoundaryArn() == "" {
			return nil, nil
		}
		return find(b.GetPermissionsBoundaryArn())
	}
	groups := make(map[string][]*document)
	for _, g := range d.GetGroupDetailList() {
		docs, err := collect("group "+g.GetGroupName(), g.GetGroupPolicyList(), g.GetAttachedManagedPolicies())
		if err != nil {
			return err
		}
		groups[g.GetGroupName()] = docs
	}
	for _, u := range d.GetUserDetailList() {
		docs, err := collect("user "+u.GetUserName(), u.GetUserPolicyList(), u.GetAttachedManagedPolicies())
		if err != nil {
			return err
		}
		for _, g := range u.GetGroupList() {
			docs = append(docs, groups[g]...)
		}
		boundary, err := boundaryOf(u.GetPermissionsBoundary())
		if err != nil {
			return err
		}
		if err := f.add(u.GetArn(), u.GetArn(), docs, boundary, u.GetTags()); err != nil {
			return err
		}
	}
	for _, r := range d.GetRoleDetailList() {
		docs, err := collect("role "+r.GetRoleName(), r.GetRolePolicyList(), r.GetAttachedManagedPolicies())
		if err != nil {
			return err
		}
		boundary, err := boundaryOf(r.GetPermissionsBoundary())
		if err != nil {
			return err
		}
		if err := f.add(r.GetArn(), r.GetArn(), docs, boundary, r.GetTags()); err != nil {
			return err
		}
	}
	return nil
}

// add adds a principal of the key's account. A role acts in sessions, so one of them stands for
// it.
func (f *facts) add(arn, shown string, identity []*document, boundary *document, tags []*iampb.Tag) error {
	p, err := policy.ParsePrincipal(arn)
	if err != nil {
		return err
	}
	if p.Kind == policy.KindRole {
		if p, err = sessionOf(p); err != nil {
			return err
		}
	}
	values := map[string][]string{
		"aws:principalarn": {arn}, "aws:principalaccount": {p.Account}, "kms:calleraccount": {p.Account}, "aws:resourceaccount": {f.key.ARN.Account},
		"aws:principaltype": {p.Kind.String()},
	}
	if p.Kind == policy.KindUser {
		values["aws:username"] = []string{p.Name}
	}
	for _, t := range tags {
		values["aws:principaltag/"+strings.ToLower(t.GetKey())] = []string{t.GetValue()}
	}
	f.principal = append(f.principal, &principalFacts{key: f.key, caller: p, shown: shown, values: values, identity: identity, boundary: boundary})
	return nil
}

// sessionOf returns a session of a role.
func sessionOf(role policy.Principal) (policy.Principal, error) {
	s, err := policy.ParsePrincipal("arn:" + role.Partition + ":sts::" + role.Account + ":assumed-role/" + role.Name + "/session")
	if err != nil {
		return policy.Principal{}, err
	}
	return s.WithRole(role.ARN)
}

// anybody stands for everybody of another account, by an account that no key has.
const anybody = "000000000000"

// addOthers adds the principals of other accounts that the key's policy names, and everybody.
func (f *facts) addOthers() error {
	doc, err := policy.Parse(policy.KeyPolicy, []byte(f.key.Policy))
	if err != nil {
		return err
	}
	for _, p := range doc.Principals() {
		if p.ID != "" {
			continue // the unique id of somebody who was deleted
		}
		if p.Account == f.key.ARN.Account {
			// Those are in the account's details, but for single sessions of roles.
			if p.Kind == policy.KindAssumedRole || p.Kind == policy.KindFederatedUser {
				f.principal = append(f.principal, &principalFacts{key: f.key, caller: p, shown: p.String(), values: map[string][]string{
					"aws:principalarn": {cmp.Or(p.Role, p.ARN)}, "aws:principalaccount": {p.Account}, "kms:calleraccount": {p.Account}, "aws:resourceaccount": {p.Account},
					"aws:principaltype": {p.Kind.String()},
				}})
			}
			continue
		}
		if err := f.addElsewhere(p, p.String()); err != nil {
			return err
		}
	}
	account := anybody
	if f.key.ARN.Account == anybody {
		account = "999999999999"
	}
	p, err := policy.ParsePrincipal("arn:" + f.key.ARN.Partition + ":iam::" + account + ":user/anybody")
	if err != nil {
		return err
	}
	return f.addElsewhere(p, "everybody")
}

// addElsewhere adds a principal of another account.
func (f *facts) addElsewhere(p policy.Principal, shown string) error {
	var err error
	if p.ARN == "" { // a bare account id
		if p, err = policy.ParsePrincipal("arn:" + f.key.ARN.Partition + ":iam::" + p.Account + ":root"); err != nil {
			return err
		}
		shown = p.ARN
	}
	if p.Kind == policy.KindRole {
		if p, err = sessionOf(p); err != nil {
			return err
		}
	}
	f.principal = append(f.principal, &principalFacts{key: f.key, caller: p, shown: shown, elsewhere: true})
	return nil
}

// allowAll allows everything, in place of the policies of another account.
var allowAll = func() *document {
	const doc = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}`
	d, err := readDocument("", policy.IdentityPolicy, doc, func(string) bool { return false })
	if err != nil {
		panic(err) // cannot happen
	}
	return d
}()

// decide decides a request in one of the two readings.
func (f *facts) decide(p *principalFacts, action string, grantee *policy.Principal, certain bool) (policy.Decision, []policy.Step) {
	reading := func(d *document) *policy.Document {
		if certain {
			return d.certain
		}
		return d.possible
	}
	ps := policy.Policies{Resource: reading(f.own), Grantee: grantee}
	for _, d := range p.identity {
		ps.Identity = append(ps.Identity, reading(d))
	}
	if p.elsewhere {
		ps.Resource, ps.Identity = reading(f.others), []*policy.Document{reading(allowAll)}
	}
	if p.boundary != nil {
		ps.Boundary = reading(p.boundary)
	}
	return policy.Trace(policy.Request{Principal: p.caller, Action: action, Resource: f.key.ARN.String(), Context: p}, ps)
}

// resource returns the key's policy as it is read for a principal.
func (f *facts) resource(p *principalFacts) *document {
	if p.elsewhere {
		return f.others
	}
	return f.own
}

// list returns who may do what, and by what.
func (f *facts) list() []*Access {
	all := accesses{list: []*Access{}} // an empty list, and not null, in JSON
	for _, p := range f.principal {
		for _, action := range f.key.Actions {
			if d, steps := f.decide(p, action, nil, true); d.Allowed() {
				all.add(p.shown, action, f.by(p, d, steps), "")
			} else if d, steps := f.decide(p, action, nil, false); d.Allowed() {
				all.add(p.shown, action, f.by(p, d, steps), f.conditions(p, action, d, steps))
			}
		}
	}
	for _, g := range f.key.Grants {
		f.addGrant(&all, g)
	}
	return all.list
}

// addGrant adds what a grant allows, but for what a policy denies in any case.
func (f *facts) addGrant(all *accesses, g *kmspb.GrantListEntry) {
	shown := g.GetGranteePrincipal() + g.GetGranteeServicePrincipal()
	if _, err := policy.ParseUniqueID(shown); err == nil {
		return // the grantee was deleted
	}
	by := "grant " + g.GetGrantId()
	if g.GetName() != "" {
		by += " " + g.GetName()
	}
	constraints := constraintsText(g.GetConstraints())
	var grantee *principalFacts
	if p, err := policy.ParseCaller(shown); err == nil {
		grantee = &principalFacts{key: f.key, caller: p, elsewhere: p.Account != f.key.ARN.Account}
		for _, x := range f.principal {
			if x.shown == shown {
				grantee = x
			}
		}
		if grantee.caller.Kind == policy.KindRole {
			if s, err := sessionOf(p); err == nil {
				grantee.caller = s
			}
		}
	}
	for _, op := range g.GetOperations() {
		action := "kms:" + op
		if !slices.Contains(f.key.Actions, action) {
			continue
		}
		if grantee != nil {
			p, _ := policy.ParseCaller(shown)
			if d, _ := f.decide(grantee, action, &p, false); d.Effect == policy.ExplicitDeny {
				continue
			}
		}
		all.add(shown, action, by, constraints)
	}
}

// constraintsText writes the constraints of a grant as AWS names them; "" if there are none.
func constraintsText(c *kmspb.GrantConstraints) string {
	if c == nil {
		return ""
	}
	raw, err := json.Marshal(struct {
		EncryptionContextSubset, EncryptionContextEquals map[string]string `json:",omitempty"`
		SourceArn                                        string            `json:",omitempty"`
	}{c.GetEncryptionContextSubset(), c.GetEncryptionContextEquals(), c.GetSourceArn()})
	if err != nil || string(raw) == "{}" {
		return ""
	}
	return string(raw)
}

// used is a statement that a request is allowed by.
type used struct {
	doc *document
	policy.Step
}

// documentOf returns the document that a step is about; nil for that of another account.
func (f *facts) documentOf(p *principalFacts, s *policy.Step) *document {
	switch {
	case s.Reason == policy.ReasonKeyPolicy:
		return f.resource(p)
	case s.Reason == policy.ReasonIdentityPolicy && !p.elsewhere && s.Policy < len(p.identity):
		return p.identity[s.Policy]
	case s.Reason == policy.ReasonBoundary:
		return p.boundary
	}
	return nil
}

// deciding returns the statements that a request is allowed by: that of the key's policy, and
// where it leaves the decision to the account, one of the principal's own policies too; and one
// of the boundary. Of several, one without a condition is enough.
func (f *facts) deciding(p *principalFacts, d policy.Decision, steps []policy.Step) []used {
	first := func(match func(*policy.Step) bool) (found []used) {
		for i := range steps {
			s := &steps[i]
			if !s.Matched || s.Effect != policy.Allow || !match(s) {
				continue
			}
			doc := f.documentOf(p, s)
			switch {
			case doc == nil:
			case doc.conditions[s.Statement] == "":
				return []used{{doc, *s}}
			case found == nil:
				found = []used{{doc, *s}}
			}
		}
		return found
	}
	boundary := first(func(s *policy.Step) bool { return s.Reason == policy.ReasonBoundary })
	// An Allow for the principal itself does not need the account's policies.
	itself := first(func(s *policy.Step) bool { return s.Reason == policy.ReasonKeyPolicy && !s.Delegates })
	delegated := first(func(s *policy.Step) bool { return s.Delegates })
	own := first(func(s *policy.Step) bool { return s.Reason == policy.ReasonIdentityPolicy })
	if p.caller.Kind == policy.KindRoot || p.elsewhere {
		own = nil
	} else if len(itself) > 0 && (itself[0].doc.conditions[itself[0].Statement] == "" || len(delegated) == 0 || len(own) == 0) {
		delegated, own = nil, nil
	} else if len(delegated) > 0 && len(own) > 0 {
		itself = nil
	}
	return slices.Concat(own, itself, delegated, boundary)
}

// by names the statement that allows a request: the principal's own if there is one.
func (f *facts) by(p *principalFacts, d policy.Decision, steps []policy.Step) string {
	list := f.deciding(p, d, steps)
	if len(list) == 0 {
		return d.Reason.String()
	}
	name := list[0].doc.name + statementName(list[0].Statement, list[0].Sid)
	if p.elsewhere {
		name += ", with policies of the other account"
	}
	return name
}

func statementName(position int, sid string) string {
	switch {
	case position == policy.NoStatement:
		return ""
	case sid != "":
		return ", statement " + sid
	}
	return fmt.Sprintf(", statement %d", position+1)
}

// conditions returns what decides when a request is made: the conditions of the statements that
// allow it, and those of the statements that may deny it.
func (f *facts) conditions(p *principalFacts, action string, d policy.Decision, steps []policy.Step) string {
	var parts []string
	note := func(text string) {
		if text != "" && !slices.Contains(parts, text) {
			parts = append(parts, text)
		}
	}
	for _, u := range f.deciding(p, d, steps) {
		note(u.doc.conditions[u.Statement])
	}
	_, certain := f.decide(p, action, nil, true)
	for i := range certain {
		s := &certain[i]
		if doc := f.documentOf(p, s); doc != nil && s.Matched && s.Effect == policy.ExplicitDeny && doc.denies[s.Statement] != "" {
			note("not " + doc.denies[s.Statement])
		}
	}
	return strings.Join(parts, " and ")
}

// accesses joins actions of the same principal by the same statement or grant.
type accesses struct{ list []*Access }

func (a *accesses) add(principal, action, by, condition string) {
	for _, x := range a.list {
		if x.Principal == principal && x.By == by && x.If == condition {
			x.Actions = append(x.Actions, action)
			return
		}
	}
	a.list = append(a.list, &Access{Principal: principal, Actions: []string{action}, By: by, If: condition})
}
