package fsm

import (
	"bytes"
	"cmp"
	"strings"
	"sync"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/intern"
	"github.com/conclavekms/conclave/fsm/wire"
)

// uses remembers the newest use of each key. It is not in the table, since
// nearly every record changes it and few decisions depend on it. Apply changes
// it in place, so that every state shows the newest uses.
//
// Read sets name the newest use of a key as KIND_KEY_USE. Apply compares it with
// the uses of exactly the records before, which are the same on all nodes: a
// snapshot is taken between two entries, and has all uses. Its version is its
// time, so that two uses at the same time are one, as they are for a decision by
// the time that has passed since.
type uses struct {
	mu    sync.RWMutex
	of    map[KeyID]use
	texts *intern.Texts // the Regions' names
}

type use struct {
	operation uint32
	time      int64
	requestID [16]byte
	eventID   [16]byte
}

func newUses() *uses { return &uses{of: make(map[KeyID]use), texts: intern.NewTexts()} }

// note remembers a record's uses, which are all equal to n except for the operation. It
// ignores a use of something that the record did not read as an existing key.
func (u *uses) note(r *wire.Record, n use) {
	if len(r.Uses) == 0 {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, one := range r.Uses {
		if int(one.Read) >= len(r.Reads) {
			continue
		}
		read := r.Reads[one.Read]
		if read.Kind != fsmpb.Kind_KIND_KEY || read.Version == 0 {
			continue
		}
		if id, ok := parseKeyID(read.ID); ok {
			n.operation = one.Operation
			u.texts.Share(&id.Region)
			u.of[id] = n
		}
	}
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

// version returns the version of a key's newest use, given the key's id as in read sets;
// 0 if there is none.
func (u *uses) version(key []byte) Version {
	id, ok := parseKeyID(key)
	if !ok {
		return 0
	}
	u.mu.RLock()
	defer u.mu.RUnlock()
	return Version(u.of[id].time)
}

func (n use) proto(id KeyID) *fsmpb.KeyUse {
	return &fsmpb.KeyUse{
		Account: uint64(id.Account), Region: id.Region, Key: id.ID[:],
		Operation: n.operation, Time: n.time, RequestId: n.requestID[:], EventId: n.eventID[:],
	}
}

// keyUse is a key with its newest use.
type keyUse struct {
	key KeyID
	use
}

func (k keyUse) compare(other keyUse) int {
	return cmp.Or(cmp.Compare(k.key.Account, other.key.Account), strings.Compare(k.key.Region, other.key.Region),
		bytes.Compare(k.key.ID[:], other.key.ID[:]))
}

// all returns all uses, for a snapshot.
func (u *uses) all() []keyUse {
	u.mu.RLock()
	defer u.mu.RUnlock()
	list := make([]keyUse, 0, len(u.of))
	for id, n := range u.of {
		list = append(list, keyUse{id, n})
	}
	return list
}

// replace replaces all uses by those of a snapshot, which were checked when it was read.
func (u *uses) replace(list []*fsmpb.KeyUse) {
	u.mu.Lock()
	defer u.mu.Unlock()
	clear(u.of)
	for _, n := range list {
		id, _ := owning(n)
		u.texts.Share(&id.Region)
		s := use{operation: n.Operation, time: n.Time}
		copy(s.requestID[:], n.RequestId)
		copy(s.eventID[:], n.EventId)
		u.of[id] = s
	}
}
