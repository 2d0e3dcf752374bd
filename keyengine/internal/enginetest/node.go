package enginetest

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"log/slog"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/internal/shamir"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
)

// Operator is the operator who initialises, unseals and seals nodes.
var Operator = ceremony.Operator{Name: "conclave://operator/ada", SourceIP: "192.0.2.7"}

// InitParams returns parameters that initialise a cluster with the given numbers of shares.
func InitParams(shares, threshold int) ceremony.InitParams {
	return ceremony.InitParams{Shares: shares, Threshold: threshold, Account: Account, Region: Region}
}

// A Node is what an engine consists of, without what executes requests. The tests of package
// keyengine make one of an engine's parts to use its methods.
type Node struct {
	*ceremony.Ceremonies
	*iam.Authenticator
	Cluster  *Cluster
	Replica  *Replica
	Vault    *vault.Vault
	Events   *record.Recorder
	Services *request.Services

	opened func(*fsmpb.Cluster, *keymat.Secret) // may be nil
}

// OnOpened sets what is called when shares have unsealed the node; see ceremony.Config.
func (n *Node) OnOpened(f func(*fsmpb.Cluster, *keymat.Secret)) { n.opened = f }

// NewNode starts a sealed node. It takes the place of the node with that id that runs
// already, as after a restart.
func (c *Cluster) NewNode(id string) *Node {
	c.t.Helper()
	n := c.newNode(id)
	n.Replica.OnApply = func(s *fsm.State, ev fsm.Events) {
		n.Vault.Follow(ev)
		cl, _ := s.Cluster()
		_ = n.Adopt(cl)
	}
	c.t.Cleanup(func() { n.Replica.OnApply = nil })
	return n
}

