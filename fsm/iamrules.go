package fsm

import (
	"bytes"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/form"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/level"
)

// The rules of identity and access management that depend on the state; package form has the
// others. See rules.go for what rules are.
//
// They keep what is stored consistent: unique ids are unique, an
// entity names only groups and managed policies that exist, the counts of both are exact,
// and a managed policy has the versions that it lists. A node that evaluates a request
// relies on that.

// entities says what is particular to one kind of entity.
type entities[M entity] struct {
	prefix string // of unique ids
	ids    *index[M]
	put    func(*fsmpb.Change) M
	name   func(m M, account uint64, id string) // sets these fields
}

var (
	users = &entities[*fsmpb.User]{"AIDA", usersByID, (*fsmpb.Change).GetPutUser, func(m *fsmpb.User, account uint64, id string) {
		m.Account, m.Id = account, id
	}}
	groups = &entities[*fsmpb.Group]{"AGPA", groupsByID, (*fsmpb.Change).GetPutGroup, func(m *fsmpb.Group, account uint64, id string) {
		m.Account, m.Id = account, id
	}}
	roles = &entities[*fsmpb.Role]{"AROA", rolesByID, (*fsmpb.Change).GetPutRole, func(m *fsmpb.Role, account uint64, id string) {
		m.Account, m.Id = account, id
	}}
	policies = &entities[*fsmpb.Policy]{"ANPA", policiesByID, (*fsmpb.Change).GetPutPolicy, func(m *fsmpb.Policy, account uint64, id string) {
		m.Account, m.Id = account, id
	}}
)

// byID returns the entity with a unique id, or nil.
func (k *entities[M]) byID(db *table, account uint64, id string) M {
	return k.ids.find(db, func(m M) { k.name(m, account, id) })
}

// stored counts the changes of the record that store an entity with a unique id.
func (k *entities[M]) stored(a *applier, account uint64, id string) (n int) {
	var none M
	for _, e := range a.edits {
		if p := k.put(e.Change); p != none && p.GetAccount() == account && p.GetId() == id {
			n++
		}
	}
	return n
}

// stands reports whether an entity with a unique id will exist once the record is applied.
func (k *entities[M]) stands(a *applier, account uint64, id string) bool {
	var none M
	was := k.byID(a.db, account, id)
	return was != none && !deletes(a, was) || k.stored(a, account, id) > 0
}

// check checks n, which replaces was, or is new if was is nil. An entity is renamed by a
// record that deletes it and stores it under its new name. So renamed is was, or else the
// entity that has the unique id of n and is deleted by the record.
func (k *entities[M]) check(a *applier, was, n M) (renamed M, broken string) {
	var none M
	if broken := form.CheckEntity(n, k.prefix, level.LimitsAt(a.state.level).Entities()); broken != "" {
		return none, broken
	}
	if was == none {
		if was = k.byID(a.db, n.GetAccount(), n.GetId()); was != none && !deletes(a, was) {
			return none, "it gives an entity the unique id of another one"
		}
	}
	switch {
	case k.stored(a, n.GetAccount(), n.GetId()) > 1:
		return none, "it gives an entity the unique id of another one"
	case was != none && (was.GetId() != n.GetId() || was.GetCreated() != n.GetCreated()):
		return none, "it changes the unique id or creation date of an entity"
	}
	return was, ""
}

// deletes reports whether the record deletes the object that m is in the state.
func deletes(a *applier, m proto.Message) bool {
	return slices.ContainsFunc(a.edits, func(e edit) bool {
		return e.does != nil && e.does.deletes && e.was != nil && e.was.value == m
	})
}

// checkAttached checks the managed and inline policies and the tags of an entity.
func checkAttached(a *applier, account uint64, arns []string, boundary string, inline []*fsmpb.InlinePolicy, tags []*fsmpb.Tag) (broken string) {
	if broken := form.CheckAttached(arns, inline, tags, level.LimitsAt(a.state.level).Entities()); broken != "" {
		return broken
	}
	for _, arn := range arns {
		if !attachable(a, account, arn) {
			return "it attaches a managed policy that does not exist"
		}
	}
	if boundary != "" && !attachable(a, account, boundary) {
		return "it attaches a managed policy that does not exist"
	}
	return ""
}

// attachable reports whether an ARN is that of a managed policy of AWS, or of one of the
// account's own that will exist once the record is applied. The texts must be equal, since
// the evaluator takes an ARN with another path for that of no policy.
func attachable(a *applier, account uint64, arn string) bool {
	if owner, _, _, ok := form.CutPolicyARN(arn); ok && owner == "aws" {
		return true
	}
	p := policyAfter(a, ownPolicy(account, arn))
	return p != nil && arn == "arn:"+a.cluster().GetPartition()+":iam::"+Account(account).String()+":policy"+p.Path+p.Name
}

// policyAfter returns a managed policy as it will be once the record is applied; nil if it
// will not exist.
func policyAfter(a *applier, id []byte) *fsmpb.Policy {
	if id == nil || !a.stands(fsmpb.Kind_KIND_POLICY, id) {
		return nil
	}
	for _, e := range a.edits {
		if p := e.GetPutPolicy(); p != nil && bytes.Equal(e.id, id) {
			return p
		}
	}
	return lookup(a.db, fsmpb.Kind_KIND_POLICY, id).value.(*fsmpb.Policy)
}

