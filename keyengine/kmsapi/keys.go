package kmsapi

import "time"

// Inputs and outputs of the operations on keys, aliases, tags and policies, and of encryption.

// Tag is a tag of a key.
type Tag struct {
	TagKey   *string `kms:"required,len=1..128,log"`
	TagValue *string `kms:"required,len=0..256,log"`
}

// RecipientInfo describes an enclave to which the answer is to be encrypted.
type RecipientInfo struct {
	KeyEncryptionAlgorithm *string `kms:"enum=KeyEncryptionMechanism,log"`
	AttestationDocument    []byte  `kms:"len=1..262144,public,nolog"`
}

// KeyMetadata describes a key.
type KeyMetadata struct {
	AWSAccountId                *string
	KeyId                       *string
	Arn                         *string
	CreationDate                *time.Time
	Enabled                     *bool
	Description                 *string
	KeyUsage                    *string
	KeyState                    *string
	DeletionDate                *time.Time
	ValidTo                     *time.Time
	Origin                      *string
	CustomKeyStoreId            *string
	CloudHsmClusterId           *string
	ExpirationModel             *string
	KeyManager                  *string
	CustomerMasterKeySpec       *string
	KeySpec                     *string
	EncryptionAlgorithms        []string
	SigningAlgorithms           []string
	KeyAgreementAlgorithms      []string
	EncapsulationAlgorithms     []string
	MultiRegion                 *bool
	MultiRegionConfiguration    *MultiRegionConfiguration
	PendingDeletionWindowInDays *int32
	MacAlgorithms               []string
	XksKeyConfiguration         *XksKeyConfiguration
	CurrentKeyMaterialId        *string
}

// Input and output of CreateKey, which creates a key.
type (
	CreateKeyInput struct {
		Policy                         *string `kms:"len=1..131072,pattern=policy,narrows,log"`
		Description                    *string `kms:"len=0..8192,log"`
		KeyUsage                       *string `kms:"enum=KeyUsageType,log"`
		CustomerMasterKeySpec          *string `kms:"enum=CustomerMasterKeySpec,log"`
		KeySpec                        *string `kms:"enum=KeySpec,log"`
		Origin                         *string `kms:"enum=OriginType,default=AWS_KMS,log"`
		CustomKeyStoreId               *string `kms:"len=1..64,log"`
		BypassPolicyLockoutSafetyCheck *bool   `kms:"default=false,log"`
		Tags                           []Tag   `kms:"open,log"`
		MultiRegion                    *bool   `kms:"default=false,log"`
		XksKeyId                       *string `kms:"len=1..128,pattern=xksKeyId,log"`
	}

	CreateKeyOutput struct{ KeyMetadata *KeyMetadata }
)

// Input and output of DescribeKey, which returns the metadata of a key.
type (
	DescribeKeyInput struct {
		KeyId       *string  `kms:"required,len=1..2048,pattern=ascii,log"`
		GrantTokens []string `kms:"len=0..10,each.len=1..8192,nolog"`
	}

	DescribeKeyOutput struct{ KeyMetadata *KeyMetadata }
)

// KeyListEntry is an entry of ListKeys.
type KeyListEntry struct{ KeyId, KeyArn *string }

// Input and output of ListKeys, which lists all keys of the account.
type (
	ListKeysInput struct {
		Limit  *int32  `kms:"range=1..1000,log"`
		Marker *string `kms:"len=1..1024,pattern=marker,log"`
	}

	ListKeysOutput struct {
		Keys       []KeyListEntry
		NextMarker *string
		Truncated  *bool
	}
)

// UpdateKeyDescriptionInput is the input of UpdateKeyDescription.
type UpdateKeyDescriptionInput struct {
	KeyId       *string `kms:"required,len=1..2048,pattern=ascii,log"`
	Description *string `kms:"required,len=0..8192,log"`
}

// EnableKeyInput is the input of EnableKey, which lets a key be used.
type EnableKeyInput struct {
	KeyId *string `kms:"required,len=1..2048,pattern=ascii,log"`
}

// DisableKeyInput is the input of DisableKey, which keeps a key from being used.
type DisableKeyInput struct {
	KeyId *string `kms:"required,len=1..2048,pattern=ascii,log"`
}

// Input and output of ScheduleKeyDeletion, which schedules the deletion of a key after a
// waiting period in days. The service model permits 1 to 365 days, the service 7 to 30.
type (
	ScheduleKeyDeletionInput struct {
		KeyId               *string `kms:"required,len=1..2048,pattern=ascii,log"`
		PendingWindowInDays *int32  `kms:"range=7..30,default=30,log"`
	}

	ScheduleKeyDeletionOutput struct {
		KeyId               *string
		DeletionDate        *time.Time
		KeyState            *string
		PendingWindowInDays *int32
	}
)

// Input and output of CancelKeyDeletion, which cancels ScheduleKeyDeletion. The key is then
// disabled.
type (
	CancelKeyDeletionInput struct {
		KeyId *string `kms:"required,len=1..2048,pattern=ascii,log"`
	}

	CancelKeyDeletionOutput struct{ KeyId *string }
)

