package cluster

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/internal/raftlog"
	"github.com/conclavekms/conclave/cluster/internal/raftlogger"
	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/fsm/snapfile"
	"github.com/conclavekms/conclave/fsm/wire"
)

// restoredTerm is the Raft term that restored nodes begin with. They all have the same
// snapshot, so that it does not matter which it is.
const restoredTerm = 1

// Restored describes the first nodes of a cluster that was restored from a backup.
type Restored struct {
	// Nodes are the peer addresses of the nodes, which are all voters, by id.
	Nodes map[string]string
	// Lineage is the id of the new lineage.
	Lineage []byte
}

// Validate returns an error if a node's id or address is not valid.
func (r Restored) Validate() error {
	if len(r.Nodes) == 0 {
		return errors.New("no node is named")
	}
	seen := make(map[string]bool)
	for _, id := range slices.Sorted(maps.Keys(r.Nodes)) {
		if err := pki.CheckNodeID(id); err != nil {
			return err
		}
		if _, _, err := net.SplitHostPort(r.Nodes[id]); err != nil {
			return fmt.Errorf("node %s: %w", id, err)
		}
		if seen[r.Nodes[id]] {
			return fmt.Errorf("two nodes have the address %s", r.Nodes[id])
		}
		seen[r.Nodes[id]] = true
	}
	return nil
}

// WriteDataDir writes the data directory of one of the nodes, except for its audit log. path
// must not exist. All nodes must get the same snapshot: open opens it at its beginning.
func (r Restored) WriteDataDir(path, node string, open func() (io.ReadCloser, error)) (err error) {
	if _, ok := r.Nodes[node]; !ok {
		return fmt.Errorf("node %q is not one of the new cluster", node)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	group := filepath.Join(GroupDir(path), "raft")
	if err := os.MkdirAll(group, 0o700); err != nil {
		return err
	}
	store, err := raftlog.Open(group, time.Minute, raftlog.Hooks{}, nil, func(error) {})
	if err != nil {
		return err
	}
	err = store.SetUint64([]byte("CurrentTerm"), restoredTerm)
	if err = errors.Join(err, store.Close()); err != nil {
		return err
	}
	if err := r.writeSnapshot(group, open); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	// The identity file comes last: without it, the node would take the directory for that
	// of a cluster with another lineage.
	d := &dataDir{path: path, file: nodeFile{Format: identityFormat, Node: node, Joined: []uint32{wire.Group}, Lineage: hex.EncodeToString(r.Lineage)}}
	return d.save()
}

func (r Restored) writeSnapshot(group string, open func() (io.ReadCloser, error)) error {
	files, err := raft.NewFileSnapshotStoreWithLogger(group, 1, raftlogger.New(slog.New(slog.DiscardHandler), "snapshot"))
	if err != nil {
		return err
	}
	from, err := open()
	if err != nil {
		return err
	}
	index, err := snapfile.Index(from)
	if err = errors.Join(err, from.Close()); err != nil {
		return err
	}
	var servers []raft.Server
	for _, id := range slices.Sorted(maps.Keys(r.Nodes)) {
		servers = append(servers, raft.Server{ID: raft.ServerID(id), Address: raft.ServerAddress(r.Nodes[id])})
	}
	_, none := raft.NewInmemTransport("") // Create asks it for the form of addresses
	to, err := privateSnapshots{files, filepath.Join(group, "snapshots")}.Create(raft.SnapshotVersionMax, index, restoredTerm, raft.Configuration{Servers: servers}, index, none)
	if err != nil {
		return err
	}
	if from, err = open(); err != nil {
		return errors.Join(err, to.Cancel())
	}
	_, err = io.Copy(to, from)
	if err = errors.Join(err, from.Close()); err != nil {
		return errors.Join(err, to.Cancel())
	}
	return to.Close()
}
