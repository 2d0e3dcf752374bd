package operator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

func operatorCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "operator",
		Short: "Initialise, unseal, seal and inspect a cluster",
		Long: `Operator has the commands for operators of a cluster. They need the client
certificate of an operator (--cert and --key-file), which "conclave cert" makes.`,
	}
	a.ClientFlags(cmd)
	cmd.AddCommand(initCommand(a), unsealCommand(a), resetCommand(a), sealCommand(a), statusCommand(a), confirmTimeCommand(a), operatorCRLCommand(a), breakGlassCommand(a),
		custodianKeyCommand(a), decryptShareCommand(a), nameCustodiansCommand(a), rekeyCommand(a), rotateCommand(a), verifyShareCommand(a))
	return cmd
}

func unsealCommand(a *cli.App) *cobra.Command {
	var file, transcriptFile string
	cmd := &cobra.Command{
		Use:   "unseal",
		Short: "Submit a custodian's share",
		Long: `Unseal reads one custodian's share, from a prompt that does not show it, a file or
standard input, and submits it, encrypted for each of them, to the nodes that
--address (CONCLAVE_ADDRESS) names: list them all. Once enough custodians have done
so, the nodes are unsealed.

Nothing is sent to an address that a node names. Remove lost and stolen nodes from
the list first: whoever has the certificate and the address of a node can read the
share that is submitted to it.`,
		Example: `  conclave operator unseal --address node-1:7601,node-2:7601,node-3:7601
  conclave operator unseal --share-file share-1.txt`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			paper, err := newTranscript(a, transcriptFile, "unsealing")
			if err != nil {
				return err
			}
			defer paper.discard()
			share, err := a.ReadShare(file)
			if err != nil {
				return err
			}
			defer clear(share)
			report, err := everyNode(cmd.Context(), a, "delivering the share", func(ctx context.Context, c *client.Client) (*kmspb.NodeStatus, error) {
				return client.SubmitShare(ctx, c.Operator(), share)
			})
			if err != nil {
				return err
			}
			paper.nodes(report.GetNodes())
			return errors.Join(paper.write(), printNodes(a, report, "did not accept the share"))
		},
	}
	cmd.Flags().StringVar(&file, "share-file", "", "file with the share")
	transcriptFlag(cmd, &transcriptFile)
	return cmd
}

func resetCommand(a *cli.App) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "reset",
		Short: "Discard the shares submitted so far and begin the unsealing again",
		Long: `Reset makes the nodes that --address names discard the shares submitted so far. A
ceremony belongs to the operator who submitted its first share. Nobody else can
reset it before it ends by itself, a quarter of an hour after that share.

With --force, the ceremony of another operator is reset too. That is in the audit
log and in each node's log. Use it if an operator's certificate is in the wrong
hands.`,
		Example: `  conclave operator reset
  conclave operator reset --force`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return deliver(cmd.Context(), a, "resetting the shares", "did not discard its shares", func(ctx context.Context, c *client.Client) (*kmspb.NodeStatus, error) {
				req := &kmspb.ResetSharesRequest{}
				if force {
					st, err := c.Operator().Status(ctx, &kmspb.StatusRequest{})
					if err != nil {
						return nil, err
					}
					req.Force = st.GetSeal().GetCeremony().GetNonce()
				}
				res, err := c.Operator().ResetShares(ctx, req)
				return res.GetNode(), err
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "reset the ceremony of another operator")
	return cmd
}

func sealCommand(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use:   "seal",
		Short: "Make the nodes wipe the keys until the custodians unseal them again",
		Long: `Seal makes the nodes that --address (CONCLAVE_ADDRESS) names wipe the keys. They
stay sealed until the custodians unseal them again. Any operator may do so, as a
first reaction when something is wrong.`,
		Example: `  conclave operator seal --address node-1:7601,node-2:7601,node-3:7601`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return deliver(cmd.Context(), a, "sealing", "was not sealed", func(ctx context.Context, c *client.Client) (*kmspb.NodeStatus, error) {
				res, err := c.Operator().Seal(ctx, &kmspb.SealRequest{})
				return res.GetNode(), err
			})
		},
	}
}

// sealText formats the progress of unsealing: "sealed, 2 of 3".
func sealText(s *kmspb.SealState) string {
	switch {
	case !s.GetInitialised():
		return "not initialised"
	case s.GetSealed():
		return fmt.Sprintf("sealed, %d of %d", s.GetProgress(), s.GetThreshold())
	default:
		return "unsealed"
	}
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "-"
}

func statusCommand(a *cli.App) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the status of a node or of all; exits with 0 if unsealed, 2 if sealed, 1 on error",
		Long: `Status shows the status of a node. Without an operator's certificate, it shows only
whether the node serves, and the progress of unsealing.

With --all, it asks each node that --address (CONCLAVE_ADDRESS) names.

It exits with 0 if the node (with --all: every node) is unsealed, with 2 if it is
sealed or not initialised, and with 1 if that is unknown.`,
		Example: `  conclave operator status
  conclave operator status --all --address node-1:7601,node-2:7601,node-3:7601`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			sealed := false
			show := func(ctx context.Context, c *cli.Connection) error {
				res, err := c.Operator().Status(ctx, &kmspb.StatusRequest{})
				if err != nil {
					return err
				}
				sealed = closed(res.GetSeal())
				return a.Print(res, func(w io.Writer) { statusTable(w, res) })
			}
			var err error
			if all {
				sealed, err = statusOfAll(cmd.Context(), a)
			} else {
				err = a.With(cmd.Context(), "getting the status", show)
			}
			if err == nil && sealed {
				return &cli.CodedError{Code: cli.ExitStatusSealed}
			}
			// A sealed node is not an error here, but has its own exit code.
			if coded, ok := errors.AsType[*cli.CodedError](err); ok && coded.Code == cli.ExitSealed {
				coded.Code = cli.ExitStatusSealed
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "ask every node that --address names")
	return cmd
}

