package iamapi

import "time"

// The operations of STS.

// Input and output of GetCallerIdentity, which says who the caller is.
type (
	GetCallerIdentityInput struct{}

	GetCallerIdentityOutput struct {
		UserId  *string
		Account *string
		Arn     *string
	}
)

// PolicyDescriptorType names a managed policy that restricts a session.
type PolicyDescriptorType struct {
	Arn *string `kms:"len=20..2048,pattern=arn,name=arn,log"`
}

// ProvidedContext is a signed assertion of another service about a session.
type ProvidedContext struct {
	ProviderArn      *string `kms:"len=20..2048,pattern=arn,log"`
	ContextAssertion *string `kms:"len=4..2048,log"`
}

// Credentials are the credentials of a session.
type Credentials struct {
	AccessKeyId     *string
	SecretAccessKey *string `kms:"secret"`
	SessionToken    *string `kms:"secret"`
	Expiration      *time.Time
}

// AssumedRoleUser names a session of a role.
type AssumedRoleUser struct {
	AssumedRoleId *string
	Arn           *string
}

// Input and output of AssumeRole, which returns credentials for a session of a role. Durations
// are in seconds.
type (
	AssumeRoleInput struct {
		RoleArn           *string                `kms:"required,len=20..2048,pattern=arn,log"`
		RoleSessionName   *string                `kms:"required,len=2..64,pattern=sessionName,log"`
		PolicyArns        []PolicyDescriptorType `kms:"narrows,log"`
		Policy            *string                `kms:"len=1..,pattern=policy,narrows,log"`
		DurationSeconds   *int32                 `kms:"range=900..43200,narrows,log"`
		Tags              []Tag                  `kms:"len=0..50,open,log"`
		TransitiveTagKeys []string               `kms:"len=0..50,each.len=1..128,each.pattern=tagKey,log"`
		ExternalId        *string                `kms:"len=2..1224,pattern=externalId,log"`
		SerialNumber      *string                `kms:"len=9..256,pattern=serialNumber,log"`
		TokenCode         *string                `kms:"len=6..6,pattern=digits,nolog"`
		SourceIdentity    *string                `kms:"len=2..64,pattern=sessionName,log"`
		ProvidedContexts  []ProvidedContext      `kms:"len=1..5,open,log"`
	}

	AssumeRoleOutput struct {
		Credentials      *Credentials
		AssumedRoleUser  *AssumedRoleUser
		PackedPolicySize *int32
		SourceIdentity   *string
	}
)

// Input and output of AssumeRoleWithWebIdentity, which returns credentials for a session of a
// role to whoever has a token of a registered issuer. Its requests are not signed.
type (
	AssumeRoleWithWebIdentityInput struct {
		RoleArn          *string                `kms:"required,len=20..2048,pattern=arn,log"`
		RoleSessionName  *string                `kms:"required,len=2..64,pattern=sessionName,log"`
		WebIdentityToken *string                `kms:"required,len=4..20000,secret,nolog"`
		ProviderId       *string                `kms:"len=4..2048,log"`
		PolicyArns       []PolicyDescriptorType `kms:"narrows,log"`
		Policy           *string                `kms:"len=1..2048,pattern=policy,narrows,log"`
		DurationSeconds  *int32                 `kms:"range=900..43200,narrows,log"`
	}

	AssumeRoleWithWebIdentityOutput struct {
		Credentials                 *Credentials
		SubjectFromWebIdentityToken *string
		AssumedRoleUser             *AssumedRoleUser
		PackedPolicySize            *int32
		Provider                    *string
		Audience                    *string
		SourceIdentity              *string
	}
)

// Input and output of GetSessionToken, which returns credentials for a session of the calling
// user. Durations are in seconds.
type (
	GetSessionTokenInput struct {
		DurationSeconds *int32  `kms:"range=900..129600,narrows,log"`
		SerialNumber    *string `kms:"len=9..256,pattern=serialNumber,log"`
		TokenCode       *string `kms:"len=6..6,pattern=digits,nolog"`
	}

	GetSessionTokenOutput struct{ Credentials *Credentials }
)

// Input and output of GetAccessKeyInfo, which says which account an access key belongs to.
type (
	GetAccessKeyInfoInput struct {
		AccessKeyId *string `kms:"required,len=16..128,pattern=accessKeyId,log"`
	}

	GetAccessKeyInfoOutput struct{ Account *string }
)

// Input and output of DecodeAuthorizationMessage, which explains the encoded message of a
// denied request.
type (
	DecodeAuthorizationMessageInput struct {
		EncodedMessage *string `kms:"required,len=1..10240,nolog"`
	}

	DecodeAuthorizationMessageOutput struct{ DecodedMessage *string }
)
