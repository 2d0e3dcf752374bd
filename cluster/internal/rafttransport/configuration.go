package rafttransport

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/internal/membership"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/origin"
	"github.com/conclavekms/conclave/fsm/wire"
)

// A Raft configuration says who the members of the cluster are. A thief with a node's
// identity who leads could remove the honest nodes with one entry. So an unsealed leader
// signs each new configuration with the origin key, as it signs commands, and a node accepts
// only signed ones. The signature is in the entry's extensions, which Raft stores and
// replicates with the entry. It covers the index and the term, so that it is worthless for
// another entry.

// configurationDomain separates these signatures from other data that the origin key signs.
const configurationDomain = "conclave configuration v1"

// errNotYet is returned for a configuration that this node cannot check yet: it has not
// applied the initialisation, or the newest origin key. The leader sends it again. It is no
// reason to refuse the leader from then on.
var errNotYet = errors.New("a configuration that this node cannot check yet")

// configurationDigest returns what is signed of a configuration's entry.
func configurationDigest(l *raft.Log) [32]byte {
	h := sha256.New()
	for _, v := range []uint64{uint64(wire.Group), l.Index, l.Term} {
		_, _ = h.Write(binary.BigEndian.AppendUint64(nil, v))
	}
	_, _ = h.Write(l.Data)
	return [32]byte(h.Sum(nil))
}

// StoreLog implements raft.LogStore.
func (l keptLog) StoreLog(e *raft.Log) error { return l.StoreLogs([]*raft.Log{e}) }

// StoreLogs implements raft.LogStore. It signs the configurations that this node appends as
// leader. Nobody else has the entries yet.
func (l keptLog) StoreLogs(entries []*raft.Log) error {
	for _, e := range entries {
		if e.Type != raft.LogConfiguration || len(e.Extensions) > 0 || !l.door.leads() || !l.door.initialised() {
			continue
		}
		g, sig, err := l.door.node.Sign(configurationDomain, configurationDigest(e))
		if err != nil {
			return fmt.Errorf("signing a configuration: %w", err)
		}
		e.Extensions = append(binary.BigEndian.AppendUint32(nil, g), sig...)
	}
	if err := l.LogStore.StoreLogs(entries); err != nil {
		return err
	}
	for _, e := range entries {
		l.note(e)
	}
	return nil
}

// GetLog implements raft.LogStore. When Raft starts, it reads all entries.
func (l keptLog) GetLog(index uint64, e *raft.Log) error {
	if err := l.LogStore.GetLog(index, e); err != nil {
		return err
	}
	l.note(e)
	return nil
}

// note records the configuration in an entry.
func (l keptLog) note(e *raft.Log) {
	if e.Type == raft.LogConfiguration {
		if c, err := membership.Decode(e.Data); err == nil { // otherwise Raft panics soon
			l.door.History.Note(e.Index, c)
		}
	}
}

func (d *door) leads() bool {
	r := d.node.Raft()
	return r != nil && r.State() == raft.Leader
}

// checkConfiguration refuses a configuration that no unsealed leader signed, unless it is
// the one in force. A node that has none yet accepts the first.
func (d *door) checkConfiguration(l *raft.Log) error {
	next, err := membership.Decode(l.Data)
	if err != nil {
		return err
	}
	now := d.node.Configuration().Servers
	if len(now) == 0 || slices.Equal(next.Servers, now) {
		return nil
	}
	return checkSigned(d.node.Cluster(), l)
}

// checkSigned verifies the signature of a configuration's entry.
func checkSigned(c *fsmpb.Cluster, l *raft.Log) error {
	const generation = 4
	if len(l.Extensions) < generation {
		return errors.New("configuration that was not requested")
	}
	g := binary.BigEndian.Uint32(l.Extensions)
	if !slices.ContainsFunc(c.GetOriginKeys(), func(k *fsmpb.OriginKey) bool { return k.Generation >= g }) {
		return errNotYet
	}
	if !origin.Verify(c, g, configurationDomain, configurationDigest(l), l.Extensions[generation:]) {
		return errors.New("configuration that no unsealed node signed")
	}
	return nil
}

// checkSnapshotConfiguration refuses a snapshot with another configuration than the one in
// force, unless the leader is known to be unsealed: a snapshot has no room for the signature.
// So a node that lags behind a change of membership waits for an unsealed leader.
func (d *door) checkSnapshotConfiguration(from string, proven bool, data []byte) error {
	next, err := membership.Decode(data)
	if err != nil {
		return err
	}
	now := d.node.Configuration().Servers
	if len(now) == 0 || slices.Equal(next.Servers, now) || !d.initialised() {
		return nil
	}
	if !proven || !d.Standings.Proven(from, time.Now()) {
		return fmt.Errorf("%w: of %d servers, from a leader that is not known to be unsealed", errNotYet, len(next.Servers))
	}
	return nil
}
