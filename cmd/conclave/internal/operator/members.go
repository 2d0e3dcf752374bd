package operator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

const (
	// memberPause is the pause between two looks at whether a node is ready.
	memberPause = time.Second
	// notReady is the error of a change that would weaken the cluster at the moment.
	notReady = "KMSInvalidStateException"
	// leaderPatience is how long the leader is looked for: an election takes less.
	leaderPatience = 15 * time.Second
)

func clusterCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cluster",
		Short: "Inspect and change the nodes of a cluster",
		Long: `Cluster has the commands for the members of a cluster. They need the client certificate
of an operator. Only the leader changes the members: the commands look for it among
the nodes that --address (CONCLAVE_ADDRESS) names, so list them all.`,
	}
	a.ClientFlags(cmd)
	cmd.AddCommand(membersCommand(a), clusterStatusCommand(a), upgradeCommand(a), peerUnsealCommand(a), sealsCommand(a), caCommand(a), joinTokenCommand(a), joinCommand(a), promoteCommand(a), setAddressCommand(a), removeCommand(a), replaceCommand(a), transferCommand(a), stepDownCommand(a))
	return cmd
}

func membersCommand(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use:     "members",
		Short:   "List the nodes and their addresses",
		Long:    `Members lists the nodes and where they are reached. "conclave cluster status" says how they do.`,
		Example: `  conclave cluster members`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return showMembers(cmd.Context(), a, func(w io.Writer, res *kmspb.MembersResponse) {
				cli.Line(w, "NODE", "ROLE", "PEER", "AWS", "GRPC")
				for _, m := range res.GetMembers() {
					at := m.GetAddresses()
					cli.Line(w, m.GetNodeId(), role(m), cli.OrDash(at.GetPeer()), cli.OrDash(at.GetAws()), cli.OrDash(at.GetGrpc()))
				}
			})
		},
	}
}

func clusterStatusCommand(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show which nodes are ready, and how many may fail",
		Long: `Status asks all nodes how they are, and says how many voters may fail before the cluster
stops. A node that is not ready could not take part in a majority: it does not answer,
is sealed, lags behind, lacks audit records, or has a slow or full disk. A replica has
no vote, so it counts for nothing there.`,
		Example: `  conclave cluster status`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return showMembers(cmd.Context(), a, func(w io.Writer, res *kmspb.MembersResponse) {
				cli.Line(w, "NODE", "ROLE", "LEADER", "READY", "LAG")
				for _, m := range res.GetMembers() {
					ready := "yes"
					if m.GetUnready() != "" {
						ready = "no: " + m.GetUnready()
					}
					cli.Line(w, m.GetNodeId(), role(m), yes(m.GetLeader()), ready, m.GetLag())
				}
				fmt.Fprintf(w, "\n%s\n", tolerance(res))
			})
		},
	}
}

func showMembers(ctx context.Context, a *cli.App, table func(io.Writer, *kmspb.MembersResponse)) error {
	return a.With(ctx, "asking the members", func(ctx context.Context, c *cli.Connection) error {
		res, err := c.Cluster().Members(ctx, &kmspb.MembersRequest{})
		if err != nil {
			return err
		}
		return a.Print(res, func(w io.Writer) { table(w, res) })
	})
}

// role is what a node is called: one without a vote is a replica.
func role(m *kmspb.Member) string {
	if m.GetSuffrage() == voter {
		return voter
	}
	return "replica"
}

// voter is the suffrage of a member that votes.
const voter = "voter"

// tolerance says how many voters may fail.
func tolerance(r *kmspb.MembersResponse) string {
	s := fmt.Sprintf("%d of %d voters are ready: ", r.GetReadyVoters(), r.GetVoters())
	switch n := r.GetFailureTolerance(); {
	case n < 0:
		return s + "too few for a majority"
	case n == 0:
		return s + "none may fail"
	default:
		return s + fmt.Sprintf("%d may fail", n)
	}
}

// change is what is done on the leader. again means that it has to be done again, on the
// leader that there is then.
type change func(ctx context.Context, leader string, c kmspb.ClusterClient) (again bool, err error)

