package request

import (
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// CheckTokens refuses grant tokens that the cluster did not issue for this Region. A valid
// token has no effect, because a grant is in the state as soon as CreateGrant returns.
func CheckTokens(ev *Evaluation, tokens []string) error {
	for _, token := range tokens {
		if _, _, err := TokenGrant(ev, token); err != nil {
			return err
		}
	}
	return nil
}

// TokenGrant returns the grant in this Region that a token names. It may be on the key of
// another account if the operation works across accounts.
func TokenGrant(ev *Evaluation, token string) (fsm.KeyID, [32]byte, error) {
	key, grant, err := ev.Vault.GrantOfToken(token)
	if err == nil && (key.Account != AccountOf(ev) && !ev.Op.CrossAccount || key.Region != ev.Region()) {
		err = kmsapi.ErrInvalidGrantToken
	}
	return key, grant, err
}
