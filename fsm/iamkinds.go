package fsm

import (
	"encoding/binary"
	"slices"

	"github.com/conclavekms/conclave/fsm/form"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/intern"
	"github.com/conclavekms/conclave/fsm/level"
)

// The kinds of identity and access management. Who may do what is decided by package
// policy; iamrules.go and package form have the rules that hold whatever was decided.

// entity has the fields that users, groups, roles and policies have in common.
type entity interface {
	message
	GetAccount() uint64
	GetName() string
	GetPath() string
	GetId() string
	GetCreated() int64
}

// EntityName returns a name as it stands in ids, where case does not count.
func EntityName(name string) string { return string(form.AppendLower(nil, name)) }

// EntityID returns the id of a user, group, role or policy, and of the set of a policy's
// uses.
func EntityID(a Account, name string) []byte {
	return form.AppendLower(a.Append(make([]byte, 0, accountBytes+len(name))), name)
}

// PolicyVersionID returns the id of a version of a managed policy.
func PolicyVersionID(a Account, policy string, number uint32) []byte {
	// No valid name has a byte that is zero, so the versions of no policy are among those of
	// another one.
	return binary.BigEndian.AppendUint32(append(EntityID(a, policy), 0), number)
}

// OidcProviderID returns the id of an identity provider, which is named by its URL.
func OidcProviderID(a Account, url string) []byte { return named(a, url) }

// CertificateMappingID returns the id of a certificate mapping, which is named by its pattern.
func CertificateMappingID(a Account, pattern string) []byte { return named(a, pattern) }

// GroupMembersID returns the id of the set of a group's users.
func GroupMembersID(a Account, group string) []byte { return named(a, group) }

func entityID[M entity](m M) ([]byte, bool) {
	a := Account(m.GetAccount())
	return EntityID(a, m.GetName()), a.Valid() && form.IsName(m.GetName())
}

