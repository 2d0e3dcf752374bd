package vault

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// ImportToken is the token that GetParametersForImport returns and ImportKeyMaterial
// requires. It contains the private wrapping key, wrapped under the keyring, so that no
// node needs to store it and every unsealed node can use it.
//
// Format 1: format(1) generation(4) id(16) account(5) key(16) expires(8) algorithm(1), the
// key's Region with its length(1) before it, and the wrapped private key. Everything before
// the private key is bound to it as associated data, so a token that was changed does not
// decrypt.
type ImportToken struct {
	ID        [16]byte
	Key       fsm.KeyID
	Algorithm string // one of tokenAlgorithms
	Expires   int64  // in cluster time
}

const (
	importTokenFormat = 1
	importTokenFixed  = 1 + 4 + 16 + 5 + 16 + 8 + 1 + 1
	// maxImportToken is AWS's limit for the member ImportToken.
	maxImportToken = 6144
)

// importTokenSpec separates tokens from other secrets that are wrapped for importing.
const importTokenSpec = "import token v1"

// tokenAlgorithms are the wrapping algorithms by their numbers in tokens. A node in FIPS
// mode knows all of them, even if it does not support all.
var tokenAlgorithms = []string{"RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256", "RSA_AES_KEY_WRAP_SHA_1", "RSA_AES_KEY_WRAP_SHA_256"}

// header returns the token up to the wrapped private key.
func (t *ImportToken) header(generation uint32) ([]byte, error) {
	algorithm := slices.Index(tokenAlgorithms, t.Algorithm)
	if algorithm < 0 || len(t.Key.Region) > 255 {
		return nil, fmt.Errorf("an import token for algorithm %q has no encoding", t.Algorithm)
	}
	b := []byte{importTokenFormat}
	b = binary.BigEndian.AppendUint32(b, generation)
	b = append(b, t.ID[:]...)
	b = t.Key.Account.Append(b)
	b = append(b, t.Key.ID[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(t.Expires))
	b = append(b, byte(algorithm), byte(len(t.Key.Region)))
	return append(b, t.Key.Region...), nil
}

// binding returns the header without the generation, which the keyring binds itself.
func (t *ImportToken) binding() (keymat.Binding, error) {
	h, err := t.header(0)
	return keymat.Binding{Object: t.Key.Bytes(), Version: h, Spec: importTokenSpec}, err
}

// SealImportToken returns a token with the private wrapping key.
func (v *Vault) SealImportToken(t *ImportToken, pkcs8 []byte) ([]byte, error) {
	o, err := v.Current()
	if err != nil {
		return nil, err
	}
	b, err := t.binding()
	if err != nil {
		return nil, err
	}
	generation, wrapped, err := o.ring.WrapSettled(keymat.PurposeImport, b, pkcs8)
	if err != nil {
		return nil, fmt.Errorf("wrapping an import token: %w", Gone(err))
	}
	h, err := t.header(generation)
	return append(h, wrapped...), err
}

// OpenImportToken parses and decrypts a token. It returns ErrInvalidImportToken for
// everything that the cluster did not issue. The secret is the private wrapping key; the
// caller must destroy it.
func (v *Vault) OpenImportToken(given []byte) (*ImportToken, *keymat.Secret, error) {
	o, err := v.Current()
	if err != nil {
		return nil, nil, err
	}
	t, generation, wrapped := parseToken(given)
	if t == nil {
		return nil, nil, kmsapi.ErrInvalidImportToken
	}
	b, err := t.binding()
	if err != nil {
		return nil, nil, err
	}
	pkcs8, err := o.ring.Unwrap(generation, keymat.PurposeImport, b, wrapped)
	if errors.Is(err, keymat.ErrUnwrap) || errors.Is(err, keymat.ErrGeneration) {
		return nil, nil, kmsapi.ErrInvalidImportToken
	}
	return t, pkcs8, Gone(err)
}

// parseToken parses a token, or returns nil. Its content is not authenticated yet.
func parseToken(b []byte) (t *ImportToken, generation uint32, wrapped []byte) {
	if len(b) < importTokenFixed || len(b) > maxImportToken || b[0] != importTokenFormat {
		return nil, 0, nil
	}
	account, rest, ok := fsm.CutAccount(b[21:])
	algorithm, region := int(b[50]), int(b[51])
	if !ok || algorithm >= len(tokenAlgorithms) || len(b) < importTokenFixed+region {
		return nil, 0, nil
	}
	t = &ImportToken{
		ID: [16]byte(b[5:21]), Algorithm: tokenAlgorithms[algorithm], Expires: int64(binary.BigEndian.Uint64(b[42:50])),
		Key: fsm.KeyID{Account: account, Region: string(b[importTokenFixed : importTokenFixed+region]), ID: [16]byte(rest)},
	}
	return t, binary.BigEndian.Uint32(b[1:5]), b[importTokenFixed+region:]
}
