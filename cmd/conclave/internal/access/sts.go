package access

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/iampb"
)

func stsCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "sts", Short: "Get temporary credentials, and find out who you are",
		Long: `Sts gets temporary credentials, as "aws sts" does, which works too.

Credentials are printed as lines for a shell, with -o json or yaml as the service's whole
answer, and with -o process as AWS's tools expect it of a credential_process.`,
		Example: `  conclave sts whoami
  eval "$(conclave sts session-token)"`,
	}
	a.ClientFlags(cmd)
	cmd.AddCommand(newCommands(a,
		row{
			use: "whoami", short: "Print who the caller is", op: "GetCallerIdentity", doing: "asking who calls",
			example: `  conclave sts whoami`,
			table: tableOf(func(w io.Writer, r *iampb.GetCallerIdentityResponse) {
				cli.Line(w, "arn", r.GetArn())
				cli.Line(w, "account", r.GetAccount())
				cli.Line(w, "id", r.GetUserId())
			}),
		},
		row{
			use: "assume-role ROLE", short: "Get temporary credentials of a role", op: "AssumeRole", also: []string{"GetCallerIdentity"}, doing: "assuming role",
			long: `Assume-role gets temporary credentials of a role, which is given by its ARN, or by its name
if it is in the caller's account and has no path.

In ~/.aws/config, a profile whose credentials AWS's tools get here by themselves:

  credential_process = conclave sts assume-role reader --session-name alice -o process`,
			example: `  conclave sts assume-role reader --session-name alice --duration 15m -o process
  eval "$(conclave sts assume-role reader --session-name alice)"`,
			binds: func(b *binder) {
				b.arg("role_arn")
				b.text("role_session_name", "session-name", "name of the session, for the audit log")
				b.needed("session-name")
				b.seconds("duration_seconds", "duration", "how long the credentials are valid (default 1h)")
				b.text("external_id", "external-id", "external id that the role's trust policy asks for")
				b.text("source_identity", "source-identity", "who assumes the role, for sessions of roles that it assumes in turn")
				b.tagFlag("tags")
				b.list("transitive_tag_keys", "transitive", "key of a tag that sessions of roles assumed in turn have too")
				sessionPolicies(b)
			},
			run: assumeRole,
		},
		row{
			use: "assume-role-with-token ROLE-ARN", short: "Get temporary credentials of a role with a token of an issuer", op: "AssumeRoleWithWebIdentity", doing: "assuming role",
			long: `Assume-role-with-token exchanges a token of a registered issuer, such as a Kubernetes service
account's, for temporary credentials of a role. It needs no access key.`,
			example: `  conclave sts assume-role-with-token "$WEB_ROLE" --session-name pod --token-file token.jwt`,
			binds: func(b *binder) {
				b.arg("role_arn")
				b.text("role_session_name", "session-name", "name of the session, for the audit log")
				b.needed("session-name")
				b.file("web_identity_token", "token-file", "file with the token")
				b.needed("token-file")
				b.fill(func() error {
					b.set("web_identity_token", strings.TrimSpace(b.get("web_identity_token")))
					return nil
				})
				b.seconds("duration_seconds", "duration", "how long the credentials are valid (default 1h)")
				sessionPolicies(b)
			},
			run: getCredentials,
		},
		row{
			use: "session-token", short: "Get temporary credentials of the caller", op: "GetSessionToken", doing: "getting temporary credentials",
			example: `  eval "$(conclave sts session-token --duration 8h)"`,
			binds: func(b *binder) {
				b.seconds("duration_seconds", "duration", "how long the credentials are valid (default 12h)")
			},
			run: getCredentials,
		},
		row{
			use: "key-account ID", short: "Print the account that an access key belongs to", op: "GetAccessKeyInfo", doing: "looking up access key",
			example: `  conclave sts key-account "$AWS_ACCESS_KEY_ID"`,
			binds:   func(b *binder) { b.arg("access_key_id") },
			table:   tableOf(func(w io.Writer, r *iampb.GetAccessKeyInfoResponse) { cli.Line(w, r.GetAccount()) }),
		},
	)...)
	for _, name := range []string{"assume-role", "assume-role-with-token", "session-token"} {
		c, _, err := cmd.Find([]string{name})
		if err != nil {
			panic(err) // cannot happen: it was added above
		}
		_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml", process}, cobra.ShellCompDirectiveNoFileComp))
		run := c.RunE
		c.RunE = func(cmd *cobra.Command, args []string) error {
			if a.Output == process {
				// Checked here, as it is a format of these commands only.
				a.Output = "json"
				cmd.Annotations[process] = "yes"
			}
			return run(cmd, args)
		}
	}
	return cmd
}

