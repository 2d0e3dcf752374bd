package backups

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/conclavekms/conclave/cluster"
	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/backup"
)

// replacing describes a restore in place of a cluster that still exists.
type replacing struct {
	data    string   // data directory of a stopped node of it
	reports []string // of other nodes
	// validAgain is how much the operator expects to be valid again; negative for not said.
	validAgain int
}

// restoreOver makes the data directories of all nodes from a backup, with the audit log of a
// cluster that still exists, whose nodes are stopped.
func restoreOver(ctx context.Context, a *cli.App, o *opening, p replacing, f *founding, file string) (shown restoredCluster, err error) {
	s, err := cluster.OpenStopped(p.data)
	if err != nil {
		return shown, err
	}
	defer s.Close()
	defer func() { err = errors.Join(err, f.close()) }()
	was, err := f.replay(ctx, s, p.data)
	if err != nil {
		return shown, err
	}
	if err := newest(was.report, p.reports); err != nil {
		return shown, err
	}
	if from, to, missing := f.log.Missing(); missing {
		return shown, fmt.Errorf("the audit log of %s lacks the records %d to %d: use another node", was.Node, from, to-1)
	}
	if err := f.unlock(a, o, was); err != nil {
		return shown, err
	}
	over := &backup.Over{Node: was.Node, State: was.machine.Current()}
	of, content, err := readOver(ctx, f.keys, file, f)
	if err != nil {
		return shown, fmt.Errorf("%s: %w", file, err)
	}
	if err := compareStates(f.keys, over, was.machine, f); err != nil {
		return shown, err
	}
	for _, line := range over.ValidAgain {
		a.Note("%s", line)
	}
	a.Note("%d objects are as they were at the backup again; what was made since is gone.", len(over.ValidAgain))
	if p.validAgain != len(over.ValidAgain) {
		return shown, fmt.Errorf("nothing was made. If this is what you want, add --valid-again %d", len(over.ValidAgain))
	}
	return f.found(ctx, &backup.Restore{Over: over}, of, content)
}

// newest makes sure, by the reports of a majority, that a node has all that was committed.
func newest(own report, reports []string) error {
	others, err := readReports(reports)
	if err != nil {
		return err
	}
	l, err := compare(own, others)
	if err != nil {
		return err
	}
	if !l.majority() {
		return fmt.Errorf("%s has all records only if it has all that a majority of the voters has: add the reports of others of %v", own.Node, l.lost)
	}
	return nil
}

// readOver reads the backup, whose state is saved.
func readOver(ctx context.Context, k *backup.Keys, file string, f *founding) (*backup.Keys, *backup.Content, error) {
	from, err := openFile(ctx, file)
	if err != nil {
		return nil, nil, err
	}
	defer from.Close()
	in := bufio.NewReaderSize(from, 1<<20)
	h, err := backup.ReadHeader(in)
	if err != nil {
		return nil, nil, err
	}
	of, err := k.For(h)
	if err != nil {
		return nil, nil, err
	}
	to, err := os.OpenFile(f.saved, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, nil, err
	}
	w := bufio.NewWriter(to)
	content, err := of.Read(in, w, nil)
	if err = errors.Join(err, w.Flush(), to.Close()); err != nil {
		return nil, nil, err
	}
	return of, content, h.CheckHistory(f.log) // only now is the header authentic
}

// compareStates finds out what the backup brings back.
func compareStates(k *backup.Keys, over *backup.Over, m *fsm.FSM, f *founding) error {
	file := filepath.Join(f.work, ".newest")
	if err := persist(m, file); err != nil {
		return err
	}
	defer os.Remove(file)
	now, err := os.Open(file)
	if err != nil {
		return err
	}
	defer now.Close()
	if err := over.Begin(now); err != nil {
		return err
	}
	if _, err := now.Seek(0, 0); err != nil {
		return err
	}
	was, err := os.Open(f.saved)
	if err != nil {
		return err
	}
	defer was.Close()
	over.ValidAgain, err = k.Revoked(bufio.NewReader(was), bufio.NewReader(now))
	return err
}
