package access

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/iampb"
)

// holder is a kind of thing that has policies: a user, a group or a role.
type holder struct {
	noun string // as in the commands
	name string // as in the names of operations
}

var (
	aUser  = holder{"user", "User"}
	aGroup = holder{"group", "Group"}
	aRole  = holder{"role", "Role"}
)

// member is the member of requests that names the holder.
func (h holder) member() string { return h.noun + "_name" }

// an is an example of the holder's name.
func (h holder) example() string {
	return map[string]string{"user": "alice", "group": "developers", "role": "app"}[h.noun]
}

// policyRows are the commands for the policies of a holder, which are the same for all kinds.
func (h holder) policyRows() []row {
	cmd := "  conclave iam " + h.noun + " "
	who := h.example()
	return []row{
		{
			use: "attach NAME POLICY", short: "Attach a managed policy", op: "Attach" + h.name + "Policy", doing: "attaching a policy to " + h.noun,
			example: cmd + "attach " + who + " own",
			binds: func(b *binder) {
				b.arg(h.member())
				b.policy("policy_arn")
			},
		},
		{
			use: "detach NAME POLICY", short: "Detach a managed policy", op: "Detach" + h.name + "Policy", doing: "detaching a policy from " + h.noun,
			example: cmd + "detach " + who + " own",
			binds: func(b *binder) {
				b.arg(h.member())
				b.policy("policy_arn")
			},
		},
		{
			use: "attached NAME", short: "List the managed policies that are attached", op: "ListAttached" + h.name + "Policies", doing: "listing the policies of " + h.noun, list: true,
			example: cmd + "attached " + who,
			binds: func(b *binder) {
				b.arg(h.member())
				b.text("path_prefix", "path-prefix", "only policies whose paths begin so")
			},
			table: attachedTable,
		},
		{
			use: "put-policy NAME POLICY-NAME [FILE|-]", short: "Set an inline policy from a file or standard input", op: "Put" + h.name + "Policy", doing: "putting a policy of " + h.noun,
			example: cmd + "put-policy " + who + " reads reads.json",
			binds: func(b *binder) {
				b.arg(h.member())
				b.arg("policy_name")
				b.document("policy_document")
			},
		},
		{
			use: "get-policy NAME POLICY-NAME", short: "Print an inline policy", op: "Get" + h.name + "Policy", doing: "getting a policy of " + h.noun,
			example: cmd + "get-policy " + who + " reads",
			binds: func(b *binder) {
				b.arg(h.member())
				b.arg("policy_name")
			},
			table: func(w io.Writer, res proto.Message) {
				fmt.Fprintln(w, cli.Visible(res.(interface{ GetPolicyDocument() string }).GetPolicyDocument()))
			},
		},
		{
			use: "delete-policy NAME POLICY-NAME", short: "Delete an inline policy", op: "Delete" + h.name + "Policy", doing: "deleting a policy of " + h.noun,
			example: cmd + "delete-policy " + who + " reads",
			binds: func(b *binder) {
				b.arg(h.member())
				b.arg("policy_name")
			},
		},
		{
			use: "policies NAME", short: "List the names of the inline policies", op: "List" + h.name + "Policies", doing: "listing the inline policies of " + h.noun, list: true,
			example: cmd + "policies " + who,
			binds:   func(b *binder) { b.arg(h.member()) },
			table: func(w io.Writer, res proto.Message) {
				cli.Line(w, "POLICY")
				for _, n := range res.(interface{ GetPolicyNames() []string }).GetPolicyNames() {
					cli.Line(w, n)
				}
			},
		},
	}
}

func attachedTable(w io.Writer, res proto.Message) {
	cli.Line(w, "POLICY", "ARN")
	for _, p := range res.(interface {
		GetAttachedPolicies() []*iampb.AttachedPolicy
	}).GetAttachedPolicies() {
		cli.Line(w, p.GetPolicyName(), p.GetPolicyArn())
	}
}

// tagRows are the commands for tags. ops is how operations name what has them, and member how
// requests do. noun and what are for people, as in "user" and "alice".
func tagRows(ops, member, noun, command, what string, isPolicy bool) []row {
	named := func(b *binder) {
		if isPolicy {
			b.policy(member)
		} else {
			b.arg(member)
		}
	}
	argument := "NAME"
	switch {
	case isPolicy:
		argument = "POLICY"
	case noun == "identity provider":
		argument = "ARN"
	}
	return []row{
		{
			use: "tag " + argument + " KEY=VALUE…", short: "Set tags", op: "Tag" + ops, doing: "tagging " + noun,
			example: "  conclave iam " + command + " tag " + what + " team=shop",
			binds: func(b *binder) {
				named(b)
				b.tags("tags")
			},
		},
		{
			use: "untag " + argument + " KEY…", short: "Remove tags", op: "Untag" + ops, doing: "untagging " + noun,
			example: "  conclave iam " + command + " untag " + what + " team",
			binds: func(b *binder) {
				named(b)
				b.texts("tag_keys")
			},
		},
		{
			use: "tags " + argument, short: "List tags", op: "List" + ops + "Tags", doing: "listing the tags of " + noun, list: true,
			example: "  conclave iam " + command + " tags " + what,
			binds:   named,
			table: func(w io.Writer, res proto.Message) {
				cli.Line(w, "KEY", "VALUE")
				for _, t := range res.(interface{ GetTags() []*iampb.Tag }).GetTags() {
					cli.Line(w, t.GetKey(), t.GetValue())
				}
			},
		},
	}
}

// boundaryCommand sets or, with --none, deletes the permissions boundary of a user or role.
func (h holder) boundaryCommand(a *cli.App) *cobra.Command {
	var none bool
	set := "Put" + h.name + "PermissionsBoundary"
	unset := "Delete" + h.name + "PermissionsBoundary"
	cmd := newCommand(a, row{
		use: "boundary NAME [POLICY]", short: "Set or, with --none, remove the permissions boundary", op: set, also: []string{unset}, doing: "setting the boundary of " + h.noun,
		long: "Boundary sets the permissions boundary: a managed policy outside of which no other policy\nallows the " + h.noun + " anything. With --none, it is removed.",
		example: "  conclave iam " + h.noun + " boundary " + h.example() + " own\n" +
			"  conclave iam " + h.noun + " boundary " + h.example() + " --none",
		binds: func(b *binder) {
			b.arg(h.member())
			b.optional("permissions_boundary")
			b.policies = append(b.policies, "permissions_boundary")
			b.fill(func() error {
				if none == (len(b.args) == 2) {
					return cli.Usagef("give either a policy or --none")
				}
				if none {
					b.row.op = unset
					b.req = newMessage(method(unset).Input())
					b.policies = nil
					b.set(h.member(), b.args[0])
				}
				return nil
			})
		},
	})
	cmd.Flags().BoolVar(&none, "none", false, "remove it")
	return cmd
}

// boundaryText returns the ARN of a permissions boundary, for tables.
func boundaryText(p *iampb.AttachedPermissionsBoundary) string {
	return cli.OrDash(p.GetPermissionsBoundaryArn())
}