func byEntity(get func(*fsmpb.Change) *fsmpb.EntityID) func(*fsmpb.Change) ([]byte, bool, bool) {
	return byID(get, func(d *fsmpb.EntityID) ([]byte, bool) {
		a := Account(d.Account)
		return EntityID(a, d.Name), a.Valid() && form.IsName(d.Name)
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
	usersByID    = byUniqueID[*fsmpb.User]()
	groupsByID   = byUniqueID[*fsmpb.Group]()
	rolesByID    = byUniqueID[*fsmpb.Role]()
	policiesByID = byUniqueID[*fsmpb.Policy]()
)

// policiesUsed returns the sets of uses of the customer managed policies with the given
// ARNs, which belong to the account.
func policiesUsed(account uint64, arns []string, boundary string) (sets [][]byte) {
	for _, arn := range arns {
		if set := ownPolicy(account, arn); set != nil {
			sets = append(sets, set)
		}
	}
	if set := ownPolicy(account, boundary); set != nil {
		sets = append(sets, set)
	}
	return sets
}

// ownPolicy returns the id of the managed policy with an ARN if it belongs to the account;
// nil for any other ARN.
func ownPolicy(account uint64, arn string) []byte {
	owner, _, name, ok := form.CutPolicyARN(arn)
	if a := Account(account); ok && owner == a.String() {
		return EntityID(a, name)
	}
	return nil
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
			rule:      func(_ *applier, was, n *fsmpb.Account) string { return form.CheckAccount(was, n) },
		}),
		newRow(spec[*fsmpb.User]{
			kind:      fsmpb.Kind_KIND_USER,
			item:      (*fsmpb.SnapshotItem).GetUser,
			version:   func(m *fsmpb.User) *Version { return &m.Version },
			id:        func(m *fsmpb.User) ([]byte, bool) { return entityID(m) },
			name:      (*fsmpb.User).GetName,
			maxName:   form.MaxName,
			malformed: "a user has no valid name",
			put:       (*fsmpb.Change).GetPutUser,
			rule:      checkUser,
			delete: &deletion[*fsmpb.User]{
				of:        byEntity((*fsmpb.Change).GetDeleteUser),
				malformed: "a user has no valid name",
				rule:      userHasNoKeys,
			},
			tallies: []tally[*fsmpb.User]{
				{fsmpb.Kind_KIND_GROUP_MEMBERS, func(m *fsmpb.User) (sets [][]byte) {
					for _, g := range m.GetGroups() {
						sets = append(sets, GroupMembersID(Account(m.GetAccount()), g))
					}
					return sets
				}},
				{fsmpb.Kind_KIND_POLICY_USES, func(m *fsmpb.User) [][]byte { return policiesUsed(m.GetAccount(), m.GetPolicies(), m.GetBoundary()) }},
			},
			compact: func(t *intern.Texts, _ *table, _ *object, m *fsmpb.User) {
				t.Share(&m.Path, &m.Boundary)
				shareAll(t, m.Policies, m.Inline)
				for i := range m.Groups {
					t.Share(&m.Groups[i])
				}
			},
			indexes: []*index[*fsmpb.User]{usersByID},
			texts:   func(m *fsmpb.User) []string { return foundBy(m.Policies, m.Boundary, m.Groups) },
		}),
		newRow(spec[*fsmpb.Group]{
			kind:      fsmpb.Kind_KIND_GROUP,
			item:      (*fsmpb.SnapshotItem).GetGroup,
			version:   func(m *fsmpb.Group) *Version { return &m.Version },
			id:        func(m *fsmpb.Group) ([]byte, bool) { return entityID(m) },
			name:      (*fsmpb.Group).GetName,
			maxName:   form.MaxName,
			malformed: "a group has no valid name",
			put:       (*fsmpb.Change).GetPutGroup,
			rule:      checkGroup,
			delete: &deletion[*fsmpb.Group]{
				of:        byEntity((*fsmpb.Change).GetDeleteGroup),
				malformed: "a group has no valid name",
				rule:      groupIsEmpty,
				gone:      groupIsGone,
			},
			tallies: []tally[*fsmpb.Group]{
				{fsmpb.Kind_KIND_POLICY_USES, func(m *fsmpb.Group) [][]byte { return policiesUsed(m.GetAccount(), m.GetPolicies(), "") }},
			},
			compact: func(t *intern.Texts, _ *table, _ *object, m *fsmpb.Group) {
				t.Share(&m.Path)
				shareAll(t, m.Policies, m.Inline)
			},
			indexes: []*index[*fsmpb.Group]{groupsByID},
			texts:   func(m *fsmpb.Group) []string { return m.Policies },
		}),
		newRow(spec[*fsmpb.Role]{
			kind:      fsmpb.Kind_KIND_ROLE,
			item:      (*fsmpb.SnapshotItem).GetRole,
			version:   func(m *fsmpb.Role) *Version { return &m.Version },
			id:        func(m *fsmpb.Role) ([]byte, bool) { return entityID(m) },
			name:      (*fsmpb.Role).GetName,
			maxName:   form.MaxName,
			malformed: "a role has no valid name",
			put:       (*fsmpb.Change).GetPutRole,
			rule:      checkRole,
			delete:    &deletion[*fsmpb.Role]{of: byEntity((*fsmpb.Change).GetDeleteRole), malformed: "a role has no valid name"},
			tallies: []tally[*fsmpb.Role]{
				{fsmpb.Kind_KIND_POLICY_USES, func(m *fsmpb.Role) [][]byte { return policiesUsed(m.GetAccount(), m.GetPolicies(), m.GetBoundary()) }},
			},
			compact: func(t *intern.Texts, _ *table, _ *object, m *fsmpb.Role) {
				t.Share(&m.Path, &m.Boundary, &m.Trust)
				shareAll(t, m.Policies, m.Inline)
				shareBindings(t, m.TrustBindings)
			},
			indexes: []*index[*fsmpb.Role]{rolesByID},
			texts:   func(m *fsmpb.Role) []string { return foundBy(m.Policies, m.Boundary, nil) },
		}),
		newRow(spec[*fsmpb.Policy]{
			kind:      fsmpb.Kind_KIND_POLICY,
			item:      (*fsmpb.SnapshotItem).GetPolicy,
			version:   func(m *fsmpb.Policy) *Version { return &m.Version },
			id:        func(m *fsmpb.Policy) ([]byte, bool) { return entityID(m) },
			name:      (*fsmpb.Policy).GetName,
			maxName:   form.MaxName,
			malformed: "a managed policy has no valid name",
			put:       (*fsmpb.Change).GetPutPolicy,
			rule:      checkManagedPolicy,
			delete: &deletion[*fsmpb.Policy]{
				of:        byEntity((*fsmpb.Change).GetDeletePolicy),
				malformed: "a managed policy has no valid name",
				rule:      policyIsUnused,
			},
			absent:  "it stores a version of a managed policy that does not exist",
			indexes: []*index[*fsmpb.Policy]{policiesByID},
		}),
		newRow(spec[*fsmpb.PolicyVersion]{
			kind:    fsmpb.Kind_KIND_POLICY_VERSION,
			item:    (*fsmpb.SnapshotItem).GetPolicyVersion,
			version: func(m *fsmpb.PolicyVersion) *Version { return &m.Version },
			id: func(m *fsmpb.PolicyVersion) ([]byte, bool) {
				a := Account(m.GetAccount())
				return PolicyVersionID(a, m.GetPolicy(), m.GetNumber()), a.Valid() && form.IsName(m.GetPolicy()) && m.GetNumber() > 0
			},
			name:      (*fsmpb.PolicyVersion).GetPolicy,
			maxName:   form.MaxName,
			malformed: "a version of a managed policy has no valid policy or number",
			put:       (*fsmpb.Change).GetPutPolicyVersion,
			rule:      checkPolicyVersion,
			delete: &deletion[*fsmpb.PolicyVersion]{
				of: byID((*fsmpb.Change).GetDeletePolicyVersion, func(d *fsmpb.PolicyVersionID) ([]byte, bool) {
					a := Account(d.Account)
					return PolicyVersionID(a, d.Policy, d.Number), a.Valid() && form.IsName(d.Policy)
				}),
				malformed: "a version of a managed policy has no valid policy",
				rule:      versionIsUnlisted,
			},
			owner: &owner[*fsmpb.PolicyVersion]{
				kind: fsmpb.Kind_KIND_POLICY,
				id:   func(m *fsmpb.PolicyVersion) []byte { return EntityID(Account(m.Account), m.Policy) },
				all: func(db *table, policy []byte) []*object {
					return under(db, fsmpb.Kind_KIND_POLICY_VERSION, append(slices.Clip(policy), 0))
				},
			},
			compact: func(t *intern.Texts, _ *table, _ *object, m *fsmpb.PolicyVersion) { t.Share(&m.Policy, &m.Document) },
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
				return OidcProviderID(a, m.GetUrl()), a.Valid() && form.IsVisible(m.GetUrl())
			},
			name:      (*fsmpb.OidcProvider).GetUrl,
			maxName:   form.MaxURL,
			malformed: "an identity provider has no valid URL",
			put:       (*fsmpb.Change).GetPutOidcProvider,
			rule: func(a *applier, was, n *fsmpb.OidcProvider) string {
				return form.CheckProvider(was, n, level.LimitsAt(a.state.level).Entities())
			},
			delete: &deletion[*fsmpb.OidcProvider]{
				of: byID((*fsmpb.Change).GetDeleteOidcProvider, func(d *fsmpb.EntityID) ([]byte, bool) {
					a := Account(d.Account)
					return OidcProviderID(a, d.Name), a.Valid() && form.IsVisible(d.Name)
				}),
				malformed: "an identity provider has no valid name",
			},
		}),
		newRow(spec[*fsmpb.CertificateMapping]{
			kind:    fsmpb.Kind_KIND_CERTIFICATE_MAPPING,
			item:    (*fsmpb.SnapshotItem).GetCertificateMapping,
			version: func(m *fsmpb.CertificateMapping) *Version { return &m.Version },
			id: func(m *fsmpb.CertificateMapping) ([]byte, bool) {
				a := Account(m.GetAccount())
				return CertificateMappingID(a, m.GetPattern()), a.Valid() && form.IsVisible(m.GetPattern())
			},
			name:      (*fsmpb.CertificateMapping).GetPattern,
			maxName:   form.MaxPattern,
			malformed: "a certificate mapping has no valid pattern",
			put:       (*fsmpb.Change).GetPutCertificateMapping,
			rule:      func(_ *applier, was, n *fsmpb.CertificateMapping) string { return form.CheckMapping(was, n) },
			delete: &deletion[*fsmpb.CertificateMapping]{
				of: byID((*fsmpb.Change).GetDeleteCertificateMapping, func(d *fsmpb.CertificateMappingID) ([]byte, bool) {
					a := Account(d.Account)
					return CertificateMappingID(a, d.Pattern), a.Valid() && form.IsVisible(d.Pattern)
				}),
				malformed: "a certificate mapping has no valid pattern",
			},
		}),
	}
}

func shareAll(t *intern.Texts, policies []string, inline []*fsmpb.InlinePolicy) {
	for i := range policies {
		t.Share(&policies[i])
	}
	for _, p := range inline {
		t.Share(&p.Name, &p.Document)
	}
}
