package vault

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
)

// auditKey identifies a key that audit records are encrypted with.
type auditKey struct {
	generation uint32
	salt       [16]byte
}

// sealing is the key that currently encrypts this node's audit records.
type sealing struct {
	key   *keymat.BodySealer
	since time.Time
	left  atomic.Int64
}

// SealBody encrypts an audit record. now is the time by which the key for it is chosen.
func (o *Opened) SealBody(now time.Time, requestID [16]byte, record []byte) (body []byte, generation uint32, salt [16]byte, commitment auditlog.Hash, err error) {
	key, err := o.sealingKey(now)
	if err != nil {
		return nil, 0, salt, commitment, Gone(err)
	}
	body, c, err := key.Seal(requestID, record)
	if err != nil {
		return nil, 0, salt, commitment, Gone(err)
	}
	return body, key.Generation(), key.Salt(), c, nil
}

// sealingKey returns the key for one record.
func (o *Opened) sealingKey(now time.Time) (*keymat.BodySealer, error) {
	if s := o.sealing.Load(); s.good(now) {
		return s.key, nil
	}
	o.sealer.Lock()
	defer o.sealer.Unlock()
	if s := o.sealing.Load(); s.good(now) {
		return s.key, nil
	}
	key, err := o.ring.NewAuditKey()
	if err != nil {
		return nil, err
	}
	s := &sealing{key: key, since: now}
	s.left.Store(sealerRecords - 1)
	// The previous key is not wiped, because records may be being encrypted with it.
	o.sealing.Store(s)
	return key, nil
}

// good reports whether the key may encrypt another record, and counts it. If the clock was
// set back, the key is replaced.
func (s *sealing) good(now time.Time) bool {
	if s == nil {
		return false
	}
	age := now.Sub(s.since)
	return age >= 0 && age < sealerAge && s.left.Add(-1) >= 0
}

// OpenBody decrypts the record of an entry and checks it against the entry's commitment.
func (v *Vault) OpenBody(e auditlog.Entry) ([]byte, error) {
	o, err := v.Current()
	if err != nil {
		return nil, err
	}
	id := auditKey{e.Generation, e.Salt}
	key, ok := o.openers.Get(id)
	if !ok {
		if key, err = o.ring.AuditKey(e.Generation, e.Salt); err != nil {
			return nil, fmt.Errorf("audit entry %d: %w", e.Index, behind(err))
		}
		o.openers.Put(id, key)
	}
	record, err := key.Open(e.RequestID, e.Commitment, e.Body)
	if err != nil {
		return nil, fmt.Errorf("audit entry %d: %w", e.Index, Gone(err))
	}
	return record, nil
}
