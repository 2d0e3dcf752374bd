package request

import (
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/policy"
)

// ownRules are the policies of a caller, and where each is from.
type ownRules struct {
	identity, session         []*policy.Document
	identityFrom, sessionFrom []origin
	boundary                  *policy.Document
	boundaryFrom              origin

	// Initial storage for the slices, which suffices for most callers.
	fewDocuments [4]*policy.Document
	fewOrigins   [4]origin
}

// origin says where a policy is from, for the record: it is the managed policy with an ARN,
// or an inline one of an owner.
type origin struct {
	arn          string
	owner        entity // nil for the inline session policy
	kind, inline string // kind of the owner in ARNs, and name of the policy
}

// entity is a user, group or role.
type entity interface {
	GetAccount() uint64
	GetPath() string
	GetName() string
	GetInline() []*fsmpb.InlinePolicy
}

// name returns an ARN for a managed policy, and the ARN of the owner with the policy's name
// for an inline one.
func (o *origin) name(ev *Evaluation) string {
	if o.owner == nil {
		return o.arn
	}
	return iam.EntityARN(ev.Cluster().GetPartition(), o.owner.GetAccount(), o.kind, o.owner.GetPath(), o.owner.GetName()) + " " + o.inline
}

// nothing is a policy that allows nothing. It stands for a policy that does not exist.
var nothing = &policy.Document{}

// ownRulesOf returns the policies of the caller. They, and everything that says which they are,
// are added to the read set: a decision depends on all of them, as any could deny.
func ownRulesOf(ev *Evaluation) (r *ownRules, err error) {
	if ev.ownRules != nil {
		return ev.ownRules, nil
	}
	switch owner := ownerOf(&ev.who); {
	case owner != nil:
		r, err = rememberedRules(ev, owner)
	case ev.who.Session == nil:
		r = noRules
	default:
		r, err = rulesOf(ev, &ev.who)
	}
	if err == nil {
		ev.ownRules = r
	}
	return r, err
}

// noRules are those of root users and services.
var noRules = new(ownRules)

// rulesOf returns the policies of a principal.
func rulesOf(ev *Evaluation, who *iam.Entity) (*ownRules, error) {
	r := new(ownRules)
	r.identity, r.identityFrom = r.fewDocuments[:0], r.fewOrigins[:0]
	switch u, role := who.User, who.Role; {
	case u != nil:
		if err := r.add(ev, u, "user", u.Policies, u.Inline); err != nil {
			return nil, err
		}
		for _, id := range u.Groups {
			g := fsm.GroupByID(ev.State, who.Account, id)
			if g == nil {
				return nil, fmt.Errorf("user %s is in the group %s, which does not exist", u.Id, id)
			}
			ev.Note(fsmpb.Kind_KIND_GROUP, fsm.EntityID(who.Account, g.Name), g.Version)
			if err := r.add(ev, g, "group", g.Policies, g.Inline); err != nil {
				return nil, err
			}
		}
		if err := r.limit(ev, u.Boundary); err != nil {
			return nil, err
		}
	case role != nil:
		if err := r.add(ev, role, "role", role.Policies, role.Inline); err != nil {
			return nil, err
		}
		if err := r.limit(ev, role.Boundary); err != nil {
			return nil, err
		}
	}
	if s := who.Session; s != nil {
		if s.Policy != "" {
			doc, err := ev.Policies.parsed(policy.SessionPolicy, s.Policy, func() string { return "session policy of " + s.AccessKey })
			if err != nil {
				return nil, err
			}
			r.session, r.sessionFrom = append(r.session, doc), append(r.sessionFrom, origin{arn: "inline"})
		}
		for _, arn := range s.Policies {
			doc, err := managedPolicy(ev, policy.SessionPolicy, arn)
			if err != nil {
				return nil, err
			}
			r.session, r.sessionFrom = append(r.session, doc), append(r.sessionFrom, origin{arn: arn})
		}
	}
	return r, nil
}

// add adds the policies that are attached to a user, group or role, and its inline ones.
func (r *ownRules) add(ev *Evaluation, owner entity, kind string, attached []string, inline []*fsmpb.InlinePolicy) error {
	for _, arn := range attached {
		doc, err := managedPolicy(ev, policy.IdentityPolicy, arn)
		if err != nil {
			return err
		}
		r.identity, r.identityFrom = append(r.identity, doc), append(r.identityFrom, origin{arn: arn})
	}
	for _, p := range inline {
		from := origin{owner: owner, kind: kind, inline: p.Name}
		doc, err := ev.Policies.parsed(policy.IdentityPolicy, p.Document, func() string { return "policy " + from.name(ev) })
		if err != nil {
			return err
		}
		r.identity, r.identityFrom = append(r.identity, doc), append(r.identityFrom, from)
	}
	return nil
}

// limit sets the permissions boundary.
func (r *ownRules) limit(ev *Evaluation, arn string) (err error) {
	if arn != "" {
		r.boundary, err = managedPolicy(ev, policy.IdentityPolicy, arn)
		r.boundaryFrom = origin{arn: arn}
	}
	return err
}

