package request

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Quotas limit what an account may have. 0 means AWS's default. They are enforced by the
// node that evaluates a request, so they should be the same on all nodes. Lowering a quota
// does not affect what exists already.
type Quotas struct {
	// Keys in each Region (AWS: 100,000). The count is not in any read set, as only one key
	// could be created at a time then, so concurrent requests may exceed the quota
	// slightly.
	Keys int
	// KeyStores in each Region (AWS: 10).
	KeyStores int
	// For each key: aliases (AWS: 50), tags (50), grants (50,000; like Keys, this may be
	// exceeded slightly) and rotations on demand (25). Users, roles, managed policies and
	// identity providers have as many tags as keys.
	Aliases, Tags, Grants, Rotations int

	// Accounts of the cluster, with that of its initialisation; here as many as there is memory
	// for. Like Keys, this may be exceeded slightly.
	Accounts int
	// Users of an account (AWS: 5,000; here as many as there is memory for). Like Keys, this
	// may be exceeded slightly.
	Users int
	// AccessKeys of each user and of the root user (AWS: 2).
	AccessKeys int
	// AttachedPolicies are the managed policies that may be attached to a user, a group or a
	// role (AWS: 10).
	AttachedPolicies int
	// PolicyVersions of each managed policy (AWS: 5).
	PolicyVersions int
	// GroupsPerUser is in how many groups a user may be (AWS: 10).
	GroupsPerUser int
	// The lengths of policy documents, in characters that are not white space: of a managed
	// policy (AWS: 6,144), of the inline policies of a user (2,048), a group (5,120) and a
	// role (10,240) together, and of the trust policy of a role (2,048).
	PolicySize, UserPolicySize, GroupPolicySize, RolePolicySize, TrustPolicySize int
}

// MaxQuota is the largest value of a quota. Larger numbers are untested.
const MaxQuota = 1_000_000

// DefaultQuotas are AWS's defaults, but for Accounts and Users.
var DefaultQuotas = Quotas{
	Keys: 100_000, KeyStores: 10, Aliases: 50, Tags: 50, Grants: 50_000, Rotations: 25,
	Accounts: MaxQuota, Users: MaxQuota, AccessKeys: 2, AttachedPolicies: 10, PolicyVersions: 5, GroupsPerUser: 10,
	PolicySize: 6_144, UserPolicySize: 2_048, GroupPolicySize: 5_120, RolePolicySize: 10_240, TrustPolicySize: 2_048,
}

// fields returns the quotas by their names in settings.
func (q *Quotas) fields() map[string]*int {
	return map[string]*int{
		"keys": &q.Keys, "key-stores": &q.KeyStores, "aliases-per-key": &q.Aliases, "tags-per-key": &q.Tags,
		"grants-per-key": &q.Grants, "rotations-per-key": &q.Rotations,
		"accounts": &q.Accounts, "users": &q.Users, "access-keys-per-user": &q.AccessKeys, "managed-policies-per-principal": &q.AttachedPolicies,
		"versions-per-policy": &q.PolicyVersions, "groups-per-user": &q.GroupsPerUser,
		"policy-size": &q.PolicySize, "user-policy-size": &q.UserPolicySize, "group-policy-size": &q.GroupPolicySize,
		"role-policy-size": &q.RolePolicySize, "trust-policy-size": &q.TrustPolicySize,
	}
}

// Set sets the quota with the given name, as used in settings, to n.
func (q *Quotas) Set(name string, n int) error {
	f := q.fields()[name]
	switch {
	case f == nil:
		return fmt.Errorf("there is no quota %q: take one of %s", name, strings.Join(slices.Sorted(maps.Keys(q.fields())), ", "))
	case n < 1 || n > MaxQuota:
		return fmt.Errorf("the quota %s is %d: take 1 to %d", name, n, MaxQuota)
	}
	*f = n
	return nil
}

// OrDefault returns the quotas with AWS's defaults for those that are not set.
func (q Quotas) OrDefault() Quotas {
	standard := DefaultQuotas
	fallback := standard.fields()
	for name, f := range q.fields() {
		*f = cmp.Or(*f, *fallback[name])
	}
	return q
}
