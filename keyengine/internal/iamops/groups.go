package iamops

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/request"
)

func describeGroup(partition string, g *fsmpb.Group) *iamapi.Group {
	return &iamapi.Group{Path: &g.Path, GroupName: &g.Name, GroupId: &g.Id, Arn: new(iam.GroupARN(partition, g)), CreateDate: timeOf(g.Created)}
}

// byPlace orders entities as lists do.
func byPlace[M entity](a, b M) int { return strings.Compare(placeOf(a), placeOf(b)) }

func createGroup(ev *request.Evaluation, in *iamapi.CreateGroupInput) (*iamapi.CreateGroupOutput, error) {
	g := &fsmpb.Group{Account: account(ev), Name: *in.GroupName, Path: or(in.Path, "/"), Id: newID(groups.prefix), Created: ev.Now().UnixNano()}
	if err := groups.create(ev, g, nil, nil, func() error { return nil }); err != nil {
		return nil, err
	}
	return &iamapi.CreateGroupOutput{Group: describeGroup(partition(ev), g)}, nil
}

func getGroup(ev *request.Evaluation, in *iamapi.GetGroupInput) (*iamapi.GetGroupOutput, error) {
	g, err := groups.find(ev, *in.GroupName, nil)
	if err != nil {
		return nil, err
	}
	p, err := paging{in.MaxItems, in.Marker}.page(ev, g.Name)
	if err != nil {
		return nil, err
	}
	ev.Later = func(s *fsm.State) (any, error) {
		out := &iamapi.GetGroupOutput{Group: describeGroup(partition(ev), g), Users: []iamapi.User{}}
		out.Marker, out.IsTruncated, err = request.Fill(p, fsm.Having[*fsmpb.User](s, request.AccountOf(ev), g.Id, p.After), placeOf, func(u *fsmpb.User) {
			out.Users = append(out.Users, *describeUser(partition(ev), u, false))
		})
		return out, err
	}
	return nil, nil
}

func listGroups(ev *request.Evaluation, in *iamapi.ListGroupsInput) (*iamapi.ListGroupsOutput, error) {
	p, err := groups.listing(ev, in.PathPrefix, paging{in.MaxItems, in.Marker})
	if err != nil {
		return nil, err
	}
	ev.Later = func(s *fsm.State) (any, error) {
		out := &iamapi.ListGroupsOutput{Groups: []iamapi.Group{}}
		out.Marker, out.IsTruncated, err = request.Fill(p, from[*fsmpb.Group](s, request.AccountOf(ev), p.After, or(in.PathPrefix, "/")), placeOf, func(g *fsmpb.Group) {
			out.Groups = append(out.Groups, *describeGroup(partition(ev), g))
		})
		return out, err
	}
	return nil, nil
}

// updateGroup changes the name or path of a group. The group keeps its unique id, and with it
// its users and policies. Policies that name the group by its old ARN no longer apply to it.
func updateGroup(ev *request.Evaluation, in *iamapi.UpdateGroupInput) error {
	return groups.rename(ev, *in.GroupName, in.NewGroupName, in.NewPath, func(g *fsmpb.Group, name, path string) { g.Name, g.Path = name, path })
}

func deleteGroup(ev *request.Evaluation, in *iamapi.DeleteGroupInput) error {
	g, err := groups.find(ev, *in.GroupName, nil)
	if err != nil {
		return err
	}
	if request.Count(ev, fsmpb.Kind_KIND_GROUP_MEMBERS, fsm.GroupMembersID(request.AccountOf(ev), g.Id)) > 0 {
		return conflict("Cannot delete entity, must remove users from group first.")
	}
	if err := unattached(g.Policies, g.Inline); err != nil {
		return err
	}
	groups.delete(ev, g)
	return nil
}

// membership authorises a change of the users of a group for the group, and changes the
// groups of the user. The group is in the read set, so that no user is put into a group that
// is being deleted.
func membership(ev *request.Evaluation, group, user string, change func(u *fsmpb.User, g *fsmpb.Group) error) error {
	g, err := groups.find(ev, group, nil)
	if err != nil {
		return err
	}
	u := users.named(ev, user)
	if u == nil {
		return users.absent(user)
	}
	ev.Resource(users.resource, users.arn(ev, u))
	next := proto.CloneOf(u)
	if err := change(next, g); err != nil {
		return err
	}
	if len(next.Groups) != len(u.Groups) {
		ev.Change(users.put(next))
	}
	return nil
}

func addUserToGroup(ev *request.Evaluation, in *iamapi.AddUserToGroupInput) error {
	return membership(ev, *in.GroupName, *in.UserName, func(u *fsmpb.User, g *fsmpb.Group) error {
		at, found := slices.BinarySearch(u.Groups, g.Id)
		switch quota := ev.Quotas.GroupsPerUser; {
		case found:
			return nil
		case len(u.Groups) >= quota:
			return quotaExceeded("GroupsPerUser", quota)
		}
		u.Groups = slices.Insert(u.Groups, at, g.Id)
		return nil
	})
}

func removeUserFromGroup(ev *request.Evaluation, in *iamapi.RemoveUserFromGroupInput) error {
	return membership(ev, *in.GroupName, *in.UserName, func(u *fsmpb.User, g *fsmpb.Group) error {
		at, found := slices.BinarySearch(u.Groups, g.Id)
		if !found {
			return noSuch("User %s is not in group %s.", u.Name, g.Name)
		}
		u.Groups = slices.Delete(u.Groups, at, at+1)
		return nil
	})
}
