package operator

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/custodian"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// keyChangeText says in words what a ceremony does.
var keyChangeText = map[kmspb.KeyChangeKind]string{
	kmspb.KeyChangeKind_KEY_CHANGE_KIND_REKEY:          "rekey",
	kmspb.KeyChangeKind_KEY_CHANGE_KIND_ROTATE_ROOT:    "rotate root",
	kmspb.KeyChangeKind_KEY_CHANGE_KIND_ROTATE_KEYRING: "rotate keyring",
}

func rekeyCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rekey",
		Short: "Replace the custodians' shares",
		Long: `Rekey makes a new unseal key and splits it into new shares, as many as you say, of
which a new threshold is needed. An operator begins the ceremony, and the custodians
submit their current shares until there are enough. Then that operator gets the new
shares, encrypted to their custodians if "begin" named them, and hands them out, and
the new custodians submit theirs. Only when a threshold of the new shares has come back
do they replace the old ones, at once and on every node; until then the old ones stay
valid.

The ceremony is in the memory of one unsealed node, which --address names. It is
forgotten, and nothing has changed, when a quarter of an hour is over for the current
shares or for the new ones, when that node is sealed, and when it restarts. Each step
is in the audit log. The old shares still open backups that were made before.`,
	}
	cmd.AddCommand(rekeyBeginCommand(a), changeStatusCommand(a, "rekey"), changeSubmitCommand(a, "rekey"), newSharesCommand(a), changeCancelCommand(a, "rekey"))
	return cmd
}

func rotateCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Replace the cluster's own keys",
		Long: `Rotate replaces the cluster's root key, or adds a generation to its keyring, by which
everything is then wrapped again in the background. An operator begins the ceremony, and
the custodians submit their shares until there are enough. The shares stay as they are,
and clients notice nothing.

The ceremony is in the memory of one unsealed node, which --address names. It is
forgotten, and nothing has changed, when its time, a quarter of an hour, is over, when
that node is sealed, and when it restarts. Each step is in the audit log.`,
	}
	cmd.AddCommand(rotateRootCommand(a), rotateKeyringCommand(a), changeStatusCommand(a, "rotate"), changeSubmitCommand(a, "rotate"), changeCancelCommand(a, "rotate"))
	return cmd
}

// keyChangeEvents are what the events of the ceremonies are named after.
var keyChangeEvents = map[kmspb.KeyChangeKind]string{
	kmspb.KeyChangeKind_KEY_CHANGE_KIND_REKEY:          "Rekey",
	kmspb.KeyChangeKind_KEY_CHANGE_KIND_ROTATE_ROOT:    "RootRotation",
	kmspb.KeyChangeKind_KEY_CHANGE_KIND_ROTATE_KEYRING: "KeyringRotation",
}

// changeOutput is a ceremony that replaces keys, as it is shown.
type changeOutput struct {
	Node         string   `json:"node"`
	ShareSet     string   `json:"share_set"`
	Epoch        uint32   `json:"epoch"`
	Shares       uint32   `json:"shares"`
	Threshold    uint32   `json:"threshold"`
	Generation   uint32   `json:"keyring_generation"`
	Settled      bool     `json:"keyring_settled"`
	Ceremony     string   `json:"ceremony,omitempty"`
	Nonce        string   `json:"nonce,omitempty"`
	Owner        string   `json:"owner,omitempty"`
	NewShares    uint32   `json:"new_shares,omitempty"`
	NewThreshold uint32   `json:"new_threshold,omitempty"`
	NewShareSet  string   `json:"new_share_set,omitempty"`
	NewKeepers   []keeper `json:"new_custodians,omitempty"`
	Custodians   []uint32 `json:"custodians,omitempty"`
	Missing      []uint32 `json:"missing,omitempty"`
	StillToCome  []string `json:"still_to_come,omitempty"`
	Needed       uint32   `json:"needed,omitempty"`
	Expires      string   `json:"expires,omitempty"`
}

