package iamops

import (
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/binding"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

// defaultSession is the default of MaxSessionDuration, in seconds.
const defaultSession = 3600

// describeRole returns a role as answers have it, with its trust policy as binding.Document
// shows it. Lists leave out the boundary and the tags.
func describeRole(partition string, s *fsm.State, note binding.Note, r *fsmpb.Role, whole bool) *iamapi.Role {
	trust := binding.Document(s, r.Trust, r.TrustBindings, note)
	out := &iamapi.Role{
		Path: &r.Path, RoleName: &r.Name, RoleId: &r.Id, Arn: new(iam.RoleARN(partition, r)), CreateDate: timeOf(r.Created),
		AssumeRolePolicyDocument: &trust, Description: some(r.Description), MaxSessionDuration: new(int32(r.MaxSession)),
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
		if err := bindTrust(ev, r); err != nil {
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
	return &iamapi.CreateRoleOutput{Role: describeRole(partition(ev), ev.State, ev.Note, r, true)}, nil
}

// bindTrust checks the trust policy of a role, and sets who is meant by its names in place of
// what the role has for the one that is replaced. The principals that it names must exist, also
// in other accounts.
func bindTrust(ev *request.Evaluation, r *fsmpb.Role) error {
	doc, err := parseDocument(policy.TrustPolicy, r.Trust, "ACLSizePerRole", ev.Quotas.TrustPolicySize)
	if err != nil {
		return err
	}
	bindings, invalid := request.Bind(ev, doc, r.TrustBindings)
	switch {
	case invalid != nil:
		element := "AWS"
		if invalid.Kind == policy.KindFederated {
			element = "Federated"
		}
		return kmsapi.Errorf(iamapi.ErrMalformedPolicyDocument, `Invalid principal in policy: "%s":"%s"`, element, *invalid)
	case len(bindings) > request.MaxBindings:
		return quotaExceeded("PrincipalsPerPolicy", request.MaxBindings)
	}
	r.TrustBindings = bindings
	return nil
}

func getRole(ev *request.Evaluation, in *iamapi.GetRoleInput) (*iamapi.GetRoleOutput, error) {
	r, err := roles.find(ev, *in.RoleName, nil)
	if err != nil {
		return nil, err
	}
	return &iamapi.GetRoleOutput{Role: describeRole(partition(ev), ev.State, ev.Note, r, true)}, nil
}

func listRoles(ev *request.Evaluation, in *iamapi.ListRolesInput) (*iamapi.ListRolesOutput, error) {
	p, err := roles.listing(ev, in.PathPrefix, paging{in.MaxItems, in.Marker})
	if err != nil {
		return nil, err
	}
	ev.Later = func(s *fsm.State) (any, error) {
		out := &iamapi.ListRolesOutput{Roles: []iamapi.Role{}}
		out.Marker, out.IsTruncated, err = request.Fill(p, from[*fsmpb.Role](s, request.AccountOf(ev), p.After, or(in.PathPrefix, "/")), placeOf, func(r *fsmpb.Role) {
			out.Roles = append(out.Roles, *describeRole(partition(ev), s, nil, r, false))
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
		out.Role = describeRole(partition(ev), ev.State, ev.Note, r, true)
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
		return bindTrust(ev, r)
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
