package access

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/permissions"
	"github.com/conclavekms/conclave/policy"
)

// template is a policy for a usual task. Each names its actions one by one, or by prefixes
// under which AWS adds only what reads: a person who gives one away should be able to read
// what it allows.
type template struct {
	name, about string
	key         bool     // it is for one key
	actions     []string // on the key, or on everything
	aliases     []string // actions that need the permission on aliases too
	managed     string   // name of the policy of AWS that it attaches instead
}

var templates = []*template{
	{
		name: "use-key", about: "encrypt and decrypt with one key", key: true,
		actions: []string{"kms:DescribeKey", "kms:Encrypt", "kms:Decrypt", "kms:ReEncrypt*", "kms:GenerateDataKey*"},
	},
	{
		name: "encrypt-only", about: "encrypt with one key, and get new data keys of it", key: true,
		actions: []string{"kms:DescribeKey", "kms:Encrypt", "kms:ReEncryptTo", "kms:GenerateDataKey*"},
	},
	{
		name: "decrypt-only", about: "decrypt with one key", key: true,
		actions: []string{"kms:DescribeKey", "kms:Decrypt"},
	},
	{
		name: "sign", about: "sign, or make MACs, with one key", key: true,
		actions: []string{"kms:DescribeKey", "kms:GetPublicKey", "kms:Sign", "kms:GenerateMac"},
	},
	{
		name: "verify", about: "verify signatures or MACs with one key", key: true,
		actions: []string{"kms:DescribeKey", "kms:GetPublicKey", "kms:Verify", "kms:VerifyMac"},
	},
	{
		name: "admin-key", about: "manage one key, with its policy and aliases, but not use it", key: true,
		actions: []string{
			"kms:DescribeKey", "kms:Get*", "kms:List*", "kms:EnableKey", "kms:DisableKey", "kms:EnableKeyRotation", "kms:DisableKeyRotation", "kms:RotateKeyOnDemand",
			"kms:PutKeyPolicy", "kms:UpdateKeyDescription", "kms:UpdatePrimaryRegion", "kms:TagResource", "kms:UntagResource", "kms:RevokeGrant",
			"kms:ImportKeyMaterial", "kms:DeleteImportedKeyMaterial", "kms:ScheduleKeyDeletion", "kms:CancelKeyDeletion",
		},
		aliases: []string{"kms:CreateAlias", "kms:UpdateAlias", "kms:DeleteAlias"},
	},
	{
		name: "read-only", about: "see all keys, users, groups, roles and policies, and change and use nothing",
		actions: []string{"kms:Describe*", "kms:Get*", "kms:List*", "iam:Get*", "iam:List*", "iam:Simulate*"},
	},
	{name: "auditor", about: "read the audit log and the usage", actions: []string{"conclave:ReadAudit", "conclave:ReadUsage", "cloudtrail:LookupEvents"}},
	{name: "admin", about: "everything: attaches AWS's policy AdministratorAccess", managed: "AdministratorAccess"},
}

// templateNamed returns a template.
func templateNamed(name string) (*template, error) {
	i := slices.IndexFunc(templates, func(t *template) bool { return t.name == name })
	if i < 0 {
		return nil, cli.Usagef("there is no template %q; `conclave iam policy templates` lists them", name)
	}
	return templates[i], nil
}

// document returns the policy for a key, given by its ARN; "" if the template is for none.
func (t *template) document(keyARN string) (string, error) {
	resource := "*"
	if t.key {
		resource = keyARN
	}
	statements := []permissions.Statement{{Effect: "Allow", Action: t.actions, Resource: []string{resource}}}
	if len(t.aliases) > 0 {
		// These need the permission on the key and on the alias, so a statement for all aliases
		// gives away no key but this one.
		prefix, _, ok := strings.Cut(keyARN, ":key/")
		if !ok {
			return "", fmt.Errorf("%s is not the ARN of a key", keyARN)
		}
		statements = append(statements, permissions.Statement{Effect: "Allow", Action: t.aliases, Resource: []string{keyARN, prefix + ":alias/*"}})
	}
	return permissions.Document(statements...)
}

