package iamops

import (
	"strings"
	"unicode"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/binding"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// ownAccount returns the object of the caller's account, and adds it to the read set. The
// account that the cluster was initialised with may have none yet; a new one is returned then.
func ownAccount(ev *request.Evaluation) *fsmpb.Account {
	return accountObject(ev, request.AccountOf(ev))
}

func accountObject(ev *request.Evaluation, a fsm.Account) *fsmpb.Account {
	if m := request.Read[*fsmpb.Account](ev, fsm.AccountID(a)); m != nil {
		return m
	}
	return &fsmpb.Account{Account: uint64(a), Created: ev.Cluster().GetCreated()}
}

// putAccount adds a change of the caller's account to the record.
func putAccount(ev *request.Evaluation, edit func(*fsmpb.Account)) {
	next := proto.CloneOf(ownAccount(ev))
	edit(next)
	ev.Change(&fsmpb.Change{Change: &fsmpb.Change_PutAccount{PutAccount: next}})
}

// NewAccount adds a new account to the record, with an access key of its root user, and calls
// use with the secret. number is the account's number of twelve digits, and name is what the
// operators call it.
func NewAccount(ev *request.Evaluation, number, name string, use func(c *fsmpb.Credential, secret []byte) error) error {
	a, ok := fsm.ParseAccount(number)
	if !ok {
		return kmsapi.Errorf(kmsapi.ErrValidation, "An account has a number of twelve digits.")
	}
	if len(name) > maxAccountName || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return kmsapi.Errorf(kmsapi.ErrValidation, "The name of an account has at most %d bytes of printable text.", maxAccountName)
	}
	if a == fsm.AccountOf(ev.State) || request.Read[*fsmpb.Account](ev, fsm.AccountID(a)) != nil {
		return exists("The account %s already exists.", number)
	}
	n := 0
	for range fsm.Accounts(ev.State) {
		if n++; n >= ev.Quotas.Accounts {
			return quotaExceeded("AccountsPerCluster", ev.Quotas.Accounts)
		}
	}
	m := &fsmpb.Account{Account: uint64(a), Name: name, Created: ev.Now().UnixNano()}
	ev.Change(&fsmpb.Change{Change: &fsmpb.Change_PutAccount{PutAccount: m}})
	_, err := rootOf(ev, a).makeKey(ev, 0, use)
	return err
}

// maxAccountName is the length of the longest name of an account, in bytes.
const maxAccountName = 256

// createAccountAlias sets the alias of the account, in place of one that it has. Aliases name
// no account here, so several accounts of a cluster may have the same.
func createAccountAlias(ev *request.Evaluation, in *iamapi.CreateAccountAliasInput) error {
	if err := ev.AuthoriseAccount(ev.Op.Action(), "*"); err != nil {
		return err
	}
	if ownAccount(ev).Alias == *in.AccountAlias {
		return exists("The account alias %s already exists.", *in.AccountAlias)
	}
	putAccount(ev, func(m *fsmpb.Account) { m.Alias = *in.AccountAlias })
	return nil
}

func deleteAccountAlias(ev *request.Evaluation, in *iamapi.DeleteAccountAliasInput) error {
	if err := ev.AuthoriseAccount(ev.Op.Action(), "*"); err != nil {
		return err
	}
	if ownAccount(ev).Alias != *in.AccountAlias {
		return noSuch("The account alias %s cannot be found.", *in.AccountAlias)
	}
	putAccount(ev, func(m *fsmpb.Account) { m.Alias = "" })
	return nil
}

func listAccountAliases(ev *request.Evaluation, in *iamapi.ListAccountAliasesInput) (*iamapi.ListAccountAliasesOutput, error) {
	if err := ev.AuthoriseAccount(ev.Op.Action(), "*"); err != nil {
		return nil, err
	}
	if _, err := (paging{in.MaxItems, in.Marker}).page(ev); err != nil {
		return nil, err
	}
	out := &iamapi.ListAccountAliasesOutput{AccountAliases: []string{}, IsTruncated: new(false)}
	if alias := ownAccount(ev).Alias; alias != "" {
		out.AccountAliases = append(out.AccountAliases, alias)
	}
	return out, nil
}