func (c *Cluster) newNode(id string) *Node {
	c.t.Helper()
	v, err := vault.New(c.Clock.Now, false)
	if err != nil {
		c.t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	n := &Node{Cluster: c, Replica: c.Replica(id), Vault: v}
	n.Events = &record.Recorder{Node: id, Vault: v, Replica: n.Replica, Clock: c.Clock, Log: log, Pending: record.NewPending()}
	n.Authenticator = iam.NewAuthenticator(iam.AuthenticatorConfig{
		Vault: v, Replica: n.Replica, Clock: c.Clock, Log: log, Events: n.Events,
		Withheld: &record.Withheld{Late: func(string) {}, Pending: n.Events.Pending},
		Forged:   prometheus.NewCounter(prometheus.CounterOpts{Name: "forged"}),
	})
	n.Services = &request.Services{
		NodeID: id, Authenticator: n.Authenticator, Vault: v, Clock: c.Clock, Log: log, Quotas: request.DefaultQuotas,
		Policies: request.NewPolicyCache(), Keys: request.NewKeyCount(), Users: request.NewUserCount(),
		ClusterOf: func(s *fsm.State) *fsmpb.Cluster { cl, _ := s.Cluster(); return cl },
	}
	n.Ceremonies = ceremony.New(ceremony.Config{
		NodeID: id, Vault: v, Replica: n.Replica, Clock: c.Clock, Log: log, Events: n.Events, Fresh: n.Authenticator.FreshState, Services: n.Services,
		Opened: func(cl *fsmpb.Cluster, root *keymat.Secret) {
			if n.opened != nil {
				n.opened(cl, root)
			}
		},
	})
	c.t.Cleanup(func() {
		n.Authenticator.Close()
		if err := v.Close(); err != nil {
			c.t.Errorf("closing the vault of %s: %v", id, err)
		}
	})
	return n
}

// Initialise initialises the cluster. The node stays sealed unless p.KeepUnsealed is set.
func (n *Node) Initialise(p ceremony.InitParams) *ceremony.InitResult {
	t := n.Cluster.t
	t.Helper()
	res, err := n.Init(t.Context(), Operator, p)
	if err != nil {
		t.Fatalf("Init: %v", err)
	}
	if res.Shares != nil { // nil if they are encrypted to an answer key
		n.Cluster.SignEntries(res.Shares)
	}
	return res
}

// Unseal submits shares until the node is unsealed, and then records what happened.
func (n *Node) Unseal(shares ...string) {
	n.Cluster.t.Helper()
	n.enter(shares)
	n.Events.RecordPending(n.Cluster.t.Context())
}

// enter submits shares until the node is unsealed.
func (n *Node) enter(shares []string) {
	t := n.Cluster.t
	t.Helper()
	for i, s := range shares {
		op := Operator
		_, _ = rand.Read(op.RequestID[:])
		st, err := n.SubmitShare(t.Context(), op, s)
		if err != nil {
			t.Fatalf("submitting share %d: %v", i+1, err)
		}
		if !st.Sealed {
			return
		}
	}
	t.Fatalf("the node is still sealed after %d shares", len(shares))
}

// MemoryInUse returns the number of slots of locked memory that are in use.
func (n *Node) MemoryInUse() int {
	slots, _ := n.Vault.Arena().Usage()
	return slots
}

// Records opens all audit records, except those of Cluster.Change. The node must be
// unsealed.
func (n *Node) Records() []*auditpb.Record {
	t := n.Cluster.t
	t.Helper()
	var all []*auditpb.Record
	for _, e := range n.Cluster.Audit.Entries() {
		if !IsChange(e) {
			all = append(all, OpenRecord(t, n.Vault, e))
		}
	}
	return all
}

// OpenRecord opens one audit record.
func OpenRecord(t testing.TB, v *vault.Vault, e auditlog.Entry) *auditpb.Record {
	t.Helper()
	b, err := v.OpenBody(e)
	if err != nil {
		t.Fatalf("opening the record at %d: %v", e.Index, err)
	}
	rec, err := auditlog.DecodeRecord(b)
	if err != nil {
		t.Fatalf("decoding the record at %d: %v", e.Index, err)
	}
	return rec
}

// EventNames returns the names of the events of records, each followed by ! and the error
// code if it has one.
func EventNames(records []*auditpb.Record) []string {
	var names []string
	for _, r := range records {
		name := r.EventName
		if r.ErrorCode != "" {
			name += "!" + r.ErrorCode
		}
		names = append(names, name)
	}
	return names
}

// KeyID is an id for PutKey.
var KeyID = fsm.KeyID{Account: AccountNumber, Region: Region, ID: [16]byte{1, 2, 3}}

// PutKey puts a symmetric key with new material into the state, as CreateKey does, and
// returns it.
func (n *Node) PutKey(id fsm.KeyID) *fsmpb.Key {
	t := n.Cluster.t
	t.Helper()
	k := &fsmpb.Key{
		Account: uint64(id.Account), Id: id.ID[:], Region: id.Region, Spec: "SYMMETRIC_DEFAULT", Usage: "ENCRYPT_DECRYPT", Origin: "AWS_KMS",
		State: fsmpb.KeyState_KEY_STATE_ENABLED, Created: 1,
	}
	m, err := n.Vault.NewMaterial(k, 1)
	if err != nil {
		t.Fatalf("NewMaterial: %v", err)
	}
	k.Materials = []*fsmpb.Material{m}
	n.Cluster.Change(&fsmpb.Change{Change: &fsmpb.Change_PutKey{PutKey: k}})
	k, _ = n.Cluster.State().Key(id)
	return k
}

// Material returns a copy of a key's first material.
func (n *Node) Material(k *fsmpb.Key) []byte {
	t := n.Cluster.t
	t.Helper()
	var out []byte
	if err := n.Vault.WithMaterial(k, k.Materials[0], func(b []byte) error { out = bytes.Clone(b); return nil }); err != nil {
		t.Fatalf("WithMaterial: %v", err)
	}
	return out
}

// ForgedShare returns a well-formed share of the cluster's share set that belongs to another
// secret.
func ForgedShare(t testing.TB, c *Cluster, index int) string {
	t.Helper()
	cl, _ := c.State().Cluster()
	set := shamir.SetInfo{Cluster: [16]byte(cl.Id), Set: [16]byte(cl.Shares.Id), Threshold: int(cl.Shares.Threshold), Count: int(cl.Shares.Count)}
	secret := sha256.Sum256([]byte("a guess"))
	shares, err := shamir.Split(strings.NewReader(strings.Repeat("r", 32*set.Threshold)), secret[:], set)
	if err != nil {
		t.Fatal(err)
	}
	return string(shares[index-1].AppendText(make([]byte, 0, shamir.TextSize)))
}