// onLeader makes a change on the leader, which must be among the addresses that the operator
// named: nothing is sent to an address that a node names.
func onLeader(ctx context.Context, a *cli.App, doing string, do change) error {
	cfg, err := a.Remote.Config()
	if err != nil {
		return err
	}
	clear(cfg.SecretAccessKey)
	cfg.AccessKeyID, cfg.SecretAccessKey = "", nil // operators do not use it
	addrs, err := client.Addresses(cfg.Address)
	if err != nil {
		return cli.Usage(err)
	}
	limit := time.Now().Add(leaderPatience)
	for {
		var errs []error
		was := follows
		for _, addr := range addrs {
			at := cfg
			at.Address = addr
			if was, err = ifLeader(ctx, a, at, do); err != nil {
				err = cli.Explain(doing, addr, err)
			}
			if was == done || was == waits {
				break
			}
			if err != nil {
				errs = append(errs, err)
			}
			if was == moved {
				break
			}
		}
		switch {
		case was == done:
			return err
		case was == waits:
			limit = time.Now().Add(leaderPatience)
		case was == follows && len(errs) == len(addrs):
			return errors.Join(distinct(errs)...)
		case was == moved && time.Now().After(limit):
			return errors.Join(distinct(errs)...)
		case time.Now().After(limit):
			return errors.Join(append(distinct(errs), fmt.Errorf("%s: the leader is not among the addresses; name all nodes with --address", doing))...)
		}
		select {
		case <-time.After(memberPause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// outcome is what became of a change at one node.
type outcome int

const (
	follows outcome = iota // the node does not lead, or does not answer
	moved                  // it led, and could not make the change; it may have been made
	waits                  // it leads, and the change has to be made again
	done                   // it led, and the change was made or refused
)

// ifLeader makes a change if the node at the address leads. The leader may be another one a
// moment later; each change can be made again.
func ifLeader(ctx context.Context, a *cli.App, cfg client.Config, do change) (outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, nodeTimeout(a))
	defer cancel()
	c, err := client.Dial(ctx, cfg)
	if err != nil {
		return follows, err
	}
	defer c.Close()
	st, err := c.Operator().Status(ctx, &kmspb.StatusRequest{})
	switch {
	case err != nil:
		return follows, err
	case st.GetNodeId() == "":
		return follows, errors.New("an operator's certificate is needed")
	case st.GetNodeId() != st.GetLeaderId():
		return follows, nil
	}
	again, err := do(ctx, st.GetNodeId(), c.Cluster())
	switch {
	case status.Code(err) == codes.Unavailable:
		return moved, err
	case again:
		return waits, err
	}
	return done, err
}

// member returns what a node says of a member.
func member(ctx context.Context, c kmspb.ClusterClient, node string) (*kmspb.Member, error) {
	res, err := c.Members(ctx, &kmspb.MembersRequest{})
	if err != nil {
		return nil, err
	}
	for _, m := range res.GetMembers() {
		if m.GetNodeId() == node {
			return m, nil
		}
	}
	return nil, nil
}

// newNode splits ID=HOST:PORT.
func newNode(s string) (id, address string, err error) {
	id, address, ok := strings.Cut(s, "=")
	if !ok || id == "" || address == "" {
		return "", "", cli.Usagef("%q is not ID=HOST:PORT", s)
	}
	return id, address, nil
}

// add adds a node without a vote.
func add(ctx context.Context, a *cli.App, id, address string) error {
	return onLeader(ctx, a, "adding "+id, func(ctx context.Context, _ string, c kmspb.ClusterClient) (bool, error) {
		_, err := c.AddNode(ctx, &kmspb.AddNodeRequest{NodeId: id, PeerAddress: address})
		return false, err
	})
}

// promote waits until a node is ready, and gives it a vote.
func promote(ctx context.Context, a *cli.App, id string) error {
	told := ""
	return onLeader(ctx, a, "giving "+id+" a vote", func(ctx context.Context, _ string, c kmspb.ClusterClient) (bool, error) {
		m, err := member(ctx, c, id)
		switch {
		case err != nil:
			return false, err
		case m == nil:
			return false, fmt.Errorf("%s is not a member", id)
		case m.GetSuffrage() == voter:
			return false, nil
		case m.GetUnready() != "":
			if m.GetUnready() != told {
				told = m.GetUnready()
				a.Note("waiting for %s: %s", id, told)
			}
			return true, nil
		}
		_, err = c.PromoteNode(ctx, &kmspb.PromoteNodeRequest{NodeId: id})
		if f, _ := client.FromError(err); f.Type == notReady {
			if f.Message != told {
				told = f.Message
				a.Note("%s", told)
			}
			return true, nil
		}
		return false, err
	})
}

// awayFrom is a change of a node that must not lead: the leadership is moved away from it first.
func awayFrom(a *cli.App, id string, do func(ctx context.Context, c kmspb.ClusterClient) error) change {
	return func(ctx context.Context, leader string, c kmspb.ClusterClient) (bool, error) {
		if leader == id {
			a.Note("%s leads: the leadership is handed over first", id)
			_, err := c.TransferLeadership(ctx, &kmspb.TransferLeadershipRequest{})
			return err == nil, err
		}
		return false, do(ctx, c)
	}
}

// remove removes a node, after the leadership was moved away from it.
func remove(ctx context.Context, a *cli.App, id string) error {
	return onLeader(ctx, a, "removing "+id, awayFrom(a, id, func(ctx context.Context, c kmspb.ClusterClient) error {
		_, err := c.RemoveNode(ctx, &kmspb.RemoveNodeRequest{NodeId: id})
		return err
	}))
}

func joinCommand(a *cli.App) *cobra.Command {
	var replica bool
	var tokenFile, dir string
	cmd := &cobra.Command{
		Use:   "join ID=HOST:PORT | --token-file FILE --dir DIR",
		Short: "Add a new node, and give it a vote once it is ready",
		Long: `Join adds a new node, at its peer address, to the cluster. The node is started with
"conclave server --join", an id that was never used, an empty data directory and a
certificate of the cluster's CA. It first has no vote. The command waits until the
node has everything that the others have, its audit log included, and is unsealed
("conclave operator unseal"), and then gives it a vote. It can be interrupted, and
repeated at any time.

With --replica, the node never gets a vote: it answers requests like any other, and
does not count for the majority.

With --token-file, the command runs on the machine of the new node, without an operator's
certificate: it makes the node's key, which stays in --dir, has the cluster that made the
token ("conclave cluster join-token") certify it and add the node without a vote, and
prints the flags of its "conclave server". Until a node at --address has shown a
certificate of the CA that the token names, nothing is sent to it.`,
		Example: `  conclave cluster join node-4=10.0.0.4:7602
  conclave cluster join reader-1=10.0.1.1:7602 --replica
  conclave cluster join --token-file node-6.token --dir tls-6`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if tokenFile != "" {
				if len(args) > 0 || replica {
					return cli.Usagef("--token-file says which node it is for, and joins it without a vote; leave out ID=HOST:PORT and --replica")
				}
				j, err := newJoiner(a, tokenFile, dir)
				if err != nil {
					return err
				}
				return j.run(cmd.Context())
			}
			if len(args) != 1 || dir != "" {
				return cli.Usagef("give ID=HOST:PORT, or --token-file and --dir")
			}
			id, address, err := newNode(args[0])
			if err != nil {
				return err
			}
			if err := add(cmd.Context(), a, id, address); err != nil {
				return err
			}
			if replica {
				a.Note("%s is a member without a vote", id)
				return nil
			}
			if err := promote(cmd.Context(), a, id); err != nil {
				return err
			}
			a.Note("%s votes", id)
			return nil
		},
	}
	f := cmd.Flags()
	f.BoolVar(&replica, "replica", false, "never give the node a vote")
	f.StringVar(&tokenFile, "token-file", "", "file with the join token of this machine; - for standard input")
	f.StringVar(&dir, "dir", "", "with --token-file, the directory for the node's certificate and key, created if necessary")
	return cmd
}

func promoteCommand(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use:     "promote ID",
		Short:   "Give a replica a vote, once it is ready",
		Example: `  conclave cluster promote reader-1`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := promote(cmd.Context(), a, args[0]); err != nil {
				return err
			}
			a.Note("%s votes", args[0])
			return nil
		},
	}
}