// keeper is a custodian whose share will be encrypted.
type keeper struct {
	Name           string `json:"name"`
	KeyFingerprint string `json:"key_fingerprint"`
}

func newChangeOutput(k *kmspb.KeyChange) *changeOutput {
	set, next := k.GetShareSet(), k.GetNewShareSet()
	f := &changeOutput{Node: k.GetNodeId(), ShareSet: hex.EncodeToString(set.GetId()), Epoch: set.GetEpoch(), Shares: set.GetCount(), Threshold: set.GetThreshold(), Generation: k.GetGeneration(), Settled: k.GetSettled()}
	if k.GetActive() {
		f.Ceremony, f.Nonce, f.Owner, f.Expires = keyChangeText[k.GetKind()], hex.EncodeToString(k.GetNonce()), k.GetOwner(), cli.When(k.GetExpires())
		f.NewShares, f.NewThreshold, f.NewShareSet = next.GetCount(), next.GetThreshold(), hex.EncodeToString(next.GetId())
		for _, c := range next.GetCustodians() {
			f.NewKeepers = append(f.NewKeepers, keeper{c.GetName(), c.GetKeyFingerprint()})
		}
		if k.GetProving() {
			set = next
		}
		f.StillToCome = missingNames(set, k.GetCustodians())
		f.Custodians, f.Missing, f.Needed = k.GetCustodians(), k.GetMissing(), k.GetNeeded()
	}
	return f
}

func (f *changeOutput) table(w io.Writer) {
	cli.Line(w, "node", f.Node)
	cli.Line(w, "share set", fmt.Sprintf("%s, %d of %d, epoch %d", f.ShareSet, f.Threshold, f.Shares, f.Epoch))
	settled := "settled"
	if !f.Settled {
		settled = "not settled: not everything is wrapped by it yet"
	}
	cli.Line(w, "keyring", fmt.Sprintf("generation %d, %s", f.Generation, settled))
	if f.Ceremony == "" {
		cli.Line(w, "ceremony", "none")
		return
	}
	cli.Line(w, "ceremony", f.Ceremony)
	cli.Line(w, "nonce", f.Nonce)
	cli.Line(w, "begun by", cli.Printable(f.Owner))
	which := "current"
	if f.NewThreshold > 0 {
		cli.Line(w, "new shares", fmt.Sprintf("%d of %d", f.NewThreshold, f.NewShares))
	}
	for i, c := range f.NewKeepers {
		cli.Line(w, fmt.Sprintf("new share %d", i+1), fmt.Sprintf("of %s, for the key %s", cli.Printable(c.Name), c.KeyFingerprint))
	}
	if f.NewShareSet != "" {
		which = "new"
		cli.Line(w, "new share set", f.NewShareSet)
	}
	cli.Line(w, "waits for", fmt.Sprintf("%d more of the %s shares %s", f.Needed, which, strings.Trim(fmt.Sprint(f.Missing), "[]")))
	if len(f.StillToCome) > 0 {
		cli.Line(w, "still to come", cli.Printable(strings.Join(f.StillToCome, ", ")))
	}
	cli.Line(w, "ends", f.Expires)
}

func (f *changeOutput) print(a *cli.App) error { return a.Print(f, f.table) }

func rekeyBeginCommand(a *cli.App) *cobra.Command {
	req := kmspb.BeginKeyChangeRequest{Kind: kmspb.KeyChangeKind_KEY_CHANGE_KIND_REKEY}
	var custodians []string
	cmd := &cobra.Command{
		Use:   "begin --shares N --threshold T",
		Short: "Begin a rekey on a node",
		Long: `Begin begins a rekey on the node that --address names, and shows its nonce, which the
custodians need. It needs feature level 2.

With --custodian, given once for each, the node encrypts each new share to the public
key of its custodian, as in "conclave operator init", and nobody ever has a share in the
clear but its custodian. The cluster then keeps the custodians' names.`,
		Example: `  conclave operator rekey begin --shares 5 --threshold 3
  conclave operator rekey begin --threshold 2 --custodian alice=alice.pub --custodian bob=bob.asc --custodian carol=carol.pub`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(custodians) > 0 {
				keys, err := custodianKeys(cmd, a, custodians)
				if err != nil {
					return err
				}
				req.Shares, req.Custodians = 0, keys
			}
			return beginChange(cmd, a, &req)
		},
	}
	f := cmd.Flags()
	f.Uint32Var(&req.Shares, "shares", 5, "number of new shares, from 1 to 16")
	f.Uint32Var(&req.Threshold, "threshold", 3, "how many of the new shares are needed")
	f.StringArrayVar(&custodians, "custodian", nil, "NAME=KEY of a new custodian, once for each")
	return cmd
}

