package operator

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

func accountCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "account",
		Short: "Create and list the accounts of a cluster",
		Long: `Account manages the accounts of a cluster. Each has its own keys, users, roles and
policies, and a root user. The root user of the account that the cluster was
initialised with may create accounts, and so may those whom a policy in that account
allows conclave:CreateAccount.`,
	}
	a.ClientFlags(cmd)
	cmd.AddCommand(accountCreateCommand(a), accountListCommand(a))
	return cmd
}

func accountCreateCommand(a *cli.App) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "create ACCOUNT NAME",
		Short: "Create an account with an access key for its root user",
		Long: `Create creates an account, which has 12 digits, with an access key for its root user.
Its secret is shown only once, or, with --file, written to a new file of mode 0600 for
a shell to read.`,
		Args:    cobra.ExactArgs(2),
		Example: `  conclave account create 222233334444 staging --file staging.env`,
		RunE: func(cmd *cobra.Command, args []string) error {
			_, secret, err := makeAccessKey(cmd.Context(), a, file, func(ctx context.Context, c *cli.Connection) (string, client.Secret, error) {
				return client.CreateAccount(ctx, c.Accounts(), args[0], args[1])
			})
			clear(secret)
			return err
		},
	}
	cmd.Flags().StringVar(&file, "file", "", "file for the access key, which must not exist yet")
	return cmd
}

func accountListCommand(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the accounts of the cluster",
		Example: `  conclave account list`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.With(cmd.Context(), "listing accounts", func(ctx context.Context, c *cli.Connection) error {
				res, err := c.Accounts().List(ctx, &kmspb.ListAccountsRequest{})
				if err != nil {
					return err
				}
				return a.Print(res, func(w io.Writer) {
					cli.Line(w, "ACCOUNT", "NAME", "ALIAS", "CREATED")
					for _, x := range res.GetAccounts() {
						cli.Line(w, x.GetAccount(), x.GetName(), x.GetAlias(), cli.When(x.GetCreated()))
					}
				})
			})
		},
	}
}
