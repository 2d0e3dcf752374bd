package keyengine

import (
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// checkTokens refuses grant tokens that the cluster did not give out for this
// Region. What is true of a genuine one, that its grant is there and whose it is,
// the state says already, so it changes nothing.
func checkTokens(ev *eval, tokens []string) error {
	for _, token := range tokens {
		if _, _, err := tokenGrant(ev, token); err != nil {
			return err
		}
	}
	return nil
}

// tokenGrant is the grant of this account and Region that a token names.
func tokenGrant(ev *eval, token string) (fsm.KeyID, [32]byte, error) {
	key, grant, err := ev.Vault.GrantOfToken(token)
	if err == nil && (key.Account != accountOf(ev) || key.Region != ev.region()) {
		err = kmsapi.ErrInvalidGrantToken
	}
	return key, grant, err
}
