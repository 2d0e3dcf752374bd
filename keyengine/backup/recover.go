package backup

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/primitive"
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

// DecryptBy decrypts a ciphertext of an asymmetric key: of Encrypt with an RSA key, or of
// Encapsulate with an ML-KEM key, whose secret is returned. Such ciphertexts do not name
// their key, so it is named by its ARN or its id. algorithm is that of the ciphertext.
// Otherwise DecryptBy is like Decrypt.
func (k *Keys) DecryptBy(s *fsm.State, key, algorithm string, blob []byte) (arn string, plaintext []byte, err error) {
	var found *fsmpb.Key
	for candidate := range s.AllKeys() {
		if name := k.arn(candidate); name == key || strings.HasSuffix(name, ":key/"+key) {
			found = candidate // keys of a multi-Region set have the same id and material
		}
	}
	switch {
	case key == "" || found == nil:
		return "", nil, fmt.Errorf("there is no key %q in the backup", key)
	case len(found.Materials) == 0 || len(found.Materials[0].Wrapped) == 0:
		return "", nil, fmt.Errorf("%s has no material in the backup", k.arn(found))
	}
	var decrypt func(spec string, material []byte) ([]byte, error)
	can := slices.Concat(primitive.EncryptionAlgorithms(found.Spec), primitive.EncapsulationAlgorithms(found.Spec))
	switch {
	case slices.Contains(primitive.EncryptionAlgorithms(found.Spec), algorithm):
		decrypt = func(spec string, material []byte) ([]byte, error) {
			return primitive.DecryptRSA(spec, material, algorithm, blob)
		}
	case slices.Contains(primitive.EncapsulationAlgorithms(found.Spec), algorithm):
		decrypt = func(spec string, material []byte) ([]byte, error) { return primitive.Decapsulate(spec, material, blob) }
	case len(can) == 0:
		return "", nil, fmt.Errorf("%s, of spec %s, decrypts nothing", k.arn(found), found.Spec)
	default:
		return "", nil, fmt.Errorf("%s, of spec %s, decrypts with %s, not %q", k.arn(found), found.Spec, strings.Join(can, " or "), algorithm)
	}
	var opened error
	err = k.vault.WithMaterial(found, found.Materials[0], func(material []byte) error {
		plaintext, opened = decrypt(found.Spec, material)
		return nil
	})
	if err == nil && opened != nil {
		err = fmt.Errorf("the ciphertext was changed, or is not of this key and algorithm: %w", opened)
	}
	return k.arn(found), plaintext, err
}

func (k *Keys) arn(key *fsmpb.Key) string {
	name := record.UUID([16]byte(key.Id))
	if key.MultiRegion {
		name = "mrk-" + hex.EncodeToString(key.Id)
	}
	return "arn:" + k.header.Cluster.Partition + ":kms:" + key.Region + ":" + fsm.Account(key.Account).String() + ":key/" + name
}