// getAccountSummary counts what the account has. The names are AWS's, which has some more for
// what there is none of here.
func getAccountSummary(ev *request.Evaluation, _ *iamapi.GetAccountSummaryInput) (*iamapi.GetAccountSummaryOutput, error) {
	if err := ev.AuthoriseAccount(ev.Op.Action(), "*"); err != nil {
		return nil, err
	}
	ev.Later = func(s *fsm.State) (any, error) {
		a := request.AccountOf(ev)
		n := make(map[string]int32)
		for range from[*fsmpb.User](s, a, "", "") {
			n["Users"]++
		}
		for range from[*fsmpb.Group](s, a, "", "") {
			n["Groups"]++
		}
		for range from[*fsmpb.Role](s, a, "", "") {
			n["Roles"]++
		}
		for p := range from[*fsmpb.Policy](s, a, "", "") {
			n["Policies"]++
			n["PolicyVersionsInUse"] += int32(len(p.Versions))
		}
		for range fsm.Objects[*fsmpb.OidcProvider](s, fsm.AccountID(a), "") {
			n["Providers"]++
		}
		for c := range fsm.Having[*fsmpb.Credential](s, a, RootOf(ev).root, "") {
			if isKey(c) {
				n["AccountAccessKeysPresent"] = 1
			}
		}
		for _, name := range []string{
			"Users", "Groups", "Roles", "Policies", "PolicyVersionsInUse", "Providers", "AccountAccessKeysPresent", "AccountMFAEnabled", "AccountPasswordPresent",
			"AccountSigningCertificatesPresent", "InstanceProfiles", "MFADevices", "MFADevicesInUse", "ServerCertificates", "SigningCertificatesPerUserQuota",
			"InstanceProfilesQuota", "ServerCertificatesQuota",
		} {
			n[name] += 0
		}
		q := &ev.Quotas
		for name, quota := range map[string]int{
			"UsersQuota": q.Users, "GroupsQuota": request.MaxQuota, "RolesQuota": request.MaxQuota, "PoliciesQuota": request.MaxQuota,
			"PolicyVersionsInUseQuota": request.MaxQuota, "AccessKeysPerUserQuota": q.AccessKeys, "GroupsPerUserQuota": q.GroupsPerUser,
			"AttachedPoliciesPerUserQuota": q.AttachedPolicies, "AttachedPoliciesPerGroupQuota": q.AttachedPolicies, "AttachedPoliciesPerRoleQuota": q.AttachedPolicies,
			"VersionsPerPolicyQuota": q.PolicyVersions, "PolicySizeQuota": q.PolicySize, "UserPolicySizeQuota": q.UserPolicySize,
			"GroupPolicySizeQuota": q.GroupPolicySize, "RolePolicySizeQuota": q.RolePolicySize, "AssumeRolePolicySizeQuota": q.TrustPolicySize,
			"GlobalEndpointTokenVersion": 2,
		} {
			n[name] = int32(quota)
		}
		return &iamapi.GetAccountSummaryOutput{SummaryMap: n}, nil
	}
	return nil, nil
}

// getAccountAuthorizationDetails lists all users, groups, roles and managed policies of the
// account with what is attached to them.
func getAccountAuthorizationDetails(ev *request.Evaluation, in *iamapi.GetAccountAuthorizationDetailsInput) (*iamapi.GetAccountAuthorizationDetailsOutput, error) {
	if err := ev.AuthoriseAccount(ev.Op.Action(), "*"); err != nil {
		return nil, err
	}
	p, err := paging{in.MaxItems, in.Marker}.page(ev, in.Filter...)
	if err != nil {
		return nil, err
	}
	ev.Later = func(s *fsm.State) (any, error) {
		out := &iamapi.GetAccountAuthorizationDetailsOutput{
			UserDetailList: []iamapi.UserDetail{}, GroupDetailList: []iamapi.GroupDetail{}, RoleDetailList: []iamapi.RoleDetail{}, Policies: []iamapi.ManagedPolicyDetail{},
		}
		d := &details{ev: ev, state: s, out: out}
		out.Marker, out.IsTruncated, err = request.Fill(p, d.all(in.Filter, p.After), func(i detail) string { return i.place }, func(i detail) { i.add() })
		return out, err
	}
	return nil, nil
}

// details collects the answer of GetAccountAuthorizationDetails.
type details struct {
	ev    *request.Evaluation
	state *fsm.State
	out   *iamapi.GetAccountAuthorizationDetailsOutput
}

// detail is an item of the answer, by its place in the list.
type detail struct {
	place string
	add   func()
}

