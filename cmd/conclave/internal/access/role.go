package access

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/iampb"
)

func roleCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "role", Short: "Manage roles",
		Example: `  conclave iam role create backup --trust-user alice --policy use-key --key payments
  conclave iam role list`,
	}
	cmd.AddCommand(createCommand(a, aRole))
	cmd.AddCommand(newCommands(a,
		row{
			use: "list", short: "List the roles", op: "ListRoles", doing: "listing roles", list: true,
			example: `  conclave iam role list`,
			binds:   func(b *binder) { b.text("path_prefix", "path-prefix", "only roles whose paths begin so") },
			table: tableOf(func(w io.Writer, r *iampb.ListRolesResponse) {
				cli.Line(w, "ROLE", "PATH", "ID", "CREATED", "DESCRIPTION")
				for _, x := range r.GetRoles() {
					cli.Line(w, x.GetRoleName(), x.GetPath(), x.GetRoleId(), cli.When(x.GetCreateDate()), cli.OrDash(x.GetDescription()))
				}
			}),
		},
		row{
			use: "show NAME", short: "Describe a role", op: "GetRole", doing: "describing role",
			example: `  conclave iam role show app`,
			binds:   func(b *binder) { b.arg("role_name") },
			table:   tableOf(func(w io.Writer, r *iampb.GetRoleResponse) { roleTable(w, r.GetRole()) }),
		},
		row{
			use: "update NAME", short: "Change the description or the longest session", op: "UpdateRole", doing: "updating role",
			example: `  conclave iam role update app --description "web shop" --max-session 2h`,
			binds: func(b *binder) {
				b.arg("role_name")
				b.text("description", "description", "description")
				b.seconds("max_session_duration", "max-session", "how long a session may last")
			},
		},
		row{
			use: "update-trust NAME [FILE|-]", short: "Replace the trust policy with that of a file or standard input", op: "UpdateAssumeRolePolicy", doing: "updating the trust policy of role",
			example: `  conclave iam role update-trust app trust.json`,
			binds: func(b *binder) {
				b.arg("role_name")
				b.document("policy_document")
			},
		},
		row{
			use: "revoke-sessions NAME", short: "End the sessions of a role that are open", op: "RevokeRoleSessions", doing: "revoking the sessions of role",
			long: `Revoke-sessions ends the sessions of a role that are open, or those that were opened before
a time. When it returns, no node answers a request received afterwards with one of them.
The role can be assumed again: take away who trusts it, if that is not wanted.`,
			example: `  conclave iam role revoke-sessions app
  conclave iam role revoke-sessions app --older-than 1h`,
			binds: func(b *binder) {
				b.arg("role_name")
				b.before("older_than", "older-than", "only sessions that were opened before")
			},
		},
		row{
			use: "delete NAME", short: "Delete a role that has no policies", op: "DeleteRole", doing: "deleting role",
			example: `  conclave iam role delete old`,
			binds:   func(b *binder) { b.arg("role_name") },
		},
	)...)
	cmd.AddCommand(newCommands(a, aRole.policyRows()...)...)
	cmd.AddCommand(newCommands(a, tagRows("Role", "role_name", "role", "role", "app", false)...)...)
	cmd.AddCommand(aRole.boundaryCommand(a))
	return cmd
}

func roleTable(w io.Writer, r *iampb.Role) {
	cli.Line(w, "role", r.GetRoleName())
	cli.Line(w, "arn", r.GetArn())
	cli.Line(w, "id", r.GetRoleId())
	cli.Line(w, "created", cli.When(r.GetCreateDate()))
	cli.Line(w, "description", cli.OrDash(r.GetDescription()))
	cli.Line(w, "longest session", time.Duration(r.GetMaxSessionDuration())*time.Second)
	cli.Line(w, "boundary", boundaryText(r.GetPermissionsBoundary()))
	if used := r.GetRoleLastUsed(); used.GetLastUsedDate() != nil {
		cli.Line(w, "last used", cli.When(used.GetLastUsedDate())+" in "+used.GetRegion())
	}
	tagLines(w, r.GetTags())
	fmt.Fprintf(w, "\n%s\n", cli.Visible(r.GetAssumeRolePolicyDocument()))
}

// bindTrust makes the flags that say who may assume a role that is created.
func bindTrust(b *binder) {
	const member = "assume_role_policy_document"
	b.file(member, "trust", "file with the trust policy")
	f := b.cmd.Flags()
	f.StringArray("trust-account", nil, "account that may assume the role, by its own policies; may be repeated")
	f.StringArray("trust-user", nil, "user that may assume the role, by name or ARN; may be repeated")
	f.String("external-id", "", "external id that who assumes the role has to give")
	b.fill(func() error {
		accounts, _ := f.GetStringArray("trust-account")
		users, _ := f.GetStringArray("trust-user")
		given := b.req.Has(fieldOf(b.req, member))
		switch {
		case given == (len(accounts)+len(users) > 0):
			return cli.Usagef("give either --trust, or --trust-account and --trust-user")
		case given && f.Changed("external-id"):
			return cli.Usagef("--external-id is for --trust-account and --trust-user; a policy in a file has its own conditions")
		}
		return nil
	})
}

// trustUsers sets the trust policy from --trust-account and --trust-user, where users may be
// given by name.
func trustUsers(ctx context.Context, c *cli.Connection, b *binder) error {
	const member = "assume_role_policy_document"
	if b.req.Has(fieldOf(b.req, member)) {
		return nil
	}
	f := b.cmd.Flags()
	accounts, _ := f.GetStringArray("trust-account")
	users, _ := f.GetStringArray("trust-user")
	external, _ := f.GetString("external-id")
	who, err := caller(ctx, c)
	if err != nil {
		return err
	}
	var names []string
	for _, account := range accounts {
		names = append(names, "arn:"+who.Partition+":iam::"+account+":root")
	}
	for _, u := range users {
		if !strings.HasPrefix(u, "arn:") {
			u = "arn:" + who.Partition + ":iam::" + who.Account + ":user/" + strings.TrimPrefix(u, "user/")
		}
		names = append(names, u)
	}
	doc, err := trustPolicy(names, external)
	if err != nil {
		return fmt.Errorf("making the trust policy: %w", err)
	}
	b.set(member, doc)
	return nil
}

// trustPolicy returns the trust policy for principals, by their ARNs, who have to give an
// external id unless it is "".
func trustPolicy(names []string, external string) (string, error) {
	type principals struct{ AWS []string }
	st := struct {
		Effect    string
		Principal principals
		Action    string
		Condition map[string]map[string]string `json:",omitempty"`
	}{Effect: "Allow", Principal: principals{names}, Action: "sts:AssumeRole"}
	if external != "" {
		st.Condition = map[string]map[string]string{"StringEquals": {"sts:ExternalId": external}}
	}
	raw, err := json.MarshalIndent(struct {
		Version   string
		Statement []any
	}{"2012-10-17", []any{st}}, "", "    ")
	return string(raw), err
}
