package backups

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cluster"
	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/backup"
)

// RecoverQuorumCommand returns the command that makes a cluster from what is left of one that
// has lost its majority. It belongs below the command cluster.
func RecoverQuorumCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "recover-quorum",
		Short: "Make a cluster from what is left when the majority of the nodes is lost for good",
		Long: `Recover-quorum is for the case that the majority of the voters is gone for good, with
their disks. If they can come back, bring them back instead: nothing is lost then.

First run "report" on each machine that survived, then "build" on the one whose log is
the most advanced. Both work on the data directory of a node that is stopped, and need
no server. docs/operate/lost-quorum.md has every step.`,
	}
	cmd.AddCommand(reportCommand(a), buildCommand(a))
	return cmd
}

// reportFormat is the format of reports.
const reportFormat = 1

// report says what a survivor has.
type report struct {
	Format    int       `json:"format"`
	Node      string    `json:"node"`
	Cluster   string    `json:"cluster"`
	Lineage   string    `json:"lineage,omitempty"`
	Term      uint64    `json:"term"`
	LastTerm  uint64    `json:"last_term"`
	LastIndex uint64    `json:"last_index"`
	Index     uint64    `json:"state_index"`
	StateHash string    `json:"state_hash"`
	Time      time.Time `json:"cluster_time"`
	AuditSize uint64    `json:"audit_records"`
	Voters    []string  `json:"voters"`
}

// maxReport is far more than a report has.
const maxReport = 64 << 10

func (r report) table(w io.Writer) {
	cli.Line(w, "node", r.Node)
	cli.Line(w, "cluster", r.Cluster)
	cli.Line(w, "lineage", cli.OrDash(r.Lineage))
	cli.Line(w, "log", fmt.Sprintf("up to entry %d of term %d", r.LastIndex, r.LastTerm))
	cli.Line(w, "state", fmt.Sprintf("at entry %d, hash %s", r.Index, r.StateHash))
	cli.Line(w, "cluster time", r.Time.Format(time.RFC3339))
	cli.Line(w, "audit log", fmt.Sprintf("%d records", r.AuditSize))
	cli.Line(w, "voters", strings.Join(r.Voters, " "))
}

func reportCommand(a *cli.App) *cobra.Command {
	var data string
	cmd := &cobra.Command{
		Use:   "report --data DIR",
		Short: "Say how far the log of a stopped node reaches",
		Long: `Report reads the data directory of a stopped node: it verifies its newest snapshot and
its log, and says how far they reach. Nothing is changed. Save the report in a file with
-o json, for "build" on another machine.`,
		Example: `  conclave cluster recover-quorum report --data /var/lib/conclave -o json > node-1.json`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := a.Format(); err != nil {
				return err
			}
			if data == "" {
				return cli.Usagef("--data is required")
			}
			s, err := cluster.OpenStopped(data)
			if err != nil {
				return err
			}
			m, err := s.Replay(cmd.Context(), fsm.Config{})
			if err = errors.Join(err, s.Close()); err != nil {
				return fmt.Errorf("%s cannot be read to its end: %w", data, err)
			}
			r, err := reportOf(s.Extent(), m.Current())
			if err != nil {
				return err
			}
			return a.Print(r, r.table)
		},
	}
	cmd.Flags().StringVar(&data, "data", "", "data directory of the node")
	return a.OutputFlag(cmd)
}

func reportOf(e cluster.Extent, s *fsm.State) (report, error) {
	c, _ := s.Cluster()
	if c == nil {
		return report{}, errors.New("the cluster was never initialised: there is nothing to recover")
	}
	frontier, _ := s.Audit()
	hash := s.Hash()
	r := report{
		Format: reportFormat, Node: e.Node, Cluster: hex.EncodeToString(c.Id), Lineage: e.Lineage, Term: e.Term, LastTerm: e.LastTerm, LastIndex: e.LastIndex,
		Index: s.Index(), StateHash: hex.EncodeToString(hash[:]), Time: time.Unix(0, s.Time()).UTC(), AuditSize: frontier.Size(),
	}
	for _, m := range e.Members {
		if m.Voter {
			r.Voters = append(r.Voters, m.ID)
		}
	}
	slices.Sort(r.Voters)
	return r, nil
}

