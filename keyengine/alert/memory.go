package alert

import (
	"encoding/binary"
	"errors"

	"github.com/conclavekms/conclave/keyengine/internal/localfile"
)

// The buckets of the file. Principals, keys and networks are in it as tokens, which only the
// cluster's keyring can make.
const (
	seenBucket  = "seen"  // token of principal, field and value → nothing
	sinceBucket = "since" // token of principal → when it was seen first
	hoursBucket = "hours" // token of principal, hour → requests
	quietBucket = "quiet" // token of rule and subject → until when
)

// remembered is the memory in a transaction of the file.
type remembered struct{ tx *localfile.Tx }

func (r remembered) token(field string, values ...string) ([]byte, error) {
	var v []byte
	for _, s := range values {
		v = binary.AppendUvarint(v, uint64(len(s)))
		v = append(v, s...)
	}
	t, err := r.tx.Tokens([]localfile.Term{{Field: field, Value: string(v)}})
	if err != nil {
		return nil, err
	}
	return t[0][:], nil
}

func (r remembered) first(principal, field, value string) (bool, error) {
	t, err := r.token("seen", principal, field, value)
	if err != nil {
		return false, err
	}
	if had, err := r.tx.Get(seenBucket, t); err != nil || had != nil {
		return false, err
	}
	return true, r.tx.Put(seenBucket, t, []byte{1})
}

func (r remembered) since(principal string, now int64) (int64, error) {
	t, err := r.token("principal", principal)
	if err != nil {
		return 0, err
	}
	b, err := r.tx.Get(sinceBucket, t)
	if err != nil {
		return 0, err
	}
	if len(b) == 8 {
		return int64(binary.BigEndian.Uint64(b)), nil
	}
	return now, r.tx.Put(sinceBucket, t, binary.BigEndian.AppendUint64(nil, uint64(now)))
}

func (r remembered) addHour(principal string, hour int64, requests int) error {
	t, err := r.token("principal", principal)
	if err != nil {
		return err
	}
	// What is too old to be compared with is removed with each hour that is added.
	var old [][]byte
	err = r.eachHour(t, 0, func(key []byte, at int64, _ int) error {
		if at >= hour-historyHours {
			return errEnough
		}
		old = append(old, key)
		return nil
	})
	if err != nil {
		return err
	}
	for _, key := range old {
		if err := r.tx.Delete(hoursBucket, key); err != nil {
			return err
		}
	}
	return r.tx.Put(hoursBucket, binary.BigEndian.AppendUint64(t, uint64(hour)), binary.BigEndian.AppendUint32(nil, uint32(requests)))
}

func (r remembered) hours(principal string, from int64) (list []int, err error) {
	t, err := r.token("principal", principal)
	if err != nil {
		return nil, err
	}
	err = r.eachHour(t, from, func(_ []byte, _ int64, n int) error {
		list = append(list, n)
		return nil
	})
	return list, err
}

// errEnough ends eachHour early.
var errEnough = errors.New("enough")

// eachHour calls fn with the hours of a principal, given by its token, from one on.
func (r remembered) eachHour(principal []byte, from int64, fn func(key []byte, at int64, requests int) error) error {
	start := binary.BigEndian.AppendUint64(append([]byte(nil), principal...), uint64(from))
	err := r.tx.Each(hoursBucket, start, func(key, value []byte) error {
		if len(key) != len(start) || string(key[:len(principal)]) != string(principal) {
			return errEnough
		}
		if len(value) != 4 {
			return localfile.ErrDamaged
		}
		return fn(append([]byte(nil), key...), int64(binary.BigEndian.Uint64(key[len(principal):])), int(binary.BigEndian.Uint32(value)))
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// quietUntil returns until when a rule raises no alert about a subject; 0 if it may now.
func (r remembered) quietUntil(s subject) (int64, error) {
	t, err := r.token("quiet", s.rule, s.about)
	if err != nil {
		return 0, err
	}
	b, err := r.tx.Get(quietBucket, t)
	if err != nil || len(b) != 8 {
		return 0, err
	}
	return int64(binary.BigEndian.Uint64(b)), nil
}

func (r remembered) setQuiet(s subject, until int64) error {
	t, err := r.token("quiet", s.rule, s.about)
	if err != nil {
		return err
	}
	return r.tx.Put(quietBucket, t, binary.BigEndian.AppendUint64(nil, uint64(until)))
}
