package cluster

import (
	"context"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/commit"
	"github.com/conclavekms/conclave/cluster/internal/standing"
	"github.com/conclavekms/conclave/fsm"
)

// serviceNode implements peers.Node.
type serviceNode struct{ n *Node }

func (s serviceNode) IsMember(node string) bool                  { return s.n.members.Has(node) }
func (s serviceNode) CutOff(from standing.Sender, reason string) { s.n.cutOff(from, reason) }
func (s serviceNode) Hello(ctx context.Context, r *clusterpb.HelloRequest) (*clusterpb.HelloResponse, error) {
	return s.n.boot.Answer(ctx, r)
}
func (s serviceNode) Clock(from string, noGrowth bool) *clusterpb.ClockResponse {
	n := s.n
	if leader, _ := n.Leader(); leader == from {
		n.space.Told(noGrowth)
	}
	return memberNode{n}.clock()
}
func (s serviceNode) Verify(generation uint32, domain string, digest [32]byte, sig []byte) bool {
	return s.n.boot.Verify(generation, domain, digest, sig)
}
func (s serviceNode) Removed(index uint64) { memberNode(s).removed(index) }
func (s serviceNode) CheckSubmission(kind string, encoded []byte, generation uint32, mac []byte) error {
	return s.n.auth.CheckSubmission(kind, encoded, generation, mac)
}
func (s serviceNode) Submit(sub *commit.Submission) { s.n.committer.Submit(sub) }
func (s serviceNode) Execute(ctx context.Context, from string, payload []byte) ([]byte, error) {
	return s.n.executeHere(ctx, from, payload)
}
func (s serviceNode) ReadIndex(ctx context.Context) (uint64, error) { return s.n.terms.ReadIndex(ctx) }
func (s serviceNode) Probe(ctx context.Context) error               { return s.n.store.Probe(ctx) }
func (s serviceNode) ReadAudit(from uint64, max, maxBytes int) ([]auditlog.Entry, error) {
	return s.n.cfg.Audit.Read(from, max, maxBytes)
}
func (s serviceNode) State() *fsm.State { return s.n.State() }
func (s serviceNode) WaitApplied(ctx context.Context, index uint64) error {
	return s.n.WaitApplied(ctx, index)
}
func (s serviceNode) StateAt(index uint64) *fsm.State { return s.n.machine.fsm.StateAt(index) }
func (s serviceNode) Unsealed() bool                  { return s.n.auth.Unsealed() }
func (s serviceNode) Sign(domain string, digest [32]byte) (uint32, []byte, error) {
	return s.n.auth.Sign(domain, digest)
}
func (s serviceNode) AskUnseal(ctx context.Context, from string, session [32]byte) (string, error) {
	return s.n.PeerUnseal.Give(ctx, from, session)
}
func (s serviceNode) ChallengeUnseal(from string, nonce []byte) (*clusterpb.ChallengeUnsealResponse, error) {
	return s.n.PeerUnseal.Challenge(from, nonce)
}
func (s serviceNode) DeliverUnseal(ctx context.Context, from string, nonce, part []byte) error {
	return s.n.PeerUnseal.Deliver(ctx, from, nonce, part)
}
