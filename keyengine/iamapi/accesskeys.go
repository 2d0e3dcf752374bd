package iamapi

import "time"

// Access keys of users.

// AccessKey is an access key together with its secret, which is returned only once.
type AccessKey struct {
	UserName        *string
	AccessKeyId     *string
	Status          *string
	SecretAccessKey *string `kms:"secret"`
	CreateDate      *time.Time
}

// Input and output of CreateAccessKey, which creates an access key for a user, or for the
// caller if it names none.
type (
	CreateAccessKeyInput struct {
		UserName *string `kms:"len=1..128,pattern=entityName,log"`
	}

	CreateAccessKeyOutput struct{ AccessKey *AccessKey }
)

// AccessKeyMetadata describes an access key.
type AccessKeyMetadata struct {
	UserName    *string
	AccessKeyId *string
	Status      *string
	CreateDate  *time.Time
}

// Input and output of ListAccessKeys, which lists the access keys of a user, or the caller's
// own if it names none.
type (
	ListAccessKeysInput struct {
		UserName *string `kms:"len=1..128,pattern=entityName,log"`
		Marker   *string `kms:"len=1..320,pattern=iamMarker,log"`
		MaxItems *int32  `kms:"range=1..1000,log"`
	}

	ListAccessKeysOutput struct {
		AccessKeyMetadata []AccessKeyMetadata
		IsTruncated       *bool
		Marker            *string
	}
)

// UpdateAccessKeyInput is the input of UpdateAccessKey, which makes an access key active or
// inactive.
type UpdateAccessKeyInput struct {
	UserName    *string `kms:"len=1..128,pattern=entityName,log"`
	AccessKeyId *string `kms:"required,len=16..128,pattern=id,log"`
	Status      *string `kms:"required,enum=statusType,log"`
}

// DeleteAccessKeyInput is the input of DeleteAccessKey, which deletes an access key.
type DeleteAccessKeyInput struct {
	UserName    *string `kms:"len=1..128,pattern=entityName,log"`
	AccessKeyId *string `kms:"required,len=16..128,pattern=id,log"`
}

// AccessKeyLastUsed says when and for what an access key was last used.
type AccessKeyLastUsed struct {
	LastUsedDate *time.Time
	ServiceName  *string
	Region       *string
}

// Input and output of GetAccessKeyLastUsed, which says when an access key was last used.
type (
	GetAccessKeyLastUsedInput struct {
		AccessKeyId *string `kms:"required,len=16..128,pattern=id,log"`
	}

	GetAccessKeyLastUsedOutput struct {
		UserName          *string
		AccessKeyLastUsed *AccessKeyLastUsed
	}
)
