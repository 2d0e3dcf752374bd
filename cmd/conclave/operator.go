package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/conclavekms/conclave/transport/kmspb"
)

func (a *app) operatorCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "operator",
		Short: "Found, open and close a cluster",
		Long: `Operator has the commands of those who run a cluster. They need the client
certificate of an operator (--cert and --key-file), which "conclave cert" makes.`,
	}
	a.clientFlags(cmd)
	cmd.AddCommand(a.initCommand(), a.unsealCommand(), a.resetCommand(), a.sealCommand(), a.statusCommand(), a.confirmTimeCommand())
	return cmd
}

func (a *app) initCommand() *cobra.Command {
	var req kmspb.InitRequest
	var dir string
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Found the cluster: once, for all nodes",
		Long: `Init founds the cluster, once for all nodes. It shows, this one time, the shares
of the unseal key and the root user's credentials: nobody can show them again.

With --shares-dir, each share goes to a file of its own, mode 0600, to be handed
to its custodian, and the credentials to root.env, for a shell to read. Account
and regions stand in every ARN and cannot be changed later.

With --regions one cluster serves several regions, each with keys, aliases and
grants of its own, among which multi-region keys can be replicated.`,
		Example: `  conclave operator init --shares 5 --threshold 3 --region eu-west-1 --shares-dir ceremony
  conclave operator init --regions eu-west-1,eu-central-1`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := a.format(); err != nil {
				return err
			}
			if len(req.Regions) > 0 {
				req.Region = "" // the first of them
			}
			var out *ceremonyDir
			if dir != "" {
				// Before the cluster is founded: afterwards it is too late to fail.
				var err error
				if out, err = newCeremonyDir(dir, int(req.Shares)); err != nil {
					return err
				}
			}
			var res *kmspb.InitResponse
			err := a.with(cmd.Context(), "initialising the cluster", func(ctx context.Context, c *connection) (err error) {
				res, err = c.Operator().Init(ctx, &req)
				return err
			})
			if err != nil {
				return errors.Join(err, out.discard())
			}
			if out != nil {
				err := out.fill(res)
				if err == nil {
					a.note("%d shares and root.env are in %s: give each custodian one, and delete them here", len(res.GetShares()), dir)
					res.Shares, res.SecretAccessKey = nil, ""
					return a.print(res, func(w io.Writer) { initTable(w, res) })
				}
				a.note("conclave: writing to %s: %v; the secrets follow here instead, and nowhere else", dir, err)
			}
			return a.print(res, func(w io.Writer) {
				initTable(w, res)
				fmt.Fprintf(w, "\nThese are shown this once. %d of the %d shares open the cluster.\n", req.Threshold, len(res.GetShares()))
			})
		},
	}
	f := cmd.Flags()
	f.Uint32Var(&req.Shares, "shares", 5, "how many custodians there are, 1 to 16")
	f.Uint32Var(&req.Threshold, "threshold", 3, "how many of them open the cluster")
	f.StringVar(&req.Account, "account", "000000000000", "account id, 12 digits")
	f.StringVar(&req.Region, "region", "us-east-1", "region in ARNs, and of requests")
	f.StringSliceVar(&req.Regions, "regions", nil, "all regions that the cluster serves, instead of --region; the first is the default")
	cmd.MarkFlagsMutuallyExclusive("region", "regions")
	f.StringVar(&req.Partition, "partition", "", "partition of ARNs (default aws)")
	f.BoolVar(&req.AnyRegion, "any-region", false, "take requests that are signed for whatever region")
	f.StringVar(&req.RootCertificate, "root-certificate", "", "URI of a client certificate that shall be the account's root too, such as conclave://operator/alice")
	f.StringVar(&dir, "shares-dir", "", "write each share to a file in this directory instead of showing it")
	return cmd
}

func initTable(w io.Writer, r *kmspb.InitResponse) {
	line(w, "cluster", r.GetClusterId())
	line(w, "root", r.GetRootArn())
	line(w, "access key id", r.GetAccessKeyId())
	if r.GetSecretAccessKey() != "" {
		line(w, "secret access key", r.GetSecretAccessKey())
	}
	line(w, "audit public key", r.GetVerifierKey())
	for i, s := range r.GetShares() {
		line(w, fmt.Sprintf("share %d", i+1), s)
	}
}

