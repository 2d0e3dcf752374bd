package raftlog

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// The keys that Raft uses for its vote, and our key for both values in one.
var (
	keyVoteTerm      = []byte("LastVoteTerm")
	keyVoteCandidate = []byte("LastVoteCand")
	keyVote          = []byte("conclave.vote")
)

// Raft stores the term of its vote and the candidate one after the other (hashicorp/raft
// issue 661). After a crash between the two, the new term would be stored with the old
// candidate, who would then be given the vote again without a check of its log. Here the
// term is kept in memory until the candidate is set, and both are written as one value.
// Raft sets them one right after the other on one goroutine and reads neither in between.

func stableSum(key, value []byte) [sumSize]byte {
	h := sha256.New()
	sumNumbers(h, uint64(len(key)))
	h.Write(key)
	h.Write(value)
	return truncated(h)
}

func (s *Store) put(key, value []byte) error {
	sum := stableSum(key, value)
	sealed := append(sum[:], value...)
	return s.write("set", func() error {
		return s.noSpace().Retry(func() error { return s.db.Set(key, sealed) })
	})
}

func (s *Store) get(key []byte) (value []byte, err error) {
	err = s.read(fmt.Sprintf("%q", key), func() error {
		sealed, err := s.db.Get(key)
		if err != nil {
			return err
		}
		if len(sealed) < sumSize {
			return fmt.Errorf("%w: cut short", ErrCorrupt)
		}
		value = sealed[sumSize:]
		if sum := stableSum(key, value); !bytes.Equal(sum[:], sealed[:sumSize]) {
			return fmt.Errorf("%w: checksum differs", ErrCorrupt)
		}
		return nil
	})
	return value, err
}

func (s *Store) number(key []byte) (uint64, error) {
	v, err := s.get(key)
	if err != nil {
		return 0, err
	}
	if len(v) != 8 {
		return 0, s.fail(fmt.Errorf("reading %q: %w: %d bytes", key, ErrCorrupt, len(v)))
	}
	return binary.BigEndian.Uint64(v), nil
}

// Vote returns the stored vote.
func (s *Store) Vote() (term uint64, candidate []byte, err error) {
	v, err := s.get(keyVote)
	if err != nil {
		return 0, nil, err
	}
	if len(v) < 8 {
		return 0, nil, s.fail(fmt.Errorf("reading the vote: %w: cut short", ErrCorrupt))
	}
	return binary.BigEndian.Uint64(v), v[8:], nil
}

// Set implements raft.StableStore.
func (s *Store) Set(key, value []byte) error {
	if !bytes.Equal(key, keyVoteCandidate) {
		return s.put(key, value)
	}
	s.voteMu.Lock()
	term := s.voteTerm
	s.voteTerm = nil
	s.voteMu.Unlock()
	if term == nil {
		// A candidate on its own would be stored with a term in which it did not get the
		// vote.
		return s.fail(fmt.Errorf("%w: a vote without a term", ErrStorage))
	}
	return s.put(keyVote, append(binary.BigEndian.AppendUint64(nil, *term), value...))
}

// Get implements raft.StableStore.
func (s *Store) Get(key []byte) ([]byte, error) {
	if bytes.Equal(key, keyVoteCandidate) {
		_, candidate, err := s.Vote()
		return candidate, err
	}
	return s.get(key)
}

// SetUint64 implements raft.StableStore.
func (s *Store) SetUint64(key []byte, v uint64) error {
	if bytes.Equal(key, keyVoteTerm) {
		if err := s.Err(); err != nil {
			return err
		}
		s.voteMu.Lock()
		s.voteTerm = &v
		s.voteMu.Unlock()
		return nil
	}
	return s.put(key, binary.BigEndian.AppendUint64(nil, v))
}

// GetUint64 implements raft.StableStore. Raft recognises "not found" by the text of the
// error.
func (s *Store) GetUint64(key []byte) (uint64, error) {
	if bytes.Equal(key, keyVoteTerm) {
		term, _, err := s.Vote()
		return term, err
	}
	return s.number(key)
}
