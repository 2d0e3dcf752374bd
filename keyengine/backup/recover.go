package backup

import (
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/record"
)

var (
	// ErrForeign is returned for a ciphertext that no symmetric key of the backup made.
	ErrForeign = errors.New("the ciphertext is not of a symmetric key in the backup, or its key was deleted")
	// ErrOutside is returned for a ciphertext of a key in a custom key store.
	ErrOutside = errors.New("the ciphertext is of a key in a custom key store: it can be decrypted only with that store, by a running cluster")
)

// Decrypt decrypts a ciphertext of Encrypt or GenerateDataKey with the keys of a backup. The
// state must be that of the backup, as Read returned it. No policy is asked, and the key may
// be disabled or pending deletion: whoever has the shares may do anything. The caller must
// clear the plaintext. The ARN is that of the key.
func (k *Keys) Decrypt(s *fsm.State, blob []byte, context map[string]string) (arn string, plaintext []byte, err error) {
	h, err := keymat.ParseHeader(blob)
	if err != nil {
		if _, outer := keymat.ParseOuterHeader(blob); outer == nil {
			return "", nil, ErrOutside
		}
		return "", nil, fmt.Errorf("%w: %w", ErrForeign, err)
	}
	if h.Cell != keymat.CellOf(k.header.Cluster.Id) {
		return "", nil, fmt.Errorf("%w: it is of another cluster", ErrForeign)
	}
	// Keys are found by their account and Region, which a ciphertext does not name. Keys of
	// a multi-Region set have the same id and the same material.
	for candidate := range s.AllKeys() {
		if [16]byte(candidate.Id) != h.Key {
			continue
		}
		for _, m := range candidate.Materials {
			if [16]byte(m.Id) != h.Version || len(m.Wrapped) == 0 {
				continue
			}
			var opened error
			err := k.vault.WithMaterial(candidate, m, func(material []byte) error {
				plaintext, opened = keymat.OpenMessage(material, blob, context)
				return nil
			})
			if err == nil {
				err = opened
			}
			if errors.Is(err, keymat.ErrCiphertext) {
				err = errors.New("the ciphertext was changed, or its encryption context is another one")
			}
			return k.arn(candidate), plaintext, err
		}
	}
	return "", nil, ErrForeign
}

func (k *Keys) arn(key *fsmpb.Key) string {
	name := record.UUID([16]byte(key.Id))
	if key.MultiRegion {
		name = "mrk-" + hex.EncodeToString(key.Id)
	}
	return "arn:" + k.header.Cluster.Partition + ":kms:" + key.Region + ":" + fsm.Account(key.Account).String() + ":key/" + name
}
