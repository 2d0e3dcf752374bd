package request

import (
	"encoding/base64"
	"errors"

	"github.com/conclavekms/conclave/keyengine/internal/vault"
)

// SealToken returns an encrypted token, in base64 for URLs. It is opened with the same context,
// which says what it is for and whose it is.
func SealToken(o *vault.Opened, context, plain []byte) (string, error) {
	sealed, err := o.SealTransit(context, plain)
	return base64.RawURLEncoding.EncodeToString(sealed), err
}

// OpenToken returns what a token of SealToken has, or ok=false for anything that is not one with
// this context and of at most max bytes. The only error is vault.ErrSealed.
func OpenToken(o *vault.Opened, context []byte, token string, max int) (plain []byte, ok bool, err error) {
	if len(token) > max {
		return nil, false, nil
	}
	sealed, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil {
		return nil, false, nil
	}
	plain, err = o.OpenTransit(context, sealed)
	if errors.Is(err, vault.ErrSealed) {
		return nil, false, err
	}
	return plain, err == nil, nil
}
