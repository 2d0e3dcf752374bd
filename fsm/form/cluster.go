package form

import (
	"bytes"
	"cmp"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

const (
	// rekeyLevel is the feature level from which on the keys in a cluster's record may be
	// replaced. A release that knows only the level before refuses such a record.
	rekeyLevel = 2

	// maxShares is the maximum number of shares in a set.
	maxShares = 16
	// maxGenerations bounds the keyring, all of which each unsealed node holds.
	maxGenerations = 1024

	commitmentSize = 32

	// maxAuthority bounds a CA's certificate and its wrapped key, and MaxUsedTokens how many
	// join tokens are remembered: the record is in each snapshot, and every change replaces it.
	maxAuthority  = 16 << 10
	MaxUsedTokens = 256
)

// CheckCluster checks a new version of a cluster's record. Only any_region, peer_unseal, seals, the
// CA with its join tokens and the names of the custodians may change and, from level 2 on, the keys in one of three ways: another share set wraps the same root key,
// another root key wraps the same keyring, or the keyring gets another generation. Any other
// change, such as one that loses a generation, could lock everybody out for ever.
//
// The rules cannot see what is wrapped. They make sure that no key is dropped or replaced by
// an older one, and that an epoch or a generation is used once.
func CheckCluster(was, n *fsmpb.Cluster, level uint32) (broken string) {
	rest := proto.CloneOf(was)
	rest.AnyRegion, rest.PeerUnseal, rest.Seals, rest.Version, rest.Shares.Custodians = n.AnyRegion, n.PeerUnseal, n.Seals, n.Version, n.Shares.Custodians
	rest.Authority, rest.UsedJoinTokens = n.Authority, n.UsedJoinTokens
	if level >= rekeyLevel {
		rest.Shares, rest.WrappedRoot, rest.Keyring, rest.OriginKeys = n.Shares, n.WrappedRoot, n.Keyring, n.OriginKeys
		rest.WrappedAuditKey, rest.AuditKeyGeneration = n.WrappedAuditKey, n.AuditKeyGeneration
	}
	if !proto.Equal(rest, n) {
		return "it changes the cluster's record"
	}
	if level < rekeyLevel {
		return ""
	}
	broken, rewrapped := checkShares(was, n)
	if broken == "" && rewrapped && len(n.Seals) > 0 {
		broken = "it keeps seals that have another root key"
	}
	if broken == "" {
		broken = checkKeyring(was, n, rewrapped)
	}
	if broken == "" {
		broken = checkOwnKeys(was, n)
	}
	if broken == "" {
		broken = checkJoining(n)
	}
	return broken
}

// checkShares checks the share set and the root key. rewrapped reports that there is a new
// root key, so that the whole keyring is wrapped anew.
func checkShares(was, n *fsmpb.Cluster) (broken string, rewrapped bool) {
	set := n.Shares
	same := bytes.Equal(set.Id, was.Shares.GetId())
	if same && (set.Threshold != was.Shares.GetThreshold() || set.Count != was.Shares.GetCount() || !slices.EqualFunc(set.Commitments, was.Shares.GetCommitments(), bytes.Equal)) {
		return "it changes a share set", false
	}
	if same && set.Epoch == was.Shares.GetEpoch() && bytes.Equal(was.WrappedRoot, n.WrappedRoot) {
		return "", false
	}
	if set.Epoch != was.Shares.GetEpoch()+1 || len(n.WrappedRoot) == 0 || bytes.Equal(was.WrappedRoot, n.WrappedRoot) {
		return "it replaces the root key or the share set, but not in a new epoch", false
	}
	if same {
		return "", true
	}
	if len(set.Id) != 16 || set.Count > maxShares || set.Threshold < 1 || set.Threshold > set.Count ||
		set.Threshold == 1 && set.Count > 1 || len(set.Commitments) != int(set.Count) {
		return "a share set is malformed", false
	}
	for _, c := range set.Commitments {
		if len(c) != commitmentSize {
			return "a share set is malformed", false
		}
	}
	return "", false
}

// checkKeyring checks the generations: all are kept, and one may be added.
func checkKeyring(was, n *fsmpb.Cluster, rewrapped bool) (broken string) {
	old := len(was.Keyring)
	switch {
	case len(n.Keyring) < old || len(n.Keyring) > old+1 || len(n.Keyring) > maxGenerations:
		return "it removes a generation of the keyring, or adds too many"
	case len(n.Keyring) > old && was.Shares.GetEpoch() != n.Shares.GetEpoch():
		return "it adds a generation of the keyring and replaces the root key or the share set"
	}
	for i, k := range was.Keyring {
		o := n.Keyring[i]
		if o.GetGeneration() != k.Generation || o.GetCreated() != k.Created || len(o.Wrapped) == 0 && len(k.Wrapped) > 0 ||
			bytes.Equal(o.Wrapped, k.Wrapped) == rewrapped {
			return "it changes a generation of the keyring"
		}
		if len(o.Handover) > 0 && !bytes.Equal(o.Handover, k.Handover) {
			return "it changes how a generation of the keyring is handed over"
		}
	}
	if len(n.Keyring) == old {
		return ""
	}
	newest, k := was.Keyring[old-1], n.Keyring[old]
	switch {
	case k.GetGeneration() != newest.Generation+1 || len(k.Wrapped) == 0 || len(k.Handover) == 0:
		return "a new generation of the keyring is not the next one, or incomplete"
	case len(newest.Handover) > 0:
		return "it adds a generation of the keyring before the newest one is settled"
	}
	return ""
}

// checkOwnKeys checks the cluster's own keys, which stay the same and may be wrapped again,
// by a newer generation.
func checkOwnKeys(was, n *fsmpb.Cluster) (broken string) {
	newest := n.Keyring[len(n.Keyring)-1].GetGeneration()
	again := func(g, h uint32, a, b []byte) bool {
		return g == h && bytes.Equal(a, b) || h > g && h <= newest && len(b) > 0
	}
	if !again(was.AuditKeyGeneration, n.AuditKeyGeneration, was.WrappedAuditKey, n.WrappedAuditKey) {
		return "it replaces the audit key"
	}
	if len(was.OriginKeys) != len(n.OriginKeys) {
		return "it adds or removes an origin key"
	}
	for i, k := range was.OriginKeys {
		o := n.OriginKeys[i]
		if o.GetGeneration() != k.Generation || !bytes.Equal(o.PublicKey, k.PublicKey) || o.Created != k.Created ||
			!again(cmp.Or(k.WrappedGeneration, k.Generation), cmp.Or(o.WrappedGeneration, o.Generation), k.WrappedSeed, o.WrappedSeed) {
			return "it replaces an origin key"
		}
	}
	return ""
}

// checkJoining checks the CA and the join tokens that were used.
func checkJoining(n *fsmpb.Cluster) (broken string) {
	newest := n.Keyring[len(n.Keyring)-1].GetGeneration()
	if a := n.Authority; a != nil && (len(a.Certificate) == 0 || len(a.Certificate) > maxAuthority || len(a.WrappedKey) == 0 || len(a.WrappedKey) > maxAuthority ||
		a.Generation == 0 || a.Generation > newest) {
		return "the CA is malformed"
	}
	if len(n.UsedJoinTokens) > MaxUsedTokens {
		return "too many join tokens are remembered"
	}
	for _, t := range n.UsedJoinTokens {
		if len(t.GetId()) != 16 || len(t.GetKeyHash()) != 32 {
			return "a join token is malformed"
		}
	}
	return ""
}