// CreateAliasInput is the input of CreateAlias, which creates an alias for a key.
type CreateAliasInput struct {
	AliasName   *string `kms:"required,len=1..256,pattern=alias,log"`
	TargetKeyId *string `kms:"required,len=1..2048,pattern=ascii,log"`
}

// UpdateAliasInput is the input of UpdateAlias, which assigns an alias to another key.
type UpdateAliasInput struct {
	AliasName   *string `kms:"required,len=1..256,pattern=alias,log"`
	TargetKeyId *string `kms:"required,len=1..2048,pattern=ascii,log"`
}

// DeleteAliasInput is the input of DeleteAlias.
type DeleteAliasInput struct {
	AliasName *string `kms:"required,len=1..256,pattern=alias,log"`
}

// AliasListEntry is an entry of ListAliases.
type AliasListEntry struct {
	AliasName       *string
	AliasArn        *string
	TargetKeyId     *string
	CreationDate    *time.Time
	LastUpdatedDate *time.Time
}

// Input and output of ListAliases, which lists the aliases of the account or of a key.
type (
	ListAliasesInput struct {
		KeyId  *string `kms:"len=1..2048,pattern=ascii,narrows,log"`
		Limit  *int32  `kms:"range=1..1000,log"`
		Marker *string `kms:"len=1..1024,pattern=marker,log"`
	}

	ListAliasesOutput struct {
		Aliases    []AliasListEntry
		NextMarker *string
		Truncated  *bool
	}
)

// TagResourceInput is the input of TagResource, which adds or overwrites tags of a key.
type TagResourceInput struct {
	KeyId *string `kms:"required,len=1..2048,pattern=ascii,log"`
	Tags  []Tag   `kms:"required,open,log"`
}

// UntagResourceInput is the input of UntagResource, which removes tags of a key.
type UntagResourceInput struct {
	KeyId   *string  `kms:"required,len=1..2048,pattern=ascii,log"`
	TagKeys []string `kms:"required,each.len=1..128,log"`
}

// Input and output of ListResourceTags.
type (
	ListResourceTagsInput struct {
		KeyId  *string `kms:"required,len=1..2048,pattern=ascii,log"`
		Limit  *int32  `kms:"range=1..1000,log"`
		Marker *string `kms:"len=1..1024,pattern=marker,log"`
	}

	ListResourceTagsOutput struct {
		Tags       []Tag
		NextMarker *string
		Truncated  *bool
	}
)

// Input and output of GetKeyPolicy.
type (
	GetKeyPolicyInput struct {
		KeyId      *string `kms:"required,len=1..2048,pattern=ascii,log"`
		PolicyName *string `kms:"len=1..128,pattern=policyName,default=default,log"`
	}

	GetKeyPolicyOutput struct {
		Policy     *string
		PolicyName *string
	}
)

// PutKeyPolicyInput is the input of PutKeyPolicy, which replaces the policy of a key.
type PutKeyPolicyInput struct {
	KeyId                          *string `kms:"required,len=1..2048,pattern=ascii,log"`
	PolicyName                     *string `kms:"len=1..128,pattern=policyName,default=default,log"`
	Policy                         *string `kms:"required,len=1..131072,pattern=policy,narrows,log"`
	BypassPolicyLockoutSafetyCheck *bool   `kms:"default=false,log"`
}

// Input and output of ListKeyPolicies. A key has one policy, named default.
type (
	ListKeyPoliciesInput struct {
		KeyId  *string `kms:"required,len=1..2048,pattern=ascii,log"`
		Limit  *int32  `kms:"range=1..1000,log"`
		Marker *string `kms:"len=1..1024,pattern=marker,log"`
	}

	ListKeyPoliciesOutput struct {
		PolicyNames []string
		NextMarker  *string
		Truncated   *bool
	}
)

// Input and output of Encrypt. An encryption context is limited to 8192 bytes. AWS
// documents no limit; this one keeps audit records, which contain it, far below the size at
// which they would be truncated.
type (
	EncryptInput struct {
		KeyId               *string           `kms:"required,len=1..2048,pattern=ascii,log"`
		Plaintext           []byte            `kms:"required,len=1..4096,secret,nolog"`
		EncryptionContext   map[string]string `kms:"total=8192,narrows,log"`
		GrantTokens         []string          `kms:"len=0..10,each.len=1..8192,nolog"`
		EncryptionAlgorithm *string           `kms:"enum=EncryptionAlgorithmSpec,default=SYMMETRIC_DEFAULT,log"`
		DryRun              *bool             `kms:"narrows,log"`
	}

	EncryptOutput struct {
		CiphertextBlob      []byte `kms:"public"`
		KeyId               *string
		EncryptionAlgorithm *string
	}
)

