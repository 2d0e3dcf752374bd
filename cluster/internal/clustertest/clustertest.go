// Package clustertest provides what the tests of package cluster and of the packages below
// it share.
package clustertest

import (
	"crypto/rand"
	"testing"
	"time"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// Eventually waits until f returns true. It fails the test if that takes longer than limit.
func Eventually(t testing.TB, limit time.Duration, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); ; {
		if f() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %s within %v", what, limit)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// Record returns a record without reads and changes, with a unique id.
func Record() *fsmpb.Record {
	r := &fsmpb.Record{
		RequestId: make([]byte, 16), Salt: make([]byte, 16), Commitment: make([]byte, auditlog.HashSize),
		Body: make([]byte, 300), Generation: 1,
	}
	rand.Read(r.RequestId)
	rand.Read(r.Salt)
	return r
}

// UsualRecord returns a record like that of a request on a key.
func UsualRecord() *fsmpb.Record {
	r := Record()
	r.NotAfter = 1 << 60
	for kind := fsmpb.Kind_KIND_CLUSTER; kind <= fsmpb.Kind_KIND_ALIAS; kind++ {
		r.Reads = append(r.Reads, &fsmpb.Read{Kind: kind, Id: make([]byte, 28), Version: 1000})
	}
	r.Uses = []*fsmpb.Use{{Read: 1, Operation: 3}}
	return r
}

// PolicyChange returns a record that sets the policy of a key to one with the given name
// and depends on the key's version. It creates the key if it does not exist.
func PolicyChange(s *fsm.State, id fsm.KeyID, name string) *fsmpb.Record {
	r := Record()
	_, version := s.KeyPolicy(id)
	r.Reads = []*fsmpb.Read{{Kind: fsmpb.Kind_KIND_KEY_POLICY, Id: id.Bytes(), Version: version}}
	r.Changes = []*fsmpb.Change{{Change: &fsmpb.Change_PutKeyPolicy{PutKeyPolicy: &fsmpb.KeyPolicy{
		Account: uint64(id.Account), Key: id.ID[:], Region: id.Region, Document: `{"Id":"` + name + `"}`,
	}}}}
	if k, _ := s.Key(id); k == nil {
		r.Changes = append(r.Changes, &fsmpb.Change{Change: &fsmpb.Change_PutKey{PutKey: &fsmpb.Key{
			Account: uint64(id.Account), Id: id.ID[:], Region: id.Region, Spec: "SYMMETRIC_DEFAULT", Usage: "ENCRYPT_DECRYPT", Origin: "AWS_KMS",
			State: fsmpb.KeyState_KEY_STATE_ENABLED,
		}}})
	}
	return r
}
