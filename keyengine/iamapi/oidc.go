package iamapi

import "time"

// Identity providers that issue web identities (OpenID Connect).

// Input and output of CreateOpenIDConnectProvider, which registers an issuer of web
// identities.
type (
	CreateOpenIDConnectProviderInput struct {
		Url            *string  `kms:"required,len=1..255,log"`
		ClientIDList   []string `kms:"each.len=1..255,narrows,log"`
		ThumbprintList []string `kms:"each.len=40..40,narrows,log"`
		Tags           []Tag    `kms:"len=0..50,open,log"`
	}

	CreateOpenIDConnectProviderOutput struct {
		OpenIDConnectProviderArn *string
		Tags                     []Tag
	}
)

// Input and output of GetOpenIDConnectProvider, which returns an issuer of web identities.
type (
	GetOpenIDConnectProviderInput struct {
		OpenIDConnectProviderArn *string `kms:"required,len=20..2048,log"`
	}

	GetOpenIDConnectProviderOutput struct {
		Url            *string
		ClientIDList   []string
		ThumbprintList []string
		CreateDate     *time.Time
		Tags           []Tag
	}
)

// OpenIDConnectProviderListEntry is an entry of ListOpenIDConnectProviders.
type OpenIDConnectProviderListEntry struct{ Arn *string }

// Input and output of ListOpenIDConnectProviders, which lists the issuers of web identities.
type (
	ListOpenIDConnectProvidersInput struct{}

	ListOpenIDConnectProvidersOutput struct {
		OpenIDConnectProviderList []OpenIDConnectProviderListEntry
	}
)

// DeleteOpenIDConnectProviderInput is the input of DeleteOpenIDConnectProvider, which removes
// an issuer of web identities.
type DeleteOpenIDConnectProviderInput struct {
	OpenIDConnectProviderArn *string `kms:"required,len=20..2048,log"`
}

// UpdateOpenIDConnectProviderThumbprintInput is the input of
// UpdateOpenIDConnectProviderThumbprint, which replaces the thumbprints of the certificates
// that an issuer's connection may have.
type UpdateOpenIDConnectProviderThumbprintInput struct {
	OpenIDConnectProviderArn *string  `kms:"required,len=20..2048,log"`
	ThumbprintList           []string `kms:"required,each.len=40..40,narrows,log"`
}

// AddClientIDToOpenIDConnectProviderInput is the input of AddClientIDToOpenIDConnectProvider,
// which adds a client ID, which is an audience of tokens, to an issuer.
type AddClientIDToOpenIDConnectProviderInput struct {
	OpenIDConnectProviderArn *string `kms:"required,len=20..2048,log"`
	ClientID                 *string `kms:"required,len=1..255,log"`
}

// RemoveClientIDFromOpenIDConnectProviderInput is the input of
// RemoveClientIDFromOpenIDConnectProvider, which removes a client ID from an issuer.
type RemoveClientIDFromOpenIDConnectProviderInput struct {
	OpenIDConnectProviderArn *string `kms:"required,len=20..2048,log"`
	ClientID                 *string `kms:"required,len=1..255,log"`
}

// TagOpenIDConnectProviderInput is the input of TagOpenIDConnectProvider, which adds tags to
// an issuer, or changes their values.
type TagOpenIDConnectProviderInput struct {
	OpenIDConnectProviderArn *string `kms:"required,len=20..2048,log"`
	Tags                     []Tag   `kms:"required,len=0..50,open,log"`
}

// UntagOpenIDConnectProviderInput is the input of UntagOpenIDConnectProvider, which removes
// tags from an issuer.
type UntagOpenIDConnectProviderInput struct {
	OpenIDConnectProviderArn *string  `kms:"required,len=20..2048,log"`
	TagKeys                  []string `kms:"required,len=0..50,each.len=1..128,each.pattern=tagKey,log"`
}

// Input and output of ListOpenIDConnectProviderTags, which lists the tags of an issuer.
type (
	ListOpenIDConnectProviderTagsInput struct {
		OpenIDConnectProviderArn *string `kms:"required,len=20..2048,log"`
		Marker                   *string `kms:"len=1..320,pattern=iamMarker,log"`
		MaxItems                 *int32  `kms:"range=1..1000,log"`
	}

	ListOpenIDConnectProviderTagsOutput struct {
		Tags        []Tag
		IsTruncated *bool
		Marker      *string
	}
)
