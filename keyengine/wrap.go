package keyengine

import "github.com/conclavekms/conclave/keyengine/internal/keywrap"

// MaxImport is the most key material that can be imported, in bytes.
const MaxImport = keywrap.MaxMaterial

// WrapForImport does a client's part of an import: it wraps key material with the
// public key and by the algorithm of GetParametersForImport.
func WrapForImport(publicKey []byte, algorithm string, material []byte) ([]byte, error) {
	return keywrap.Wrap(publicKey, algorithm, material)
}
