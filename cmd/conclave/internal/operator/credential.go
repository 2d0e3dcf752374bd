package operator

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

func credentialCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "credential",
		Short: "Rotate and revoke the root user's access keys, certificates and sessions",
		Long: `Credential manages the credentials of the account's root user: its access keys, and
the client certificate that was named by "operator init --root-certificate". Only
the root user may use it. When a command returns, its change is effective on all
nodes.`,
	}
	a.ClientFlags(cmd)
	cmd.AddCommand(credentialListCommand(a), credentialCreateCommand(a), credentialRotateCommand(a), credentialDeleteCommand(a), revokeSessionsCommand(a))
	return cmd
}

func credentialListCommand(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the root user's credentials",
		Example: `  conclave credential list`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.With(cmd.Context(), "listing credentials", func(ctx context.Context, c *cli.Connection) error {
				res, err := c.Credentials().List(ctx, &kmspb.ListCredentialsRequest{})
				if err != nil {
					return err
				}
				return a.Print(res, func(w io.Writer) {
					cli.Line(w, "CREDENTIAL", "KIND", "CREATED", "ENDS")
					for _, x := range res.GetCredentials() {
						ends := "-"
						if x.GetExpires() != nil {
							ends = cli.When(x.GetExpires())
						}
						cli.Line(w, x.GetId(), x.GetKind(), cli.When(x.GetCreated()), ends)
					}
				})
			})
		},
	}
}

// rootKey creates another access key of the root user, for makeAccessKey.
func rootKey(ctx context.Context, c *cli.Connection) (id string, secret client.Secret, err error) {
	return client.CreateAccessKey(ctx, c.Credentials())
}

// makeAccessKey has an access key created, and writes it to a file or shows it. When it
// returns without an error, the key was stored or shown. The caller has to wipe the
// secret.
func makeAccessKey(ctx context.Context, a *cli.App, file string, create func(context.Context, *cli.Connection) (string, client.Secret, error)) (id string, secret client.Secret, err error) {
	out, err := cli.NewSecretFile(file)
	if err != nil {
		return "", nil, err
	}
	defer out.Discard()
	err = a.With(ctx, "creating an access key", func(ctx context.Context, c *cli.Connection) (err error) {
		id, secret, err = create(ctx, c)
		return err
	})
	if err != nil {
		return "", nil, err
	}
	if err := a.Deliver(cli.AccessKey{AccessKeyID: id, SecretAccessKey: string(secret)}, out); err != nil {
		return "", nil, err
	}
	return id, secret, nil
}

func credentialCreateCommand(a *cli.App) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Create another access key for the root user, who can have two",
		Long: `Create creates another access key for the root user, who can have two. Its secret is
shown only once, or, with --file, written to a new file of mode 0600 for a shell to
read.`,
		Example: `  conclave credential create --file spare.env`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, secret, err := makeAccessKey(cmd.Context(), a, file, rootKey)
			clear(secret)
			return err
		},
	}
	cmd.Flags().StringVar(&file, "file", "", "file for the access key, which must not exist yet")
	return cmd
}

func credentialRotateCommand(a *cli.App) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Replace the root user's access key",
		Long: `Rotate creates another access key for the root user, stores or shows it as create
does, and then uses it to delete the access key that it was called with. When it
returns, no node accepts the old access key or the sessions that were opened with
it.

If it fails in between, the old access key is still valid; use "credential list" and
"credential delete" to clean up.`,
		Example: `  conclave credential rotate --file root.env`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			cfg, err := a.Remote.Config()
			if err != nil {
				return err
			}
			clear(cfg.SecretAccessKey)
			old := cfg.AccessKeyID
			if old == "" {
				return cli.Usagef("there is no access key to rotate: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
			}
			id, secret, err := makeAccessKey(ctx, a, file, rootKey)
			if err != nil {
				return err
			}
			defer clear(secret)
			cfg.AccessKeyID, cfg.SecretAccessKey = id, bytes.Clone(secret)
			if err := deleteCredential(ctx, a, cfg, old); err != nil {
				return fmt.Errorf("%w\nthe new access key %s works, and the old one, %s, still does too: delete it with `conclave credential delete`", err, id, old)
			}
			a.Note("access key %s was deleted", old)
			return nil
		},
	}
	cmd.Flags().StringVar(&file, "file", "", "file for the new access key, which must not exist yet")
	return cmd
}

// deleteCredential deletes a credential as the caller of cfg.
func deleteCredential(ctx context.Context, a *cli.App, cfg client.Config, id string) error {
	doing := "deleting credential " + id
	c, err := client.Dial(ctx, cfg)
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	defer c.Close()
	return cli.Explain(doing, cfg.Address, a.Timed(ctx, func(ctx context.Context) error {
		_, err := c.Credentials().Delete(ctx, &kmspb.DeleteCredentialRequest{Id: id})
		return err
	}))
}

func credentialDeleteCommand(a *cli.App) *cobra.Command {
	var last bool
	cmd := &cobra.Command{
		Use:   "delete CREDENTIAL",
		Short: "Delete one of the root user's credentials",
		Long: `Delete deletes an access key of the root user, by its id, or a client certificate
that stands for the root user, by its URI. When it returns, no node accepts the
credential or the sessions that were opened with it.

With --last, it may be the root user's last one. That is good practice once others
administer the account: nobody can then steal a credential that no policy limits. The
way back is "conclave operator break-glass".

A certificate of an operator can still be used as such until it is revoked: see
"conclave cert revoke".`,
		Args:    cobra.ExactArgs(1),
		Example: `  conclave credential delete $OLD`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !last {
				if err := notLast(cmd.Context(), a, args[0]); err != nil {
					return err
				}
			}
			cfg, err := a.Remote.Config()
			if err != nil {
				return err
			}
			return deleteCredential(cmd.Context(), a, cfg, args[0])
		},
	}
	cmd.Flags().BoolVar(&last, "last", false, "delete the credential even if the root user has no other")
	return cmd
}

// notLast refuses to delete the root user's last credential. It is a warning: another command
// may delete the others at the same time.
func notLast(ctx context.Context, a *cli.App, id string) error {
	var others, found bool
	err := a.With(ctx, "listing credentials", func(ctx context.Context, c *cli.Connection) error {
		res, err := c.Credentials().List(ctx, &kmspb.ListCredentialsRequest{})
		for _, x := range res.GetCredentials() {
			found = found || x.GetId() == id
			others = others || x.GetId() != id && x.GetExpires() == nil
		}
		return err
	})
	if err != nil || others || !found {
		return err
	}
	return fmt.Errorf("%s is the root user's last credential; without it, only the custodians can let the root user in again, with `conclave operator break-glass`\nif that is what you want, repeat the command with --last", id)
}

func revokeSessionsCommand(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use:   "revoke-sessions",
		Short: "End all sessions of the root user",
		Long: `Revoke-sessions ends all sessions of the root user, on all nodes, including that of
this command. Use it if a session token was stolen: the access key stays valid and
can open new sessions. If the access key was stolen, rotate it.`,
		Example: `  conclave credential revoke-sessions`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.With(cmd.Context(), "revoking sessions", func(ctx context.Context, c *cli.Connection) error {
				_, err := c.Credentials().RevokeSessions(ctx, &kmspb.RevokeSessionsRequest{})
				return err
			})
		},
	}
}
