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
	eventID   [16]byte
}

func newUses() *uses { return &uses{of: make(map[KeyID]use)} }

// note takes a record's uses over, which are all as n but for the operation. A use
// of what the record did not read as a key that is there is none.
func (u *uses) note(r *wireRecord, n use) {
	if len(r.uses) == 0 {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, one := range r.uses {
		if int(one.read) >= len(r.reads) {
			continue
		}
		read := r.reads[one.read]
		if read.kind != fsmpb.Kind_KIND_KEY || read.version == 0 {
			continue
		}
		if id, ok := parseKeyID(read.id); ok {
			n.operation = one.operation
			u.of[id] = n
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
	return &fsmpb.KeyUse{
		Key: id.ID[:], Region: id.Region, Operation: n.operation, Time: n.time, RequestId: n.requestID[:], EventId: n.eventID[:],
	}
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
		copy(s.eventID[:], n.EventId)
		u.of[id] = s
	}
}
