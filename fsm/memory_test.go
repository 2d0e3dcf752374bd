package fsm

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"runtime"
	"testing"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// defaultPolicy is about as long as the policy of keys that are created without one.
const defaultPolicy = `{
  "Version" : "2012-10-17",
  "Id" : "key-default-1",
  "Statement" : [ {
    "Sid" : "Enable IAM User Permissions",
    "Effect" : "Allow",
    "Principal" : {
      "AWS" : "arn:aws:iam::000000000000:root"
    },
    "Action" : "kms:*",
    "Resource" : "*"
  } ]
}`

// filled returns a machine with n keys as the engine makes them, each with a policy,
// an alias, a grant and a use. Half of the grants are on the first key.
func filled(t testing.TB, n int) *machine {
	m := newMachine(t)
	var rs []*fsmpb.Record
	for i := range n {
		id, grant := numbered(i), sha256.Sum256(binary.BigEndian.AppendUint32(nil, uint32(i)))
		k := keyOf(id)
		k.Description = fmt.Sprintf("key %d", i)
		k.Materials = []*fsmpb.Material{{
			Id: grant[:16], MaterialId: grant[:], Generation: 1, Wrapped: make([]byte, 92), Created: start,
		}}
		on := id
		if i < n/2 {
			on = numbered(0)
		}
		rs = append(rs,
			record(putKey(k), putPolicy(id, defaultPolicy)),
			used(reads(record(putAlias(id, fmt.Sprintf("alias/scale/%06d", i))), fsmpb.Kind_KIND_KEY, id.Bytes(), m.index+1), 0, 1),
			record(&fsmpb.Change{Change: &fsmpb.Change_PutGrant{PutGrant: &fsmpb.Grant{
				Account: uint64(on.Account), Key: on.ID[:], Region: on.Region, Id: grant[:], Grantee: fmt.Sprintf("arn:aws:iam::000000000000:user/u%d", i),
				Retiring: "arn:aws:iam::000000000000:role/retirer", Operations: []string{"Encrypt", "Decrypt"}, Created: start,
				Issuer: "000000000000",
			}}}))
		if len(rs) >= 60 || i == n-1 {
			m.propose(rs...)
			rs = rs[:0]
		}
	}
	m.audit.entries, m.events = nil, nil
	m.fsm.recent.Replace(m.fsm.Current()) // what these keep is bounded for any number of keys
	return m
}

// numbered returns a key id that looks as random as real ones.
func numbered(i int) KeyID {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(i)))
	return KeyID{Account: account, Region: region, ID: [16]byte(sum[:])}
}

// TestMemoryOfAKey bounds the memory that a key takes with its policy, alias, grant
// and use. The number of objects matters more than the bytes, as the garbage
// collector looks at each of them in every cycle.
func TestMemoryOfAKey(t *testing.T) {
	const n = 20_000
	before := heap()
	m := filled(t, n)
	after := heap()
	bytes, objects := float64(after.HeapAlloc-before.HeapAlloc)/n, float64(after.HeapObjects-before.HeapObjects)/n
	t.Logf("a key with its policy, alias, grant and use takes %.0f bytes in %.1f objects", bytes, objects)
	if bytes > 2400 || objects > 26 {
		t.Errorf("a key takes %.0f bytes in %.1f objects: want 2,400 in 26 at the most", bytes, objects)
	}
	runtime.KeepAlive(m)
}

// heap returns the statistics of the heap after garbage was collected.
func heap() (m runtime.MemStats) {
	runtime.GC()
	runtime.GC() // twice, to free what pools kept too
	runtime.ReadMemStats(&m)
	return m
}

func BenchmarkLookup(b *testing.B) {
	const n = 20_000
	s := filled(b, n).fsm.Current()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		id := numbered(i * 7919 % n)
		if k, _ := s.Key(id); k == nil {
			b.Fatal("no key")
		}
		if p, _ := s.KeyPolicy(id); p == nil {
			b.Fatal("no policy")
		}
	}
}

func BenchmarkSnapshot(b *testing.B) {
	m := filled(b, 20_000)
	b.ReportAllocs()
	for b.Loop() {
		s, err := m.fsm.Snapshot()
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Persist(&bufferSink{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRestore(b *testing.B) {
	m := filled(b, 20_000)
	snap := m.snapshot()
	b.ReportAllocs()
	for b.Loop() {
		if err := m.restore(snap); err != nil {
			b.Fatal(err)
		}
	}
}
