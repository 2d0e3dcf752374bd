package fsm

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// The kinds of identity and access management. Who may do what is decided by package
// policy; here are the rules that hold whatever was decided.

// entity has the fields that users, groups, roles and policies have in common.
type entity interface {
	message
	GetAccount() uint64
	GetName() string
	GetPath() string
	GetId() string
	GetCreated() int64
}

const (
	// maxEntityName is the longest name of a user, group, role or policy in IAM.
	maxEntityName = 128
	maxEntityPath = 512
	// maxProviderURL is the longest URL of an identity provider in IAM.
	maxProviderURL = 255
)

// EntityName returns a name as it stands in ids, where case does not count.
func EntityName(name string) string {
	b := []byte(name)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// EntityID returns the id of a user, group, role, policy or identity provider, and of the
// set of a policy's uses.
func EntityID(a Account, name string) []byte { return named(a, EntityName(name)) }

// PolicyVersionID returns the id of a version of a managed policy.
func PolicyVersionID(a Account, policy string, number uint32) []byte {
	// No name has a byte that is zero.
	return binary.BigEndian.AppendUint32(append(EntityID(a, policy), 0), number)
}

// GroupMembersID returns the id of the set of a group's users.
func GroupMembersID(a Account, group string) []byte { return named(a, group) }

func entityID[M entity](m M) ([]byte, bool) {
	a := Account(m.GetAccount())
	return EntityID(a, m.GetName()), a.Valid()
}

func byEntity(get func(*fsmpb.Change) *fsmpb.EntityID) func(*fsmpb.Change) ([]byte, bool, bool) {
	return byID(get, func(d *fsmpb.EntityID) ([]byte, bool) {
		a := Account(d.Account)
		return EntityID(a, d.Name), a.Valid()
	})
}

// byUniqueID is an index of entities by their unique ids.
func byUniqueID[M entity]() *index[M] {
	return newIndex(func(a, b M) bool {
		if a.GetAccount() != b.GetAccount() {
			return a.GetAccount() < b.GetAccount()
		}
		return a.GetId() < b.GetId()
	}, nil)
}

var (
	usersByID  = byUniqueID[*fsmpb.User]()
	groupsByID = byUniqueID[*fsmpb.Group]()
	rolesByID  = byUniqueID[*fsmpb.Role]()
)

// checkEntity: the unique id of an entity has the prefix of its kind and never changes,
// and no other entity of the kind has it.
func checkEntity[M entity](a *applier, was, n M, prefix string, ids *index[M], same func(account uint64, id string) M) (broken string) {
	var none M
	switch {
	case len(n.GetId()) < 16 || len(n.GetId()) > 128 || !strings.HasPrefix(n.GetId(), prefix):
		return "an entity has no unique id of its kind"
	case len(n.GetPath()) == 0 || len(n.GetPath()) > maxEntityPath || n.GetPath()[0] != '/' || n.GetPath()[len(n.GetPath())-1] != '/':
		return "an entity has no valid path"
	case was != none && (was.GetId() != n.GetId() || was.GetCreated() != n.GetCreated()):
		return "it changes the unique id or creation date of an entity"
	}
	if was == none && ids != nil {
		// An entity that is renamed is deleted in the same record.
		if other, ok := ids.in(a.db).Get(same(n.GetAccount(), n.GetId())); ok && !a.goes(other) {
			return "it gives an entity the unique id of another one"
		}
	}
	return ""
}

// goes reports whether the record that is being applied deletes an entity.
func (a *applier) goes(m proto.Message) bool {
	return slices.ContainsFunc(a.edits, func(e edit) bool {
		return e.does != nil && e.does.deletes && e.was != nil && e.was.value == m
	})
}

// policiesUsed returns the sets of uses of the customer managed policies with the given
// ARNs, which belong to the account.
func policiesUsed(account uint64, arns []string, boundary string) (sets [][]byte) {
	a := Account(account)
	add := func(arn string) {
		if name, ok := ownPolicy(a, arn); ok {
			sets = append(sets, EntityID(a, name))
		}
	}
	for _, arn := range arns {
		add(arn)
	}
	if boundary != "" {
		add(boundary)
	}
	return sets
}

// ownPolicy returns the name in the ARN of a managed policy of an account.
func ownPolicy(a Account, arn string) (name string, ok bool) {
	parts := strings.SplitN(arn, ":", 6)
	if len(parts) != 6 || parts[4] != a.String() {
		return "", false
	}
	rest, ok := strings.CutPrefix(parts[5], "policy/")
	return rest[strings.LastIndexByte(rest, '/')+1:], ok
}

func iamKinds() []*row {
	return []*row{
		newRow(spec[*fsmpb.Account]{
			kind:    fsmpb.Kind_KIND_ACCOUNT,
			item:    (*fsmpb.SnapshotItem).GetAccount,
			version: func(m *fsmpb.Account) *Version { return &m.Version },
			id: func(m *fsmpb.Account) ([]byte, bool) {
				a := Account(m.GetAccount())
				return AccountID(a), a.Valid()
			},
			whole:     true,
			malformed: "an account has no valid number",
			put:       (*fsmpb.Change).GetPutAccount,
			rule:      (*applier).checkAccount,
		}),
		newRow(spec[*fsmpb.User]{
			kind:      fsmpb.Kind_KIND_USER,
			item:      (*fsmpb.SnapshotItem).GetUser,
			version:   func(m *fsmpb.User) *Version { return &m.Version },
			id:        func(m *fsmpb.User) ([]byte, bool) { return entityID(m) },
			name:      (*fsmpb.User).GetName,
			maxName:   maxEntityName,
			malformed: "a user has no valid name",
			put:       (*fsmpb.Change).GetPutUser,
			rule: func(a *applier, was, n *fsmpb.User) string {
				return checkEntity(a, was, n, "AIDA", usersByID, func(account uint64, id string) *fsmpb.User {
					return &fsmpb.User{Account: account, Id: id}
				})
			},
			delete: &deletion[*fsmpb.User]{of: byEntity((*fsmpb.Change).GetDeleteUser), malformed: "a user has no valid account"},
			tallies: []tally[*fsmpb.User]{
				{fsmpb.Kind_KIND_GROUP_MEMBERS, func(m *fsmpb.User) (sets [][]byte) {
					for _, g := range m.Groups {
						sets = append(sets, GroupMembersID(Account(m.Account), g))
					}
					return sets
				}},
				{fsmpb.Kind_KIND_POLICY_USES, func(m *fsmpb.User) [][]byte { return policiesUsed(m.Account, m.Policies, m.Boundary) }},
			},
			compact: func(t *texts, _ *table, _ *object, m *fsmpb.User) {
				t.share(&m.Path, &m.Boundary)
				shareAll(t, m.Policies, m.Inline)
				for i := range m.Groups {
					t.share(&m.Groups[i])
				}
			},
			indexes: []*index[*fsmpb.User]{usersByID},
		}),
		newRow(spec[*fsmpb.Group]{
			kind:      fsmpb.Kind_KIND_GROUP,
			item:      (*fsmpb.SnapshotItem).GetGroup,
			version:   func(m *fsmpb.Group) *Version { return &m.Version },
			id:        func(m *fsmpb.Group) ([]byte, bool) { return entityID(m) },
			name:      (*fsmpb.Group).GetName,
			maxName:   maxEntityName,
			malformed: "a group has no valid name",
			put:       (*fsmpb.Change).GetPutGroup,
			rule: func(a *applier, was, n *fsmpb.Group) string {
				return checkEntity(a, was, n, "AGPA", groupsByID, func(account uint64, id string) *fsmpb.Group {
					return &fsmpb.Group{Account: account, Id: id}
				})
			},
			delete: &deletion[*fsmpb.Group]{
				of:        byEntity((*fsmpb.Change).GetDeleteGroup),
				malformed: "a group has no valid account",
				gone:      forgetMembers,
			},
			tallies: []tally[*fsmpb.Group]{
				{fsmpb.Kind_KIND_POLICY_USES, func(m *fsmpb.Group) [][]byte { return policiesUsed(m.Account, m.Policies, "") }},
			},
			compact: func(t *texts, _ *table, _ *object, m *fsmpb.Group) {
				t.share(&m.Path)
				shareAll(t, m.Policies, m.Inline)
			},
			indexes: []*index[*fsmpb.Group]{groupsByID},
		}),
		newRow(spec[*fsmpb.Role]{
			kind:      fsmpb.Kind_KIND_ROLE,
			item:      (*fsmpb.SnapshotItem).GetRole,
			version:   func(m *fsmpb.Role) *Version { return &m.Version },
			id:        func(m *fsmpb.Role) ([]byte, bool) { return entityID(m) },
			name:      (*fsmpb.Role).GetName,
			maxName:   maxEntityName,
			malformed: "a role has no valid name",
			put:       (*fsmpb.Change).GetPutRole,
			rule:      (*applier).checkRole,
			delete:    &deletion[*fsmpb.Role]{of: byEntity((*fsmpb.Change).GetDeleteRole), malformed: "a role has no valid account"},
			tallies: []tally[*fsmpb.Role]{
				{fsmpb.Kind_KIND_POLICY_USES, func(m *fsmpb.Role) [][]byte { return policiesUsed(m.Account, m.Policies, m.Boundary) }},
			},
			compact: func(t *texts, _ *table, _ *object, m *fsmpb.Role) {
				t.share(&m.Path, &m.Boundary, &m.Trust)
				shareAll(t, m.Policies, m.Inline)
			},
			indexes: []*index[*fsmpb.Role]{rolesByID},
		}),
		newRow(spec[*fsmpb.Policy]{
			kind:      fsmpb.Kind_KIND_POLICY,
			item:      (*fsmpb.SnapshotItem).GetPolicy,
			version:   func(m *fsmpb.Policy) *Version { return &m.Version },
			id:        func(m *fsmpb.Policy) ([]byte, bool) { return entityID(m) },
			name:      (*fsmpb.Policy).GetName,
			maxName:   maxEntityName,
			malformed: "a managed policy has no valid name",
			put:       (*fsmpb.Change).GetPutPolicy,
			rule:      (*applier).checkManagedPolicy,
			delete:    &deletion[*fsmpb.Policy]{of: byEntity((*fsmpb.Change).GetDeletePolicy), malformed: "a managed policy has no valid account"},
			absent:    "it stores a version of a managed policy that does not exist",
		}),
		newRow(spec[*fsmpb.PolicyVersion]{
			kind:    fsmpb.Kind_KIND_POLICY_VERSION,
			item:    (*fsmpb.SnapshotItem).GetPolicyVersion,
			version: func(m *fsmpb.PolicyVersion) *Version { return &m.Version },
			id: func(m *fsmpb.PolicyVersion) ([]byte, bool) {
				a := Account(m.GetAccount())
				return PolicyVersionID(a, m.GetPolicy(), m.GetNumber()), a.Valid() && m.GetNumber() > 0
			},
			name:      (*fsmpb.PolicyVersion).GetPolicy,
			maxName:   maxEntityName,
			malformed: "a version of a managed policy has no valid policy or number",
			put:       (*fsmpb.Change).GetPutPolicyVersion,
			rule:      (*applier).checkPolicyVersion,
			delete: &deletion[*fsmpb.PolicyVersion]{
				of: byID((*fsmpb.Change).GetDeletePolicyVersion, func(d *fsmpb.PolicyVersionID) ([]byte, bool) {
					a := Account(d.Account)
					return PolicyVersionID(a, d.Policy, d.Number), a.Valid()
				}),
				malformed: "a version of a managed policy has no valid account",
				rule:      (*applier).versionIsUnlisted,
			},
			owner: &owner[*fsmpb.PolicyVersion]{
				kind: fsmpb.Kind_KIND_POLICY,
				id:   func(m *fsmpb.PolicyVersion) []byte { return EntityID(Account(m.Account), m.Policy) },
				all: func(db *table, policy []byte) []*object {
					return under(db, fsmpb.Kind_KIND_POLICY_VERSION, append(slices.Clip(policy), 0))
				},
			},
			compact: func(t *texts, _ *table, _ *object, m *fsmpb.PolicyVersion) { t.share(&m.Policy, &m.Document) },
		}),
		newRow(spec[*fsmpb.GroupMembers]{
			kind:    fsmpb.Kind_KIND_GROUP_MEMBERS,
			item:    (*fsmpb.SnapshotItem).GetGroupMembers,
			version: func(m *fsmpb.GroupMembers) *Version { return &m.Version },
			id: func(m *fsmpb.GroupMembers) ([]byte, bool) {
				a := Account(m.GetAccount())
				return GroupMembersID(a, m.GetGroup()), a.Valid()
			},
			count: func(id []byte, n uint32, v Version) *fsmpb.GroupMembers {
				a, group, _ := CutAccount(id)
				return &fsmpb.GroupMembers{Account: uint64(a), Group: string(group), Count: n, Version: v}
			},
			counted: (*fsmpb.GroupMembers).GetCount,
		}),
		newRow(spec[*fsmpb.PolicyUses]{
			kind:    fsmpb.Kind_KIND_POLICY_USES,
			item:    (*fsmpb.SnapshotItem).GetPolicyUses,
			version: func(m *fsmpb.PolicyUses) *Version { return &m.Version },
			id: func(m *fsmpb.PolicyUses) ([]byte, bool) {
				a := Account(m.GetAccount())
				return EntityID(a, m.GetPolicy()), a.Valid()
			},
			owner: &owner[*fsmpb.PolicyUses]{kind: fsmpb.Kind_KIND_POLICY},
			count: func(id []byte, n uint32, v Version) *fsmpb.PolicyUses {
				a, policy, _ := CutAccount(id)
				return &fsmpb.PolicyUses{Account: uint64(a), Policy: string(policy), Count: n, Version: v}
			},
			counted: (*fsmpb.PolicyUses).GetCount,
		}),
		newRow(spec[*fsmpb.OidcProvider]{
			kind:    fsmpb.Kind_KIND_OIDC_PROVIDER,
			item:    (*fsmpb.SnapshotItem).GetOidcProvider,
			version: func(m *fsmpb.OidcProvider) *Version { return &m.Version },
			id: func(m *fsmpb.OidcProvider) ([]byte, bool) {
				a := Account(m.GetAccount())
				return named(a, m.GetUrl()), a.Valid()
			},
			name:      (*fsmpb.OidcProvider).GetUrl,
			maxName:   maxProviderURL,
			malformed: "an identity provider has no valid URL",
			put:       (*fsmpb.Change).GetPutOidcProvider,
			rule: func(_ *applier, was, n *fsmpb.OidcProvider) string {
				switch {
				case was != nil && was.Created != n.Created:
					return "it changes the creation date of an identity provider"
				case n.RevokedBefore < was.GetRevokedBefore():
					return "it restores sessions that were revoked"
				}
				return ""
			},
			delete: &deletion[*fsmpb.OidcProvider]{
				of: byID((*fsmpb.Change).GetDeleteOidcProvider, func(d *fsmpb.EntityID) ([]byte, bool) {
					a := Account(d.Account)
					return OidcProviderID(a, d.Name), a.Valid()
				}),
				malformed: "an identity provider has no valid account",
			},
		}),
	}
}

// forgetMembers deletes the set of a group's users together with the group. A group that is
// renamed is deleted and put again in one record, and keeps the set.
func forgetMembers(a *applier, _ []byte, was *fsmpb.Group) {
	if slices.ContainsFunc(a.edits, func(e edit) bool {
		p := e.GetPutGroup()
		return p != nil && p.Account == was.Account && p.Id == was.Id
	}) {
		return
	}
	if o := lookup(a.db, fsmpb.Kind_KIND_GROUP_MEMBERS, GroupMembersID(Account(was.Account), was.Id)); o != nil {
		a.remove(o)
	}
}

// OidcProviderID returns the id of an identity provider, which is named by its URL.
func OidcProviderID(a Account, url string) []byte { return named(a, url) }

func shareAll(t *texts, policies []string, inline []*fsmpb.InlinePolicy) {
	for i := range policies {
		t.share(&policies[i])
	}
	for _, p := range inline {
		t.share(&p.Name, &p.Document)
	}
}

// checkAccount: the account of a cluster cannot be replaced by one that is created later,
// and when an account was created never changes.
func (a *applier) checkAccount(was, n *fsmpb.Account) (broken string) {
	if was != nil && was.Created != n.Created {
		return "it changes the creation date of an account"
	}
	return ""
}

// checkRole: sessions that were ended stay ended.
func (a *applier) checkRole(was, n *fsmpb.Role) (broken string) {
	if n.RevokedBefore < was.GetRevokedBefore() {
		return "it restores sessions that were revoked"
	}
	return checkEntity(a, was, n, "AROA", rolesByID, func(account uint64, id string) *fsmpb.Role {
		return &fsmpb.Role{Account: account, Id: id}
	})
}

// checkManagedPolicy: the default version exists, and numbers of versions are never used
// again. The default document can then not change without the policy.
func (a *applier) checkManagedPolicy(was, n *fsmpb.Policy) (broken string) {
	switch {
	case !slices.Contains(n.Versions, n.DefaultVersion):
		return "the default version of a managed policy does not exist"
	case n.Newest < was.GetNewest() || slices.Max(n.Versions) > n.Newest:
		return "it uses the number of a policy version again"
	case !a.stands(fsmpb.Kind_KIND_POLICY_VERSION, PolicyVersionID(Account(n.Account), n.Name, n.DefaultVersion)):
		return "the default version of a managed policy does not exist"
	}
	return checkEntity(a, was, n, "ANPA", nil, nil)
}

// versionIsUnlisted: a version of a policy is deleted together with its number in the
// policy, which is thus not the default.
func (a *applier) versionIsUnlisted(v *fsmpb.PolicyVersion) Verdict {
	if !slices.ContainsFunc(a.edits, func(e edit) bool {
		p := e.GetPutPolicy()
		return p != nil && p.Account == v.Account && EntityName(p.Name) == EntityName(v.Policy) && !slices.Contains(p.Versions, v.Number)
	}) {
		a.broken = "it deletes a version that a managed policy lists"
		return Invalid
	}
	return Accepted
}

// checkPolicyVersion: a version of a managed policy never changes.
func (a *applier) checkPolicyVersion(was, n *fsmpb.PolicyVersion) (broken string) {
	switch most := limitsAt(a.state.level).policy; {
	case was != nil:
		return "it changes a version of a managed policy"
	case len(n.Document) == 0 || len(n.Document) > most:
		return fmt.Sprintf("a version of a managed policy has no document of at most %d bytes", most)
	}
	return ""
}