// ceremonyDir holds the files for a ceremony's secrets, made before there are any.
type ceremonyDir struct {
	dir   string
	files []*os.File // one for each share, then root.env
}

func newCeremonyDir(dir string, shares int) (_ *ceremonyDir, err error) {
	if shares < 1 || shares > 255 {
		return nil, usagef("%d shares make no sense", shares)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	d := &ceremonyDir{dir: dir}
	for i := range shares + 1 {
		name := "root.env"
		if i < shares {
			name = fmt.Sprintf("share-%d.txt", i+1)
		}
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, errors.Join(err, d.discard())
		}
		d.files = append(d.files, f)
	}
	return d, nil
}

// discard removes the files, which hold nothing yet.
func (d *ceremonyDir) discard() error {
	if d == nil {
		return nil
	}
	var errs []error
	for _, f := range d.files {
		errs = append(errs, f.Close(), os.Remove(f.Name()))
	}
	return errors.Join(errs...)
}

func (d *ceremonyDir) fill(r *kmspb.InitResponse) error {
	if len(r.GetShares()) != len(d.files)-1 {
		return errors.New("the server made another number of shares")
	}
	var errs []error
	for i, f := range d.files {
		content := fmt.Sprintf("AWS_ACCESS_KEY_ID=%s\nAWS_SECRET_ACCESS_KEY=%s\n", quote(r.GetAccessKeyId()), quote(r.GetSecretAccessKey()))
		if i < len(r.GetShares()) {
			content = r.GetShares()[i] + "\n"
		}
		_, err := io.WriteString(f, content)
		errs = append(errs, err, f.Sync(), f.Close())
	}
	return errors.Join(append(errs, syncDir(d.dir))...)
}

func (a *app) unsealCommand() *cobra.Command {
	var file string
	var local bool
	cmd := &cobra.Command{
		Use:   "unseal",
		Short: "Give the cluster a custodian's share",
		Long: `Unseal takes one custodian's share, by a prompt that does not show it, from a
file, or from standard input, and delivers it to every node. Once enough
custodians have done so, the nodes open.`,
		Example: `  conclave operator unseal
  conclave operator unseal --share-file share-1.txt`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			share, err := a.readShare(file)
			if err != nil {
				return err
			}
			defer clear(share)
			return a.with(cmd.Context(), "delivering the share", func(ctx context.Context, c *connection) error {
				res, err := c.Operator().SubmitShare(ctx, &kmspb.SubmitShareRequest{Share: string(share), Local: local})
				if err != nil {
					return err
				}
				return a.printNodes(res, res.GetNodes(), "did not take the share")
			})
		},
	}
	cmd.Flags().StringVar(&file, "share-file", "", "file with the share")
	cmd.Flags().BoolVar(&local, "local", false, "give it to the asked node only")
	return cmd
}

// maxShare is more than any share has.
const maxShare = 4096

func (a *app) readShare(file string) ([]byte, error) {
	var raw []byte
	var err error
	if in, ok := a.stdin.(*os.File); file == "" && ok && term.IsTerminal(int(in.Fd())) {
		raw, err = a.prompt(in, "share (not shown): ")
	} else {
		raw, err = a.readInput(file, maxShare)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the share: %w", err)
	}
	share := []byte(strings.TrimSpace(string(raw)))
	clear(raw)
	if len(share) == 0 {
		return nil, errors.New("reading the share: there is nothing")
	}
	return share, nil
}

// prompt asks without showing what is typed, and leaves the terminal as it was
// even when it is interrupted.
func (a *app) prompt(in *os.File, text string) ([]byte, error) {
	before, err := term.GetState(int(in.Fd()))
	if err != nil {
		return nil, err
	}
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt)
	defer signal.Stop(interrupted)
	type answer struct {
		line []byte
		err  error
	}
	got := make(chan answer, 1)
	fmt.Fprint(a.stderr, text)
	go func() {
		line, err := term.ReadPassword(int(in.Fd()))
		got <- answer{line, err}
	}()
	defer fmt.Fprintln(a.stderr)
	select {
	case r := <-got:
		return r.line, r.err
	case <-interrupted:
		return nil, errors.Join(errors.New("interrupted"), term.Restore(int(in.Fd()), before))
	}
}

