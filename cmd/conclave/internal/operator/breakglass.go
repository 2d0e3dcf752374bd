package operator

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

func breakGlassCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "break-glass",
		Short: "Let an account's root user in with the custodians' shares",
		Long: `Break-glass is the way back into an account when nobody else can let anybody in: the
root user has no credentials, or the policies of a key let nobody change them. An
operator begins a ceremony, and the custodians submit their shares. The last of them
gets an access key of the account's root user. It ends by itself, after 15 minutes
unless --duration says otherwise, and it only recovers access: it may use IAM, make
other credentials of the root user, and read and replace the policy of every key of
the account, whatever that policy says. It uses no key.

The ceremony is in the memory of one unsealed node, which --address names. It is
forgotten when its time, a quarter of an hour, is over, when that node is sealed, and
when it restarts. Each step is in the audit log, and every node logs the result.`,
	}
	cmd.AddCommand(glassBeginCommand(a), glassStatusCommand(a), glassSubmitCommand(a), glassCancelCommand(a))
	return cmd
}

// withNode calls one node, which must be the only one that --address names: no other node
// knows of its ceremony.
func withNode(cmd *cobra.Command, a *cli.App, doing string, use func(context.Context, *cli.Connection) error) error {
	cfg, err := a.Remote.Config()
	if err != nil {
		return err
	}
	clear(cfg.SecretAccessKey)
	addrs, err := client.Addresses(cfg.Address)
	if err != nil {
		return cli.Usage(err)
	}
	if len(addrs) != 1 {
		return cli.Usagef("such a ceremony is in the memory of one node: give the address of that node only")
	}
	return a.With(cmd.Context(), doing, use)
}

func parseNonce(s string) ([]byte, error) {
	nonce, err := hex.DecodeString(s)
	if err != nil || len(nonce) != 16 {
		return nil, cli.Usagef("the nonce of a ceremony has 32 hexadecimal digits, as the command that begins it shows it")
	}
	return nonce, nil
}

// glassOutput is a break-glass ceremony, as it is shown.
type glassOutput struct {
	Node       string   `json:"node"`
	Active     bool     `json:"active"`
	Nonce      string   `json:"nonce,omitempty"`
	Owner      string   `json:"owner,omitempty"`
	Account    string   `json:"account,omitempty"`
	Reason     string   `json:"reason,omitempty"`
	Duration   string   `json:"duration,omitempty"`
	Expires    string   `json:"expires,omitempty"`
	Threshold  uint32   `json:"threshold"`
	Custodians []uint32 `json:"custodians,omitempty"`
	// Names of the custodians whose shares it does not have, if they are known.
	Missing []string `json:"missing,omitempty"`
}

func newGlassOutput(b *kmspb.BreakGlass) *glassOutput {
	f := &glassOutput{Node: b.GetNodeId(), Active: b.GetActive(), Threshold: b.GetThreshold()}
	if f.Active {
		f.Nonce, f.Owner, f.Account, f.Reason = hex.EncodeToString(b.GetNonce()), b.GetOwner(), b.GetAccount(), b.GetReason()
		f.Duration, f.Expires, f.Custodians = b.GetDuration().AsDuration().String(), cli.When(b.GetExpires()), b.GetCustodians()
		f.Missing = missingNames(b.GetShareSet(), b.GetCustodians())
	}
	return f
}

func (f *glassOutput) table(w io.Writer) {
	cli.Line(w, "node", f.Node)
	if !f.Active {
		cli.Line(w, "ceremony", "none")
		return
	}
	cli.Line(w, "nonce", f.Nonce)
	cli.Line(w, "begun by", cli.Printable(f.Owner))
	cli.Line(w, "reason", cli.Printable(f.Reason))
	cli.Line(w, "account", f.Account)
	cli.Line(w, "access key lasts", f.Duration)
	cli.Line(w, "shares", fmt.Sprintf("%d of %d", len(f.Custodians), f.Threshold))
	if len(f.Missing) > 0 {
		cli.Line(w, "still to come", cli.Printable(strings.Join(f.Missing, ", ")))
	}
	cli.Line(w, "ends", f.Expires)
}

func (f *glassOutput) print(a *cli.App) error { return a.Print(f, f.table) }

