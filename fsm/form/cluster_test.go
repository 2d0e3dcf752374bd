package form

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

func aCluster() *fsmpb.Cluster {
	return &fsmpb.Cluster{
		Id: bytes.Repeat([]byte{1}, 16), Account: "111122223333", Region: "eu-west-1", Partition: "aws", Created: 1,
		Shares:      &fsmpb.ShareSet{Id: bytes.Repeat([]byte{2}, 16), Epoch: 1, Threshold: 1, Count: 1, Commitments: [][]byte{make([]byte, 32)}},
		WrappedRoot: []byte("root 1"), Keyring: []*fsmpb.WrappedKEK{{Generation: 1, Wrapped: []byte("kek 1"), Created: 1}},
		AuditPublicKey: []byte("audit"), WrappedAuditKey: []byte("seed 1"), AuditKeyGeneration: 1,
		OriginKeys: []*fsmpb.OriginKey{{Generation: 1, PublicKey: []byte("origin"), WrappedSeed: []byte("seed 1"), Created: 1}},
	}
}

// rekeyed gives a cluster another share set.
func rekeyed(c *fsmpb.Cluster) {
	c.Shares = &fsmpb.ShareSet{Id: bytes.Repeat([]byte{3}, 16), Epoch: c.Shares.Epoch + 1, Threshold: 2, Count: 2, Commitments: [][]byte{make([]byte, 32), make([]byte, 32)}}
	c.WrappedRoot = []byte("root 2")
}

// newRoot gives a cluster another root key.
func newRoot(c *fsmpb.Cluster) {
	c.Shares.Epoch++
	c.WrappedRoot = []byte("root 2")
	for _, k := range c.Keyring {
		k.Wrapped = append([]byte("again "), k.Wrapped...)
	}
}

// newGeneration adds a generation to a cluster's keyring.
func newGeneration(c *fsmpb.Cluster) {
	g := c.Keyring[len(c.Keyring)-1].Generation + 1
	c.Keyring = append(c.Keyring, &fsmpb.WrappedKEK{Generation: g, Wrapped: []byte("kek"), Handover: []byte("kek, handed over"), Created: 2})
	c.WrappedAuditKey, c.AuditKeyGeneration = []byte("seed 2"), g
	c.OriginKeys[0].WrappedSeed, c.OriginKeys[0].WrappedGeneration = []byte("seed 2"), g
}

// withCA gives a cluster a CA, with which a token was used.
func withCA(c *fsmpb.Cluster) {
	c.Authority = &fsmpb.CertificateAuthority{Certificate: []byte("certificate"), WrappedKey: []byte("key"), Generation: c.Keyring[len(c.Keyring)-1].Generation, Created: 3}
	c.UsedJoinTokens = []*fsmpb.UsedJoinToken{{Id: make([]byte, 16), KeyHash: make([]byte, 32), Expires: 4}}
}

func settled(c *fsmpb.Cluster) { c.Keyring[len(c.Keyring)-1].Handover = nil }

