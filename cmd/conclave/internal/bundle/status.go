package bundle

import (
	"encoding/hex"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/conclavekms/conclave/transport/kmspb"
)

// Status is what a bundle has of the status of a node. It has fields of its own, so that a
// field that an answer gets later is not in bundles until somebody thought about it. The
// nonce and the owner of a ceremony are left out.
type Status struct {
	Address      string `json:"address,omitempty"`
	Error        string `json:"error,omitempty"`
	Node         string `json:"node,omitempty"`
	Version      string `json:"version,omitempty"`
	Leader       string `json:"leader,omitempty"`
	Initialised  bool   `json:"initialised"`
	Sealed       bool   `json:"sealed"`
	Threshold    uint32 `json:"threshold"`
	Shares       uint32 `json:"shares"`
	Progress     uint32 `json:"progress"`
	MemoryLocked bool   `json:"memory_locked"`
	ClusterTime  string `json:"cluster_time,omitempty"`
	Raft         struct {
		State        string `json:"state"`
		Term         uint64 `json:"term"`
		LastIndex    uint64 `json:"last_index"`
		CommitIndex  uint64 `json:"commit_index"`
		AppliedIndex uint64 `json:"applied_index"`
		StateIndex   uint64 `json:"state_index"`
		StateHash    string `json:"state_hash"`
	} `json:"raft"`
	Audit struct {
		Size         uint64 `json:"size"`
		Stored       uint64 `json:"stored"`
		Complete     bool   `json:"complete"`
		Checkpointed uint64 `json:"checkpointed"`
	} `json:"audit"`
	Faults []string `json:"faults"`
}

// NodeStatus returns what a bundle has of a node's status.
func (f *Filter) NodeStatus(r *kmspb.StatusResponse) *Status {
	seal, raft, audit := r.GetSeal(), r.GetRaft(), r.GetAudit()
	s := &Status{
		Node: f.Words(r.GetNodeId()), Version: version(r.GetVersion()), Leader: f.Words(r.GetLeaderId()),
		Initialised: seal.GetInitialised(), Sealed: seal.GetSealed(), Threshold: seal.GetThreshold(), Shares: seal.GetShares(), Progress: seal.GetProgress(),
		MemoryLocked: seal.GetMemoryLocked(), ClusterTime: when(r.GetClusterTime()),
	}
	s.Raft.State, s.Raft.Term, s.Raft.LastIndex, s.Raft.CommitIndex = f.Words(raft.GetState()), raft.GetTerm(), raft.GetLastIndex(), raft.GetCommitIndex()
	s.Raft.AppliedIndex, s.Raft.StateIndex = raft.GetAppliedIndex(), raft.GetStateIndex()
	if h := raft.GetStateHash(); len(h) == 32 {
		s.Raft.StateHash = hex.EncodeToString(h[:8]) // enough to compare nodes
	}
	s.Audit.Size, s.Audit.Stored, s.Audit.Complete, s.Audit.Checkpointed = audit.GetSize(), audit.GetStored(), audit.GetComplete(), audit.GetCheckpointed()
	for _, fault := range r.GetFaults() {
		s.Faults = append(s.Faults, f.Words(fault))
	}
	return s
}

// Member is what a bundle has of a member of the cluster.
type Member struct {
	Node     string `json:"node"`
	Suffrage string `json:"suffrage"`
	Leader   bool   `json:"leader"`
	Alive    bool   `json:"alive"`
	Release  string `json:"release,omitempty"`
	Level    uint32 `json:"level,omitempty"`
	Obstacle string `json:"obstacle,omitempty"`
}

// Members returns what a bundle has of the members of the cluster.
func (f *Filter) Members(list []*kmspb.Member, upgrade *kmspb.UpgradeStatusResponse) (members []Member) {
	for _, m := range list {
		out := Member{Node: f.Words(m.GetNodeId()), Suffrage: f.Words(m.GetSuffrage()), Leader: m.GetLeader(), Alive: m.GetAlive()}
		for _, u := range upgrade.GetMembers() {
			if u.GetNodeId() == m.GetNodeId() {
				out.Release, out.Level, out.Obstacle = version(u.GetRelease()), u.GetLevel(), f.Words(u.GetObstacle())
			}
		}
		members = append(members, out)
	}
	return members
}

func when(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().Format(time.RFC3339)
}
