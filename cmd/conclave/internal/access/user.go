package access

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/iampb"
)

func userCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "user", Short: "Manage users",
		Example: `  conclave iam user create bob --policy use-key --key payments --secret-file bob.env
  conclave iam user list`,
	}
	cmd.AddCommand(createCommand(a, aUser))
	cmd.AddCommand(newCommands(a,
		row{
			use: "list", short: "List the users", op: "ListUsers", doing: "listing users", list: true,
			example: `  conclave iam user list
  conclave iam user list --path-prefix /eng/ -o json`,
			binds: func(b *binder) { b.text("path_prefix", "path-prefix", "only users whose paths begin so") },
			table: tableOf(func(w io.Writer, r *iampb.ListUsersResponse) {
				cli.Line(w, "USER", "PATH", "ID", "CREATED")
				for _, u := range r.GetUsers() {
					cli.Line(w, u.GetUserName(), u.GetPath(), u.GetUserId(), cli.When(u.GetCreateDate()))
				}
			}),
		},
		row{
			use: "show [NAME]", short: "Describe a user, or the caller", op: "GetUser", doing: "describing user",
			example: `  conclave iam user show alice`,
			binds:   func(b *binder) { b.optional("user_name") },
			table:   tableOf(func(w io.Writer, r *iampb.GetUserResponse) { userTable(w, r.GetUser()) }),
		},
		row{
			use: "rename NAME", short: "Change the name or the path of a user", op: "UpdateUser", doing: "renaming user",
			long: `Rename changes the name or the path of a user, and so its ARN. Policies that name it by
its ARN do not follow.`,
			example: `  conclave iam user rename carol --to caroline --to-path /eng/`,
			binds: func(b *binder) {
				b.arg("user_name")
				b.text("new_user_name", "to", "the new name")
				b.text("new_path", "to-path", "the new path, such as /eng/")
			},
		},
		row{
			use: "delete NAME", short: "Delete a user", op: "DeleteUser", doing: "deleting user",
			long: `Delete deletes a user. One that has access keys, policies or groups is not deleted; with
--force, these are taken away first, the access keys before all else.`,
			example: `  conclave iam user delete eve --force`,
			binds: func(b *binder) {
				b.arg("user_name")
				b.cmd.Flags().Bool("force", false, "take away what the user has, and delete it")
			},
			run: deleteUser, also: emptyUserOps,
		},
		row{
			use: "groups NAME", short: "List the groups of a user", op: "ListGroupsForUser", doing: "listing the groups of user", list: true,
			example: `  conclave iam user groups alice`,
			binds:   func(b *binder) { b.arg("user_name") },
			table:   groupsTable,
		},
	)...)
	cmd.AddCommand(newCommands(a, aUser.policyRows()...)...)
	cmd.AddCommand(newCommands(a, tagRows("User", "user_name", "user", "user", "alice", false)...)...)
	cmd.AddCommand(aUser.boundaryCommand(a))
	return cmd
}

func userTable(w io.Writer, u *iampb.User) {
	cli.Line(w, "user", u.GetUserName())
	cli.Line(w, "arn", u.GetArn())
	cli.Line(w, "id", u.GetUserId())
	cli.Line(w, "created", cli.When(u.GetCreateDate()))
	cli.Line(w, "boundary", boundaryText(u.GetPermissionsBoundary()))
	tagLines(w, u.GetTags())
}

func tagLines(w io.Writer, tags []*iampb.Tag) {
	for _, t := range tags {
		cli.Line(w, "tag", t.GetKey()+"="+t.GetValue())
	}
}