// checkUser: a user is in groups that exist.
func checkUser(a *applier, was, n *fsmpb.User) (broken string) {
	if _, broken := users.check(a, was, n); broken != "" {
		return broken
	}
	if broken := form.CheckUser(n, level.LimitsAt(a.state.level).Entities()); broken != "" {
		return broken
	}
	for _, g := range n.Groups {
		if !groups.stands(a, n.Account, g) {
			return "it puts a user into a group that does not exist"
		}
	}
	return checkAttached(a, n.Account, n.Policies, n.Boundary, n.Inline, n.Tags)
}

// userHasNoKeys: the access keys of a user are deleted before the user, or with them.
func userHasNoKeys(a *applier, was *fsmpb.User) Verdict {
	if users.stored(a, was.Account, was.Id) > 0 { // renamed
		return Accepted
	}
	for _, id := range was.AccessKeys {
		if a.stands(fsmpb.Kind_KIND_CREDENTIAL, CredentialID(Account(was.Account), id)) {
			a.broken = "it deletes a user who has access keys"
			return Invalid
		}
	}
	return Accepted
}

func checkGroup(a *applier, was, n *fsmpb.Group) (broken string) {
	if _, broken := groups.check(a, was, n); broken != "" {
		return broken
	}
	return checkAttached(a, n.Account, n.Policies, "", n.Inline, nil)
}

// groupIsEmpty: a group can be deleted only when it has no users. Whoever deletes it need
// not have read their set.
func groupIsEmpty(a *applier, was *fsmpb.Group) Verdict {
	renamed := groups.stored(a, was.Account, was.Id) > 0
	if !renamed && a.count(fsmpb.Kind_KIND_GROUP_MEMBERS, GroupMembersID(Account(was.Account), was.Id)) > 0 {
		return Conflict
	}
	return Accepted
}

// groupIsGone deletes the set of a group's users, unless the group is only renamed.
func groupIsGone(a *applier, _ []byte, was *fsmpb.Group) {
	o := lookup(a.db, fsmpb.Kind_KIND_GROUP_MEMBERS, GroupMembersID(Account(was.Account), was.Id))
	if o != nil && groups.stored(a, was.Account, was.Id) == 0 {
		a.remove(o)
	}
}

func checkRole(a *applier, was, n *fsmpb.Role) (broken string) {
	if was, broken = roles.check(a, was, n); broken != "" {
		return broken
	}
	if broken := form.CheckRole(was, n, level.LimitsAt(a.state.level).Entities()); broken != "" {
		return broken
	}
	return checkAttached(a, n.Account, n.Policies, n.Boundary, n.Inline, n.Tags)
}

// checkManagedPolicy: a managed policy has exactly the versions that it lists. As they never
// change and no number is used again, the default document changes only with the policy.
func checkManagedPolicy(a *applier, was, n *fsmpb.Policy) (broken string) {
	if _, broken := policies.check(a, was, n); broken != "" {
		return broken
	}
	if broken := form.CheckPolicy(was, n, level.LimitsAt(a.state.level).Entities()); broken != "" {
		return broken
	}
	for _, v := range slices.Concat(n.Versions, was.GetVersions()) {
		id := PolicyVersionID(Account(n.Account), n.Name, v)
		if a.stands(fsmpb.Kind_KIND_POLICY_VERSION, id) != slices.Contains(n.Versions, v) {
			return "a managed policy has other versions than it lists"
		}
	}
	return ""
}

// policyIsUnused: a managed policy can be deleted only when nothing has it. Whoever deletes
// it need not have read the set of its uses.
func policyIsUnused(a *applier, was *fsmpb.Policy) Verdict {
	if a.count(fsmpb.Kind_KIND_POLICY_USES, EntityID(Account(was.Account), was.Name)) > 0 {
		return Conflict
	}
	return Accepted
}

// checkPolicyVersion: a version of a managed policy is listed by the policy, and never
// changes.
func checkPolicyVersion(a *applier, was, n *fsmpb.PolicyVersion) (broken string) {
	p := policyAfter(a, EntityID(Account(n.Account), n.Policy))
	switch most := level.LimitsAt(a.state.level).Policy; {
	case was != nil:
		return "it changes a version of a managed policy"
	case !form.IsPolicy(n.Document, most):
		return fmt.Sprintf("a version of a managed policy is not a JSON object of at most %d bytes", most)
	case p != nil && !slices.Contains(p.Versions, n.Number):
		return "a managed policy has other versions than it lists"
	}
	return ""
}

// versionIsUnlisted: a version of a managed policy is deleted together with its number in
// the policy, and is thus not the default.
func versionIsUnlisted(a *applier, v *fsmpb.PolicyVersion) Verdict {
	if p := policyAfter(a, EntityID(Account(v.Account), v.Policy)); p == nil || slices.Contains(p.Versions, v.Number) {
		a.broken = "it deletes a version that a managed policy lists"
		return Invalid
	}
	return Accepted
}