// templateFlags are the flags --policy and --key of commands that create.
type templateFlags struct{ policy, key string }

func (f *templateFlags) bind(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.policy, "policy", "", "template of a policy that it gets; `conclave iam policy templates` lists them")
	cmd.Flags().StringVar(&f.key, "key", "", "the KEY that the template is for")
	names := make([]string, len(templates))
	for i, t := range templates {
		names[i] = t.name
	}
	_ = cmd.RegisterFlagCompletionFunc("policy", cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp))
}

// template returns the template that the user wants, or nil.
func (f *templateFlags) template() (*template, error) {
	if f.policy == "" {
		if f.key != "" {
			return nil, cli.Usagef("--key is for --policy")
		}
		return nil, nil
	}
	t, err := templateNamed(f.policy)
	switch {
	case err != nil:
		return nil, err
	case t.key && f.key == "":
		return nil, cli.Usagef("the template %s is for one key: give it with --key", t.name)
	case !t.key && f.key != "":
		return nil, cli.Usagef("the template %s is for no key", t.name)
	}
	return t, nil
}

// give gives a template's policy to a user, group or role.
func (h holder) give(ctx context.Context, c *cli.Connection, name string, t *template, keyARN string) error {
	op, member, value := "Attach"+h.name+"Policy", "policy_arn", ""
	var err error
	if t.managed != "" {
		value, err = policyARN(ctx, c, t.managed)
	} else {
		op, member = "Put"+h.name+"Policy", "policy_document"
		value, err = t.document(keyARN)
	}
	if err != nil {
		return err
	}
	b := &binder{req: newMessage(method(op).Input())}
	b.set(h.member(), name)
	b.set(member, value)
	if t.managed == "" {
		b.set("policy_name", t.name)
	}
	_, err = invoke(ctx, c, op, b.req.Interface())
	return err
}

// gives are the operations that give calls.
func (h holder) gives() []string {
	return []string{"GetCallerIdentity", "Attach" + h.name + "Policy", "Put" + h.name + "Policy"}
}

func templatesCommand(a *cli.App) *cobra.Command {
	var key string
	cmd := &cobra.Command{
		Use: "templates [NAME]", Short: "List the templates of policies, or print one",
		Long: `Templates lists the policies for usual tasks, which "create --policy" gives to users,
groups and roles. With a name, it prints the policy.`,
		Example: `  conclave iam policy templates
  conclave iam policy templates use-key > policy.json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 1 {
				return printTemplate(a, args[0], key)
			}
			type listed struct {
				Name   string `json:"name"`
				About  string `json:"about"`
				ForKey bool   `json:"for_key"`
			}
			out := make([]listed, len(templates))
			for i, t := range templates {
				out[i] = listed{t.name, t.about, t.key}
			}
			return a.Print(out, func(w io.Writer) {
				cli.Line(w, "TEMPLATE", "FOR A KEY", "ALLOWS TO")
				for _, t := range out {
					cli.Line(w, t.Name, map[bool]string{true: "yes", false: "-"}[t.ForKey], t.About)
				}
			})
		},
	}
	cmd.Flags().StringVar(&key, "key", "arn:aws:kms:us-east-1:000000000000:key/KEY-ID", "ARN of the key")
	return cmd
}

func printTemplate(a *cli.App, name, key string) error {
	t, err := templateNamed(name)
	if err != nil {
		return err
	}
	if t.managed != "" {
		doc, _ := policy.AWSManaged("arn:aws:iam::aws:policy/" + t.managed)
		_, err := fmt.Fprintln(a.Stdout, doc)
		return err
	}
	doc, err := t.document(key)
	if err != nil {
		return cli.Usage(err)
	}
	_, err = fmt.Fprintln(a.Stdout, cli.Visible(doc))
	return err
}