// Input and output of Decrypt.
type (
	DecryptInput struct {
		CiphertextBlob      []byte            `kms:"len=1..6144,public,nolog"`
		EncryptionContext   map[string]string `kms:"total=8192,narrows,log"`
		GrantTokens         []string          `kms:"len=0..10,each.len=1..8192,nolog"`
		KeyId               *string           `kms:"len=1..2048,pattern=ascii,narrows,log"`
		EncryptionAlgorithm *string           `kms:"enum=EncryptionAlgorithmSpec,default=SYMMETRIC_DEFAULT,log"`
		Recipient           *RecipientInfo    `kms:"narrows,nolog"`
		DryRun              *bool             `kms:"narrows,log"`
		DryRunModifiers     []string          `kms:"each.enum=DryRunModifierType,narrows,log"`
	}

	DecryptOutput struct {
		KeyId                  *string
		Plaintext              []byte `kms:"secret"`
		EncryptionAlgorithm    *string
		CiphertextForRecipient []byte `kms:"public"`
		KeyMaterialId          *string
	}
)

// Input and output of ReEncrypt, which decrypts under one key and encrypts under another.
type (
	ReEncryptInput struct {
		CiphertextBlob                 []byte            `kms:"len=1..6144,public,nolog"`
		SourceEncryptionContext        map[string]string `kms:"total=8192,narrows,log"`
		SourceKeyId                    *string           `kms:"len=1..2048,pattern=ascii,narrows,log"`
		DestinationKeyId               *string           `kms:"required,len=1..2048,pattern=ascii,log"`
		DestinationEncryptionContext   map[string]string `kms:"total=8192,narrows,log"`
		SourceEncryptionAlgorithm      *string           `kms:"enum=EncryptionAlgorithmSpec,default=SYMMETRIC_DEFAULT,log"`
		DestinationEncryptionAlgorithm *string           `kms:"enum=EncryptionAlgorithmSpec,default=SYMMETRIC_DEFAULT,log"`
		GrantTokens                    []string          `kms:"len=0..10,each.len=1..8192,nolog"`
		DryRun                         *bool             `kms:"narrows,log"`
		DryRunModifiers                []string          `kms:"each.enum=DryRunModifierType,narrows,log"`
	}

	ReEncryptOutput struct {
		CiphertextBlob                 []byte `kms:"public"`
		SourceKeyId                    *string
		KeyId                          *string
		SourceEncryptionAlgorithm      *string
		DestinationEncryptionAlgorithm *string
		SourceKeyMaterialId            *string
		DestinationKeyMaterialId       *string
	}
)

// Input and output of GenerateDataKey, which generates a key for use outside and returns it
// in the clear and encrypted.
type (
	GenerateDataKeyInput struct {
		KeyId             *string           `kms:"required,len=1..2048,pattern=ascii,log"`
		EncryptionContext map[string]string `kms:"total=8192,narrows,log"`
		NumberOfBytes     *int32            `kms:"range=1..1024,log"`
		KeySpec           *string           `kms:"enum=DataKeySpec,log"`
		GrantTokens       []string          `kms:"len=0..10,each.len=1..8192,nolog"`
		Recipient         *RecipientInfo    `kms:"narrows,nolog"`
		DryRun            *bool             `kms:"narrows,log"`
	}

	GenerateDataKeyOutput struct {
		CiphertextBlob         []byte `kms:"public"`
		Plaintext              []byte `kms:"secret"`
		KeyId                  *string
		CiphertextForRecipient []byte `kms:"public"`
		KeyMaterialId          *string
	}
)

// Input and output of GenerateDataKeyWithoutPlaintext, which generates a key for use
// outside and returns it encrypted only.
type (
	GenerateDataKeyWithoutPlaintextInput struct {
		KeyId             *string           `kms:"required,len=1..2048,pattern=ascii,log"`
		EncryptionContext map[string]string `kms:"total=8192,narrows,log"`
		KeySpec           *string           `kms:"enum=DataKeySpec,log"`
		NumberOfBytes     *int32            `kms:"range=1..1024,log"`
		GrantTokens       []string          `kms:"len=0..10,each.len=1..8192,nolog"`
		DryRun            *bool             `kms:"narrows,log"`
	}

	GenerateDataKeyWithoutPlaintextOutput struct {
		CiphertextBlob []byte `kms:"public"`
		KeyId          *string
		KeyMaterialId  *string
	}
)

// Input and output of GenerateRandom. CloudTrail records none of their members.
type (
	GenerateRandomInput struct {
		NumberOfBytes    *int32         `kms:"range=1..1024,nolog"`
		CustomKeyStoreId *string        `kms:"len=1..64,nolog"`
		Recipient        *RecipientInfo `kms:"narrows,nolog"`
	}

	GenerateRandomOutput struct {
		Plaintext              []byte `kms:"secret"`
		CiphertextForRecipient []byte `kms:"public"`
	}
)

// MultiRegionKey is one key of a multi-Region set.
type MultiRegionKey struct{ Arn, Region *string }

// MultiRegionConfiguration describes a multi-Region set.
type MultiRegionConfiguration struct {
	MultiRegionKeyType *string
	PrimaryKey         *MultiRegionKey
	ReplicaKeys        []MultiRegionKey
}

// XksKeyConfiguration is a key in an external key store.
type XksKeyConfiguration struct{ Id *string }
