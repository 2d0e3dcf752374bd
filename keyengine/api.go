package keyengine

import "time"

// The inputs and outputs of the operations, with AWS's names for the members.
// Absent members are nil. What the tags of inputs mean is said at type plan.

// Tag is a label of a key.
type Tag struct {
	TagKey   *string `kms:"required,len=1..128,log"`
	TagValue *string `kms:"required,len=0..256,log"`
}

// RecipientInfo is for enclaves, which get their answers encrypted to them.
type RecipientInfo struct {
	KeyEncryptionAlgorithm *string `kms:"enum=KeyEncryptionMechanism,log"`
	AttestationDocument    []byte  `kms:"len=1..262144,nolog"`
}

// KeyMetadata describes a key.
type KeyMetadata struct {
	AWSAccountId          *string
	KeyId                 *string
	Arn                   *string
	CreationDate          *time.Time
	Enabled               *bool
	Description           *string
	KeyUsage              *string
	KeyState              *string
	DeletionDate          *time.Time
	Origin                *string
	KeyManager            *string
	CustomerMasterKeySpec *string
	KeySpec               *string
	EncryptionAlgorithms  []string
	MultiRegion           *bool
	CurrentKeyMaterialId  *string
}

type CreateKeyInput struct {
	Policy                         *string `kms:"len=1..131072,pattern=policy,log"`
	Description                    *string `kms:"len=0..8192,log"`
	KeyUsage                       *string `kms:"enum=KeyUsageType,log"`
	CustomerMasterKeySpec          *string `kms:"enum=CustomerMasterKeySpec,log"`
	KeySpec                        *string `kms:"enum=KeySpec,log"`
	Origin                         *string `kms:"enum=OriginType,default=AWS_KMS,log"`
	CustomKeyStoreId               *string `kms:"len=1..64,log"`
	BypassPolicyLockoutSafetyCheck *bool   `kms:"default=false,log"`
	Tags                           []Tag   `kms:"log"`
	MultiRegion                    *bool   `kms:"default=false,log"`
	XksKeyId                       *string `kms:"len=1..128,pattern=xksKeyId,log"`
}

type CreateKeyOutput struct{ KeyMetadata *KeyMetadata }

type DescribeKeyInput struct {
	KeyId       *string  `kms:"required,len=1..2048,log"`
	GrantTokens []string `kms:"len=0..10,each.len=1..8192,nolog"`
}

type DescribeKeyOutput struct{ KeyMetadata *KeyMetadata }

type ListKeysInput struct {
	Limit  *int32  `kms:"range=1..1000,log"`
	Marker *string `kms:"len=1..1024,log"`
}

// KeyListEntry names a key.
type KeyListEntry struct{ KeyId, KeyArn *string }

type ListKeysOutput struct {
	Keys       []KeyListEntry
	NextMarker *string
	Truncated  *bool
}

type UpdateKeyDescriptionInput struct {
	KeyId       *string `kms:"required,len=1..2048,log"`
	Description *string `kms:"required,len=0..8192,log"`
}

type EnableKeyInput struct {
	KeyId *string `kms:"required,len=1..2048,log"`
}

type DisableKeyInput struct {
	KeyId *string `kms:"required,len=1..2048,log"`
}

// ScheduleKeyDeletionInput: the model lets PendingWindowInDays be 1 to 365, the
// service takes 7 to 30.
type ScheduleKeyDeletionInput struct {
	KeyId               *string `kms:"required,len=1..2048,log"`
	PendingWindowInDays *int32  `kms:"range=7..30,default=30,log"`
}

type ScheduleKeyDeletionOutput struct {
	KeyId               *string
	DeletionDate        *time.Time
	KeyState            *string
	PendingWindowInDays *int32
}

type CancelKeyDeletionInput struct {
	KeyId *string `kms:"required,len=1..2048,log"`
}

type CancelKeyDeletionOutput struct{ KeyId *string }

type CreateAliasInput struct {
	AliasName   *string `kms:"required,len=1..256,pattern=alias,log"`
	TargetKeyId *string `kms:"required,len=1..2048,log"`
}

type UpdateAliasInput struct {
	AliasName   *string `kms:"required,len=1..256,pattern=alias,log"`
	TargetKeyId *string `kms:"required,len=1..2048,log"`
}

type DeleteAliasInput struct {
	AliasName *string `kms:"required,len=1..256,pattern=alias,log"`
}

type ListAliasesInput struct {
	KeyId  *string `kms:"len=1..2048,log"`
	Limit  *int32  `kms:"range=1..1000,log"`
	Marker *string `kms:"len=1..1024,log"`
}

// AliasListEntry describes an alias.
type AliasListEntry struct {
	AliasName       *string
	AliasArn        *string
	TargetKeyId     *string
	CreationDate    *time.Time
	LastUpdatedDate *time.Time
}

type ListAliasesOutput struct {
	Aliases    []AliasListEntry
	NextMarker *string
	Truncated  *bool
}

type TagResourceInput struct {
	KeyId *string `kms:"required,len=1..2048,log"`
	Tags  []Tag   `kms:"required,log"`
}

type UntagResourceInput struct {
	KeyId   *string  `kms:"required,len=1..2048,log"`
	TagKeys []string `kms:"required,each.len=1..128,log"`
}

type ListResourceTagsInput struct {
	KeyId  *string `kms:"required,len=1..2048,log"`
	Limit  *int32  `kms:"range=1..1000,log"`
	Marker *string `kms:"len=1..1024,log"`
}

type ListResourceTagsOutput struct {
	Tags       []Tag
	NextMarker *string
	Truncated  *bool
}

