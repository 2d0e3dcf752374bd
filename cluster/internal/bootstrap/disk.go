package bootstrap

import (
	"context"
	"errors"
	"fmt"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"github.com/conclavekms/conclave/cluster/internal/raftlog"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/snapfile"
)

// firstTerm is the Raft term of the bootstrap.
const firstTerm = 1

// Disk describes the Raft state on a node's disk now and at the start.
type Disk struct {
	store     *raftlog.Store
	snapshots raft.SnapshotStore
	last      uint64 // at the start, or after the bootstrap
	survey    *survey
}

// Inspect reads the extent of the Raft state on a disk. It returns an error if the disk
// cannot be read.
func Inspect(st *raftlog.Store, snapshots raft.SnapshotStore) (*Disk, error) {
	d := &Disk{store: st, snapshots: snapshots}
	last, err := st.LastIndex()
	if err != nil {
		return nil, err
	}
	if last > 0 { // Raft will read it too, but panics on an error
		if err := st.GetLog(last, new(raft.Log)); err != nil {
			return nil, err
		}
	}
	list, err := snapshots.List()
	if err != nil {
		return nil, fmt.Errorf("snapshots: %w", err)
	}
	d.survey = &survey{to: last, done: make(chan struct{}), nodes: make(map[string]sighting)}
	if d.survey.from, err = st.FirstIndex(); err != nil {
		return nil, err
	}
	if len(list) > 0 {
		d.survey.from = max(d.survey.from, list[0].Index+1)
		last = max(last, list[0].Index)
		if d.survey.cluster, err = snapshotCluster(snapshots, list[0].ID); err != nil {
			return nil, err
		}
	}
	d.last = last
	return d, nil
}

// LastIndex returns the last index on the disk when the node started, or after it
// bootstrapped.
func (d *Disk) LastIndex() uint64 { return d.last }

// Survey reads the part of the log that no snapshot covers. It must run once, because the
// node needs the result to answer other nodes and to verify their answers.
func (d *Disk) Survey(ctx context.Context) { d.survey.run(ctx, d.store) }

func snapshotCluster(snapshots raft.SnapshotStore, id string) (*fsmpb.Cluster, error) {
	_, r, err := snapshots.Open(id)
	if err != nil {
		return nil, err
	}
	c, err := snapfile.Cluster(r)
	return c, errors.Join(err, r.Close())
}

// hasState reports whether the disk holds anything that another node may rely on. A
// bootstrap that was interrupted left at most the first term, and can be repeated.
func (d *Disk) hasState() (bool, error) {
	last, err := d.store.LastIndex()
	if err != nil || last > 0 {
		return last > 0, err
	}
	snapshots, err := d.snapshots.List()
	if err != nil || len(snapshots) > 0 {
		return len(snapshots) > 0, err
	}
	term, err := d.store.GetUint64([]byte("CurrentTerm"))
	if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return false, err
	}
	_, _, err = d.store.Vote()
	if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return false, err
	}
	return term > firstTerm || err == nil, nil
}

// found writes the first Raft state like raft.BootstrapCluster, but can be repeated after a
// crash in between.
func (d *Disk) found(servers []raft.Server) error {
	err := d.store.SetUint64([]byte("CurrentTerm"), firstTerm)
	if err == nil {
		err = d.store.StoreLog(&raft.Log{
			Index: 1, Term: firstTerm, Type: raft.LogConfiguration,
			Data: raft.EncodeConfiguration(raft.Configuration{Servers: servers}),
		})
	}
	if err != nil {
		return fmt.Errorf("bootstrapping the cluster: %w", err)
	}
	d.last = max(d.last, 1)
	return nil
}