// readReport reads a report of another machine.
func readReport(name string) (r report, err error) {
	b, err := files.Read(name, maxReport)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("%s is not a report: %w", name, err)
	}
	if r.Format != reportFormat || r.Node == "" || r.Cluster == "" {
		return r, fmt.Errorf("%s is not a report that this version can read", name)
	}
	return r, nil
}

func readReports(names []string) (list []report, _ error) {
	for _, name := range names {
		r, err := readReport(name)
		if err != nil {
			return nil, err
		}
		list = append(list, r)
	}
	return list, nil
}

// loss is what is lost with the majority.
type loss struct {
	own       report
	survivors []string
	lost      []string
}

// compare compares the report of the node whose state is to be used with those of the other
// survivors. Its error says why the state must not be used.
func compare(own report, others []report) (loss, error) {
	l := loss{own: own, survivors: []string{own.Node}}
	for _, r := range others {
		switch {
		case slices.Contains(l.survivors, r.Node):
			return l, fmt.Errorf("there are two reports of %s", r.Node)
		case r.Cluster != own.Cluster || r.Lineage != own.Lineage:
			return l, fmt.Errorf("%s and %s are of different clusters, or of different lineages of one", own.Node, r.Node)
		case cmp.Or(cmp.Compare(r.LastTerm, own.LastTerm), cmp.Compare(r.LastIndex, own.LastIndex)) > 0:
			return l, fmt.Errorf("the log of %s is more advanced (entry %d of term %d) than that of %s (entry %d of term %d): build there",
				r.Node, r.LastIndex, r.LastTerm, own.Node, own.LastIndex, own.LastTerm)
		case r.Index == own.Index && r.LastTerm == own.LastTerm && r.StateHash != own.StateHash:
			return l, fmt.Errorf("%s and %s have different states at entry %d: one of the two disks is damaged. Restore a backup", own.Node, r.Node, r.Index)
		}
		l.survivors = append(l.survivors, r.Node)
	}
	slices.Sort(l.survivors)
	for _, v := range own.Voters {
		if !slices.Contains(l.survivors, v) {
			l.lost = append(l.lost, v)
		}
	}
	return l, nil
}

// majority reports whether the survivors are a majority, which has all that was committed.
func (l loss) majority() bool { return 2*len(l.lost) < len(l.own.Voters) }

func (l loss) table(w io.Writer) {
	fmt.Fprintf(w, `Of the voters %s, these are given up: %s.

The state of %s is used. Of the survivors %s, its log is the most advanced: entry %d of
term %d, cluster time %s. All of it is used, including what may never have been
acknowledged to a client.

What was committed after entry %d without any of the survivors is lost, and nobody can
say how much that is. Keys that were created since are gone, with what was encrypted
under them. What was revoked since is valid again: keys, credentials, grants, policies.
`, strings.Join(l.own.Voters, ", "), strings.Join(l.lost, ", "), l.own.Node, strings.Join(l.survivors, ", "), l.own.LastIndex, l.own.LastTerm,
		l.own.Time.Format(time.RFC3339), l.own.LastIndex)
}

