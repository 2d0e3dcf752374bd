package access

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/iampb"
)

func managedCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "policy", Short: "Manage managed policies, which users, groups and roles share",
		Long: `Policy manages managed policies. Each has up to five versions, one of which is in force.

"conclave policy" checks and explains policies, and "conclave key policy" is for those of
keys.`,
		Example: `  conclave iam policy list --scope Local
  conclave iam policy show AdministratorAccess`,
	}
	named := func(b *binder) { b.policy("policy_arn") }
	versioned := func(b *binder) {
		b.policy("policy_arn")
		b.arg("version_id")
	}
	cmd.AddCommand(newCommands(a,
		row{
			use: "create NAME [FILE|-]", short: "Create a policy from a file or standard input", op: "CreatePolicy", doing: "creating policy",
			example: `  conclave iam policy create shared reads.json --description "reads keys"`,
			binds: func(b *binder) {
				b.arg("policy_name")
				b.document("policy_document")
				b.text("path", "path", "path, such as /eng/")
				b.text("description", "description", "description, which cannot be changed")
				b.tagFlag("tags")
			},
			table: tableOf(func(w io.Writer, r *iampb.CreatePolicyResponse) { managedTable(w, r.GetPolicy()) }),
		},
		row{
			use: "list", short: "List the policies", op: "ListPolicies", doing: "listing policies", list: true,
			example: `  conclave iam policy list
  conclave iam policy list --scope Local --attached`,
			binds: func(b *binder) {
				b.text("scope", "scope", "All, AWS for AWS's, or Local for the account's own (default All)")
				b.boolean("only_attached", "attached", "only policies that are attached")
				b.text("path_prefix", "path-prefix", "only policies whose paths begin so")
				b.text("policy_usage_filter", "used-as", "only policies used as PermissionsPolicy or as PermissionsBoundary")
			},
			table: tableOf(func(w io.Writer, r *iampb.ListPoliciesResponse) {
				cli.Line(w, "POLICY", "VERSION", "ATTACHED", "UPDATED", "ARN")
				for _, p := range r.GetPolicies() {
					cli.Line(w, p.GetPolicyName(), p.GetDefaultVersionId(), p.GetAttachmentCount(), cli.When(p.GetUpdateDate()), p.GetArn())
				}
			}),
		},
		row{
			use: "show POLICY", short: "Describe a policy, with the document that is in force or another version", op: "GetPolicy", also: []string{"GetPolicyVersion"}, doing: "describing policy",
			example: `  conclave iam policy show shared
  conclave iam policy show shared --version v1`,
			binds: func(b *binder) {
				named(b)
				b.cmd.Flags().String("version", "", "version of the document (default the one that is in force)")
			},
			run: showPolicy,
		},
		row{
			use: "versions POLICY", short: "List the versions of a policy", op: "ListPolicyVersions", doing: "listing the versions of policy", list: true,
			example: `  conclave iam policy versions shared`,
			binds:   named,
			table: tableOf(func(w io.Writer, r *iampb.ListPolicyVersionsResponse) {
				cli.Line(w, "VERSION", "IN FORCE", "CREATED")
				for _, v := range r.GetVersions() {
					cli.Line(w, v.GetVersionId(), yes(v.GetIsDefaultVersion()), cli.When(v.GetCreateDate()))
				}
			}),
		},
		row{
			use: "new-version POLICY [FILE|-]", short: "Create a version from a file or standard input", op: "CreatePolicyVersion", doing: "creating a version of policy",
			example: `  conclave iam policy new-version shared reads.json --set-default`,
			binds: func(b *binder) {
				named(b)
				b.document("policy_document")
				b.boolean("set_as_default", "set-default", "put it in force")
			},
			table: tableOf(func(w io.Writer, r *iampb.CreatePolicyVersionResponse) {
				cli.Line(w, "version", r.GetPolicyVersion().GetVersionId())
				cli.Line(w, "in force", yes(r.GetPolicyVersion().GetIsDefaultVersion()))
			}),
		},
		row{
			use: "set-default POLICY VERSION", short: "Put a version in force", op: "SetDefaultPolicyVersion", doing: "setting the version of policy",
			example: `  conclave iam policy set-default shared v1`,
			binds:   versioned,
		},
		row{
			use: "delete-version POLICY VERSION", short: "Delete a version that is not in force", op: "DeletePolicyVersion", doing: "deleting a version of policy",
			example: `  conclave iam policy delete-version shared v2`,
			binds:   versioned,
		},
		row{
			use: "delete POLICY", short: "Delete a policy that is not attached, with its versions", op: "DeletePolicy", also: []string{"ListPolicyVersions", "DeletePolicyVersion"}, doing: "deleting policy",
			example: `  conclave iam policy delete unused`,
			binds:   named,
			run:     deletePolicy,
		},
		row{
			use: "used-by POLICY", short: "List the users, groups and roles that a policy is attached to", op: "ListEntitiesForPolicy", doing: "listing who has policy", list: true,
			example: `  conclave iam policy used-by shared`,
			binds: func(b *binder) {
				named(b)
				b.text("entity_filter", "only", "only User, Role or Group")
				b.text("path_prefix", "path-prefix", "only those whose paths begin so")
				b.text("policy_usage_filter", "used-as", "PermissionsPolicy or PermissionsBoundary")
			},
			table: tableOf(func(w io.Writer, r *iampb.ListEntitiesForPolicyResponse) {
				cli.Line(w, "KIND", "NAME", "ID")
				for _, u := range r.GetPolicyUsers() {
					cli.Line(w, "user", u.GetUserName(), u.GetUserId())
				}
				for _, g := range r.GetPolicyGroups() {
					cli.Line(w, "group", g.GetGroupName(), g.GetGroupId())
				}
				for _, x := range r.GetPolicyRoles() {
					cli.Line(w, "role", x.GetRoleName(), x.GetRoleId())
				}
			}),
		},
	)...)
	cmd.AddCommand(newCommands(a, tagRows("Policy", "policy_arn", "policy", "policy", "shared", true)...)...)
	cmd.AddCommand(templatesCommand(a))
	return cmd
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func managedTable(w io.Writer, p *iampb.Policy) {
	cli.Line(w, "policy", p.GetPolicyName())
	cli.Line(w, "arn", p.GetArn())
	cli.Line(w, "id", p.GetPolicyId())
	cli.Line(w, "version in force", p.GetDefaultVersionId())
	cli.Line(w, "attached", p.GetAttachmentCount())
	cli.Line(w, "as boundary", p.GetPermissionsBoundaryUsageCount())
	cli.Line(w, "description", cli.OrDash(p.GetDescription()))
	cli.Line(w, "created", cli.When(p.GetCreateDate()))
	cli.Line(w, "updated", cli.When(p.GetUpdateDate()))
	tagLines(w, p.GetTags())
}

