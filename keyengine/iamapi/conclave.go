package iamapi

import "time"

// Operations of IAM that AWS does not have.

// RevokeRoleSessionsInput is the input of RevokeRoleSessions, which ends the sessions of a role
// that were opened before a time; without one, all that are open.
type RevokeRoleSessionsInput struct {
	RoleName  *string    `kms:"required,len=1..64,pattern=entityName,log"`
	OlderThan *time.Time `kms:"narrows,log"`
}

// RevokeOpenIDConnectProviderSessionsInput is the input of RevokeOpenIDConnectProviderSessions,
// which ends the sessions that were opened with web identities of an issuer before a time;
// without one, all that are open.
type RevokeOpenIDConnectProviderSessionsInput struct {
	OpenIDConnectProviderArn *string    `kms:"required,len=20..2048,log"`
	OlderThan                *time.Time `kms:"narrows,log"`
}

// UpdateOpenIDConnectProviderKeysInput is the input of UpdateOpenIDConnectProviderKeys, which
// sets the keys of an issuer, a JSON Web Key Set. The keys are then not read from the issuer's
// URL, which nodes without a way out cannot reach. An empty set has them read there again.
type UpdateOpenIDConnectProviderKeysInput struct {
	OpenIDConnectProviderArn *string `kms:"required,len=20..2048,log"`
	JSONWebKeySet            *string `kms:"required,len=0..32768,narrows,log"`
}
