package peerunseal

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/level"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// neededLevel is the feature level from which on the setting can be in the state.
const neededLevel = 2

// Setting is how nodes that restart are unsealed by their peers.
type Setting struct {
	Agreements int      // how many unsealed nodes have to agree; 0 if it is off
	Nodes      []string // that can be unsealed so, in ascending order
}

// Setting returns the setting in this node's state.
func (s *Service) Setting() Setting {
	c, _ := s.cfg.Replica.State().Cluster()
	return Setting{Agreements: int(c.GetPeerUnseal().GetAgreements()), Nodes: nodesOf(c)}
}

// Set changes the setting for the cluster, and reports whether there was anything to change.
// Agreements of 0 turn peer-assisted unsealing off. An operator may do that alone, without
// the custodians: it gives the keys to nobody but members of the cluster that were unsealed
// before, and only at their addresses. The record and the logs of the nodes name the
// operator. Errors: ErrNotInitialised, ErrNotUpgraded below feature level 2, ErrValidation,
// ErrUnavailable.
func (s *Service) Set(ctx context.Context, op ceremony.Operator, agreements int) (Setting, bool, error) {
	if s.cfg.Peers == nil {
		return Setting{}, false, kmsapi.Errorf(kmsapi.ErrValidation, "This node has no peers.")
	}
	if _, err := s.cfg.Vault.Current(); err != nil {
		return Setting{}, false, err
	}
	if most := len(s.cfg.Peers.Others()); agreements < 0 || agreements > most {
		return Setting{}, false, kmsapi.Errorf(kmsapi.ErrValidation, "The cluster has %d other nodes that vote, so at most as many can agree to unseal one.", most)
	}
	if _, err := s.cfg.Fresh(ctx); err != nil {
		return Setting{}, false, err
	}
	changed := true
	d, err := s.cfg.Events.ChangeCluster(ctx, func(state *fsm.State) (record.Event, error) {
		c, version := state.Cluster()
		if c == nil {
			return record.Event{}, kmsapi.Errorf(ceremony.ErrNotInitialised, "The cluster is not initialised.")
		}
		if err := level.Allows(state.Level(), neededLevel); err != nil {
			return record.Event{}, kmsapi.Errorf(ceremony.ErrNotUpgraded, "Peer-assisted unsealing cannot be enabled: %v.", err)
		}
		was := c.GetPeerUnseal().GetAgreements()
		ev := op.Event("SetPeerUnseal", c)
		ev.Parameters = []*auditpb.Field{auditfield.Number("agreements", agreements), auditfield.Number("fromAgreements", int(was))}
		if changed = int(was) != agreements; !changed {
			ev.Reads = []*fsmpb.Read{{Kind: fsmpb.Kind_KIND_CLUSTER, Version: uint64(version)}}
		} else {
			c = proto.CloneOf(c)
			if agreements == 0 {
				c.PeerUnseal = nil // the return keys, too
			} else {
				c.PeerUnseal = &fsmpb.PeerUnseal{Agreements: uint32(agreements), Keys: c.GetPeerUnseal().GetKeys()}
			}
			ev.ReplaceCluster(version, c)
		}
		return ev, nil
	})
	if err != nil {
		return Setting{}, false, err
	}
	if err := s.cfg.Replica.WaitApplied(ctx, d.Index); err != nil {
		return Setting{}, false, record.Unavailable(err)
	}
	if changed {
		s.cfg.Log.Warn("peer-assisted unsealing was changed", "operator", op.Name, "agreements", agreements)
	}
	return s.Setting(), changed, nil
}

// enrol puts a new return key of this node into the state, once in each process and whenever
// the state has none. It reports whether the state has it.
//
// The file has the new key before the state, and keeps the old one until the state has the
// new. If the node is killed in between, the next process has whichever key the state has,
// and a key that may be in the state already is used again.
func (s *Service) enrol(ctx context.Context, c *fsmpb.Cluster) bool {
	s.mu.Lock()
	enrolled, forgotten, sealing := s.enrolled, s.forgotten, s.sealing > 0
	s.mu.Unlock()
	if sealing || s.cfg.Vault.Sealed() { // after the lines above: it may have been sealed since Run looked
		return false
	}
	if enrolled != nil && bytes.Equal(returnKeyOf(c, s.cfg.NodeID), enrolled) {
		return true
	}
	var public []byte
	if err := s.edit(forgotten, func(k *returnKeys) {
		if k.Next == nil {
			k.Next = make([]byte, ed25519.SeedSize)
			_, _ = rand.Read(k.Next) // never fails: crypto/rand ends the process instead
		}
		key := ed25519.NewKeyFromSeed(k.Next)
		defer clear(key)
		public = slices.Clone(publicOf(key))
	}); err != nil {
		s.cfg.Log.Error("the return key of this node cannot be stored, so its peers will not unseal it", "err", err)
		return false
	}
	d, err := s.cfg.Events.CommitEvent(ctx, func(state *fsm.State) (record.Event, error) {
		if c, _ := state.Cluster(); c.GetPeerUnseal().GetAgreements() == 0 {
			return record.Event{}, errDisabled
		}
		if s.forgottenSince(forgotten) { // its record and this one replace the same version of the cluster
			return record.Event{}, errForgotten
		}
		ev := record.ServiceEvent("PutReturnKey", s.cfg.Clock.Now(), auditfield.Text("node", s.cfg.NodeID))
		s.changeKey(state, &ev, public)
		return ev, nil
	})
	if err == nil {
		err = s.cfg.Replica.WaitApplied(ctx, d.Index)
	}
	if err != nil {
		s.cfg.Log.Debug("putting the return key into the state", "err", err)
		return false
	}
	if err := s.edit(forgotten, func(k *returnKeys) { k.Current, k.Next = k.Next, nil }); err != nil {
		s.cfg.Log.Warn("the old return key of this node could not be removed from its file", "err", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.forgotten == forgotten {
		s.enrolled = public
	}
	return true
}

// errForgotten is returned when an operator has sealed the node meanwhile.
var errForgotten = errors.New("the node was sealed by an operator")

// forgottenSince reports whether Forget was called since the given count.
func (s *Service) forgottenSince(count int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.forgotten != count
}

// edit changes the file of return keys, unless Forget was called since the given count.
func (s *Service) edit(forgotten int, change func(*returnKeys)) error {
	s.keys.Lock()
	defer s.keys.Unlock()
	if s.forgottenSince(forgotten) {
		return errForgotten
	}
	k, err := loadKeys(s.cfg.Peers)
	if err != nil {
		// Without the old keys the peers do not unseal this node if the new one does not
		// get into the state; the custodians do.
		s.cfg.Log.Warn("the return keys of this node cannot be read, and are replaced", "err", err)
		k = &returnKeys{Format: keyFormat}
	}
	defer k.wipe()
	change(k)
	return k.save(s.cfg.Peers)
}

// changeKey adds to an event that this node's return key in the state is replaced, or removed
// if public is nil.
func (s *Service) changeKey(state *fsm.State, ev *record.Event, public []byte) {
	c, version := state.Cluster()
	c = proto.CloneOf(c)
	c.PeerUnseal.Keys = slices.DeleteFunc(c.PeerUnseal.Keys, func(k *fsmpb.ReturnKey) bool { return k.GetNode() == s.cfg.NodeID })
	if public != nil {
		c.PeerUnseal.Keys = append(c.PeerUnseal.Keys, &fsmpb.ReturnKey{Node: s.cfg.NodeID, PublicKey: public})
	}
	ev.ReplaceCluster(version, c)
}