// showPolicy describes a policy with one of its documents. As JSON and YAML it is the version,
// which has the document.
func showPolicy(ctx context.Context, c *cli.Connection, b *binder) error {
	arn := message[*iampb.GetPolicyRequest](b).PolicyArn
	var p *iampb.Policy
	var v *iampb.GetPolicyVersionResponse
	err := b.app.Timed(ctx, func(ctx context.Context) error {
		res, err := c.IAM().GetPolicy(ctx, &iampb.GetPolicyRequest{PolicyArn: arn})
		if err != nil {
			return err
		}
		p = res.GetPolicy()
		version := p.DefaultVersionId
		if f := b.cmd.Flags().Lookup("version"); f.Changed {
			version = proto.String(f.Value.String())
		}
		v, err = c.IAM().GetPolicyVersion(ctx, &iampb.GetPolicyVersionRequest{PolicyArn: arn, VersionId: version})
		return err
	})
	if err != nil {
		return err
	}
	return b.app.Print(v, func(w io.Writer) {
		managedTable(w, p)
		fmt.Fprintf(w, "\n%s\n", cli.Visible(v.GetPolicyVersion().GetDocument()))
	})
}

// deletePolicy deletes a policy after its other versions, as the server requires.
func deletePolicy(ctx context.Context, c *cli.Connection, b *binder) error {
	arn := message[*iampb.DeletePolicyRequest](b).PolicyArn
	all, err := everything[*iampb.ListPolicyVersionsResponse](ctx, b.app, c, "ListPolicyVersions", &iampb.ListPolicyVersionsRequest{PolicyArn: arn})
	if err != nil {
		return err
	}
	others := slices.DeleteFunc(all.GetVersions(), func(v *iampb.PolicyVersion) bool { return v.GetIsDefaultVersion() })
	if len(others) > 0 {
		// The server refuses the policy while it is attached, but not its versions.
		var attached *iampb.GetPolicyResponse
		err := b.app.Timed(ctx, func(ctx context.Context) (err error) {
			attached, err = c.IAM().GetPolicy(ctx, &iampb.GetPolicyRequest{PolicyArn: arn})
			return err
		})
		if err != nil {
			return err
		}
		if n := attached.GetPolicy().GetAttachmentCount() + attached.GetPolicy().GetPermissionsBoundaryUsageCount(); n > 0 {
			return fmt.Errorf("the policy is attached %d times; `conclave iam policy used-by` lists where", n)
		}
	}
	for _, v := range others {
		err := b.app.Timed(ctx, func(ctx context.Context) error {
			_, err := c.IAM().DeletePolicyVersion(ctx, &iampb.DeletePolicyVersionRequest{PolicyArn: arn, VersionId: v.VersionId})
			return err
		})
		if err != nil {
			return err
		}
	}
	res, err := b.call(ctx, c)
	if err != nil {
		return err
	}
	return b.show(res)
}
