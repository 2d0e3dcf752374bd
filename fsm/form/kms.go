package form

import (
	"bytes"
	"strings"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// nodeURI is the beginning of the URI that names a node in its certificate.
const nodeURI = "conclave://node/"

// CheckCredential checks a credential: its principal, and how it is proved, never change, and
// sessions that were ended stay ended.
func CheckCredential(was, n *fsmpb.Credential) (broken string) {
	if n.Principal == "" {
		return "a credential has no id or no principal"
	}
	if strings.HasPrefix(n.Id, nodeURI) {
		return "it makes a node's certificate a credential"
	}
	secret := len(n.WrappedSecret) > 0
	switch n.Kind {
	case fsmpb.CredentialKind_CREDENTIAL_KIND_ACCESS_KEY:
		if !secret {
			return "an access key has no secret that is wrapped by the keyring"
		}
	case fsmpb.CredentialKind_CREDENTIAL_KIND_CERTIFICATE:
		if secret {
			return "a certificate has a secret"
		}
	default:
		return "a credential has no kind, or an unknown one"
	}
	switch {
	case len(n.Mac) != 32:
		return "a credential has no MAC by the keyring"
	case was != nil && (was.Kind != n.Kind || was.Principal != n.Principal || was.Created != n.Created):
		return "it changes the kind, principal or creation date of a credential"
	case was != nil && was.BreakGlassUntil != n.BreakGlassUntil:
		return "it changes the end of a credential"
	case was.GetFirstGeneration() != 0 && (was.FirstGeneration != n.FirstGeneration || !bytes.Equal(was.FirstWrapped, n.FirstWrapped)):
		return "it changes what the sessions of a credential are bound to"
	case n.SessionEpoch < was.GetSessionEpoch():
		return "it lowers the session epoch of a credential"
	}
	return ""
}

// CheckAlias checks an alias: its name begins with "alias/".
func CheckAlias(_, n *fsmpb.Alias) (broken string) {
	if !strings.HasPrefix(n.Name, "alias/") {
		return "an alias has no valid name or key"
	}
	return ""
}

// CheckGrant checks a grant, which never changes.
func CheckGrant(was, n *fsmpb.Grant) (broken string) {
	if n.Grantee == "" || len(n.Operations) == 0 {
		return "a grant has no valid key, id, grantee or operation"
	}
	if was != nil {
		return "it changes a grant"
	}
	return ""
}

// CheckKeyStore checks a custom key store, whose type, creation date and Region never change.
func CheckKeyStore(was, n *fsmpb.KeyStore) (broken string) {
	if n.Name == "" || n.Type == "" || n.State == fsmpb.ConnectionState_CONNECTION_STATE_UNSPECIFIED {
		return "a custom key store has no id, name, type or state"
	}
	if was != nil && (was.Type != n.Type || was.Created != n.Created || was.Region != n.Region) {
		return "it changes the type or the identity of a custom key store"
	}
	return ""
}