func closed(s *kmspb.SealState) bool { return s.GetSealed() || !s.GetInitialised() }

// statusOfAll shows the status of every node, and reports whether one of them is
// sealed.
func statusOfAll(ctx context.Context, a *cli.App) (sealed bool, err error) {
	report, err := everyNode(ctx, a, "getting the status", func(ctx context.Context, c *client.Client) (*kmspb.NodeStatus, error) {
		return client.Status(ctx, c.Operator())
	})
	if err != nil {
		return false, err
	}
	var lost []error
	for _, n := range report.GetNodes() {
		if n.GetSeal() == nil {
			lost = append(lost, fmt.Errorf("%s could not be reached: %s", n.GetNodeId(), cli.ErrorText(n.GetError())))
			continue
		}
		sealed = sealed || closed(n.GetSeal())
	}
	return sealed, errors.Join(append(lost, a.Print(report, func(w io.Writer) { nodeTable(w, report.GetNodes()) }))...)
}

func statusTable(w io.Writer, r *kmspb.StatusResponse) {
	s := r.GetSeal()
	cli.Line(w, "state", sealText(s))
	if s.GetInitialised() {
		cli.Line(w, "shares", fmt.Sprintf("%d of %d unseal it", s.GetThreshold(), s.GetShares()))
	}
	if why := s.GetWaitingFor(); why != "" {
		cli.Line(w, "waiting for", why)
	}
	cli.Line(w, "leader known", yes(r.GetHasLeader()))
	if r.GetNodeId() == "" {
		return // the rest is only for operators
	}
	cli.Line(w, "node", r.GetNodeId())
	cli.Line(w, "version", r.GetVersion())
	if s.GetInitialised() {
		cli.Line(w, "cluster", s.GetClusterId())
		cli.Line(w, "account", fmt.Sprintf("%s in %s (%s)", s.GetAccount(), strings.Join(append([]string{s.GetRegion()}, s.GetMoreRegions()...), ", "), s.GetPartition()))
	}
	cli.Line(w, "leader", cli.OrDash(r.GetLeaderId()))
	cli.Line(w, "cluster time", cli.When(r.GetClusterTime()))
	if x := r.GetRaft(); x != nil {
		cli.Line(w, "raft", fmt.Sprintf("%s, term %d, last %d, committed %d, applied %d", x.GetState(), x.GetTerm(), x.GetLastIndex(), x.GetCommitIndex(), x.GetAppliedIndex()))
	}
	if x := r.GetAudit(); x != nil {
		complete := "complete here"
		if !x.GetComplete() {
			complete = "not complete here"
		}
		cli.Line(w, "audit log", fmt.Sprintf("%d records, %d stored, %d signed, %s", x.GetSize(), x.GetStored(), x.GetCheckpointed(), complete))
	}
	if x := r.GetAddresses(); x != nil {
		cli.Line(w, "addresses", fmt.Sprintf("aws %s, grpc %s, peer %s, health %s", cli.OrDash(x.GetAws()), cli.OrDash(x.GetGrpc()), cli.OrDash(x.GetPeer()), cli.OrDash(x.GetHealth())))
	}
	cli.Line(w, "revocation list", crlNumbers(r.GetCrls()))
	if s.GetSealed() && len(s.GetShareSet().GetCustodians()) > 0 {
		cli.Line(w, "still to come", missing(s.GetShareSet(), s.GetCustodians()))
	}
	if x := s.GetCeremony(); x != nil {
		cli.Line(w, "ceremony", fmt.Sprintf("of %s, began %s, ends %s", cli.Printable(x.GetOwner()), cli.When(x.GetBegan()), cli.When(x.GetExpires())))
	}
	for _, f := range r.GetFaults() {
		cli.Line(w, "fault", f)
	}
}

func confirmTimeCommand(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use:   "confirm-time",
		Short: "Confirm that the nodes' clocks are right although more than a day has passed",
		Long: `Cluster time never moves forward by more than a day by itself, as a wrong clock must
not delete keys. After a long outage, check the clocks of all nodes. If they are
right, confirm that with this command.`,
		Example: `  conclave operator confirm-time`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.With(cmd.Context(), "confirming the time", func(ctx context.Context, c *cli.Connection) error {
				res, err := c.Operator().ConfirmTime(ctx, &kmspb.ConfirmTimeRequest{})
				if err != nil {
					return err
				}
				return a.Print(res, func(w io.Writer) {
					cli.Line(w, "confirmed: within an hour, cluster time may move to the time of the nodes' clocks")
				})
			})
		},
	}
}
