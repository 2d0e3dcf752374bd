package keyengine

import "github.com/conclavekms/conclave/keyengine/internal/keywrap"

// MaxImport is the maximum length of imported key material, in bytes.
const MaxImport = keywrap.MaxMaterial

// WrapForImport does the client's part of an import: it wraps key material under the public
// key that GetParametersForImport returned, with the given wrapping algorithm.
func WrapForImport(publicKey []byte, algorithm string, material []byte) ([]byte, error) {
	return keywrap.Wrap(publicKey, algorithm, material)
}
