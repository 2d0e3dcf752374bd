package backup

import (
	"bytes"
	"io"
	"testing"
	"time"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/origin"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/primitive"
	"github.com/conclavekms/conclave/keyengine/internal/record"
)

// restore restores a backup for the nodes a and b, and returns the snapshot and its state.
func restore(t *testing.T, n *testNode) (*Restore, []byte, *fsm.State) {
	t.Helper()
	k, r := open(t, n.save(true), n.shares[0], n.shares[2])
	var saved, state bytes.Buffer
	content, err := k.Read(r, &saved, nil)
	if err != nil {
		t.Fatal(err)
	}
	res := &Restore{Nodes: []string{"b", "a"}, Now: time.Unix(2e9, 0)}
	if err := res.Begin(k, content); err != nil {
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
	return res, state.Bytes(), m.Current()
}

func TestRestore(t *testing.T) {
	t.Parallel()
	n := newTestNode(t)
	res, _, s := restore(t, n)
	was := n.Cluster.State()

	// What is kept.
	old, version := was.Key(enginetest.KeyID)
	key, now := s.Key(enginetest.KeyID)
	if key == nil || now != version || string(key.Materials[0].Wrapped) != string(old.Materials[0].Wrapped) {
		t.Errorf("the key is not as it was: %v", key)
	}
	if s.Index() != was.Index() || s.Time() != was.Time() {
		t.Errorf("index %d and time %d, want %d and %d", s.Index(), s.Time(), was.Index(), was.Time())
	}
	// What is new.
	if v := s.Voters(); len(v) != 2 || v[0] != "a" || v[1] != "b" {
		t.Errorf("voters %v", v)
	}
	for r := range s.Nodes() {
		t.Errorf("node %s is registered", r.Node)
	}
	c, _ := s.Cluster()
	if len(c.GetLineage().GetId()) != 16 || s.Hash() == was.Hash() {
		t.Errorf("no lineage of its own: %v", c.GetLineage())
	}
	// The audit log goes on, with the record of the restore.
	tree, _ := s.Audit()
	before, _ := was.Audit()
	entry := res.Record()
	before.Append(entry.LeafHash())
	if !tree.Equal(before) {
		t.Errorf("an audit log of %d records does not continue that of the backup", tree.Size())
	}
	body, err := n.Vault.OpenBody(entry)
	if err != nil {
		t.Fatal(err)
	}
	rec, err := auditlog.DecodeRecord(body)
	if err != nil || rec.EventName != "RestoreSnapshot" {
		t.Errorf("the record is %v, %v", rec, err)
	}
	// The shares open the restored cluster.
	m := enginetest.NewCluster(t, 1).NewNode("n1")
	k, _ := open(t, n.save(false), n.shares[:2]...)
	b, err := k.shares.Secret()
	if err != nil {
		t.Fatal(err)
	}
	unseal, err := m.Vault.Arena().Store(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Vault.Open(c, unseal); err != nil {
		t.Errorf("the shares do not open the restored cluster: %v", err)
	}
}

// TestLineages shows that what one of two histories signed is not valid in the other.
func TestLineages(t *testing.T) {
	t.Parallel()
	n := newTestNode(t)
	_, first, s := restore(t, n)
	_, second, r := restore(t, n)
	one, _ := s.Cluster()
	other, _ := r.Cluster()
	old, _ := n.Cluster.State().Cluster()
	o, err := n.Vault.Current()
	if err != nil {
		t.Fatal(err)
	}
	digest := [32]byte{1}
	generation, signature, err := o.SignOrigin("conclave test", digest)
	if err != nil {
		t.Fatal(err)
	}
	if !origin.Verify(old, generation, "conclave test", digest, signature) {
		t.Error("a signature is not valid in its own history")
	}
	if origin.Verify(one, generation, "conclave test", digest, signature) {
		t.Error("a signature of the old cluster is valid in the restored one")
	}
	generation, signature, err = o.SignOriginOf(one, "conclave test", digest)
	if err != nil {
		t.Fatal(err)
	}
	if !origin.Verify(one, generation, "conclave test", digest, signature) || origin.Verify(other, generation, "conclave test", digest, signature) || origin.Verify(old, generation, "conclave test", digest, signature) {
		t.Error("a signature is not valid in its own history alone")
	}
	// A node of one restore takes over no snapshot of the other, nor one of the old cluster.
	var saved bytes.Buffer
	if _, write, err := n.Cluster.Snapshot(); err != nil || write(&saved) != nil {
		t.Fatal(err)
	}
	if err := fsm.CheckSnapshot(bytes.NewReader(first), s, s.Index()); err != nil {
		t.Errorf("its own snapshot: %v", err)
	}
	if err := fsm.CheckSnapshot(bytes.NewReader(second), s, s.Index()); err == nil {
		t.Error("the snapshot of another restore is accepted")
	}
	if err := fsm.CheckSnapshot(bytes.NewReader(saved.Bytes()), s, n.Cluster.State().Index()); err == nil {
		t.Error("a snapshot of the old cluster is accepted")
	}
}

func TestDecrypt(t *testing.T) {
	t.Parallel()
	n, other := newTestNode(t), newTestNode(t)
	encrypt := func(n *testNode, context map[string]string) []byte {
		t.Helper()
		c, _ := n.Cluster.State().Cluster()
		k, _ := n.Cluster.State().Key(enginetest.KeyID)
		h := keymat.Header{Cell: keymat.CellOf(c.Id), Key: [16]byte(k.Id), Version: [16]byte(k.Materials[0].Id)}
		blob, err := keymat.SealMessage(n.Material(k), h, []byte("attack at dawn"), context)
		if err != nil {
			t.Fatal(err)
		}
		return blob
	}
	context := map[string]string{"app": "shop"}
	good := encrypt(n, context)
	k, r := open(t, n.save(false), n.shares[1:]...)
	content, err := k.Read(r, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	arn, plaintext, err := k.Decrypt(content.State, good, context)
	if err != nil || string(plaintext) != "attack at dawn" || arn != "arn:aws:kms:eu-west-1:111122223333:key/01020300-0000-0000-0000-000000000000" {
		t.Errorf("%s: %q, %v", arn, plaintext, err)
	}
	for name, c := range map[string]struct {
		blob    []byte
		context map[string]string
	}{
		"without its context": {good, nil},
		"of another cluster":  {encrypt(other, context), context},
		"changed":             {append(bytes.Clone(good[:len(good)-1]), good[len(good)-1]^1), context},
		"no ciphertext":       {[]byte("attack"), nil},
	} {
		if _, plaintext, err := k.Decrypt(content.State, c.blob, c.context); err == nil || plaintext != nil {
			t.Errorf("%s: decrypted", name)
		}
	}
}

// TestDecryptBy decrypts what asymmetric keys encrypted.
func TestDecryptBy(t *testing.T) {
	t.Parallel()
	n := newTestNode(t)
	put := func(last byte, spec, usage string) (id string, spki []byte) {
		t.Helper()
		material, err := primitive.Generate(spec)
		if err != nil {
			t.Fatal(err)
		}
		if spki, err = primitive.Public(spec, material); err != nil {
			t.Fatal(err)
		}
		key := enginetest.KeyID
		key.ID[15] = last
		k := &fsmpb.Key{
			Account: uint64(key.Account), Id: key.ID[:], Region: key.Region, Spec: spec, Usage: usage, Origin: "AWS_KMS",
			State: fsmpb.KeyState_KEY_STATE_ENABLED, Created: 1,
		}
		m, err := n.Vault.GivenMaterial(k, 1, material)
		if err != nil {
			t.Fatal(err)
		}
		k.Materials = []*fsmpb.Material{m}
		n.Cluster.Change(&fsmpb.Change{Change: &fsmpb.Change_PutKey{PutKey: k}})
		return record.UUID(key.ID), spki
	}
	rsaKey, rsaPublic := put(1, "RSA_2048", "ENCRYPT_DECRYPT")
	kemKey, kemPublic := put(2, "ML_KEM_768", "KEY_AGREEMENT")
	ecKey, _ := put(3, "ECC_NIST_P256", "SIGN_VERIFY")
	const oaep = "RSAES_OAEP_SHA_256"
	blob, err := primitive.EncryptRSA("RSA_2048", rsaPublic, oaep, []byte("attack at dawn"))
	if err != nil {
		t.Fatal(err)
	}
	secret, encapsulated, err := primitive.Encapsulate("ML_KEM_768", kemPublic)
	if err != nil {
		t.Fatal(err)
	}
	k, r := open(t, n.save(false), n.shares[:2]...)
	content, err := k.Read(r, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	arn, plaintext, err := k.DecryptBy(content.State, rsaKey, oaep, blob)
	if err != nil || string(plaintext) != "attack at dawn" || arn != "arn:aws:kms:eu-west-1:111122223333:key/"+rsaKey {
		t.Errorf("RSA by id: %s, %q, %v", arn, plaintext, err)
	}
	if _, plaintext, err := k.DecryptBy(content.State, arn, oaep, blob); err != nil || string(plaintext) != "attack at dawn" {
		t.Errorf("RSA by ARN: %q, %v", plaintext, err)
	}
	if _, got, err := k.DecryptBy(content.State, kemKey, "ML_KEM", encapsulated); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("ML-KEM: %v", err)
	}
	for name, c := range map[string]struct {
		key, algorithm string
		blob           []byte
	}{
		"no key":            {"", oaep, blob},
		"part of an id":     {rsaKey[4:], oaep, blob},
		"unknown key":       {record.UUID([16]byte{9}), oaep, blob},
		"another algorithm": {rsaKey, "RSAES_OAEP_SHA_1", blob},
		"wrong algorithm":   {rsaKey, "ML_KEM", blob},
		"no algorithm":      {rsaKey, "", blob},
		"symmetric key":     {record.UUID(enginetest.KeyID.ID), oaep, blob},
		"signing key":       {ecKey, oaep, blob},
		"changed":           {rsaKey, oaep, append(bytes.Clone(blob[:len(blob)-1]), blob[len(blob)-1]^1)},
		"of another length": {kemKey, "ML_KEM", encapsulated[1:]},
	} {
		if _, plaintext, err := k.DecryptBy(content.State, c.key, c.algorithm, c.blob); err == nil || plaintext != nil {
			t.Errorf("%s: decrypted", name)
		}
	}
}