// managedPolicy returns the default version of a managed policy. One that does not exist
// allows nothing.
func managedPolicy(ev *Evaluation, kind policy.Kind, arn string) (*policy.Document, error) {
	if text, ok := policy.AWSManaged(arn); ok {
		return ev.Policies.parsed(kind, text, func() string { return arn })
	}
	m := ev.Policies.managedBy(ev.Cluster().GetPartition(), kind, arn)
	if m == nil {
		return nothing, nil
	}
	p := m.read(ev)
	if p == nil {
		return nothing, nil
	}
	if d := m.newest.Load(); d != nil && d.of == p {
		return d.document, nil
	}
	text, err := defaultText(ev, p, arn)
	if err != nil {
		return nothing, err
	}
	doc, err := ev.Policies.parsed(kind, text, func() string { return arn })
	if err == nil {
		m.newest.Store(&parsedManaged{p, doc})
	}
	return doc, err
}

// managedText returns the document of the default version of a managed policy, or "" if there
// is no policy with that ARN.
func managedText(ev *Evaluation, arn string) (string, error) {
	if text, ok := policy.AWSManaged(arn); ok {
		return text, nil
	}
	p := ManagedPolicy(ev, arn)
	if p == nil {
		return "", nil
	}
	return defaultText(ev, p, arn)
}

// defaultText returns the document of the default version of a managed policy that was read.
// It cannot change without the policy, and so needs not be in the read set itself.
func defaultText(ev *Evaluation, p *fsmpb.Policy, arn string) (string, error) {
	v, _ := fsm.Object[*fsmpb.PolicyVersion](ev.State, fsm.PolicyVersionID(fsm.Account(p.Account), p.Name, p.DefaultVersion))
	if v == nil {
		return "", fmt.Errorf("policy %s has no version %d", arn, p.DefaultVersion)
	}
	return v.Document, nil
}

// ManagedPolicy returns the customer managed policy with an ARN, or nil, and adds it to the
// read set.
func ManagedPolicy(ev *Evaluation, arn string) *fsmpb.Policy {
	if m := parseManaged(ev.Cluster().GetPartition(), arn); m != nil {
		return m.read(ev)
	}
	return nil
}

// managed is what the ARN of a customer managed policy says.
type managed struct {
	id         []byte // of the object
	path, name string
	// newest is the policy that was evaluated last, parsed. Objects never change, so it serves
	// as long as the evaluated state has the same object.
	newest atomic.Pointer[parsedManaged]
}

type parsedManaged struct {
	of       *fsmpb.Policy
	document *policy.Document
}

// parseManaged parses the ARN of a customer managed policy. It returns nil for any other text.
func parseManaged(partition, arn string) *managed {
	a, err := policy.ParseARN(arn)
	if err != nil || a.Service != "iam" || a.Region != "" || a.Partition != partition {
		return nil
	}
	account, ok := fsm.ParseAccount(a.Account)
	path, isPolicy := strings.CutPrefix(a.Resource, "policy")
	if !ok || !isPolicy {
		return nil
	}
	name := path[strings.LastIndexByte(path, '/')+1:]
	return &managed{id: fsm.EntityID(account, name), path: path[:len(path)-len(name)], name: name}
}

// read returns the policy, or nil, and adds it to the read set.
func (m *managed) read(ev *Evaluation) *fsmpb.Policy {
	p := Read[*fsmpb.Policy](ev, m.id)
	if p == nil || p.Name != m.name || p.Path != m.path {
		return nil // names are found whatever their case, and regardless of the path
	}
	return p
}

// decide evaluates the policies of the caller together with that of the resource, which is
// nil if it has none, and a grant to the grantee, if there is one.
func decide(ev *Evaluation, req policy.Request, resource *policy.Document, grantee *policy.Principal) (policy.Decision, error) {
	if ev.who.BreakGlassUntil != 0 {
		if d, decided := decideBreakGlass(req); decided {
			return d, nil
		}
	}
	r, err := ownRulesOf(ev)
	if err != nil {
		return policy.Decision{Statement: policy.NoStatement}, err
	}
	return policy.Evaluate(req, policy.Policies{Resource: resource, Grantee: grantee, Identity: r.identity, Boundary: r.boundary, Session: r.session}), nil
}

// name returns the name of the policy that a decision rests on, if it is one of the caller's.
func (r *ownRules) name(ev *Evaluation, d policy.Decision) string {
	if r == nil || d.Statement == policy.NoStatement {
		return ""
	}
	switch d.Reason {
	case policy.ReasonIdentityPolicy:
		return r.identityFrom[d.Policy].name(ev)
	case policy.ReasonSessionPolicy:
		return r.sessionFrom[d.Policy].name(ev)
	case policy.ReasonBoundary:
		return r.boundaryFrom.name(ev)
	}
	return ""
}