func setAddressCommand(a *cli.App) *cobra.Command {
	var address string
	cmd := &cobra.Command{
		Use:   "set-address ID --peer-address HOST:PORT",
		Short: "Change the address at which the others reach a node",
		Long: `Set-address changes the peer address of a member, which keeps its data and its vote. Its
server must advertise the new address when it starts again (--peer-advertise or
--peer-listen). If the node leads, the leadership is handed over first. The command is
refused while the other voters have no majority that is ready, since they have to do
without the node until they reach it there.`,
		Example: `  conclave cluster set-address node-3 --peer-address 10.0.9.3:7602`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if address == "" {
				return cli.Usagef("--peer-address is required")
			}
			err := onLeader(cmd.Context(), a, "changing the address of "+args[0], awayFrom(a, args[0], func(ctx context.Context, c kmspb.ClusterClient) error {
				_, err := c.SetNodeAddress(ctx, &kmspb.SetNodeAddressRequest{NodeId: args[0], PeerAddress: address})
				return err
			}))
			if err != nil {
				return err
			}
			a.Note("the others reach %s at %s", args[0], address)
			return nil
		},
	}
	cmd.Flags().StringVar(&address, "peer-address", "", "address at which the other nodes will reach the node")
	return cmd
}

func removeCommand(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use:   "remove ID",
		Short: "Remove a node for good",
		Long: `Remove removes a node from the cluster, running or not. If it leads, the leadership is
handed over first. The command is refused while too few of the voters that remain are
ready, as nothing could be done without them. The removed node stops, and the others
refuse its certificate; revoke that too ("conclave cert revoke"). Its id cannot be used
again.`,
		Example: `  conclave cluster remove node-4`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := remove(cmd.Context(), a, args[0]); err != nil {
				return err
			}
			a.Note("%s is not a member any more", args[0])
			return nil
		},
	}
}

