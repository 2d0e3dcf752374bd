package iamops

import (
	"crypto/rand"
	"maps"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/request"
)

// entity is a user, a group, a role or a managed policy.
type entity interface {
	comparable
	proto.Message
	GetAccount() uint64
	GetName() string
	GetPath() string
	GetId() string
	GetCreated() int64
}

// kind says what differs between the kinds of entities.
type kind[M entity] struct {
	noun     string // as in ARNs
	title    string // as in messages and in the names of quotas
	resource string // as in records
	prefix   string // of unique ids
	put      func(M) *fsmpb.Change
	remove   func(*fsmpb.EntityID) *fsmpb.Change
	parts    func(M) parts
	// inlineSize returns the quota of the entity's inline policies together.
	inlineSize func(*request.Quotas) int
}

// parts are the parts of an entity that the same operations change for several kinds. Those
// that a kind does not have are nil.
type parts struct {
	tags     *[]*fsmpb.Tag
	policies *[]string
	inline   *[]*fsmpb.InlinePolicy
	boundary *string
}

var users = &kind[*fsmpb.User]{
	noun: "user", title: "User", resource: "AWS::IAM::User", prefix: "AIDA",
	put: func(m *fsmpb.User) *fsmpb.Change {
		return &fsmpb.Change{Change: &fsmpb.Change_PutUser{PutUser: m}}
	},
	remove: func(id *fsmpb.EntityID) *fsmpb.Change {
		return &fsmpb.Change{Change: &fsmpb.Change_DeleteUser{DeleteUser: id}}
	},
	parts:      func(m *fsmpb.User) parts { return parts{&m.Tags, &m.Policies, &m.Inline, &m.Boundary} },
	inlineSize: func(q *request.Quotas) int { return q.UserPolicySize },
}

var groups = &kind[*fsmpb.Group]{
	noun: "group", title: "Group", resource: "AWS::IAM::Group", prefix: "AGPA",
	put: func(m *fsmpb.Group) *fsmpb.Change {
		return &fsmpb.Change{Change: &fsmpb.Change_PutGroup{PutGroup: m}}
	},
	remove: func(id *fsmpb.EntityID) *fsmpb.Change {
		return &fsmpb.Change{Change: &fsmpb.Change_DeleteGroup{DeleteGroup: id}}
	},
	parts:      func(m *fsmpb.Group) parts { return parts{nil, &m.Policies, &m.Inline, nil} },
	inlineSize: func(q *request.Quotas) int { return q.GroupPolicySize },
}

var roles = &kind[*fsmpb.Role]{
	noun: "role", title: "Role", resource: "AWS::IAM::Role", prefix: "AROA",
	put: func(m *fsmpb.Role) *fsmpb.Change {
		return &fsmpb.Change{Change: &fsmpb.Change_PutRole{PutRole: m}}
	},
	remove: func(id *fsmpb.EntityID) *fsmpb.Change {
		return &fsmpb.Change{Change: &fsmpb.Change_DeleteRole{DeleteRole: id}}
	},
	parts:      func(m *fsmpb.Role) parts { return parts{&m.Tags, &m.Policies, &m.Inline, &m.Boundary} },
	inlineSize: func(q *request.Quotas) int { return q.RolePolicySize },
}

// bounded are the operations whose decisions may depend on a permissions boundary, by the
// condition key iam:PermissionsBoundary.
var bounded = map[string]bool{
	"CreateUser": true, "PutUserPermissionsBoundary": true, "DeleteUserPermissionsBoundary": true,
	"AttachUserPolicy": true, "DetachUserPolicy": true, "PutUserPolicy": true, "DeleteUserPolicy": true,
	"CreateRole": true, "PutRolePermissionsBoundary": true, "DeleteRolePermissionsBoundary": true,
	"AttachRolePolicy": true, "DetachRolePolicy": true, "PutRolePolicy": true, "DeleteRolePolicy": true,
}

// Condition keys, as in request.Conditions.
const (
	keyPolicyARN = "iam:policyarn"
	keyBoundary  = "iam:permissionsboundary"
)

func partition(ev *request.Evaluation) string { return ev.Cluster().GetPartition() }

// account returns the caller's account, as it stands in objects.
func account(ev *request.Evaluation) uint64 { return uint64(request.AccountOf(ev)) }

// arn returns the ARN of an entity.
func (k *kind[M]) arn(ev *request.Evaluation, m M) string {
	return iam.EntityARN(partition(ev), m.GetAccount(), k.noun, m.GetPath(), m.GetName())
}

// named returns the entity with a name, or nil. Names that differ only by case name the same
// object, so that no two entities have such names, but only the right one finds it.
func (k *kind[M]) named(ev *request.Evaluation, name string) M {
	var none M
	m := request.Read[M](ev, fsm.EntityID(request.AccountOf(ev), name))
	if m == none || m.GetName() != name {
		return none
	}
	return m
}

// find authorises the operation on the entity with a name, and returns the entity. more are
// values of condition keys; see request.Conditions. A denial does not tell whether there is an
// entity with the name.
func (k *kind[M]) find(ev *request.Evaluation, name string, more map[string][]string) (M, error) {
	var none M
	m, unknown := k.named(ev, name), iam.EntityARN(partition(ev), account(ev), k.noun, "/", name)
	if m == none {
		if err := k.authorise(ev, unknown, parts{}, more); err != nil {
			return none, err
		}
		return none, k.absent(name)
	}
	return m, k.authoriseNamed(ev, k.arn(ev, m), k.parts(m), more, unknown)
}

