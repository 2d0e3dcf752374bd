package iamops

import (
	"slices"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

// describeUser returns a user as answers have it. Lists leave out the boundary and the tags.
func describeUser(partition string, u *fsmpb.User, whole bool) *iamapi.User {
	out := &iamapi.User{
		Path: &u.Path, UserName: &u.Name, UserId: &u.Id, Arn: new(iam.UserARN(partition, u)), CreateDate: timeOf(u.Created),
	}
	if whole {
		out.PermissionsBoundary, out.Tags = boundaryOf(u.Boundary), tagsOf(u.Tags)
	}
	return out
}

func createUser(ev *request.Evaluation, in *iamapi.CreateUserInput) (*iamapi.CreateUserOutput, error) {
	u := &fsmpb.User{
		Account: account(ev), Name: *in.UserName, Path: or(in.Path, "/"), Id: newID(users.prefix), Created: ev.Now().UnixNano(),
		Boundary: or(in.PermissionsBoundary, ""),
	}
	err := users.create(ev, u, in.Tags, boundaryKey(u.Boundary), func() (err error) {
		if quota := ev.Quotas.Users; ev.Users.AtLeast(ev.State, ev.Now(), request.Place{Account: request.AccountOf(ev)}, quota) {
			return quotaExceeded("UsersPerAccount", quota)
		}
		if u.Tags, err = addTags(ev, nil, in.Tags); err != nil {
			return err
		}
		return checkBoundary(ev, u.Boundary)
	})
	if err != nil {
		return nil, err
	}
	return &iamapi.CreateUserOutput{User: describeUser(partition(ev), u, true)}, nil
}

// ownName returns the name of the user that a request without one is about: the caller. It is
// "" for the root user, who is no object.
func ownName(ev *request.Evaluation) (string, error) {
	switch who := ev.Who(); {
	case who.User != nil:
		return who.User.Name, nil
	case who.Kind == policy.KindRoot:
		return "", nil
	}
	return "", kmsapi.Errorf(kmsapi.ErrValidation, "Must specify userName when calling with non-User credentials")
}

func getUser(ev *request.Evaluation, in *iamapi.GetUserInput) (*iamapi.GetUserOutput, error) {
	name := in.UserName
	if name == nil {
		own, err := ownName(ev)
		if err != nil {
			return nil, err
		}
		if own == "" {
			return getRoot(ev)
		}
		name = &own
	}
	u, err := users.find(ev, *name, nil)
	if err != nil {
		return nil, err
	}
	return &iamapi.GetUserOutput{User: describeUser(partition(ev), u, true)}, nil
}

// getRoot returns the root user, who has no name and no path.
func getRoot(ev *request.Evaluation) (*iamapi.GetUserOutput, error) {
	arn := ev.Principal().ARN
	if err := ev.AuthoriseAccount(ev.Op.Action(), arn); err != nil {
		return nil, err
	}
	a := request.AccountOf(ev)
	created := ev.Cluster().GetCreated()
	if m := request.Read[*fsmpb.Account](ev, fsm.AccountID(a)); m != nil {
		created = m.Created
	}
	return &iamapi.GetUserOutput{User: &iamapi.User{UserId: new(a.String()), Arn: &arn, CreateDate: timeOf(created)}}, nil
}

func listUsers(ev *request.Evaluation, in *iamapi.ListUsersInput) (*iamapi.ListUsersOutput, error) {
	p, err := users.listing(ev, in.PathPrefix, paging{in.MaxItems, in.Marker})
	if err != nil {
		return nil, err
	}
	ev.Later = func(s *fsm.State) (any, error) {
		out := &iamapi.ListUsersOutput{Users: []iamapi.User{}}
		out.Marker, out.IsTruncated, err = request.Fill(p, from[*fsmpb.User](s, request.AccountOf(ev), p.After, or(in.PathPrefix, "/")), placeOf, func(u *fsmpb.User) {
			out.Users = append(out.Users, *describeUser(partition(ev), u, false))
		})
		return out, err
	}
	return nil, nil
}

// updateUser changes the name or path of a user. The user keeps its unique id, and with it its
// access keys, groups and policies, and what policies and grants that name it give to it. They
// show its new ARN.
func updateUser(ev *request.Evaluation, in *iamapi.UpdateUserInput) error {
	return users.rename(ev, *in.UserName, in.NewUserName, in.NewPath, func(u *fsmpb.User, name, path string) { u.Name, u.Path = name, path })
}

func deleteUser(ev *request.Evaluation, in *iamapi.DeleteUserInput) error {
	u, err := users.find(ev, *in.UserName, nil)
	switch {
	case err != nil:
		return err
	case len(u.AccessKeys) > 0:
		return conflict("Cannot delete entity, must delete access keys first.")
	case len(u.Groups) > 0:
		return conflict("Cannot delete entity, must remove users from group first.")
	}
	if err := unattached(u.Policies, u.Inline); err != nil {
		return err
	}
	users.delete(ev, u)
	return nil
}

// unattached refuses to delete an entity that still has policies.
func unattached(policies []string, inline []*fsmpb.InlinePolicy) error {
	switch {
	case len(policies) > 0:
		return conflict("Cannot delete entity, must detach all policies first.")
	case len(inline) > 0:
		return conflict("Cannot delete entity, must delete policies first.")
	}
	return nil
}

func listGroupsForUser(ev *request.Evaluation, in *iamapi.ListGroupsForUserInput) (*iamapi.ListGroupsForUserOutput, error) {
	u, err := users.find(ev, *in.UserName, nil)
	if err != nil {
		return nil, err
	}
	p, err := paging{in.MaxItems, in.Marker}.page(ev, u.Name)
	if err != nil {
		return nil, err
	}
	var member []*fsmpb.Group
	for _, id := range u.Groups {
		if g := fsm.GroupByID(ev.State, request.AccountOf(ev), id); g != nil {
			ev.Note(fsmpb.Kind_KIND_GROUP, fsm.EntityID(request.AccountOf(ev), g.Name), g.Version)
			member = append(member, g)
		}
	}
	slices.SortFunc(member, byPlace)
	out := &iamapi.ListGroupsForUserOutput{Groups: []iamapi.Group{}}
	out.Marker, out.IsTruncated, err = request.Fill(p, slices.Values(member), placeOf, func(g *fsmpb.Group) {
		out.Groups = append(out.Groups, *describeGroup(partition(ev), g))
	})
	return out, err
}
