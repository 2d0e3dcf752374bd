package iamops

import (
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

// defaultSession is the default of MaxSessionDuration, in seconds.
const defaultSession = 3600

// describeRole returns a role as answers have it. Lists leave out the boundary and the tags.
func describeRole(partition string, r *fsmpb.Role, whole bool) *iamapi.Role {
	out := &iamapi.Role{
		Path: &r.Path, RoleName: &r.Name, RoleId: &r.Id, Arn: new(iam.RoleARN(partition, r)), CreateDate: timeOf(r.Created),
		AssumeRolePolicyDocument: &r.Trust, Description: some(r.Description), MaxSessionDuration: new(int32(r.MaxSession)),
	}
	if whole {
		out.PermissionsBoundary, out.Tags = boundaryOf(r.Boundary), tagsOf(r.Tags)
	}
	return out
}

func createRole(ev *request.Evaluation, in *iamapi.CreateRoleInput) (*iamapi.CreateRoleOutput, error) {
	r := &fsmpb.Role{
		Account: account(ev), Name: *in.RoleName, Path: or(in.Path, "/"), Id: newID(roles.prefix), Created: ev.Now().UnixNano(),
		Boundary: or(in.PermissionsBoundary, ""), Trust: *in.AssumeRolePolicyDocument, Description: or(in.Description, ""), MaxSession: defaultSession,
	}
	if in.MaxSessionDuration != nil {
		r.MaxSession = uint32(*in.MaxSessionDuration)
	}
	err := roles.create(ev, r, in.Tags, boundaryKey(r.Boundary), func() (err error) {
		if err := checkTrust(ev, r.Trust); err != nil {
			return err
		}
		if r.Tags, err = addTags(ev, nil, in.Tags); err != nil {
			return err
		}
		return checkBoundary(ev, r.Boundary)
	})
	if err != nil {
		return nil, err
	}
	return &iamapi.CreateRoleOutput{Role: describeRole(partition(ev), r, true)}, nil
}

// checkTrust checks a trust policy. The principals that it names must exist, also in other
// accounts.
func checkTrust(ev *request.Evaluation, document string) error {
	doc, err := parseDocument(policy.TrustPolicy, document, "ACLSizePerRole", ev.Quotas.TrustPolicySize)
	if err != nil {
		return err
	}
	for _, p := range append(doc.Principals(), doc.Providers()...) {
		if request.Exists(ev, p) {
			continue
		}
		element := "AWS"
		if p.Kind == policy.KindFederated {
			element = "Federated"
		}
		return kmsapi.Errorf(iamapi.ErrMalformedPolicyDocument, `Invalid principal in policy: "%s":"%s"`, element, p)
	}
	return nil
}

func getRole(ev *request.Evaluation, in *iamapi.GetRoleInput) (*iamapi.GetRoleOutput, error) {
	r, err := roles.find(ev, *in.RoleName, nil)
	if err != nil {
		return nil, err
	}
	return &iamapi.GetRoleOutput{Role: describeRole(partition(ev), r, true)}, nil
}

func listRoles(ev *request.Evaluation, in *iamapi.ListRolesInput) (*iamapi.ListRolesOutput, error) {
	p, err := roles.listing(ev, in.PathPrefix, paging{in.MaxItems, in.Marker})
	if err != nil {
		return nil, err
	}
	ev.Later = func(s *fsm.State) (any, error) {
		out := &iamapi.ListRolesOutput{Roles: []iamapi.Role{}}
		out.Marker, out.IsTruncated, err = request.Fill(p, from[*fsmpb.Role](s, request.AccountOf(ev), p.After, or(in.PathPrefix, "/")), placeOf, func(r *fsmpb.Role) {
			out.Roles = append(out.Roles, *describeRole(partition(ev), r, false))
		})
		return out, err
	}
	return nil, nil
}

// updateRole sets the description or the longest session of a role.
func updateRole(ev *request.Evaluation, in *iamapi.UpdateRoleInput) (*iamapi.UpdateRoleOutput, error) {
	err := roles.change(ev, *in.RoleName, nil, func(r *fsmpb.Role) error {
		if in.Description != nil {
			r.Description = *in.Description
		}
		if in.MaxSessionDuration != nil {
			r.MaxSession = uint32(*in.MaxSessionDuration)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &iamapi.UpdateRoleOutput{}, nil
}

func updateRoleDescription(ev *request.Evaluation, in *iamapi.UpdateRoleDescriptionInput) (*iamapi.UpdateRoleDescriptionOutput, error) {
	var out iamapi.UpdateRoleDescriptionOutput
	err := roles.change(ev, *in.RoleName, nil, func(r *fsmpb.Role) error {
		r.Description = *in.Description
		out.Role = describeRole(partition(ev), r, true)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &out, nil
}

func updateAssumeRolePolicy(ev *request.Evaluation, in *iamapi.UpdateAssumeRolePolicyInput) error {
	return roles.change(ev, *in.RoleName, nil, func(r *fsmpb.Role) error {
		r.Trust = *in.PolicyDocument
		return checkTrust(ev, r.Trust)
	})
}

func deleteRole(ev *request.Evaluation, in *iamapi.DeleteRoleInput) error {
	r, err := roles.find(ev, *in.RoleName, nil)
	if err != nil {
		return err
	}
	if err := unattached(r.Policies, r.Inline); err != nil {
		return err
	}
	roles.delete(ev, r)
	return nil
}
