package access

import (
	"io"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/iampb"
)

func groupCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "group", Short: "Manage groups of users",
		Example: `  conclave iam group add-user developers alice
  conclave iam group show developers`,
	}
	cmd.AddCommand(createCommand(a, aGroup))
	cmd.AddCommand(newCommands(a,
		row{
			use: "list", short: "List the groups", op: "ListGroups", doing: "listing groups", list: true,
			example: `  conclave iam group list`,
			binds:   func(b *binder) { b.text("path_prefix", "path-prefix", "only groups whose paths begin so") },
			table:   groupsTable,
		},
		row{
			use: "show NAME", short: "Describe a group, with its users", op: "GetGroup", doing: "describing group", list: true,
			example: `  conclave iam group show developers`,
			binds:   func(b *binder) { b.arg("group_name") },
			table: tableOf(func(w io.Writer, r *iampb.GetGroupResponse) {
				groupTable(w, r.GetGroup())
				for _, u := range r.GetUsers() {
					cli.Line(w, "member", u.GetUserName())
				}
			}),
		},
		row{
			use: "rename NAME", short: "Change the name or the path of a group", op: "UpdateGroup", doing: "renaming group",
			example: `  conclave iam group rename testers --to qa`,
			binds: func(b *binder) {
				b.arg("group_name")
				b.text("new_group_name", "to", "the new name")
				b.text("new_path", "to-path", "the new path, such as /eng/")
			},
		},
		row{
			use: "delete NAME", short: "Delete a group that has no users and policies", op: "DeleteGroup", doing: "deleting group",
			example: `  conclave iam group delete old`,
			binds:   func(b *binder) { b.arg("group_name") },
		},
		row{
			use: "add-user GROUP USER", short: "Add a user", op: "AddUserToGroup", doing: "adding a user to group",
			example: `  conclave iam group add-user developers alice`,
			binds: func(b *binder) {
				b.arg("group_name")
				b.arg("user_name")
			},
		},
		row{
			use: "remove-user GROUP USER", short: "Remove a user", op: "RemoveUserFromGroup", doing: "removing a user from group",
			example: `  conclave iam group remove-user developers alice`,
			binds: func(b *binder) {
				b.arg("group_name")
				b.arg("user_name")
			},
		},
	)...)
	cmd.AddCommand(newCommands(a, aGroup.policyRows()...)...)
	return cmd
}

func groupTable(w io.Writer, g *iampb.Group) {
	cli.Line(w, "group", g.GetGroupName())
	cli.Line(w, "arn", g.GetArn())
	cli.Line(w, "id", g.GetGroupId())
	cli.Line(w, "created", cli.When(g.GetCreateDate()))
}

func groupsTable(w io.Writer, res proto.Message) {
	cli.Line(w, "GROUP", "PATH", "ID", "CREATED")
	for _, g := range res.(interface{ GetGroups() []*iampb.Group }).GetGroups() {
		cli.Line(w, g.GetGroupName(), g.GetPath(), g.GetGroupId(), cli.When(g.GetCreateDate()))
	}
}