func glassBeginCommand(a *cli.App) *cobra.Command {
	var req kmspb.BeginBreakGlassRequest
	var life time.Duration
	cmd := &cobra.Command{
		Use:   "begin --reason TEXT",
		Short: "Begin a break-glass ceremony on a node",
		Long: `Begin begins a break-glass ceremony on the node that --address names, and shows its
nonce, which the custodians need. The reason is in the audit log with each step, and
each custodian sees it.`,
		Example: `  conclave operator break-glass begin --reason "the admins' policy was deleted, ticket 4711"
  conclave operator break-glass begin --reason "locked out" --duration 30m`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if req.Reason == "" {
				return cli.Usagef("--reason is needed: it is for the custodians and the audit log")
			}
			req.Duration = durationpb.New(life)
			return withNode(cmd, a, "beginning a break-glass ceremony", func(ctx context.Context, c *cli.Connection) error {
				res, err := c.Operator().BeginBreakGlass(ctx, &req)
				if err != nil {
					return err
				}
				return newGlassOutput(res.GetCeremony()).print(a)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.Reason, "reason", "", "why access has to be recovered")
	f.StringVar(&req.Account, "account", "", "account whose root user gets the access key (default: the first one)")
	f.DurationVar(&life, "duration", 15*time.Minute, "how long the access key lasts, from 1m to 1h")
	return cmd
}

func glassStatusCommand(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use:     "status",
		Short:   "Show the break-glass ceremony of a node",
		Example: `  conclave operator break-glass status`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withNode(cmd, a, "getting the break-glass ceremony", func(ctx context.Context, c *cli.Connection) error {
				res, err := c.Operator().GetBreakGlass(ctx, &kmspb.GetBreakGlassRequest{})
				if err != nil {
					return err
				}
				return newGlassOutput(res.GetCeremony()).print(a)
			})
		},
	}
}

func glassSubmitCommand(a *cli.App) *cobra.Command {
	var shareFile, file, transcriptFile string
	cmd := &cobra.Command{
		Use:   "submit NONCE",
		Short: "Submit a custodian's share to a break-glass ceremony",
		Long: `Submit shows what the ceremony with that nonce is for, reads one custodian's share,
from a prompt that does not show it, a file or standard input, and submits it, encrypted
for the node. Whoever submits the share that completes the threshold gets the access
key. Its secret is shown only once, or, with --file, written to a new file of mode 0600
for a shell to read.`,
		Args: cobra.ExactArgs(1),
		Example: `  conclave operator break-glass submit $NONCE
  conclave operator break-glass submit $NONCE --share-file share-1.txt --file root.env`,
		RunE: func(cmd *cobra.Command, args []string) error {
			nonce, err := parseNonce(args[0])
			if err != nil {
				return err
			}
			out, err := cli.NewSecretFile(file)
			if err != nil {
				return err
			}
			defer out.Discard()
			paper, err := newTranscript(a, transcriptFile, "break-glass")
			if err != nil {
				return err
			}
			defer paper.discard()
			var b *kmspb.BreakGlass
			err = withNode(cmd, a, "getting the break-glass ceremony", func(ctx context.Context, c *cli.Connection) error {
				res, err := c.Operator().GetBreakGlass(ctx, &kmspb.GetBreakGlassRequest{})
				b = res.GetCeremony()
				return err
			})
			if err != nil {
				return err
			}
			if string(b.GetNonce()) != string(nonce) {
				return fmt.Errorf("node %s has no break-glass ceremony with that nonce: it may be over, or on another node", b.GetNodeId())
			}
			a.Note("%s lets the root user of account %s in for %v: %s", cli.Printable(b.GetOwner()), b.GetAccount(), b.GetDuration().AsDuration(), cli.Printable(b.GetReason()))
			share, err := a.ReadShare(shareFile)
			if err != nil {
				return err
			}
			defer clear(share)
			var key *client.BreakGlassKey
			begun := b
			err = withNode(cmd, a, "submitting the share", func(ctx context.Context, c *cli.Connection) (err error) {
				b, key, err = client.SubmitBreakGlassShare(ctx, c.Operator(), begun, share)
				return err
			})
			if err != nil {
				return err
			}
			paper.glass(begun, b, key)
			if err := paper.write(); err != nil {
				a.Note("conclave: writing the transcript: %v", err) // the access key must not be lost for it
			}
			if key == nil {
				return newGlassOutput(b).print(a)
			}
			defer clear(key.Secret)
			a.Note("the access key of %s ends at %s; delete it with `conclave credential delete %s` when access is recovered", key.RootARN, key.Expires.UTC().Format(time.RFC3339), key.ID)
			return a.Deliver(cli.AccessKey{AccessKeyID: key.ID, SecretAccessKey: string(key.Secret)}, out)
		},
	}
	cmd.Flags().StringVar(&shareFile, "share-file", "", "file with the share")
	cmd.Flags().StringVar(&file, "file", "", "file for the access key, which must not exist yet")
	transcriptFlag(cmd, &transcriptFile)
	return cmd
}

func glassCancelCommand(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use:   "cancel NONCE",
		Short: "Cancel a break-glass ceremony and wipe its shares",
		Long: `Cancel ends the ceremony with that nonce and wipes the shares that it has. Every
operator may do that.`,
		Args:    cobra.ExactArgs(1),
		Example: `  conclave operator break-glass cancel $NONCE`,
		RunE: func(cmd *cobra.Command, args []string) error {
			nonce, err := parseNonce(args[0])
			if err != nil {
				return err
			}
			return withNode(cmd, a, "cancelling the break-glass ceremony", func(ctx context.Context, c *cli.Connection) error {
				_, err := c.Operator().CancelBreakGlass(ctx, &kmspb.CancelBreakGlassRequest{Nonce: nonce})
				if err == nil {
					a.Note("the ceremony was cancelled, and its shares were wiped")
				}
				return err
			})
		},
	}
}