// TestChangesOfTheClustersKeys: each edit breaks the rule, on top of a change that keeps all.
func TestChangesOfTheClustersKeys(t *testing.T) {
	t.Parallel()
	type edit = func(*fsmpb.Cluster)
	for name, legal := range map[string]edit{
		"nothing": func(*fsmpb.Cluster) {}, "any Region": func(c *fsmpb.Cluster) { c.AnyRegion = true }, "a seal": func(c *fsmpb.Cluster) { c.Seals = []*fsmpb.Seal{{Name: "file:1"}} }, "a CA": withCA, "rekeyed": rekeyed, "new root": newRoot, "new generation": newGeneration,
	} {
		was, n := aCluster(), aCluster()
		legal(n)
		if broken := CheckCluster(was, n, 2); broken != "" {
			t.Errorf("%s: %s", name, broken)
		}
		if broken, want := CheckCluster(was, n, 1), "it changes the cluster's record"; (broken == want) != (name != "nothing" && name != "any Region" && name != "a seal" && name != "a CA") {
			t.Errorf("%s at level 1: got %q", name, broken)
		}
	}
	was := aCluster()
	newGeneration(was)
	n := proto.CloneOf(was)
	settled(n)
	if broken := CheckCluster(was, n, 2); broken != "" {
		t.Errorf("settled: %s", broken)
	}
	for name, c := range map[string]struct {
		before, legal, edit edit
		broken              string
	}{
		"seals with the old root key": {nil, newRoot, func(c *fsmpb.Cluster) { c.Seals = []*fsmpb.Seal{{Name: "file:1"}} }, "it keeps seals that have another root key"},
		"a CA without a certificate":  {nil, withCA, func(c *fsmpb.Cluster) { c.Authority.Certificate = nil }, "the CA is malformed"},
		"a CA without a key":          {nil, rekeyed, func(c *fsmpb.Cluster) { withCA(c); c.Authority.WrappedKey = nil }, "the CA is malformed"},
		"a CA of a later generation":  {nil, withCA, func(c *fsmpb.Cluster) { c.Authority.Generation++ }, "the CA is malformed"},
		"a CA of no generation":       {nil, withCA, func(c *fsmpb.Cluster) { c.Authority.Generation = 0 }, "the CA is malformed"},
		"a huge CA":                   {nil, withCA, func(c *fsmpb.Cluster) { c.Authority.Certificate = make([]byte, maxAuthority+1) }, "the CA is malformed"},
		"a short token id":            {nil, withCA, func(c *fsmpb.Cluster) { c.UsedJoinTokens[0].Id = []byte("x") }, "a join token is malformed"},
		"a token without a key":       {nil, withCA, func(c *fsmpb.Cluster) { c.UsedJoinTokens[0].KeyHash = nil }, "a join token is malformed"},
		"too many tokens":             {nil, withCA, func(c *fsmpb.Cluster) { c.UsedJoinTokens = make([]*fsmpb.UsedJoinToken, MaxUsedTokens+1) }, "too many join tokens are remembered"},
		"another id":                  {nil, rekeyed, func(c *fsmpb.Cluster) { c.Id[0]++ }, "it changes the cluster's record"},
		"another public audit key":    {nil, rekeyed, func(c *fsmpb.Cluster) { c.AuditPublicKey = []byte("x") }, "it changes the cluster's record"},
		"a lineage":                   {nil, rekeyed, func(c *fsmpb.Cluster) { c.Lineage = &fsmpb.Lineage{} }, "it changes the cluster's record"},
		"the same epoch":              {nil, rekeyed, func(c *fsmpb.Cluster) { c.Shares.Epoch-- }, "it replaces the root key or the share set, but not in a new epoch"},
		"an epoch too many":           {nil, newRoot, func(c *fsmpb.Cluster) { c.Shares.Epoch++ }, "it replaces the root key or the share set, but not in a new epoch"},
		"shares without a root key":   {nil, rekeyed, func(c *fsmpb.Cluster) { c.WrappedRoot = nil }, "it replaces the root key or the share set, but not in a new epoch"},
		"the old root key":            {nil, rekeyed, func(c *fsmpb.Cluster) { c.WrappedRoot = []byte("root 1") }, "it replaces the root key or the share set, but not in a new epoch"},
		"the old set, changed":        {nil, newRoot, func(c *fsmpb.Cluster) { c.Shares.Commitments[0][0]++ }, "it changes a share set"},
		"no commitments":              {nil, rekeyed, func(c *fsmpb.Cluster) { c.Shares.Commitments = nil }, "a share set is malformed"},
		"a short commitment":          {nil, rekeyed, func(c *fsmpb.Cluster) { c.Shares.Commitments[1] = nil }, "a share set is malformed"},
		"a threshold of one of many":  {nil, rekeyed, func(c *fsmpb.Cluster) { c.Shares.Threshold = 1 }, "a share set is malformed"},
		"a threshold above the count": {nil, rekeyed, func(c *fsmpb.Cluster) { c.Shares.Threshold = 3 }, "a share set is malformed"},
		"rekeyed, another keyring":    {nil, rekeyed, func(c *fsmpb.Cluster) { c.Keyring[0].Wrapped = []byte("x") }, "it changes a generation of the keyring"},
		"a new root, the old keyring": {nil, newRoot, func(c *fsmpb.Cluster) { c.Keyring[0].Wrapped = []byte("kek 1") }, "it changes a generation of the keyring"},
		"a generation is dropped":     {newGeneration, settled, func(c *fsmpb.Cluster) { c.Keyring = c.Keyring[1:] }, "it removes a generation of the keyring, or adds too many"},
		"two generations":             {nil, newGeneration, func(c *fsmpb.Cluster) { newGeneration(c) }, "it removes a generation of the keyring, or adds too many"},
		"a generation is skipped":     {nil, newGeneration, func(c *fsmpb.Cluster) { c.Keyring[1].Generation++ }, "a new generation of the keyring is not the next one, or incomplete"},
		"nothing handed over":         {nil, newGeneration, settled, "a new generation of the keyring is not the next one, or incomplete"},
		"not settled":                 {newGeneration, newGeneration, func(*fsmpb.Cluster) {}, "it adds a generation of the keyring before the newest one is settled"},
		"another handover":            {newGeneration, settled, func(c *fsmpb.Cluster) { c.Keyring[1].Handover = []byte("x") }, "it changes how a generation of the keyring is handed over"},
		"rekeyed, and a generation":   {nil, rekeyed, newGeneration, "it adds a generation of the keyring and replaces the root key or the share set"},
		"an older audit key":          {newGeneration, settled, func(c *fsmpb.Cluster) { c.AuditKeyGeneration = 1 }, "it replaces the audit key"},
		"an audit key in its place":   {nil, newGeneration, func(c *fsmpb.Cluster) { c.AuditKeyGeneration = 1 }, "it replaces the audit key"},
		"another origin key":          {nil, newGeneration, func(c *fsmpb.Cluster) { c.OriginKeys[0].PublicKey = []byte("x") }, "it replaces an origin key"},
		"a seed in its place":         {nil, newGeneration, func(c *fsmpb.Cluster) { c.OriginKeys[0].WrappedGeneration = 0 }, "it replaces an origin key"},
		"no origin key":               {nil, newGeneration, func(c *fsmpb.Cluster) { c.OriginKeys = nil }, "it adds or removes an origin key"},
	} {
		was := aCluster()
		if c.before != nil {
			c.before(was)
		}
		n := proto.CloneOf(was)
		c.legal(n)
		c.edit(n)
		if broken := CheckCluster(was, n, 2); broken != c.broken {
			t.Errorf("%s: got %q, want %q", name, broken, c.broken)
		}
	}
}