func rotateRootCommand(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use:   "root",
		Short: "Begin to replace the root key",
		Long: `Root begins a ceremony on the node that --address names which replaces the root key,
and shows its nonce, which the custodians need. The keyring is then wrapped by the new
root key. It needs feature level 2.`,
		Example: `  conclave operator rotate root`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return beginChange(cmd, a, &kmspb.BeginKeyChangeRequest{Kind: kmspb.KeyChangeKind_KEY_CHANGE_KIND_ROTATE_ROOT})
		},
	}
}

func rotateKeyringCommand(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use:   "keyring",
		Short: "Begin to add a generation to the keyring",
		Long: `Keyring begins a ceremony on the node that --address names which adds a key to the
keyring, and shows its nonce, which the custodians need. New secrets are then wrapped by
that key, and the leader wraps all others by it in the background, within minutes. What
"rotate status" shows as the keyring is then settled. It needs feature level 2.`,
		Example: `  conclave operator rotate keyring`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return beginChange(cmd, a, &kmspb.BeginKeyChangeRequest{Kind: kmspb.KeyChangeKind_KEY_CHANGE_KIND_ROTATE_KEYRING})
		},
	}
}

func beginChange(cmd *cobra.Command, a *cli.App, req *kmspb.BeginKeyChangeRequest) error {
	return withNode(cmd, a, "beginning the ceremony", func(ctx context.Context, c *cli.Connection) error {
		res, err := c.Operator().BeginKeyChange(ctx, req)
		if err != nil {
			return err
		}
		return newChangeOutput(res.GetCeremony()).print(a)
	})
}

func changeStatusCommand(a *cli.App, parent string) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the ceremony of a node, and the share set in force",
		Long: `Status shows the ceremony of a node that replaces keys, what it waits for and until
when, and which share set is in force.`,
		Example: `  conclave operator ` + parent + ` status`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			k, err := getChange(cmd, a)
			if err != nil {
				return err
			}
			return newChangeOutput(k).print(a)
		},
	}
}

func getChange(cmd *cobra.Command, a *cli.App) (k *kmspb.KeyChange, err error) {
	err = withNode(cmd, a, "getting the ceremony", func(ctx context.Context, c *cli.Connection) error {
		res, err := c.Operator().GetKeyChange(ctx, &kmspb.GetKeyChangeRequest{})
		k = res.GetCeremony()
		return err
	})
	return k, err
}

