package backup

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/custodian"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
)

// rotate replaces the root key, adds a generation to the keyring, or replaces the shares, with
// the node's shares. Those are the new ones afterwards.
func (n *testNode) rotate(kind ceremony.KeyChange, purpose string) {
	n.t.Helper()
	op := func() ceremony.Operator {
		op := enginetest.Operator
		_, _ = rand.Read(op.RequestID[:])
		return op
	}
	p := ceremony.KeyChangeParams{Kind: kind}
	var private []*custodian.PrivateKey
	if kind == ceremony.Rekey {
		p.Threshold = 2
		for _, name := range []string{"dora", "emil", "fay"} {
			key, err := custodian.Generate()
			if err != nil {
				n.t.Fatal(err)
			}
			private, p.Custodians = append(private, key), append(p.Custodians, ceremony.CustodianKey{Name: name, Key: []byte(key.Public())})
		}
	}
	if _, _, err := n.FinalizeUpgrade(n.t.Context(), op(), func(context.Context) (uint32, []string) { return 2, nil }); err != nil {
		n.t.Fatal(err)
	}
	st, err := n.KeyChanges.Begin(n.t.Context(), op(), p)
	if err != nil {
		n.t.Fatal(err)
	}
	done := false
	submit := func(share string) {
		n.t.Helper()
		sealed, err := keymat.SealTo(st.PublicKey, slices.Concat([]byte(purpose+"\x00"), st.ClusterID[:], st.Nonce[:], []byte(st.NodeID)), []byte(share))
		if err == nil {
			_, done, err = n.KeyChanges.Submit(n.t.Context(), op(), st.Nonce[:], sealed)
		}
		if err != nil {
			n.t.Fatal(err)
		}
	}
	for _, share := range n.shares[:2] {
		submit(share)
	}
	if kind == ceremony.Rekey {
		to, err := keymat.NewReceiver(n.Vault.Arena())
		if err != nil {
			n.t.Fatal(err)
		}
		defer to.Destroy()
		_, encrypted, err := n.KeyChanges.NewShares(n.t.Context(), op(), st.Nonce[:], to.Public())
		if err != nil {
			n.t.Fatal(err)
		}
		n.shares = nil
		for i, s := range encrypted {
			text, err := private[i].Decrypt([]byte(s.Text))
			if err != nil {
				n.t.Fatal(err)
			}
			n.shares = append(n.shares, string(text))
		}
		submit(n.shares[2])
		submit(n.shares[1])
	}
	if !done {
		n.t.Fatal("the keys are not replaced")
	}
}

// TestBackupsOfReplacedKeys: a backup opens with the keys of its time, and can be restored,
// also while a generation of the keyring is being handed over.
func TestBackupsOfReplacedKeys(t *testing.T) {
	t.Parallel()
	n := newTestNode(t)
	files := [][]byte{n.save(true)}
	n.rotate(ceremony.RotateRoot, "conclave root rotation share v1")
	files = append(files, n.save(true))
	n.rotate(ceremony.RotateKeyring, "conclave keyring rotation share v1")
	second := enginetest.KeyID
	second.ID[0]++
	n.PutKey(second)
	files = append(files, n.save(true))
	for i, file := range files {
		k, r := open(t, file, n.shares[2], n.shares[0])
		content, err := k.Read(r, nil, nil)
		if err != nil {
			t.Fatalf("backup %d: %v", i, err)
		}
		if keys, _, err := k.Materials(content.State); err != nil || keys != 1+i/2 {
			t.Errorf("backup %d: %d keys, %v", i, keys, err)
		}
	}
	_, _, s := restore(t, n)
	if key, _ := s.Key(second); key == nil || key.Materials[0].Generation != 2 {
		t.Errorf("restored: %v", key)
	}
	if c, _ := s.Cluster(); c.Shares.Epoch != 2 || len(c.Keyring) != 2 || len(c.Keyring[1].Handover) == 0 {
		t.Errorf("restored: %v", c)
	}
}

// TestRestoreOverReplacedKeys restores a backup in place of a cluster whose root key, keyring and
// shares were replaced since. It takes the shares of today; those of the backup open nothing there.
// The cluster keeps its keys, by which all that the backup has opens.
func TestRestoreOverReplacedKeys(t *testing.T) {
	t.Parallel()
	n := newTestNode(t)
	gone := enginetest.KeyID
	gone.ID[15] = 1
	n.PutKey(gone)
	file, old := n.save(true), n.shares
	n.rotate(ceremony.RotateRoot, "conclave root rotation share v1")
	n.rotate(ceremony.RotateKeyring, "conclave keyring rotation share v1")
	n.rotate(ceremony.Rekey, "conclave rekey share v1")
	newest := n.Cluster.State()

	k, err := SurvivorKeys(newest, "n9", false)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if _, _, err := k.Add([]byte(old[0])); err == nil || !strings.Contains(err.Error(), "another share set") {
		t.Errorf("a share of the backup's time: %v", err)
	}
	for _, s := range n.shares[:2] {
		if _, _, err := k.Add([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	r := bytes.NewReader(file)
	h, err := ReadHeader(r)
	if err != nil {
		t.Fatal(err)
	}
	of, err := k.For(h)
	if err != nil {
		t.Fatal(err)
	}
	var saved, state bytes.Buffer
	content, err := of.Read(r, &saved, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.CheckHistory(n.Cluster.Audit); err != nil {
		t.Fatal(err)
	}
	over := &Over{Node: "n9", State: newest}
	if err := over.Begin(bytes.NewReader(snapshotOf(t, n))); err != nil {
		t.Fatal(err)
	}
	res := &Restore{Nodes: []string{"a"}, Now: time.Unix(2e9, 0), Over: over}
	if err := res.Begin(of, content); err != nil {
		t.Fatal(err)
	}
	if err := res.Snapshot(&saved, &state); err != nil {
		t.Fatal(err)
	}
	if err := res.Check(bytes.NewReader(state.Bytes())); err != nil {
		t.Fatal(err)
	}
	m := fsm.New(fsm.Config{Audit: noAudit{}})
	if err := m.Restore(io.NopCloser(bytes.NewReader(state.Bytes()))); err != nil {
		t.Fatal(err)
	}
	s := m.Current()
	c, _ := s.Cluster()
	was, _ := newest.Cluster()
	if !bytes.Equal(c.Shares.Id, was.Shares.Id) || c.Shares.Epoch != was.Shares.Epoch || len(c.Shares.Custodians) != 3 || !bytes.Equal(c.WrappedRoot, was.WrappedRoot) || len(c.Keyring) != 2 {
		t.Errorf("the restored cluster has share set %x in epoch %d and %d generations", c.Shares.Id, c.Shares.Epoch, len(c.Keyring))
	}
	// A node that is unsealed by the new shares opens what generation 1 wrapped.
	after, err := SurvivorKeys(s, "a", false)
	if err != nil {
		t.Fatal(err)
	}
	defer after.Close()
	for _, share := range n.shares[1:] {
		if _, _, err := after.Add([]byte(share)); err != nil {
			t.Fatal(err)
		}
	}
	if keys, unopened, err := after.Materials(s); err != nil || keys != 2 {
		t.Errorf("%d keys of 2 open, %v, %v", keys, unopened, err)
	}
	if key, _ := s.Key(gone); key == nil || key.Materials[0].Generation != 1 {
		t.Errorf("the key that only the backup has is %v", key)
	}
}
