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
//
// The newest uses of credentials are kept beside them, in the same way. Nothing is decided by
// those, and read sets do not name them.
type uses struct {
	mu          sync.RWMutex
	of          map[KeyID]use
	texts       *intern.Texts             // the Regions' names
	credentials map[string]*credentialUse // by id, as in read sets
}

type credentialUse struct {
	operation uint32
	time      int64
}

type use struct {
	operation uint32
	time      int64
	requestID [16]byte
	eventID   [16]byte
}

func newUses() *uses {
	return &uses{of: make(map[KeyID]use), texts: intern.NewTexts(), credentials: make(map[string]*credentialUse)}
}

// note remembers a record's uses, which are all equal to n except for the operation. It
// ignores a use of something that the record did not read as an existing key or credential,
// and of a credential that the record has deleted from db.
func (u *uses) note(db *table, r *wire.Record, n use) {
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
		if read.Version == 0 {
			continue
		}
		switch read.Kind {
		case fsmpb.Kind_KIND_KEY:
			if id, ok := parseKeyID(read.ID); ok {
				n.operation = one.Operation
				u.texts.Share(&id.Region)
				u.of[id] = n
			}
		case fsmpb.Kind_KIND_CREDENTIAL:
			c := u.credentials[string(read.ID)]
			if c == nil {
				if lookup(db, read.Kind, read.ID) == nil {
					continue
				}
				c = new(credentialUse)
				u.credentials[string(read.ID)] = c
			}
			c.operation, c.time = one.Operation, n.time
		}
	}
}

func (u *uses) forgetCredential(id []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.credentials, string(id))
}

// ofCredential returns the newest use of the credential with an id, as in read sets, or nil.
func (u *uses) ofCredential(id []byte) *fsmpb.CredentialUse {
	u.mu.RLock()
	defer u.mu.RUnlock()
	c := u.credentials[string(id)]
	if c == nil {
		return nil
	}
	return c.proto(string(id))
}

func (c *credentialUse) proto(id string) *fsmpb.CredentialUse {
	a, name, _ := CutAccount([]byte(id))
	return &fsmpb.CredentialUse{Account: uint64(a), Id: string(name), Operation: c.operation, Time: c.time}
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

// allOfCredentials returns the uses of all credentials, for a snapshot.
func (u *uses) allOfCredentials() []*fsmpb.CredentialUse {
	u.mu.RLock()
	defer u.mu.RUnlock()
	list := make([]*fsmpb.CredentialUse, 0, len(u.credentials))
	for id, c := range u.credentials {
		list = append(list, c.proto(id))
	}
	return list
}

func compareCredentialUses(a, b *fsmpb.CredentialUse) int {
	return cmp.Or(cmp.Compare(a.Account, b.Account), strings.Compare(a.Id, b.Id))
}

// replace replaces all uses by those of a snapshot, which were checked when it was read.
func (u *uses) replace(list []*fsmpb.KeyUse, credentials []*fsmpb.CredentialUse) {
	u.mu.Lock()
	defer u.mu.Unlock()
	clear(u.of)
	clear(u.credentials)
	for _, c := range credentials {
		u.credentials[string(CredentialID(Account(c.Account), c.Id))] = &credentialUse{operation: c.Operation, time: c.Time}
	}
	for _, n := range list {
		id, _ := owning(n)
		u.texts.Share(&id.Region)
		s := use{operation: n.Operation, time: n.Time}
		copy(s.requestID[:], n.RequestId)
		copy(s.eventID[:], n.EventId)
		u.of[id] = s
	}
}
