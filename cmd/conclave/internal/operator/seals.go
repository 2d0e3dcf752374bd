package operator

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/kmspb"
)

func sealsCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "seals",
		Short: "Show and remove the seals that unseal nodes when they start",
		Long: `A seal is a key outside of the cluster that unseals the nodes that are configured with it
(conclave server --seals). It is added when the custodians unseal such a node. Their shares
stay valid.`,
	}
	cmd.AddCommand(&cobra.Command{
		Use:     "list",
		Short:   "List the seals of the cluster",
		Example: `  conclave cluster seals list`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.With(cmd.Context(), "listing the seals", func(ctx context.Context, c *cli.Connection) error {
				res, err := c.Cluster().ListSeals(ctx, &kmspb.ListSealsRequest{})
				if err != nil {
					return err
				}
				return a.Print(res, func(w io.Writer) {
					cli.Line(w, "SEAL", "ADDED", "ON THIS NODE")
					for _, s := range res.GetSeals() {
						cli.Line(w, s.GetName(), cli.When(s.GetCreated()), yes(s.GetConfigured()))
					}
				})
			})
		},
	}, removeSealCommand(a))
	return cmd
}

func removeSealCommand(a *cli.App) *cobra.Command {
	var sure bool
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "Remove a seal, which then unseals no node any more",
		Long: `Remove removes a seal from the cluster. Nodes that start afterwards need another seal,
their peers, or the custodians. A copy of the data from before, such as a backup, can still
be opened with the seal's key: if that was stolen, rotate the root key and the keyring.

Remove asks for confirmation; --yes answers it.`,
		Args:    cobra.ExactArgs(1),
		Example: `  conclave cluster seals remove $SEAL --yes`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !sure {
				if err := a.Confirm(fmt.Sprintf("Nodes that start will not be unsealed by %s any more.\nremove?", args[0])); err != nil {
					return err
				}
			}
			return a.With(cmd.Context(), "removing the seal", func(ctx context.Context, c *cli.Connection) error {
				res, err := c.Cluster().RemoveSeal(ctx, &kmspb.RemoveSealRequest{Name: args[0]})
				if err != nil {
					return err
				}
				return a.Print(res, func(w io.Writer) { cli.Line(w, "removed", args[0]) })
			})
		},
	}
	cmd.Flags().BoolVar(&sure, "yes", false, "do not ask for confirmation")
	return cmd
}
