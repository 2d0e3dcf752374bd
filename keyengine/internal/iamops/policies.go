package iamops

import (
	"iter"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

// describePolicy returns a managed policy as answers have it. Lists leave out the description
// and the tags.
func describePolicy(m managed, n uses, whole bool) *iamapi.Policy {
	out := &iamapi.Policy{
		PolicyName: new(m.name()), PolicyId: new(m.id()), Arn: &m.arn, Path: new(m.path()), DefaultVersionId: versionID(m.defaultVersion()),
		AttachmentCount: &n.attached, PermissionsBoundaryUsageCount: &n.bounds, IsAttachable: new(true),
		CreateDate: timeOf(m.created()), UpdateDate: timeOf(m.updated()),
	}
	if whole && m.own != nil {
		out.Description, out.Tags = some(m.own.Description), tagsOf(m.own.Tags)
	}
	return out
}

// describeVersion returns a version of a managed policy as answers have it. Only some have its
// document.
func describeVersion(m managed, v *fsmpb.PolicyVersion, document bool) *iamapi.PolicyVersion {
	out := &iamapi.PolicyVersion{VersionId: versionID(v.Number), IsDefaultVersion: new(v.Number == m.defaultVersion()), CreateDate: timeOf(v.Created)}
	if document {
		out.Document = &v.Document
	}
	return out
}

func versionID(number uint32) *string { return new("v" + strconv.FormatUint(uint64(number), 10)) }

// parseVersion returns the number in the id of a version, or 0 if no version can have the id.
func parseVersion(id string) uint32 {
	n, err := strconv.ParseUint(strings.TrimPrefix(id, "v"), 10, 32)
	if err != nil || *versionID(uint32(n)) != id {
		return 0
	}
	return uint32(n)
}

func createPolicy(ev *request.Evaluation, in *iamapi.CreatePolicyInput) (*iamapi.CreatePolicyOutput, error) {
	now := ev.Now().UnixNano()
	p := &fsmpb.Policy{
		Account: account(ev), Name: *in.PolicyName, Path: or(in.Path, "/"), Id: newID(policies.prefix), Created: now, Updated: now,
		Description: or(in.Description, ""), DefaultVersion: 1, Newest: 1, Versions: []uint32{1},
	}
	m := managed{arn: iam.PolicyARN(partition(ev), p), own: p}
	if err := policies.authorise(ev, m.arn, parts{}, nil); err != nil {
		return nil, err
	}
	if err := authoriseTags(ev, "iam:TagPolicy", m.arn, in.Tags); err != nil {
		return nil, err
	}
	if request.Read[*fsmpb.Policy](ev, fsm.EntityID(request.AccountOf(ev), p.Name)) != nil {
		return nil, exists("A policy called %s already exists. Duplicate names are not allowed.", p.Name)
	}
	if err := checkPath(p.Path); err != nil {
		return nil, err
	}
	if _, err := parseDocument(policy.IdentityPolicy, *in.PolicyDocument, "PolicySize", ev.Quotas.PolicySize); err != nil {
		return nil, err
	}
	var err error
	if p.Tags, err = addTags(ev, nil, in.Tags); err != nil {
		return nil, err
	}
	ev.Change(policies.put(p))
	putVersion(ev, p, 1, *in.PolicyDocument)
	return &iamapi.CreatePolicyOutput{Policy: describePolicy(m, uses{}, true)}, nil
}

func putVersion(ev *request.Evaluation, p *fsmpb.Policy, number uint32, document string) *fsmpb.PolicyVersion {
	v := &fsmpb.PolicyVersion{Account: p.Account, Policy: p.Name, Number: number, Document: document, Created: ev.Now().UnixNano()}
	ev.Change(&fsmpb.Change{Change: &fsmpb.Change_PutPolicyVersion{PutPolicyVersion: v}})
	return v
}

// getPolicy returns a managed policy as it is when the request is decided, with the number of
// its uses, which may already be newer.
func getPolicy(ev *request.Evaluation, in *iamapi.GetPolicyInput) (*iamapi.GetPolicyOutput, error) {
	m, err := findPolicy(ev, *in.PolicyArn)
	if err != nil {
		return nil, err
	}
	ev.Later = func(s *fsm.State) (any, error) {
		return &iamapi.GetPolicyOutput{Policy: describePolicy(m, usesOf(s, request.AccountOf(ev), m), true)}, nil
	}
	return nil, nil
}

func listPolicies(ev *request.Evaluation, in *iamapi.ListPoliciesInput) (*iamapi.ListPoliciesOutput, error) {
	scope, usage, attachedOnly := or(in.Scope, "All"), or(in.PolicyUsageFilter, ""), request.IsSet(in.OnlyAttached)
	p, err := policies.listing(ev, in.PathPrefix, paging{in.MaxItems, in.Marker}, scope, usage, strconv.FormatBool(attachedOnly))
	if err != nil {
		return nil, err
	}
	ev.Later = func(s *fsm.State) (any, error) {
		type item struct {
			managed
			uses
		}
		shown := func(yield func(item) bool) {
			for m := range managedPolicies(ev, s, p.After, scope != "AWS", scope != "Local") {
				if !strings.HasPrefix(m.path(), or(in.PathPrefix, "/")) {
					continue
				}
				n := usesOf(s, request.AccountOf(ev), m)
				switch {
				case attachedOnly && n == uses{},
					usage == usageBoundary && n.bounds == 0,
					usage == usagePermissions && attachedOnly && n.attached == 0:
				default:
					if !yield(item{m, n}) {
						return
					}
				}
			}
		}
		out := &iamapi.ListPoliciesOutput{Policies: []iamapi.Policy{}}
		out.Marker, out.IsTruncated, err = request.Fill(p, shown, func(i item) string { return placeOfPolicy(i.managed) }, func(i item) {
			out.Policies = append(out.Policies, *describePolicy(i.managed, i.uses, false))
		})
		return out, err
	}
	return nil, nil
}

// The values of PolicyUsageFilter.
const (
	usagePermissions = "PermissionsPolicy"
	usageBoundary    = "PermissionsBoundary"
)

func deletePolicy(ev *request.Evaluation, in *iamapi.DeletePolicyInput) error {
	p, err := ownPolicy(ev, *in.PolicyArn)
	switch {
	case err != nil:
		return err
	case request.Count(ev, fsmpb.Kind_KIND_POLICY_USES, fsm.EntityID(request.AccountOf(ev), p.Name)) > 0:
		return conflict("Cannot delete a policy attached to entities.")
	case len(p.Versions) > 1:
		return conflict("This policy has more than one version. Before you delete a policy, you must delete the policy's versions. The default version is deleted with the policy.")
	}
	policies.delete(ev, p)
	return nil
}

// createPolicyVersion adds a version to a managed policy. Numbers of versions are never used
// again.
func createPolicyVersion(ev *request.Evaluation, in *iamapi.CreatePolicyVersionInput) (*iamapi.CreatePolicyVersionOutput, error) {
	p, err := ownPolicy(ev, *in.PolicyArn)
	if err != nil {
		return nil, err
	}
	if _, err := parseDocument(policy.IdentityPolicy, *in.PolicyDocument, "PolicySize", ev.Quotas.PolicySize); err != nil {
		return nil, err
	}
	if quota := ev.Quotas.PolicyVersions; len(p.Versions) >= quota {
		return nil, kmsapi.Errorf(iamapi.ErrLimitExceeded, "A managed policy can have up to %d versions. Before you create a new version, you must delete an existing version.", quota)
	}
	next := proto.CloneOf(p)
	next.Newest++
	next.Versions = append(next.Versions, next.Newest)
	next.Updated = ev.Now().UnixNano()
	if request.IsSet(in.SetAsDefault) {
		next.DefaultVersion = next.Newest
	}
	// The number has not been used, so there is no such version that the record could replace.
	ev.Change(policies.put(next))
	v := putVersion(ev, next, next.Newest, *in.PolicyDocument)
	return &iamapi.CreatePolicyVersionOutput{PolicyVersion: describeVersion(managed{own: next}, v, false)}, nil
}

// versionOf returns a version of a managed policy and adds it to the read set.
func versionOf(ev *request.Evaluation, m managed, id string) (*fsmpb.PolicyVersion, error) {
	number := parseVersion(id)
	if m.own != nil && number > 0 {
		request.Read[*fsmpb.PolicyVersion](ev, fsm.PolicyVersionID(request.AccountOf(ev), m.own.Name, number))
	}
	if v := m.version(ev.State, number); v != nil {
		return v, nil
	}
	return nil, noSuch("Policy %s version %s does not exist or is not attachable.", m.arn, id)
}

func getPolicyVersion(ev *request.Evaluation, in *iamapi.GetPolicyVersionInput) (*iamapi.GetPolicyVersionOutput, error) {
	m, err := findPolicy(ev, *in.PolicyArn)
	if err != nil {
		return nil, err
	}
	v, err := versionOf(ev, m, *in.VersionId)
	if err != nil {
		return nil, err
	}
	return &iamapi.GetPolicyVersionOutput{PolicyVersion: describeVersion(m, v, true)}, nil
}

// listPolicyVersions lists the versions of a managed policy, the newest first. No version
// changes or goes without the policy, so they need not be read one by one.
func listPolicyVersions(ev *request.Evaluation, in *iamapi.ListPolicyVersionsInput) (*iamapi.ListPolicyVersionsOutput, error) {
	m, err := findPolicy(ev, *in.PolicyArn)
	if err != nil {
		return nil, err
	}
	p, err := paging{in.MaxItems, in.Marker}.page(ev, m.arn)
	if err != nil {
		return nil, err
	}
	// The place of a version ascends as its number descends.
	place := func(number uint32) string { return strconv.FormatUint(1<<33-uint64(number), 10) }
	out := &iamapi.ListPolicyVersionsOutput{Versions: []iamapi.PolicyVersion{}}
	out.Marker, out.IsTruncated, err = request.Fill(p, slices.Values(m.versions()), place, func(number uint32) {
		if v := m.version(ev.State, number); v != nil {
			out.Versions = append(out.Versions, *describeVersion(m, v, false))
		}
	})
	return out, err
}

func deletePolicyVersion(ev *request.Evaluation, in *iamapi.DeletePolicyVersionInput) error {
	p, err := ownPolicy(ev, *in.PolicyArn)
	if err != nil {
		return err
	}
	v, err := versionOf(ev, managed{arn: *in.PolicyArn, own: p}, *in.VersionId)
	if err != nil {
		return err
	}
	if v.Number == p.DefaultVersion {
		return conflict("Cannot delete the default version of a policy.")
	}
	next := proto.CloneOf(p)
	next.Versions = slices.DeleteFunc(next.Versions, func(n uint32) bool { return n == v.Number })
	ev.Change(policies.put(next))
	ev.Change(&fsmpb.Change{Change: &fsmpb.Change_DeletePolicyVersion{DeletePolicyVersion: &fsmpb.PolicyVersionID{
		Account: p.Account, Policy: p.Name, Number: v.Number,
	}}})
	return nil
}

func setDefaultPolicyVersion(ev *request.Evaluation, in *iamapi.SetDefaultPolicyVersionInput) error {
	p, err := ownPolicy(ev, *in.PolicyArn)
	if err != nil {
		return err
	}
	v, err := versionOf(ev, managed{arn: *in.PolicyArn, own: p}, *in.VersionId)
	if err != nil || v.Number == p.DefaultVersion {
		return err
	}
	next := proto.CloneOf(p)
	next.DefaultVersion, next.Updated = v.Number, ev.Now().UnixNano()
	ev.Change(policies.put(next))
	return nil
}

// user of a policy, for ListEntitiesForPolicy.
type policyUser struct {
	place string // in the list: groups come first, then users, then roles
	group *fsmpb.Group
	user  *fsmpb.User
	role  *fsmpb.Role
}

func listEntitiesForPolicy(ev *request.Evaluation, in *iamapi.ListEntitiesForPolicyInput) (*iamapi.ListEntitiesForPolicyOutput, error) {
	m, err := findPolicy(ev, *in.PolicyArn)
	if err != nil {
		return nil, err
	}
	filter, usage, prefix := or(in.EntityFilter, ""), or(in.PolicyUsageFilter, ""), or(in.PathPrefix, "/")
	p, err := paging{in.MaxItems, in.Marker}.page(ev, m.arn, filter, usage, prefix)
	if err != nil {
		return nil, err
	}
	ev.Later = func(s *fsm.State) (any, error) {
		out := &iamapi.ListEntitiesForPolicyOutput{PolicyGroups: []iamapi.PolicyGroup{}, PolicyUsers: []iamapi.PolicyUser{}, PolicyRoles: []iamapi.PolicyRole{}}
		all := (&usersQuery{s, request.AccountOf(ev), m.arn, filter, usage, prefix, p.After}).all()
		out.Marker, out.IsTruncated, err = request.Fill(p, all, func(u policyUser) string { return u.place }, func(u policyUser) {
			switch {
			case u.group != nil:
				out.PolicyGroups = append(out.PolicyGroups, iamapi.PolicyGroup{GroupName: &u.group.Name, GroupId: &u.group.Id})
			case u.user != nil:
				out.PolicyUsers = append(out.PolicyUsers, iamapi.PolicyUser{UserName: &u.user.Name, UserId: &u.user.Id})
			case u.role != nil:
				out.PolicyRoles = append(out.PolicyRoles, iamapi.PolicyRole{RoleName: &u.role.Name, RoleId: &u.role.Id})
			}
		})
		return out, err
	}
	return nil, nil
}

// usersQuery asks for what a managed policy is attached to or bounds.
type usersQuery struct {
	state   *fsm.State
	account fsm.Account
	arn     string // of the policy
	kind    string // "User", "Group" or "Role", or "" for all
	usage   string // how the policy is used, or "" for both ways
	prefix  string // of the paths
	after   string // the place after which the list begins
}

// all returns what the query asks for, in the order of the list.
func (q *usersQuery) all() iter.Seq[policyUser] {
	return func(yield func(policyUser) bool) {
		_ = usersAmong(q, "Group", "1", func(place string, g *fsmpb.Group) bool { return yield(policyUser{place: place, group: g}) }) &&
			usersAmong(q, "User", "2", func(place string, u *fsmpb.User) bool { return yield(policyUser{place: place, user: u}) }) &&
			usersAmong(q, "Role", "3", func(place string, r *fsmpb.Role) bool { return yield(policyUser{place: place, role: r}) })
	}
}

// usersAmong calls yield with what the query asks for of one kind, whose places in the list begin
// with section, a character. It reports whether the list goes on.
func usersAmong[M entity](q *usersQuery, kind, section string, yield func(place string, m M) bool) bool {
	if q.kind != "" && q.kind != kind || q.after != "" && q.after[:1] > section {
		return true
	}
	name := ""
	if strings.HasPrefix(q.after, section) {
		name = q.after[1:]
	}
	var attached, bounded iter.Seq[M] = func(func(M) bool) {}, func(func(M) bool) {}
	if q.usage != usageBoundary {
		attached = fsm.Having[M](q.state, q.account, q.arn, name)
	}
	if q.usage != usagePermissions {
		bounded = fsm.Having[M](q.state, q.account, fsm.BoundedBy(q.arn), name)
	}
	for m := range union(attached, bounded) {
		if strings.HasPrefix(m.GetPath(), q.prefix) && !yield(section+placeOf(m), m) {
			return false
		}
	}
	return true
}

// union returns the entities that are in at least one of two sequences, which are in the order of
// lists.
func union[M entity](a, b iter.Seq[M]) iter.Seq[M] {
	return func(yield func(M) bool) {
		next, stop := iter.Pull(b)
		defer stop()
		other, more := next()
		for m := range a {
			for ; more && placeOf(other) < placeOf(m); other, more = next() {
				if !yield(other) {
					return
				}
			}
			if more && other == m {
				other, more = next()
			}
			if !yield(m) {
				return
			}
		}
		for ; more && yield(other); other, more = next() {
		}
	}
}

func tagPolicy(ev *request.Evaluation, in *iamapi.TagPolicyInput) error {
	return changePolicyTags(ev, *in.PolicyArn, func(had []*fsmpb.Tag) ([]*fsmpb.Tag, error) { return addTags(ev, had, in.Tags) })
}

func untagPolicy(ev *request.Evaluation, in *iamapi.UntagPolicyInput) error {
	return changePolicyTags(ev, *in.PolicyArn, func(had []*fsmpb.Tag) ([]*fsmpb.Tag, error) { return removeTags(had, in.TagKeys), nil })
}

func changePolicyTags(ev *request.Evaluation, policyARN string, edit func([]*fsmpb.Tag) ([]*fsmpb.Tag, error)) error {
	p, err := ownPolicy(ev, policyARN)
	if err != nil {
		return err
	}
	next := proto.CloneOf(p)
	if next.Tags, err = edit(next.Tags); err != nil {
		return err
	}
	ev.Change(policies.put(next))
	return nil
}

func listPolicyTags(ev *request.Evaluation, in *iamapi.ListPolicyTagsInput) (*iamapi.ListPolicyTagsOutput, error) {
	m, err := findPolicy(ev, *in.PolicyArn)
	if err != nil {
		return nil, err
	}
	var out iamapi.ListPolicyTagsOutput
	out.Tags, out.Marker, out.IsTruncated, err = pageOfTags(ev, m.own.GetTags(), m.arn, paging{in.MaxItems, in.Marker})
	return &out, err
}