func changeSubmitCommand(a *cli.App, parent string) *cobra.Command {
	var file, transcriptFile string
	cmd := &cobra.Command{
		Use:   "submit NONCE",
		Short: "Submit a custodian's share to the ceremony",
		Long: `Submit shows what the ceremony with that nonce does, reads one custodian's share, from
a prompt that does not show it, a file or standard input, and submits it, encrypted for
the node.`,
		Args: cobra.ExactArgs(1),
		Example: `  conclave operator ` + parent + ` submit $NONCE
  conclave operator ` + parent + ` submit $NONCE --share-file share-1.txt`,
		RunE: func(cmd *cobra.Command, args []string) error {
			paper, err := newTranscript(a, transcriptFile, parent)
			if err != nil {
				return err
			}
			defer paper.discard()
			k, err := findChange(cmd, a, args[0])
			if err != nil {
				return err
			}
			f := newChangeOutput(k)
			what := f.Ceremony
			if f.NewThreshold > 0 {
				what += fmt.Sprintf(", to %d shares of which %d are needed", f.NewShares, f.NewThreshold)
			}
			if len(f.NewKeepers) > 0 {
				var keepers []string
				for _, c := range f.NewKeepers {
					keepers = append(keepers, fmt.Sprintf("%s (key %s)", cli.Printable(c.Name), c.KeyFingerprint))
				}
				what += ", encrypted to " + strings.Join(keepers, ", ")
			}
			if k.GetProving() {
				what += "; it now waits for the new shares"
			}
			a.Note("%s began: %s", cli.Printable(f.Owner), what)
			share, err := a.ReadShare(file)
			if err != nil {
				return err
			}
			defer clear(share)
			var done bool
			begun := k
			err = withNode(cmd, a, "submitting the share", func(ctx context.Context, c *cli.Connection) (err error) {
				k, done, err = client.SubmitKeyChangeShare(ctx, c.Operator(), begun, share)
				return err
			})
			if err != nil {
				return err
			}
			paper.change(begun, k, done)
			if err := paper.write(); err != nil {
				a.Note("conclave: writing the transcript: %v", err) // the share is submitted
			}
			switch {
			case done && f.NewThreshold > 0:
				a.Note("the new shares are in force; the old ones open nothing but backups that were made before")
			case done:
				a.Note("the keys are replaced")
			case k.GetProving() && len(k.GetCustodians()) == 0:
				a.Note("the custodians have agreed; %s gets the new shares with `conclave operator rekey shares %s`", cli.Printable(f.Owner), f.Nonce)
			}
			return newChangeOutput(k).print(a)
		},
	}
	cmd.Flags().StringVar(&file, "share-file", "", "file with the share")
	transcriptFlag(cmd, &transcriptFile)
	return cmd
}

// findChange returns the ceremony of the node if it has that nonce.
func findChange(cmd *cobra.Command, a *cli.App, arg string) (*kmspb.KeyChange, error) {
	nonce, err := parseNonce(arg)
	if err != nil {
		return nil, err
	}
	k, err := getChange(cmd, a)
	if err != nil {
		return nil, err
	}
	if string(k.GetNonce()) != string(nonce) {
		return nil, fmt.Errorf("node %s has no ceremony with that nonce: it may be over, or on another node", k.GetNodeId())
	}
	return k, nil
}

func newSharesCommand(a *cli.App) *cobra.Command {
	var dir, transcriptFile string
	cmd := &cobra.Command{
		Use:   "shares NONCE --shares-dir DIR",
		Short: "Get the new shares of a rekey",
		Long: `Shares writes each new share to a file of its own in a directory, mode 0600, to be
handed to its custodian. Only the operator who began the rekey gets them, once the
custodians have agreed, and until the first of them is submitted. Shares that are
encrypted to their custodians can be got until the ceremony ends.`,
		Args:    cobra.ExactArgs(1),
		Example: `  conclave operator rekey shares $NONCE --shares-dir rekeyed`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if dir == "" {
				return cli.Usagef("--shares-dir is needed: shares are not shown")
			}
			paper, err := newTranscript(a, transcriptFile, "rekey, new shares")
			if err != nil {
				return err
			}
			defer paper.discard()
			k, err := findChange(cmd, a, args[0])
			if err != nil {
				return err
			}
			shares := new(client.RekeyShares)
			err = withNode(cmd, a, "getting the new shares", func(ctx context.Context, c *cli.Connection) error {
				got, err := client.NewShares(ctx, c.Operator(), k.GetNonce())
				if err == nil {
					shares = got
				}
				return err
			})
			if err != nil {
				return err
			}
			defer shares.Wipe()
			n, err := writeShares(dir, shares)
			if err != nil {
				return err
			}
			paper.newShares(k, shares.RequestID)
			if err := paper.write(); err != nil {
				a.Note("conclave: writing the transcript: %v", err) // the shares are there
			}
			a.Note("%d new shares are in %s: give each custodian one, and delete them here. They are valid once enough of them are submitted", n, dir)
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "shares-dir", "", "directory for the new shares, in which there are none yet")
	transcriptFlag(cmd, &transcriptFile)
	return cmd
}