func (a *app) resetCommand() *cobra.Command {
	var local bool
	cmd := &cobra.Command{
		Use:   "reset",
		Short: "Forget the shares given so far and begin the unsealing again",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), "resetting the shares", func(ctx context.Context, c *connection) error {
				res, err := c.Operator().ResetShares(ctx, &kmspb.ResetSharesRequest{Local: local})
				if err != nil {
					return err
				}
				return a.printNodes(res, res.GetNodes(), "did not forget its shares")
			})
		},
	}
	cmd.Flags().BoolVar(&local, "local", false, "on the asked node only")
	return cmd
}

func (a *app) sealCommand() *cobra.Command {
	var local bool
	cmd := &cobra.Command{
		Use:   "seal",
		Short: "Make every node forget the keys until the custodians open it again",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), "sealing", func(ctx context.Context, c *connection) error {
				res, err := c.Operator().Seal(ctx, &kmspb.SealRequest{All: !local})
				if err != nil {
					return err
				}
				return a.printNodes(res, res.GetNodes(), "was not sealed")
			})
		},
	}
	cmd.Flags().BoolVar(&local, "local", false, "seal the asked node only")
	return cmd
}

// printNodes shows what became of each node, and is an error when one of them
// did not do what was asked. A node that has done it before is no failure: one
// that is open already, or, when another node took the share, has it.
func (a *app) printNodes(res any, nodes []*kmspb.NodeStatus, failure string) error {
	if err := a.print(res, func(w io.Writer) { nodeTable(w, nodes) }); err != nil {
		return err
	}
	done := slices.ContainsFunc(nodes, func(n *kmspb.NodeStatus) bool { return n.GetError() == nil })
	var failed []string
	for _, n := range nodes {
		switch n.GetError().GetType() {
		case "AlreadyUnsealedException":
			continue
		case "InvalidShareException":
			if done {
				continue
			}
		}
		if n.GetError() != nil {
			failed = append(failed, fmt.Sprintf("%s %s: %s", n.GetNodeId(), failure, faultText(n.GetError())))
		}
	}
	if len(failed) == 0 {
		return nil
	}
	if done {
		failed = append(failed, "the others did; repeat it when that is mended")
	}
	return errors.New(strings.Join(failed, "\n"))
}

func faultText(e *kmspb.ErrorDetail) string {
	if e.GetMessage() == "" {
		return printable(orDash(e.GetType()))
	}
	return printable(e.GetMessage())
}

func nodeTable(w io.Writer, nodes []*kmspb.NodeStatus) {
	line(w, "NODE", "STATE", "LEADER", "VERSION", "APPLIED", "NOTE")
	for _, n := range nodes {
		state := "unknown"
		if n.GetSeal() != nil {
			state = sealText(n.GetSeal())
		}
		line(w, n.GetNodeId(), state, yes(n.GetLeader()), orDash(n.GetVersion()), n.GetAppliedIndex(), faultText(n.GetError()))
	}
}

// sealText is how far a node is from serving: "sealed, 2 of 3".
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

