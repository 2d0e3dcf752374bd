package kmsapi

import "time"

// Inputs and outputs of the operations on grants.

// GrantConstraints limit a grant to encryption contexts, and to requests that a service
// makes on behalf of one resource.
type GrantConstraints struct {
	EncryptionContextSubset map[string]string `kms:"total=8192,log"`
	EncryptionContextEquals map[string]string `kms:"total=8192,log"`
	SourceArn               *string           `kms:"len=20..512,pattern=sourceArn,log"`
}

// Input and output of CreateGrant, which lets a principal or a service use a key.
type (
	CreateGrantInput struct {
		KeyId                    *string           `kms:"required,len=1..2048,pattern=ascii,log"`
		GranteePrincipal         *string           `kms:"len=1..256,pattern=principal,log"`
		RetiringPrincipal        *string           `kms:"len=1..256,pattern=principal,log"`
		Operations               []string          `kms:"required,each.enum=GrantOperation,log"`
		Constraints              *GrantConstraints `kms:"narrows,log"`
		GrantTokens              []string          `kms:"len=0..10,each.len=1..8192,nolog"`
		Name                     *string           `kms:"len=1..256,pattern=grantName,log"`
		DryRun                   *bool             `kms:"narrows,log"`
		GranteeServicePrincipal  *string           `kms:"len=1..128,pattern=servicePrincipal,log"`
		RetiringServicePrincipal *string           `kms:"len=1..128,pattern=servicePrincipal,log"`
	}

	CreateGrantOutput struct {
		GrantToken *string
		GrantId    *string
	}
)

// GrantListEntry describes a grant.
type GrantListEntry struct {
	KeyId                    *string
	GrantId                  *string
	Name                     *string
	CreationDate             *time.Time
	GranteePrincipal         *string
	RetiringPrincipal        *string
	IssuingAccount           *string
	Operations               []string
	Constraints              *GrantConstraints
	GranteeServicePrincipal  *string
	RetiringServicePrincipal *string
}

// Input and output of ListGrants, which lists the grants of a key.
type (
	ListGrantsInput struct {
		Limit                   *int32  `kms:"range=1..1000,log"`
		Marker                  *string `kms:"len=1..1024,pattern=marker,log"`
		KeyId                   *string `kms:"required,len=1..2048,pattern=ascii,log"`
		GrantId                 *string `kms:"len=1..128,narrows,log"`
		GranteePrincipal        *string `kms:"len=1..256,pattern=principal,narrows,log"`
		GranteeServicePrincipal *string `kms:"len=1..128,pattern=servicePrincipal,narrows,log"`
	}

	ListGrantsOutput struct {
		Grants     []GrantListEntry
		NextMarker *string
		Truncated  *bool
	}
)

// Input and output of ListRetirableGrants, which lists the grants that a principal may retire.
type (
	ListRetirableGrantsInput struct {
		Limit                    *int32  `kms:"range=1..1000,log"`
		Marker                   *string `kms:"len=1..1024,pattern=marker,log"`
		RetiringPrincipal        *string `kms:"len=1..256,pattern=principal,narrows,log"`
		RetiringServicePrincipal *string `kms:"len=1..128,pattern=servicePrincipal,narrows,log"`
	}

	ListRetirableGrantsOutput struct {
		Grants     []GrantListEntry
		NextMarker *string
		Truncated  *bool
	}
)

// RetireGrantInput is the input of RetireGrant, with which one of a grant's parties ends
// it.
type RetireGrantInput struct {
	GrantToken *string `kms:"len=1..8192,nolog"`
	KeyId      *string `kms:"len=1..2048,pattern=ascii,log"`
	GrantId    *string `kms:"len=1..128,log"`
	DryRun     *bool   `kms:"narrows,log"`
}

// RevokeGrantInput is the input of RevokeGrant, with which a key's administrators end a
// grant.
type RevokeGrantInput struct {
	KeyId   *string `kms:"required,len=1..2048,pattern=ascii,log"`
	GrantId *string `kms:"required,len=1..128,log"`
	DryRun  *bool   `kms:"narrows,log"`
}
