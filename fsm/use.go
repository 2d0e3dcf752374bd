package fsm

import (
	"bytes"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// uses remembers the newest use of each key. It stands beside the table, since
// nearly every record changes it and nothing depends on it: apply writes it in
// place, and a state gives the newest.
type uses struct {
	mu sync.RWMutex
	of map[KeyID]use
}

type use struct {
	operation uint32
	time      int64
	requestID [16]byte
}

func newUses() *uses { return &uses{of: make(map[KeyID]use)} }

// note takes a record's uses over. A use of what the record did not read as a
// key is none.
func (u *uses) note(r *fsmpb.Record, time int64) {
	if len(r.Uses) == 0 {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, n := range r.Uses {
		if int(n.Read) >= len(r.Reads) || r.Reads[n.Read].Kind != fsmpb.Kind_KIND_KEY {
			continue
		}
		if id, ok := parseKeyID(r.Reads[n.Read].Id); ok {
			u.of[id] = use{n.Operation, time, [16]byte(r.RequestId)}
		}
	}
}

// parseKeyID reads what KeyID.Bytes wrote.
func parseKeyID(b []byte) (KeyID, bool) {
	region, id, ok := bytes.Cut(b, []byte{0})
	if !ok {
		return KeyID{}, false
	}
	return keyID(string(region), id)
}

func (u *uses) forget(id KeyID) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.of, id)
}

func (u *uses) get(id KeyID) *fsmpb.KeyUse {
	u.mu.RLock()
	defer u.mu.RUnlock()
	n, ok := u.of[id]
	if !ok {
		return nil
	}
	return n.proto(id)
}

func (n use) proto(id KeyID) *fsmpb.KeyUse {
	return &fsmpb.KeyUse{Key: id.ID[:], Region: id.Region, Operation: n.operation, Time: n.time, RequestId: n.requestID[:]}
}

// all are the uses by key, for a snapshot.
func (u *uses) all() []*fsmpb.KeyUse {
	u.mu.RLock()
	defer u.mu.RUnlock()
	ids := slices.SortedFunc(maps.Keys(u.of), func(a, b KeyID) int {
		if c := strings.Compare(a.Region, b.Region); c != 0 {
			return c
		}
		return bytes.Compare(a.ID[:], b.ID[:])
	})
	list := make([]*fsmpb.KeyUse, 0, len(ids))
	for _, id := range ids {
		list = append(list, u.of[id].proto(id))
	}
	return list
}

// replace takes over a snapshot's, which were checked when it was read.
func (u *uses) replace(list []*fsmpb.KeyUse) {
	u.mu.Lock()
	defer u.mu.Unlock()
	clear(u.of)
	for _, n := range list {
		id, _ := keyID(n.Region, n.Key)
		s := use{operation: n.Operation, time: n.Time}
		copy(s.requestID[:], n.RequestId)
		u.of[id] = s
	}
}