func buildCommand(a *cli.App) *cobra.Command {
	var o opening
	var data, peers, dir, giveUp string
	var names []string
	cmd := &cobra.Command{
		Use:   "build --data DIR --report FILE --give-up NODE,… --dir DIR --peers NODE=HOST:PORT,…",
		Short: "Make the data directories of a new cluster from that of a survivor",
		Long: `Build makes a data directory for each first node of a new cluster, DIR/NODE, from the
data directory of a stopped node of the old one. The new cluster may have other nodes.
--report names the reports of all other survivors. Build refuses if one of them has a
more advanced log, if the survivors are a majority, or if their states differ.

It says what may be lost. To go on, type the names of the voters that are given up after
--give-up. It then opens the keys with as many shares as unseal the cluster, as a restore
does. The directories of the survivors stay as they are.

The new cluster has a lineage of its own: nodes that are given up cannot take part in it,
nor can the survivors with their old directories. The first record after the old ones in
the audit log says what happened.`,
		Example: `  conclave cluster recover-quorum build --data /var/lib/conclave --report node-2.json --give-up node-3,node-4,node-5 --dir recovered --peers node-1=10.0.0.1:7602,node-2=10.0.0.2:7602`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := a.Format(); err != nil {
				return err
			}
			if data == "" {
				return cli.Usagef("--data is required")
			}
			to, err := newCluster(peers, dir)
			if err != nil {
				return err
			}
			others, err := readReports(names)
			if err != nil {
				return err
			}
			s, err := cluster.OpenStopped(data)
			if err != nil {
				return err
			}
			defer s.Close()
			var shown restoredCluster
			err = scratch(dir, func(work string) (err error) {
				shown, err = build(cmd.Context(), a, &o, s, data, newFounding(work, to), others, strings.Split(giveUp, ","))
				return err
			})
			if err != nil {
				return err
			}
			return shown.print(a, dir, "the newest record")
		},
	}
	o.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&data, "data", "", "data directory of the stopped node on this machine")
	f.StringArrayVar(&names, "report", nil, "report of another survivor; may be repeated")
	f.StringVar(&giveUp, "give-up", "", "the voters that are lost for good, all of them: NODE,…")
	f.StringVar(&dir, "dir", "", "directory to make, with a data directory for each node")
	f.StringVar(&peers, "peers", "", "first nodes of the new cluster with their peer addresses: NODE=HOST:PORT,…")
	return a.OutputFlag(cmd)
}

// build makes the data directories from the state of a survivor.
func build(ctx context.Context, a *cli.App, o *opening, s *cluster.Stopped, data string, f *founding, others []report, giveUp []string) (shown restoredCluster, err error) {
	defer func() { err = errors.Join(err, f.close()) }()
	own, err := f.replay(ctx, s, data)
	if err != nil {
		return shown, err
	}
	lost, err := compare(own.report, others)
	if err != nil {
		return shown, err
	}
	if lost.majority() {
		return shown, fmt.Errorf("of %d voters only %v are lost: start the others, which are a majority, and nothing is lost", len(own.Voters), lost.lost)
	}
	lost.table(a.Stderr)
	slices.Sort(giveUp)
	if !slices.Equal(giveUp, lost.lost) {
		return shown, fmt.Errorf("nothing was made. If this is what you want, add --give-up %s", strings.Join(lost.lost, ","))
	}
	for id := range f.to.Nodes {
		if slices.Contains(lost.lost, id) {
			a.Note("%s is given up, and is a node of the new cluster: give it its new directory, on an empty disk.", id)
		}
	}
	if err := f.unlock(a, o, own); err != nil {
		return shown, err
	}
	if err := persist(own.machine, f.saved); err != nil {
		return shown, err
	}
	return f.found(ctx, &backup.Restore{Quorum: &backup.Quorum{
		Node: own.Node, LastIndex: own.LastIndex, LastTerm: own.LastTerm, Survivors: lost.survivors, Lost: lost.lost, Lineage: own.Lineage,
	}}, f.keys, &backup.Content{State: own.machine.Current()})
}

// persist writes the snapshot of a state machine to a file.
func persist(m *fsm.FSM, name string) error {
	s, err := m.Snapshot()
	if err != nil {
		return err
	}
	defer s.Release()
	to, err := os.OpenFile(filepath.Clean(name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return s.Persist(fileSink{to})
}

// fileSink is the destination of a snapshot that Raft does not keep.
type fileSink struct{ *os.File }

// ID implements raft.SnapshotSink.
func (fileSink) ID() string { return "" }

// Cancel implements raft.SnapshotSink.
func (f fileSink) Cancel() error { return f.Close() }