// writeShares writes shares to new files, or to none, and returns their number.
func writeShares(dir string, shares *client.RekeyShares) (int, error) {
	var names []string
	var contents [][]byte
	defer func() {
		for _, c := range contents {
			clear(c)
		}
	}()
	for i, s := range shares.Shares {
		names = append(names, fmt.Sprintf("share-%d.txt", i+1))
		contents = append(contents, slices.Concat(s, []byte("\n")))
	}
	for _, s := range shares.Encrypted {
		names = append(names, encryptedFile(int(s.GetIndex()), s.GetCustodian(), custodian.Kind(s.GetKind())))
		contents = append(contents, []byte(s.GetText()))
	}
	out, err := newSecretFiles(dir, names)
	if err != nil {
		return 0, err
	}
	if err := out.fill(contents); err != nil {
		return 0, errors.Join(err, out.discard())
	}
	return len(names), nil
}

func changeCancelCommand(a *cli.App, parent string) *cobra.Command {
	return &cobra.Command{
		Use:   "cancel NONCE",
		Short: "Cancel the ceremony and wipe its shares",
		Long: `Cancel ends the ceremony with that nonce and wipes the shares that it has. Nothing has
changed then. Every operator may do that.`,
		Args:    cobra.ExactArgs(1),
		Example: `  conclave operator ` + parent + ` cancel $NONCE`,
		RunE: func(cmd *cobra.Command, args []string) error {
			nonce, err := parseNonce(args[0])
			if err != nil {
				return err
			}
			return withNode(cmd, a, "cancelling the ceremony", func(ctx context.Context, c *cli.Connection) error {
				_, err := c.Operator().CancelKeyChange(ctx, &kmspb.CancelKeyChangeRequest{Nonce: nonce})
				if err == nil {
					a.Note("the ceremony was cancelled, and its shares were wiped")
				}
				return err
			})
		},
	}
}

func verifyShareCommand(a *cli.App) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "verify-share",
		Short: "Check a custodian's share without using it",
		Long: `Verify-share reads one custodian's share, from a prompt that does not show it, a file
or standard input, and checks that it is one of the shares in force. The share does not
leave this machine: the node, which may be sealed, only says what the shares' hashes
are.`,
		Example: `  conclave operator verify-share
  conclave operator verify-share --share-file share-1.txt`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			share, err := a.ReadShare(file)
			if err != nil {
				return err
			}
			defer clear(share)
			var res *kmspb.GetShareSetResponse
			err = a.With(cmd.Context(), "getting the share set", func(ctx context.Context, c *cli.Connection) (err error) {
				res, err = c.Operator().GetShareSet(ctx, &kmspb.GetShareSetRequest{})
				return err
			})
			if err != nil {
				return err
			}
			given := res.GetShareSet()
			if len(given.GetClusterId()) != 16 || len(given.GetId()) != 16 || len(given.GetCommitments()) != int(given.GetCount()) {
				return errors.New("the server's share set is malformed")
			}
			set := &ceremony.ShareSet{
				ClusterID: [16]byte(given.GetClusterId()), ID: [16]byte(given.GetId()), Epoch: int(given.GetEpoch()),
				Threshold: int(given.GetThreshold()), Count: int(given.GetCount()), Commitments: given.GetCommitments(),
			}
			index, err := set.Check(share)
			if err != nil {
				return fmt.Errorf("the share is not one of those in force: %w", err)
			}
			a.Note("it is share %d of %d of the share set in force, %x; %d are needed", index, set.Count, set.ID, set.Threshold)
			return nil
		},
	}
	cmd.Flags().StringVar(&file, "share-file", "", "file with the share")
	return cmd
}
