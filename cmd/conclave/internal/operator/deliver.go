package operator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

const (
	// perNode bounds the time that one node may take for an operator's call: one
	// that hangs must not hide the results of the others.
	perNode = 30 * time.Second
	// unreachable is the type of the error for a node that could not be reached.
	unreachable = "Unreachable"
)

// nodeCall is an operator's call to one node.
type nodeCall func(ctx context.Context, c *client.Client) (*kmspb.NodeStatus, error)

// everyNode makes an operator's call to each of the addresses that the operator
// named, concurrently. No node passes the call on to others, and nothing that a node
// says adds an address, as a stolen node could name its own. everyNode returns an
// error only if no node answered.
func everyNode(ctx context.Context, a *cli.App, doing string, call nodeCall) (*kmspb.NodeReport, error) {
	if _, err := a.Format(); err != nil {
		return nil, err
	}
	cfg, err := a.Remote.Config()
	if err != nil {
		return nil, err
	}
	clear(cfg.SecretAccessKey)
	cfg.AccessKeyID, cfg.SecretAccessKey = "", nil // operators do not use it
	addrs, err := client.Addresses(cfg.Address)
	if err != nil {
		return nil, cli.Usage(err)
	}
	report := &kmspb.NodeReport{Nodes: make([]*kmspb.NodeStatus, len(addrs))}
	errs := make([]error, len(addrs))
	members := make([][]string, len(addrs))
	var wg sync.WaitGroup
	for i, addr := range addrs {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, nodeTimeout(a))
			defer cancel()
			at := cfg
			at.Address = addr
			c, err := client.Dial(ctx, at)
			if err != nil {
				errs[i] = fmt.Errorf("connecting to %s: %w", addr, err)
				return
			}
			defer c.Close()
			st, err := call(ctx, c)
			if err != nil {
				errs[i] = cli.Explain(doing, addr, err)
				report.Nodes[i] = failedStatus(addr, err)
				return
			}
			if st.NodeId == "" {
				st.NodeId = addr
			}
			report.Nodes[i], members[i] = st, memberIDs(ctx, c)
		})
	}
	wg.Wait()
	if !slices.ContainsFunc(errs, func(err error) bool { return err == nil }) {
		return nil, errors.Join(distinct(errs)...)
	}
	for i, n := range report.Nodes {
		if n == nil {
			report.Nodes[i] = failedStatus(addrs[i], errs[i])
		}
	}
	if left := notAsked(report.Nodes, members); len(left) > 0 {
		a.Note("members that are not among the addresses, and were not called: %s", strings.Join(left, ", "))
	}
	return report, nil
}

func nodeTimeout(a *cli.App) time.Duration {
	if a.Remote.Timeout > 0 {
		return a.Remote.Timeout
	}
	return perNode
}

// distinct removes errors with the same text.
func distinct(errs []error) (out []error) {
	seen := make(map[string]bool)
	for _, err := range errs {
		if !seen[err.Error()] {
			seen[err.Error()] = true
			out = append(out, err)
		}
	}
	return out
}

// failedStatus returns the status for a node that could not be reached.
func failedStatus(addr string, err error) *kmspb.NodeStatus {
	detail := &kmspb.ErrorDetail{Type: unreachable, Message: "the node cannot be reached"}
	if f, ok := client.FromError(err); ok && f.Type != "" {
		detail = &kmspb.ErrorDetail{Type: f.Type, Message: f.Message, RequestId: f.RequestID}
	}
	return &kmspb.NodeStatus{NodeId: addr, Error: detail}
}

// memberIDs returns the members of the cluster according to a node; nil if it
// does not answer. They are only shown to the operator.
func memberIDs(ctx context.Context, c *client.Client) (ids []string) {
	res, err := c.Cluster().Members(ctx, &kmspb.MembersRequest{})
	if err != nil {
		return nil
	}
	for _, m := range res.GetMembers() {
		ids = append(ids, m.GetNodeId())
	}
	return ids
}

// notAsked returns the members of which there is no answer.
func notAsked(nodes []*kmspb.NodeStatus, members [][]string) []string {
	var left []string
	for _, id := range slices.Concat(members...) {
		if !slices.Contains(left, id) && !slices.ContainsFunc(nodes, func(n *kmspb.NodeStatus) bool { return n.GetNodeId() == id }) {
			left = append(left, id)
		}
	}
	slices.Sort(left)
	return left
}

// deliver makes an operator's call to every node and shows the results.
func deliver(ctx context.Context, a *cli.App, doing, failure string, call nodeCall) error {
	report, err := everyNode(ctx, a, doing, call)
	if err != nil {
		return err
	}
	return printNodes(a, report, failure)
}

// printNodes shows the result of each node, and returns an error if one of them
// did not do what was requested. It is no failure if a node has done it before:
// if it is unsealed already, or has the share that another node accepted now.
func printNodes(a *cli.App, report *kmspb.NodeReport, failure string) error {
	nodes := report.GetNodes()
	if err := a.Print(report, func(w io.Writer) { nodeTable(w, nodes) }); err != nil {
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
			failed = append(failed, fmt.Sprintf("%s %s: %s", n.GetNodeId(), failure, cli.ErrorText(n.GetError())))
		}
	}
	if len(failed) == 0 {
		return nil
	}
	if done {
		failed = append(failed, "the others did; repeat the command when that is fixed")
	}
	return errors.New(strings.Join(failed, "\n"))
}

func nodeTable(w io.Writer, nodes []*kmspb.NodeStatus) {
	cli.Line(w, "NODE", "STATE", "LEADER", "VERSION", "APPLIED", "CRL", "NOTE")
	for _, n := range nodes {
		state := "unknown"
		if n.GetSeal() != nil {
			state = sealText(n.GetSeal())
		}
		cli.Line(w, n.GetNodeId(), state, yes(n.GetLeader()), cli.OrDash(n.GetVersion()), n.GetAppliedIndex(), crlNumbers(n.GetCrls()), cli.ErrorText(n.GetError()))
	}
}