// createCommand creates a user, group or role and, with --policy, gives it the policy of a
// template.
func createCommand(a *cli.App, h holder) *cobra.Command {
	var tf templateFlags
	var kf keyFlags
	r := row{
		op: "Create" + h.name, doing: "creating " + h.noun, also: h.gives(),
		binds: func(b *binder) {
			b.arg(h.member())
			b.text("path", "path", "path, such as /eng/")
			if h != aGroup {
				b.text("permissions_boundary", "boundary", "the POLICY outside of which it is allowed nothing")
				b.policies = append(b.policies, "permissions_boundary")
				b.tagFlag("tags")
			}
			tf.bind(b.cmd)
			switch h {
			case aUser:
				kf.bind(b.cmd)
			case aRole:
				b.text("description", "description", "description")
				b.seconds("max_session_duration", "max-session", "how long a session may last (default 1h)")
				bindTrust(b)
			}
		},
	}
	const use = "create NAME"
	switch h {
	case aUser:
		r.use, r.short, r.table = use, "Create a user", tableOf(func(w io.Writer, r *iampb.CreateUserResponse) { userTable(w, r.GetUser()) })
		r.long = `Create creates a user. With --policy, it gets the policy of a template, as an inline policy
with the template's name. With --create-key, it gets an access key, whose secret is
shown only once, or, with --secret-file, written to a new file of mode 0600 for a shell
to read.

If it fails halfway, the user may exist without them; what was not done can be done
with "iam user put-policy" and "iam key create".`
		r.example = `  conclave iam user create carol
  conclave iam user create dave --policy use-key --key payments --secret-file dave.env
  conclave iam user create grace --policy auditor --create-key -o json`
	case aGroup:
		r.use, r.short, r.table = use, "Create a group", tableOf(func(w io.Writer, r *iampb.CreateGroupResponse) { groupTable(w, r.GetGroup()) })
		r.long = `Create creates a group. With --policy, it gets the policy of a template, as an inline policy
with the template's name, which its users have too.`
		r.example = `  conclave iam group create auditors --policy auditor`
	case aRole:
		r.use, r.short, r.table = use, "Create a role", tableOf(func(w io.Writer, r *iampb.CreateRoleResponse) { roleTable(w, r.GetRole()) })
		r.long = `Create creates a role. Who may assume it is said by a trust policy in a file, or by
--trust-account and --trust-user. With --policy, it gets the policy of a template, as an
inline policy with the template's name.

An account that is trusted decides by its own policies which of its users may assume the
role; a user that is trusted needs no policy of its own in the same account.`
		r.example = `  conclave iam role create reader --trust-user alice --policy read-only
  conclave iam role create partner --trust-account 111111111111 --external-id 7f3a`
	}
	r.run = func(ctx context.Context, c *cli.Connection, b *binder) error {
		t, err := tf.template()
		if err != nil {
			return err
		}
		out, err := cli.NewSecretFile(kf.file)
		if err != nil {
			return err
		}
		defer out.Discard()
		name := b.get(h.member())
		arn := ""
		if t != nil && t.key {
			// Before anything is created, as the key may not exist.
			err := a.Timed(ctx, func(ctx context.Context) (err error) {
				arn, err = keyARN(ctx, c, tf.key)
				return err
			})
			if err != nil {
				return err
			}
		}
		if h == aRole {
			if err := a.Timed(ctx, func(ctx context.Context) error { return trustUsers(ctx, c, b) }); err != nil {
				return err
			}
		}
		res, err := b.call(ctx, c)
		if err != nil {
			return err
		}
		if t != nil {
			if err := a.Timed(ctx, func(ctx context.Context) error { return h.give(ctx, c, name, t, arn) }); err != nil {
				return fmt.Errorf("%s %s was created, but did not get the policy %s: %w", h.noun, name, t.name, err)
			}
		}
		if !kf.wanted() {
			return b.show(res)
		}
		user := res.(*iampb.CreateUserResponse).GetUser()
		if err := createKey(ctx, a, c, &iampb.CreateAccessKeyRequest{UserName: user.UserName}, out, user.GetArn()); err != nil {
			return fmt.Errorf("user %s was created, but: %w", name, err)
		}
		return nil
	}
	return newCommand(a, r)
}

// emptyUserOps are the operations that deleteUser calls.
var emptyUserOps = []string{
	"ListAccessKeys", "DeleteAccessKey", "ListGroupsForUser", "RemoveUserFromGroup", "ListAttachedUserPolicies", "DetachUserPolicy", "ListUserPolicies", "DeleteUserPolicy",
}

// deleteUser deletes a user and, with --force, what it has.
func deleteUser(ctx context.Context, c *cli.Connection, b *binder) error {
	if force, err := b.cmd.Flags().GetBool("force"); err == nil && force {
		if err := emptyUser(ctx, c, b); err != nil {
			return err
		}
	}
	res, err := b.call(ctx, c)
	if err != nil {
		return err
	}
	return b.show(res)
}

// emptyUser takes away the access keys, groups and policies of a user. The keys go first: if it
// fails later, nobody can sign in any more.
func emptyUser(ctx context.Context, c *cli.Connection, b *binder) error {
	a, name := b.app, message[*iampb.DeleteUserRequest](b).UserName
	keys, err := everything[*iampb.ListAccessKeysResponse](ctx, a, c, "ListAccessKeys", &iampb.ListAccessKeysRequest{UserName: name})
	if err != nil {
		return err
	}
	var todo []operation
	for _, k := range keys.GetAccessKeyMetadata() {
		todo = append(todo, operation{"DeleteAccessKey", &iampb.DeleteAccessKeyRequest{UserName: name, AccessKeyId: k.AccessKeyId}})
	}
	groups, err := everything[*iampb.ListGroupsForUserResponse](ctx, a, c, "ListGroupsForUser", &iampb.ListGroupsForUserRequest{UserName: name})
	if err != nil {
		return err
	}
	for _, g := range groups.GetGroups() {
		todo = append(todo, operation{"RemoveUserFromGroup", &iampb.RemoveUserFromGroupRequest{UserName: name, GroupName: g.GroupName}})
	}
	attached, err := everything[*iampb.ListAttachedUserPoliciesResponse](ctx, a, c, "ListAttachedUserPolicies", &iampb.ListAttachedUserPoliciesRequest{UserName: name})
	if err != nil {
		return err
	}
	for _, p := range attached.GetAttachedPolicies() {
		todo = append(todo, operation{"DetachUserPolicy", &iampb.DetachUserPolicyRequest{UserName: name, PolicyArn: p.PolicyArn}})
	}
	inline, err := everything[*iampb.ListUserPoliciesResponse](ctx, a, c, "ListUserPolicies", &iampb.ListUserPoliciesRequest{UserName: name})
	if err != nil {
		return err
	}
	for _, p := range inline.GetPolicyNames() {
		todo = append(todo, operation{"DeleteUserPolicy", &iampb.DeleteUserPolicyRequest{UserName: name, PolicyName: &p}})
	}
	for _, op := range todo {
		err := a.Timed(ctx, func(ctx context.Context) error {
			_, err := invoke(ctx, c, op.name, op.req)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// operation is a call to be made.
type operation struct {
	name string
	req  proto.Message
}
