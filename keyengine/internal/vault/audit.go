package vault

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
)

// auditKey names a key that sealed audit records.
type auditKey struct {
	generation uint32
	salt       [16]byte
}

// sealing is the key that seals this node's audit records for now.
type sealing struct {
	key   *keymat.BodySealer
	since time.Time
	left  atomic.Int64
}

// SealBody seals an audit record in the clear.
func (v *Vault) SealBody(requestID [16]byte, record []byte) (body []byte, generation uint32, salt [16]byte, commitment auditlog.Hash, err error) {
	o, err := v.Current()
	if err != nil {
		return nil, 0, salt, commitment, err
	}
	return o.SealBody(v.now(), requestID, record)
}

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

// sealingKey is the key to seal one record with.
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
	// The last key is not wiped: records may be just being sealed with it.
	o.sealing.Store(s)
	return key, nil
}

// good takes one record of what the key may seal. A clock that was set back
// counts as too long.
func (s *sealing) good(now time.Time) bool {
	if s == nil {
		return false
	}
	age := now.Sub(s.since)
	return age >= 0 && age < sealerAge && s.left.Add(-1) >= 0
}

// OpenBody opens the sealed record of an entry and checks it against the
// entry's commitment.
func (v *Vault) OpenBody(e auditlog.Entry) ([]byte, error) {
	o, err := v.Current()
	if err != nil {
		return nil, err
	}
	id := auditKey{e.Generation, e.Salt}
	key, ok := o.openers.get(id)
	if !ok {
		if key, err = o.ring.AuditKey(e.Generation, e.Salt); err != nil {
			return nil, fmt.Errorf("audit entry %d: %w", e.Index, Gone(err))
		}
		o.openers.put(id, key)
	}
	record, err := key.Open(e.RequestID, e.Commitment, e.Body)
	if err != nil {
		return nil, fmt.Errorf("audit entry %d: %w", e.Index, Gone(err))
	}
	return record, nil
}