type GetKeyPolicyInput struct {
	KeyId      *string `kms:"required,len=1..2048,log"`
	PolicyName *string `kms:"len=1..128,pattern=policyName,default=default,log"`
}

type GetKeyPolicyOutput struct {
	Policy     *string
	PolicyName *string
}

type PutKeyPolicyInput struct {
	KeyId                          *string `kms:"required,len=1..2048,log"`
	PolicyName                     *string `kms:"len=1..128,pattern=policyName,default=default,log"`
	Policy                         *string `kms:"required,len=1..131072,pattern=policy,log"`
	BypassPolicyLockoutSafetyCheck *bool   `kms:"default=false,log"`
}

type ListKeyPoliciesInput struct {
	KeyId  *string `kms:"required,len=1..2048,log"`
	Limit  *int32  `kms:"range=1..1000,log"`
	Marker *string `kms:"len=1..1024,log"`
}

type ListKeyPoliciesOutput struct {
	PolicyNames []string
	NextMarker  *string
	Truncated   *bool
}

// EncryptInput: an encryption context may have 8192 bytes. AWS states no limit
// of its own for it; this one leaves an audit record, which shows it, far from
// the size where it would be cut.
type EncryptInput struct {
	KeyId               *string           `kms:"required,len=1..2048,log"`
	Plaintext           []byte            `kms:"required,len=1..4096,nolog"`
	EncryptionContext   map[string]string `kms:"total=8192,log"`
	GrantTokens         []string          `kms:"len=0..10,each.len=1..8192,nolog"`
	EncryptionAlgorithm *string           `kms:"enum=EncryptionAlgorithmSpec,default=SYMMETRIC_DEFAULT,log"`
	DryRun              *bool             `kms:"log"`
}

type EncryptOutput struct {
	CiphertextBlob      []byte
	KeyId               *string
	EncryptionAlgorithm *string
}

type DecryptInput struct {
	CiphertextBlob      []byte            `kms:"len=1..6144,nolog"`
	EncryptionContext   map[string]string `kms:"total=8192,log"`
	GrantTokens         []string          `kms:"len=0..10,each.len=1..8192,nolog"`
	KeyId               *string           `kms:"len=1..2048,log"`
	EncryptionAlgorithm *string           `kms:"enum=EncryptionAlgorithmSpec,default=SYMMETRIC_DEFAULT,log"`
	Recipient           *RecipientInfo    `kms:"nolog"`
	DryRun              *bool             `kms:"log"`
	DryRunModifiers     []string          `kms:"each.enum=DryRunModifierType,log"`
}

type DecryptOutput struct {
	KeyId               *string
	Plaintext           []byte
	EncryptionAlgorithm *string
	KeyMaterialId       *string
}

type ReEncryptInput struct {
	CiphertextBlob                 []byte            `kms:"len=1..6144,nolog"`
	SourceEncryptionContext        map[string]string `kms:"total=8192,log"`
	SourceKeyId                    *string           `kms:"len=1..2048,log"`
	DestinationKeyId               *string           `kms:"required,len=1..2048,log"`
	DestinationEncryptionContext   map[string]string `kms:"total=8192,log"`
	SourceEncryptionAlgorithm      *string           `kms:"enum=EncryptionAlgorithmSpec,default=SYMMETRIC_DEFAULT,log"`
	DestinationEncryptionAlgorithm *string           `kms:"enum=EncryptionAlgorithmSpec,default=SYMMETRIC_DEFAULT,log"`
	GrantTokens                    []string          `kms:"len=0..10,each.len=1..8192,nolog"`
	DryRun                         *bool             `kms:"log"`
	DryRunModifiers                []string          `kms:"each.enum=DryRunModifierType,log"`
}

type ReEncryptOutput struct {
	CiphertextBlob                 []byte
	SourceKeyId                    *string
	KeyId                          *string
	SourceEncryptionAlgorithm      *string
	DestinationEncryptionAlgorithm *string
	SourceKeyMaterialId            *string
	DestinationKeyMaterialId       *string
}

type GenerateDataKeyInput struct {
	KeyId             *string           `kms:"required,len=1..2048,log"`
	EncryptionContext map[string]string `kms:"total=8192,log"`
	NumberOfBytes     *int32            `kms:"range=1..1024,log"`
	KeySpec           *string           `kms:"enum=DataKeySpec,log"`
	GrantTokens       []string          `kms:"len=0..10,each.len=1..8192,nolog"`
	Recipient         *RecipientInfo    `kms:"nolog"`
	DryRun            *bool             `kms:"log"`
}

type GenerateDataKeyOutput struct {
	CiphertextBlob []byte
	Plaintext      []byte
	KeyId          *string
	KeyMaterialId  *string
}

type GenerateDataKeyWithoutPlaintextInput struct {
	KeyId             *string           `kms:"required,len=1..2048,log"`
	EncryptionContext map[string]string `kms:"total=8192,log"`
	KeySpec           *string           `kms:"enum=DataKeySpec,log"`
	NumberOfBytes     *int32            `kms:"range=1..1024,log"`
	GrantTokens       []string          `kms:"len=0..10,each.len=1..8192,nolog"`
	DryRun            *bool             `kms:"log"`
}

type GenerateDataKeyWithoutPlaintextOutput struct {
	CiphertextBlob []byte
	KeyId          *string
	KeyMaterialId  *string
}

// GenerateRandomInput: CloudTrail shows nothing of it.
type GenerateRandomInput struct {
	NumberOfBytes    *int32         `kms:"range=1..1024,nolog"`
	CustomKeyStoreId *string        `kms:"len=1..64,nolog"`
	Recipient        *RecipientInfo `kms:"nolog"`
}

type GenerateRandomOutput struct{ Plaintext []byte }
