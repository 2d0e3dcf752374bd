package operator

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/kmspb"
)

func upgradeCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "Show and finalize an upgrade to a new release",
		Long: `A cluster is upgraded one node at a time. Until the upgrade is finalized, nodes of two
successive releases run together, what is new in the later one is not used yet, and
each node can go back to the earlier release. Finalizing raises the feature level of
the cluster. From then on the earlier release cannot take part any more.`,
	}
	cmd.AddCommand(upgradeStatusCommand(a), finalizeCommand(a))
	return cmd
}

func upgradeStatusCommand(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show which release each node runs, and what finalize would do",
		Long: `Status asks every node of the cluster which release it runs. The level is the newest
schema that the cluster writes, and a release knows a range of schemas.`,
		Example: `  conclave cluster upgrade status`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.With(cmd.Context(), "asking the nodes for their releases", func(ctx context.Context, c *cli.Connection) error {
				res, err := c.Cluster().UpgradeStatus(ctx, &kmspb.UpgradeStatusRequest{})
				if err != nil {
					return err
				}
				return a.Print(res, func(w io.Writer) { upgradeTable(w, res) })
			})
		},
	}
}

func upgradeTable(w io.Writer, r *kmspb.UpgradeStatusResponse) {
	cli.Line(w, "NODE", "RELEASE", "SCHEMAS", "LEVEL", "OBSTACLE")
	for _, m := range r.GetMembers() {
		schemas, level := "-", "-"
		if m.GetSchemaMax() != 0 {
			schemas, level = fmt.Sprintf("%d to %d", m.GetSchemaMin(), m.GetSchemaMax()), fmt.Sprint(m.GetLevel())
		}
		cli.Line(w, m.GetNodeId(), cli.OrDash(m.GetRelease()), schemas, level, cli.OrDash(m.GetObstacle()))
	}
	fmt.Fprintln(w)
	fmt.Fprintln(w, upgradeText(r))
}

// upgradeText says in a sentence what finalize would do.
func upgradeText(r *kmspb.UpgradeStatusResponse) string {
	if r.GetTo() == r.GetLevel() {
		return fmt.Sprintf("The cluster has feature level %d, the newest that this release knows: there is nothing to finalize.", r.GetLevel())
	}
	for _, m := range r.GetMembers() {
		if m.GetObstacle() != "" {
			return fmt.Sprintf("The cluster has feature level %d. Finalize cannot raise it to %d yet, because of the nodes with an obstacle.", r.GetLevel(), r.GetTo())
		}
	}
	return fmt.Sprintf("The cluster has feature level %d. Finalize would raise it to %d, and no node could go back to the release before.", r.GetLevel(), r.GetTo())
}

func finalizeCommand(a *cli.App) *cobra.Command {
	var sure bool
	cmd := &cobra.Command{
		Use:   "finalize",
		Short: "Raise the feature level, after which the earlier release cannot be used",
		Long: `Finalize raises the feature level of the cluster to the newest one that the release of
the node knows that --address names. The node asks every node first, and raises
nothing unless all know that level. The log has a record of it.

It cannot be undone: afterwards a node of the earlier release does not start, and the
cluster can go back to that release only by restoring a backup. Finalize asks for
confirmation; --yes answers it. Repeating the command is harmless.`,
		Example: `  conclave cluster upgrade finalize --yes`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !sure {
				var would string
				err := a.With(cmd.Context(), "asking the nodes for their releases", func(ctx context.Context, c *cli.Connection) error {
					st, err := c.Cluster().UpgradeStatus(ctx, &kmspb.UpgradeStatusRequest{})
					would = upgradeText(st)
					return err
				})
				if err != nil {
					return err
				}
				if err := a.Confirm(would + "\nfinalize?"); err != nil {
					return err
				}
			}
			return a.With(cmd.Context(), "finalizing the upgrade", func(ctx context.Context, c *cli.Connection) error {
				res, err := c.Cluster().FinalizeUpgrade(ctx, &kmspb.FinalizeUpgradeRequest{})
				if err != nil {
					return err
				}
				return a.Print(res, func(w io.Writer) {
					if res.GetRaised() {
						cli.Line(w, fmt.Sprintf("the upgrade is finalized: the cluster has feature level %d", res.GetLevel()))
						return
					}
					cli.Line(w, fmt.Sprintf("there was nothing to do: the cluster has feature level %d", res.GetLevel()))
				})
			})
		},
	}
	cmd.Flags().BoolVar(&sure, "yes", false, "do not ask for confirmation")
	return cmd
}
