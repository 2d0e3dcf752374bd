//go:build !tpm

package seal

import "errors"

// openTPM fails, as this binary was built without support for TPMs.
func openTPM(string, string, pcrSet) (Seal, error) {
	return nil, errors.New("seal tpm: this binary was built without support for TPMs (build tag tpm)")
}