// absent returns the error for a name that no entity has.
func (k *kind[M]) absent(name string) error {
	return noSuch("The %s with name %s cannot be found.", k.noun, name)
}

// authorise authorises the operation on an entity with an ARN and parts.
func (k *kind[M]) authorise(ev *request.Evaluation, arn string, p parts, more map[string][]string) error {
	return k.authoriseNamed(ev, arn, p, more, arn)
}

// authoriseNamed is authorise for an entity that the caller may not know. A denial reads as if
// there were only what has the ARN told.
func (k *kind[M]) authoriseNamed(ev *request.Evaluation, arn string, p parts, more map[string][]string, told string) error {
	ev.Resource(k.resource, arn)
	c := &request.Conditions{More: more}
	if p.tags != nil {
		c.Tags = *p.tags
	}
	if p.boundary != nil && *p.boundary != "" && bounded[ev.Op.Name] && more[keyBoundary] == nil {
		c.More = maps.Clone(more)
		if c.More == nil {
			c.More = make(map[string][]string, 1)
		}
		c.More[keyBoundary] = []string{*p.boundary}
	}
	return ev.AuthoriseNamed(ev.Op.Action(), arn, c, told, &request.Conditions{More: more})
}

// change authorises the operation on the entity with a name and edits a copy of the entity. If
// the copy differs afterwards, it replaces the entity.
func (k *kind[M]) change(ev *request.Evaluation, name string, more map[string][]string, edit func(M) error) error {
	m, err := k.find(ev, name, more)
	if err != nil {
		return err
	}
	next := proto.CloneOf(m)
	if err := edit(next); err != nil {
		return err
	}
	if !proto.Equal(m, next) {
		ev.Change(k.put(next))
	}
	return nil
}

// create authorises the creation of an entity with tags and puts it. more are values of
// condition keys; see request.Conditions. check completes the entity, or refuses it.
func (k *kind[M]) create(ev *request.Evaluation, m M, tags []iamapi.Tag, more map[string][]string, check func() error) error {
	var none M
	if err := k.authorise(ev, k.arn(ev, m), parts{}, more); err != nil {
		return err
	}
	if err := authoriseTags(ev, "iam:Tag"+k.title, k.arn(ev, m), tags); err != nil {
		return err
	}
	if request.Read[M](ev, fsm.EntityID(request.AccountOf(ev), m.GetName())) != none {
		return exists("%s with name %s already exists.", k.title, m.GetName())
	}
	if err := checkPath(m.GetPath()); err != nil {
		return err
	}
	if err := check(); err != nil {
		return err
	}
	ev.Change(k.put(m))
	return nil
}

// rename authorises a change of the name or path of an entity for both its ARNs, and replaces
// the entity. set sets the name and path of the copy that it is given. As the name may be
// another one, the old object is deleted.
func (k *kind[M]) rename(ev *request.Evaluation, name string, newName, newPath *string, set func(m M, name, path string)) error {
	m, err := k.find(ev, name, nil)
	if err != nil {
		return err
	}
	next := proto.CloneOf(m)
	set(next, or(newName, m.GetName()), or(newPath, m.GetPath()))
	if err := checkPath(next.GetPath()); err != nil {
		return err
	}
	if proto.Equal(m, next) {
		return nil
	}
	if err := k.authorise(ev, k.arn(ev, next), k.parts(next), nil); err != nil {
		return err
	}
	if fsm.EntityName(next.GetName()) != fsm.EntityName(name) {
		var none M
		if request.Read[M](ev, fsm.EntityID(request.AccountOf(ev), next.GetName())) != none {
			return exists("%s with name %s already exists.", k.title, next.GetName())
		}
		// It is found by its unique id too, so the old object has to go first.
		k.delete(ev, m)
	}
	ev.Change(k.put(next))
	return nil
}

// delete adds the deletion of an entity to the record.
func (k *kind[M]) delete(ev *request.Evaluation, m M) {
	ev.Change(k.remove(&fsmpb.EntityID{Account: m.GetAccount(), Name: m.GetName()}))
}

// checkPath refuses paths that no policy could name: policies take * and ? for wildcards, and
// paths with empty parts are no part of ARNs.
func checkPath(path string) error {
	if strings.ContainsAny(path, "*?") || strings.Contains(path, "//") {
		return invalidInput("The path %s must not contain *, ? or empty parts.", path)
	}
	return nil
}

// newID returns a new unique id. It has 85 random bits, so no id is given twice.
func newID(prefix string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
	b := make([]byte, 17)
	_, _ = rand.Read(b) // never fails: crypto/rand ends the process instead
	for i, c := range b {
		b[i] = alphabet[c%32]
	}
	return prefix + string(b)
}

// or returns the value of an optional member, or another one if it is absent.
func or(s *string, other string) string {
	if s == nil {
		return other
	}
	return *s
}

// timeOf returns a time of an object, as answers have it: IAM's are in whole seconds.
func timeOf(nanoseconds int64) *time.Time {
	return new(time.Unix(0, nanoseconds).UTC().Truncate(time.Second))
}

// some returns nil for an empty text.
func some(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
