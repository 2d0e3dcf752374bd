package ceremony

import (
	"context"
	"fmt"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/shamir"
)

// ShareSet is what is public about the shares of a cluster. It is what a custodian needs to
// check a share: a commitment to each share of the set, which reveals nothing about the shares,
// since they are random numbers of 256 bits.
type ShareSet struct {
	ClusterID, ID [16]byte
	// Epoch is one higher after each change of the share set or of the root key.
	Epoch            int
	Threshold, Count int
	Commitments      [][]byte // SHA-256, by index from 1
	// Custodians are in the order of the shares too, or nil if they are not known.
	Custodians []NamedCustodian
}

// publicSet returns what is public about a share set of a cluster.
func publicSet(cluster []byte, sh *fsmpb.ShareSet) *ShareSet {
	s := &ShareSet{
		Epoch: int(sh.GetEpoch()), Threshold: int(sh.GetThreshold()), Count: int(sh.GetCount()),
		Commitments: sh.GetCommitments(), Custodians: namedCustodians(sh),
	}
	copy(s.ClusterID[:], cluster)
	copy(s.ID[:], sh.GetId())
	return s
}

func namedCustodians(sh *fsmpb.ShareSet) (list []NamedCustodian) {
	for _, c := range sh.GetCustodians() {
		list = append(list, NamedCustodian{c.GetName(), c.GetKeyFingerprint()})
	}
	return list
}

// ShareSet returns the share set that is in force. The node may be sealed.
func (k *KeyChanges) ShareSet(ctx context.Context) (*ShareSet, error) {
	s, err := k.r.cfg.Fresh(ctx)
	if err != nil {
		return nil, err
	}
	c, _ := s.Cluster()
	if c == nil {
		return nil, errNotInitialised
	}
	if _, _, err := shareSet(c); err != nil {
		return nil, err
	}
	return publicSet(c.Id, c.Shares), nil
}

// Check checks a share against the set, and returns its index. The error says what is wrong
// with the share; index is then 0 if it does not belong to the set.
func (s *ShareSet) Check(share []byte) (index int, err error) {
	given, err := shamir.ParseShare(share)
	if err != nil {
		return 0, err
	}
	defer given.Wipe()
	set := shamir.SetInfo{Cluster: s.ClusterID, Set: s.ID, Threshold: s.Threshold, Count: s.Count}
	commitments := make([][32]byte, len(s.Commitments))
	for i, b := range s.Commitments {
		if len(b) != len(commitments[i]) {
			return 0, fmt.Errorf("the commitment to share %d has %d bytes", i+1, len(b))
		}
		commitments[i] = [32]byte(b)
	}
	all, err := shamir.NewCollector(set, commitments)
	if err != nil {
		return 0, err
	}
	defer all.Reset()
	if _, _, err := all.Add(given); err != nil {
		if given.Set() == set {
			index = given.Index()
		}
		return index, err
	}
	return given.Index(), nil
}