func replaceCommand(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use:   "replace OLD NEW-ID=HOST:PORT",
		Short: "Put a new node in the place of another",
		Long: `Replace adds a new node, gives it a vote once it is ready, as "conclave cluster join"
does, and then removes the old one, which may have lost its disk. It can be
interrupted, and repeated at any time.`,
		Example: `  conclave cluster replace node-2 node-5=10.0.0.5:7602`,
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, address, err := newNode(args[1])
			if err != nil {
				return err
			}
			if id == args[0] {
				return cli.Usagef("the new node needs another id than %s", id)
			}
			if err := add(cmd.Context(), a, id, address); err != nil {
				return err
			}
			if err := promote(cmd.Context(), a, id); err != nil {
				return err
			}
			a.Note("%s votes", id)
			if err := remove(cmd.Context(), a, args[0]); err != nil {
				return err
			}
			a.Note("%s is not a member any more", args[0])
			return nil
		},
	}
}

func transferCommand(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use:     "transfer-leader ID",
		Short:   "Make a voter lead",
		Example: `  conclave cluster transfer-leader node-3`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return onLeader(cmd.Context(), a, "handing the leadership over", func(ctx context.Context, leader string, c kmspb.ClusterClient) (bool, error) {
				if leader == args[0] {
					return false, nil
				}
				_, err := c.TransferLeadership(ctx, &kmspb.TransferLeadershipRequest{NodeId: args[0]})
				return false, err
			})
		},
	}
}

func stepDownCommand(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use:     "step-down",
		Short:   "Make the leader hand over to the node that is best placed",
		Example: `  conclave cluster step-down`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return onLeader(cmd.Context(), a, "handing the leadership over", func(ctx context.Context, _ string, c kmspb.ClusterClient) (bool, error) {
				_, err := c.TransferLeadership(ctx, &kmspb.TransferLeadershipRequest{})
				return false, err
			})
		},
	}
}
