package operator

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/kmspb"
)

func peerUnsealCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "peer-unseal",
		Short: "Let nodes that restart be unsealed by the others",
		Long: `With peer-assisted unsealing, a node that restarts is unsealed by the other nodes, of
which a number that you choose have to agree, instead of the custodians. The custodians
are still needed when all nodes start at once, and for a node whose data is not what it
was. It is off unless you enable it.`,
	}
	cmd.AddCommand(peerUnsealStatusCommand(a), peerUnsealEnableCommand(a), peerUnsealDisableCommand(a))
	return cmd
}

func peerUnsealStatusCommand(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use:     "status",
		Short:   "Show whether nodes are unsealed by the others, and which can be",
		Example: `  conclave cluster peer-unseal status`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.With(cmd.Context(), "getting the setting", func(ctx context.Context, c *cli.Connection) error {
				res, err := c.Cluster().GetPeerUnseal(ctx, &kmspb.GetPeerUnsealRequest{})
				if err != nil {
					return err
				}
				return a.Print(res, func(w io.Writer) { peerUnsealTable(w, res.GetState()) })
			})
		},
	}
}

func peerUnsealTable(w io.Writer, s *kmspb.PeerUnsealState) {
	if s.GetAgreements() == 0 {
		cli.Line(w, "peer-assisted unsealing", "disabled")
		return
	}
	cli.Line(w, "peer-assisted unsealing", "enabled")
	cli.Line(w, "nodes that have to agree", fmt.Sprint(s.GetAgreements()))
	cli.Line(w, "nodes that can be unsealed so", cli.OrDash(strings.Join(s.GetNodes(), ",")))
}

func peerUnsealEnableCommand(a *cli.App) *cobra.Command {
	var agreements uint32
	var sure bool
	cmd := &cobra.Command{
		Use:   "enable",
		Short: "Let nodes that restart be unsealed by the others",
		Long: `Enable lets nodes that restart be unsealed by --agreements others, for the whole
cluster. It can also change that number. Afterwards, whoever has the newest data of a
node that is down, its key, and its address in the network can open that data, until the
node is removed or peer-assisted unsealing is disabled. The log has a record of it, and
of each part that a node gives.

It needs feature level 2, and asks for confirmation; --yes answers it.`,
		Example: `  conclave cluster peer-unseal enable --agreements 2 --yes`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if agreements == 0 {
				return cli.Usagef("--agreements is needed: how many nodes have to agree, at least 1")
			}
			if !sure {
				if err := a.Confirm(fmt.Sprintf("Nodes that restart will be unsealed without the custodians, if %d others agree.\nenable?", agreements)); err != nil {
					return err
				}
			}
			return setPeerUnseal(cmd.Context(), a, agreements)
		},
	}
	cmd.Flags().Uint32Var(&agreements, "agreements", 0, "how many unsealed nodes have to agree")
	cmd.Flags().BoolVar(&sure, "yes", false, "do not ask for confirmation")
	return cmd
}

func peerUnsealDisableCommand(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use:   "disable",
		Short: "Leave it to the custodians to unseal nodes that restart",
		Long: `Disable ends peer-assisted unsealing at once, for the whole cluster. Nodes that are
unsealed stay so.`,
		Example: `  conclave cluster peer-unseal disable`,
		RunE:    func(cmd *cobra.Command, _ []string) error { return setPeerUnseal(cmd.Context(), a, 0) },
	}
}

func setPeerUnseal(ctx context.Context, a *cli.App, agreements uint32) error {
	return a.With(ctx, "changing the setting", func(ctx context.Context, c *cli.Connection) error {
		res, err := c.Cluster().SetPeerUnseal(ctx, &kmspb.SetPeerUnsealRequest{Agreements: agreements})
		if err != nil {
			return err
		}
		return a.Print(res, func(w io.Writer) {
			if !res.GetChanged() {
				cli.Line(w, "there was nothing to change")
			}
			peerUnsealTable(w, res.GetState())
		})
	})
}
