package peerunseal

import (
	"context"
	"crypto/ed25519"
	"crypto/subtle"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/peerunseal/peerunsealpb"
)

// Asker is a node that asks to be unsealed, as far as the cluster has checked it.
type Asker struct {
	Node        string
	Address     string
	Incarnation uint64
	// Members are the nodes of the cluster, in ascending order.
	Members []string
	Session [32]byte
}

// Refusal is the reason why a node is not helped.
type Refusal struct {
	Reason string
	// Suspicious means that an honest node does not cause the refusal.
	Suspicious bool
}

// Error implements error.
func (r *Refusal) Error() string { return r.Reason }

func refuse(format string, args ...any) error { return &Refusal{Reason: fmt.Sprintf(format, args...)} }

func suspect(format string, args ...any) error {
	return &Refusal{Reason: fmt.Sprintf(format, args...), Suspicious: true}
}

var errDisabled = refuse("peer-assisted unsealing is not enabled")

// Willing returns why this node does not unseal others, or "".
func (s *Service) Willing() string {
	switch {
	case s.cfg.Vault.Sealed():
		return "it is sealed itself"
	case s.cluster() == nil:
		return errDisabled.Error()
	}
	return ""
}

// Release commits the record of a release, and returns this node's part for the node that
// gave that answer to the nonce. If the answer is wrong, the error is a *Refusal. This node's
// state must have everything that was committed before the challenge.
func (s *Service) Release(ctx context.Context, to Asker, nonce, encoded []byte) ([]byte, error) {
	o, err := s.cfg.Vault.Current()
	if err != nil {
		return nil, err
	}
	a := new(peerunsealpb.Answer)
	if decode(encoded, maxAnswer, a) != nil || checkAnswer(a) != nil {
		return nil, suspect("%s sent a malformed answer", to.Node)
	}
	d, err := s.cfg.Events.CommitEvent(ctx, func(state *fsm.State) (record.Event, error) {
		c, version := state.Cluster()
		if err := s.check(c, o, to, nonce, a); err != nil {
			return record.Event{}, err
		}
		reg, registered := state.Node(to.Node)
		if reg == nil || reg.Incarnation >= to.Incarnation {
			return record.Event{}, suspect("a newer process of %s was unsealed meanwhile", to.Node)
		}
		ev := record.ServiceEvent("ReleaseUnsealPart", s.cfg.Clock.Now(),
			auditfield.Text("node", to.Node), auditfield.Text("address", to.Address), auditfield.Text("incarnation", fmt.Sprint(to.Incarnation)),
			auditfield.Text("session", sessionText(to.Session)), auditfield.Number("agreements", int(a.Agreements)), auditfield.TextList("peers", a.Peers))
		// The record is refused if the setting, the return key or the node's registration
		// has changed meanwhile.
		ev.Reads = []*fsmpb.Read{
			{Kind: fsmpb.Kind_KIND_CLUSTER, Version: uint64(version)},
			{Kind: fsmpb.Kind_KIND_NODE, Id: []byte(to.Node), Version: uint64(registered)},
		}
		return ev, nil
	})
	if err == record.ErrConflict {
		return nil, refuse("the cluster's record keeps changing: wait")
	}
	if err != nil {
		return nil, err
	}
	if err := s.cfg.Replica.WaitApplied(ctx, d.Index); err != nil {
		return nil, err
	}
	c, _ := s.cfg.Replica.State().Cluster()
	part, err := s.part(c, o, to, nonce, a)
	if err != nil {
		return nil, err
	}
	s.cfg.Log.Warn("this node gave its part of what unseals another", "to", to.Node, "address", to.Address, "session", sessionText(to.Session))
	s.cfg.Released()
	return part, nil
}

// check returns a refusal if the answer is not from the node's newest process, or if the two
// nodes do not agree on the cluster.
func (s *Service) check(c *fsmpb.Cluster, o *vault.Opened, to Asker, nonce []byte, a *peerunsealpb.Answer) error {
	switch known := returnKeyOf(c, to.Node); {
	case c.GetPeerUnseal().GetAgreements() == 0:
		return errDisabled
	case known == nil:
		return refuse("%s has to be unsealed by the custodians once", to.Node)
	case subtle.ConstantTimeCompare(known, a.ReturnKey) != 1:
		return suspect("%s has an old return key: its files are not those of the process that was unsealed last", to.Node)
	case !ed25519.Verify(known, answerDigest(to.Session, to.Node, s.cfg.NodeID, nonce), a.Signature):
		return suspect("%s does not have its return key", to.Node)
	case sessionID(c, to.Node, to.Incarnation, a) != to.Session:
		return suspect("the answer of %s is of another session", to.Node)
	}
	if a.Agreements != c.PeerUnseal.Agreements || a.Generation != (vault.PeerKeys{Opened: o}).Newest() || a.Generation != c.Keyring[len(c.Keyring)-1].Generation {
		return refuse("the cluster's record has changed: wait")
	}
	if !slices.Contains(a.Peers, s.cfg.NodeID) || slices.Contains(a.Peers, to.Node) {
		return suspect("the answer of %s has wrong peers", to.Node)
	}
	for _, p := range a.Peers {
		if !slices.Contains(to.Members, p) {
			return refuse("the members of the cluster have changed: wait")
		}
	}
	return nil
}

// part returns this node's encoded part.
func (s *Service) part(c *fsmpb.Cluster, o *vault.Opened, to Asker, nonce []byte, a *peerunsealpb.Answer) (encoded []byte, err error) {
	keymat.Scrub(func() {
		var p *peerunsealpb.Part
		p, err = deal(o, c, to.Session, a, slices.Index(a.Peers, s.cfg.NodeID)+1, shareInfo(to.Session, to.Node, s.cfg.NodeID, nonce))
		if err != nil {
			return
		}
		p.Generation, p.Signature, err = o.SignOriginOf(c, partDomain, partDigest(to.Session, to.Node, s.cfg.NodeID, nonce, p))
		if err == nil {
			encoded, err = proto.Marshal(p)
		}
	})
	return encoded, vault.Gone(err)
}

// Suspect records that a process that asked to be unsealed as a node was refused, because it
// may not be that node. It does not block.
func (s *Service) Suspect(node, reason string) {
	s.cfg.Refused()
	s.cfg.Events.Pending.Add(record.ServiceEvent("RefuseUnsealPart", s.cfg.Clock.Now(), auditfield.Text("node", node), auditfield.Text("reason", reason)))
}
