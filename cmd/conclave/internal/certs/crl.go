package certs

import (
	"fmt"

	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
)

// ReadCRLs reads the revocation lists in a PEM file. It does not verify their
// signatures.
func ReadCRLs(file string) ([]*pki.CRL, error) {
	raw, err := files.Read(file, pki.MaxCRLFile)
	if err != nil {
		return nil, err
	}
	lists, err := pki.DecodeCRLs(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return lists, nil
}
