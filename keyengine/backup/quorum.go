package backup

import (
	"errors"
	"strconv"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/origin"
	"github.com/conclavekms/conclave/keyengine/backup/backuppb"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
)

// When the majority of a cluster is lost for good, a new cluster begins with the state of a
// node that survived, as it does with a backup after a total loss: with a lineage of its own,
// so that the lost nodes cannot come back into it, and with a record of what happened.

// Quorum describes the loss of a majority, for the record.
type Quorum struct {
	// Node is the node whose state is used, and LastIndex and LastTerm are those of the
	// newest entry in its Raft log.
	Node                string
	LastIndex, LastTerm uint64
	// Survivors are the nodes whose logs were compared, and Lost the other voters.
	Survivors, Lost []string
	// Lineage is the one that ends, in hexadecimal; "" for that of a cluster that was never
	// restored.
	Lineage string
}

func (q *Quorum) fields() []*auditpb.Field {
	return []*auditpb.Field{
		auditfield.Text("node", q.Node), auditfield.TextList("survivors", q.Survivors), auditfield.TextList("lost", q.Lost),
		auditfield.Text("lastIndex", strconv.FormatUint(q.LastIndex, 10)), auditfield.Text("lastTerm", strconv.FormatUint(q.LastTerm, 10)),
		auditfield.Text("endedLineage", q.Lineage),
	}
}

// SurvivorKeys begins to collect the shares of a cluster whose state was found on the disk of
// a node. Like NewKeys, it fails if memory cannot be locked and mustLock is set.
func SurvivorKeys(s *fsm.State, node string, mustLock bool) (*Keys, error) {
	c, _ := s.Cluster()
	if c == nil {
		return nil, errors.New("the cluster was never initialised: there is nothing to recover")
	}
	return NewKeys(&Header{Header: &backuppb.Header{Cluster: c, Node: node}}, mustLock)
}

// Attest signs the digest of a state of the cluster, as an unsealed node does.
func (k *Keys) Attest(digest [32]byte) (*fsmpb.Attestation, error) {
	o, err := k.opened()
	if err != nil {
		return nil, err
	}
	return origin.Attest(digest, o.SignOrigin)
}
