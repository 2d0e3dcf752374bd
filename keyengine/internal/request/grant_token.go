package request

import (
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// CheckTokens refuses grant tokens that the cluster did not give out for this
// Region. What is true of a genuine one, that its grant is there and whose it is,
// the state says already, so it changes nothing.
func CheckTokens(ev *Evaluation, tokens []string) error {
	for _, token := range tokens {
		if _, _, err := TokenGrant(ev, token); err != nil {
			return err
		}
	}
	return nil
}

// TokenGrant is the grant of this account and Region that a token names.
func TokenGrant(ev *Evaluation, token string) (fsm.KeyID, [32]byte, error) {
	key, grant, err := ev.Vault.GrantOfToken(token)
	if err == nil && (key.Account != AccountOf(ev) || key.Region != ev.Region()) {
		err = kmsapi.ErrInvalidGrantToken
	}
	return key, grant, err
}