// all returns the items whose types the filter has, or all if it is empty, beginning after a
// place: users, groups, roles, and then policies.
func (d *details) all(filter []string, after string) func(func(detail) bool) {
	a := request.AccountOf(d.ev)
	return func(yield func(detail) bool) {
		if wanted(filter, "User") && !items(d.state, a, "1", after, d.user, yield) ||
			wanted(filter, "Group") && !items(d.state, a, "2", after, d.group, yield) ||
			wanted(filter, "Role") && !items(d.state, a, "3", after, d.role, yield) {
			return
		}
		rest := ""
		if after > sectionPolicies {
			rest = after[len(sectionPolicies):]
		}
		for m := range managedPolicies(d.ev, d.state, rest, wanted(filter, "LocalManagedPolicy"), wanted(filter, "AWSManagedPolicy")) {
			if !yield(detail{sectionPolicies + placeOfPolicy(m), func() { d.policy(m) }}) {
				return
			}
		}
	}
}

// sectionPolicies is the part of the list with the managed policies.
const sectionPolicies = "4"

func wanted(filter []string, kind string) bool {
	for _, f := range filter {
		if f == kind {
			return true
		}
	}
	return len(filter) == 0
}

// items yields the entities of a kind that come after a place in the list. It reports whether
// the list goes on.
func items[M entity](s *fsm.State, a fsm.Account, section, after string, add func(M), yield func(detail) bool) bool {
	name := ""
	switch {
	case after > section && after[:1] == section:
		name = after[1:]
	case after > section:
		return true
	}
	for m := range from[M](s, a, name, "") {
		if !yield(detail{section + placeOf(m), func() { add(m) }}) {
			return false
		}
	}
	return true
}

func (d *details) user(u *fsmpb.User) {
	list := []string{}
	for _, id := range u.Groups {
		if g := fsm.GroupByID(d.state, fsm.Account(u.Account), id); g != nil {
			list = append(list, g.Name)
		}
	}
	d.out.UserDetailList = append(d.out.UserDetailList, iamapi.UserDetail{
		Path: &u.Path, UserName: &u.Name, UserId: &u.Id, Arn: new(iam.UserARN(partition(d.ev), u)), CreateDate: timeOf(u.Created),
		UserPolicyList: inlineDetails(u.Inline), GroupList: list, AttachedManagedPolicies: attachedPolicies(u.Policies),
		PermissionsBoundary: boundaryOf(u.Boundary), Tags: tagsOf(u.Tags),
	})
}

func (d *details) group(g *fsmpb.Group) {
	d.out.GroupDetailList = append(d.out.GroupDetailList, iamapi.GroupDetail{
		Path: &g.Path, GroupName: &g.Name, GroupId: &g.Id, Arn: new(iam.GroupARN(partition(d.ev), g)), CreateDate: timeOf(g.Created),
		GroupPolicyList: inlineDetails(g.Inline), AttachedManagedPolicies: attachedPolicies(g.Policies),
	})
}

func (d *details) role(r *fsmpb.Role) {
	d.out.RoleDetailList = append(d.out.RoleDetailList, iamapi.RoleDetail{
		Path: &r.Path, RoleName: &r.Name, RoleId: &r.Id, Arn: new(iam.RoleARN(partition(d.ev), r)), CreateDate: timeOf(r.Created),
		AssumeRolePolicyDocument: new(binding.Document(d.state, r.Trust, r.TrustBindings, nil)), InstanceProfileList: []iamapi.InstanceProfile{}, RolePolicyList: inlineDetails(r.Inline),
		AttachedManagedPolicies: attachedPolicies(r.Policies), PermissionsBoundary: boundaryOf(r.Boundary), Tags: tagsOf(r.Tags),
	})
}

func (d *details) policy(m managed) {
	p := describePolicy(m, usesOf(d.state, request.AccountOf(d.ev), m), true)
	out := iamapi.ManagedPolicyDetail{
		PolicyName: p.PolicyName, PolicyId: p.PolicyId, Arn: p.Arn, Path: p.Path, DefaultVersionId: p.DefaultVersionId,
		AttachmentCount: p.AttachmentCount, PermissionsBoundaryUsageCount: p.PermissionsBoundaryUsageCount, IsAttachable: p.IsAttachable,
		Description: p.Description, CreateDate: p.CreateDate, UpdateDate: p.UpdateDate, PolicyVersionList: []iamapi.PolicyVersion{},
	}
	for _, number := range m.versions() {
		if v := m.version(d.state, number); v != nil {
			out.PolicyVersionList = append(out.PolicyVersionList, *describeVersion(m, v, true))
		}
	}
	d.out.Policies = append(d.out.Policies, out)
}
