package audit

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/kmspb"
)

func sinksCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sinks",
		Short: "List who receives the audit log, and how far they are",
		Long: `Sinks lists the receivers of the audit log that the cluster remembers, and those that the
node is configured with: the kind, the node that sends, how many records the receiver has
confirmed, and by how many records and seconds it lags.

The node that sends, which is the one that leads, knows best, and is the only one to know
why sending failed last. Others show what the cluster remembers, which may be a few
seconds old. A sink without a kind is not in the configuration of the node that answers.`,
		Example: `  conclave audit sinks
  conclave audit sinks -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.With(cmd.Context(), "listing the audit sinks", func(ctx context.Context, c *cli.Connection) error {
				res, err := c.Audit().ListSinks(ctx, &kmspb.ListAuditSinksRequest{})
				if err != nil {
					return err
				}
				return a.Print(res, func(w io.Writer) {
					cli.Line(w, "NAME", "KIND", "NODE", "CONFIRMED", "LAG", "SECONDS", "LAST ERROR")
					for _, s := range res.GetSinks() {
						failed := "-"
						if e := s.GetError(); e != nil {
							failed = cli.When(e.GetTime()) + " " + e.GetMessage()
						}
						cli.Line(w, s.GetName(), cli.OrDash(s.GetKind()), cli.OrDash(s.GetNode()), s.GetConfirmed(), s.GetLag(), fmt.Sprintf("%.0f", s.GetLagSeconds()), failed)
					}
				})
			})
		},
	}
	a.ClientFlags(cmd)
	cmd.AddCommand(forgetSinkCommand(a))
	return cmd
}

func forgetSinkCommand(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use:   "forget NAME",
		Short: "Forget a receiver that no node is configured with any more",
		Long: `Forget removes what the cluster remembers of a receiver of the audit log: up to where it
has confirmed the records. If a node is configured with it again, it is a new one.

It is refused if the node that is asked is configured with the receiver, or if another
node sends to it. If that node was lost, ask the one that leads. Callers need the
permission conclave:ForgetAuditSink.`,
		Example: `  conclave audit sinks forget old-siem`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.With(cmd.Context(), "forgetting the audit sink", func(ctx context.Context, c *cli.Connection) error {
				_, err := c.Audit().ForgetSink(ctx, &kmspb.ForgetAuditSinkRequest{Name: args[0]})
				return err
			})
		},
	}
}