// process is the format of credentials that AWS's tools expect of a credential_process.
const process = "process"

// sessionPolicies makes the flags for the policies of a session.
func sessionPolicies(b *binder) {
	b.file("policy", "policy", "file with a policy that limits the session")
	arns := b.cmd.Flags().StringArray("policy-arn", nil, "ARN of a managed policy that limits the session; may be repeated")
	b.fill(func() error {
		list := b.req.Mutable(fieldOf(b.req, "policy_arns")).List()
		for _, arn := range *arns {
			e := list.AppendMutable().Message()
			e.Interface().(*iampb.PolicyDescriptorType).Arn = proto.String(arn)
		}
		return nil
	})
}

// assumeRole is getCredentials for a role that may be given by its name.
func assumeRole(ctx context.Context, c *cli.Connection, b *binder) error {
	if name := b.get("role_arn"); !strings.HasPrefix(name, "arn:") {
		err := b.app.Timed(ctx, func(ctx context.Context) error {
			arn, err := principalARN(ctx, c, "role/"+strings.TrimPrefix(name, "role/"))
			b.set("role_arn", arn)
			return err
		})
		if err != nil {
			return err
		}
	}
	return getCredentials(ctx, c, b)
}

// getCredentials calls an operation that answers with credentials, and prints them.
func getCredentials(ctx context.Context, c *cli.Connection, b *binder) error {
	res, err := b.call(ctx, c)
	if err != nil {
		return err
	}
	cr := res.(interface{ GetCredentials() *iampb.Credentials }).GetCredentials()
	if b.cmd.Annotations[process] != "" {
		return writeProcess(b.app.Stdout, cr)
	}
	format, err := b.app.Format()
	if err != nil {
		return err
	}
	if format != "table" {
		return b.show(res)
	}
	return writeExports(b.app.Stdout, cr)
}

// writeProcess writes credentials for a tool of AWS.
func writeProcess(w io.Writer, cr *iampb.Credentials) error {
	raw, err := json.MarshalIndent(struct {
		Version                                    int
		AccessKeyId, SecretAccessKey, SessionToken string
		Expiration                                 string
	}{1, cr.GetAccessKeyId(), cr.GetSecretAccessKey(), cr.GetSessionToken(), cr.GetExpiration().AsTime().Format(time.RFC3339)}, "", "  ")
	if err == nil {
		_, err = fmt.Fprintf(w, "%s\n", raw)
	}
	return err
}

// writeExports writes credentials as lines for eval in a POSIX shell.
func writeExports(w io.Writer, cr *iampb.Credentials) error {
	var b strings.Builder
	for _, v := range [][2]string{{"AWS_ACCESS_KEY_ID", cr.GetAccessKeyId()}, {"AWS_SECRET_ACCESS_KEY", cr.GetSecretAccessKey()}, {"AWS_SESSION_TOKEN", cr.GetSessionToken()}} {
		fmt.Fprintf(&b, "export %s=%s\n", v[0], cli.Quote(v[1]))
	}
	// These variables would be used instead.
	b.WriteString("unset CONCLAVE_ACCESS_KEY_ID CONCLAVE_SECRET_ACCESS_KEY CONCLAVE_SESSION_TOKEN\n")
	fmt.Fprintf(&b, "# valid until %s\n", cli.When(cr.GetExpiration()))
	_, err := io.WriteString(w, b.String())
	return err
}