func (a *app) statusCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how a node or the cluster is; exits with 0 unsealed, 2 sealed, 1 error",
		Long: `Status shows how a node is. Without an operator's certificate it shows only
whether the node serves, and how far its unsealing is.

It exits with 0 when the node is unsealed (with --all: every node), with 2 when
it is sealed or not initialised, and with 1 when that cannot be told.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			sealed := false
			err := a.with(cmd.Context(), "asking for the status", func(ctx context.Context, c *connection) error {
				res, err := c.Operator().Status(ctx, &kmspb.StatusRequest{All: all})
				if err != nil {
					return err
				}
				sealed = res.GetSeal().GetSealed() || !res.GetSeal().GetInitialised()
				var lost []error
				for _, n := range res.GetNodes() {
					if n.GetSeal() == nil {
						lost = append(lost, fmt.Errorf("%s could not be asked: %s", n.GetNodeId(), faultText(n.GetError())))
						continue
					}
					sealed = sealed || n.GetSeal().GetSealed() || !n.GetSeal().GetInitialised()
				}
				return errors.Join(append(lost, a.print(res, func(w io.Writer) { statusTable(w, res) }))...)
			})
			if err == nil && sealed {
				return &codedError{code: exitStatusSealed}
			}
			// A sealed node is no other error here.
			if coded, ok := errors.AsType[*codedError](err); ok && coded.code == exitSealed {
				coded.code = exitStatusSealed
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "ask every node")
	return cmd
}

func statusTable(w io.Writer, r *kmspb.StatusResponse) {
	s := r.GetSeal()
	line(w, "state", sealText(s))
	if s.GetInitialised() {
		line(w, "shares", fmt.Sprintf("%d of %d open it", s.GetThreshold(), s.GetShares()))
	}
	line(w, "leader known", yes(r.GetHasLeader()))
	if r.GetNodeId() == "" {
		return // strangers see no more
	}
	line(w, "node", r.GetNodeId())
	line(w, "version", r.GetVersion())
	if s.GetInitialised() {
		line(w, "cluster", s.GetClusterId())
		line(w, "account", fmt.Sprintf("%s in %s (%s)", s.GetAccount(), strings.Join(append([]string{s.GetRegion()}, s.GetMoreRegions()...), ", "), s.GetPartition()))
	}
	line(w, "leader", orDash(r.GetLeaderId()))
	line(w, "cluster time", when(r.GetClusterTime()))
	if x := r.GetRaft(); x != nil {
		line(w, "raft", fmt.Sprintf("%s, term %d, last %d, committed %d, applied %d", x.GetState(), x.GetTerm(), x.GetLastIndex(), x.GetCommitIndex(), x.GetAppliedIndex()))
	}
	if x := r.GetAudit(); x != nil {
		complete := "complete here"
		if !x.GetComplete() {
			complete = "not complete here"
		}
		line(w, "audit log", fmt.Sprintf("%d records, %d stored, %d signed, %s", x.GetSize(), x.GetStored(), x.GetCheckpointed(), complete))
	}
	if x := r.GetAddresses(); x != nil {
		line(w, "addresses", fmt.Sprintf("aws %s, grpc %s, peer %s, health %s", orDash(x.GetAws()), orDash(x.GetGrpc()), orDash(x.GetPeer()), orDash(x.GetHealth())))
	}
	for _, f := range r.GetFaults() {
		line(w, "fault", f)
	}
	if len(r.GetNodes()) > 0 {
		line(w)
		nodeTable(w, r.GetNodes())
	}
}

func (a *app) confirmTimeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "confirm-time",
		Short: "Say that the nodes' clocks are right although more than a day has passed",
		Long: `Cluster time does not step more than a day forward by itself: a clock gone wrong
must not delete keys. After a long outage, look at the clocks of all nodes, and
when they are right, say so with this.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), "confirming the time", func(ctx context.Context, c *connection) error {
				res, err := c.Operator().ConfirmTime(ctx, &kmspb.ConfirmTimeRequest{})
				if err != nil {
					return err
				}
				return a.print(res, func(w io.Writer) {
					line(w, "confirmed: within an hour, cluster time may step to what the nodes' clocks say")
				})
			})
		},
	}
}

func (a *app) clusterCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "cluster", Short: "Look at the nodes of a cluster"}
	a.clientFlags(cmd)
	cmd.AddCommand(&cobra.Command{
		Use:   "members",
		Short: "List the nodes",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), "listing the members", func(ctx context.Context, c *connection) error {
				res, err := c.Cluster().Members(ctx, &kmspb.MembersRequest{})
				if err != nil {
					return err
				}
				return a.print(res, func(w io.Writer) {
					line(w, "NODE", "ROLE", "LEADER", "ALIVE", "PEER", "AWS", "GRPC", "LAST CONTACT")
					for _, m := range res.GetMembers() {
						at := m.GetAddresses()
						line(w, m.GetNodeId(), m.GetSuffrage(), yes(m.GetLeader()), yes(m.GetAlive()), orDash(at.GetPeer()), orDash(at.GetAws()), orDash(at.GetGrpc()), when(m.GetLastContact()))
					}
				})
			})
		},
	})
	return cmd
}
