package kmsapi

import "time"

// Inputs and outputs of the operations on key material: import, rotation, replication and use.

// Input and output of DeleteImportedKeyMaterial, which destroys imported key material at once.
type (
	DeleteImportedKeyMaterialInput struct {
		KeyId         *string `kms:"required,len=1..2048,pattern=ascii,log"`
		KeyMaterialId *string `kms:"len=64..64,pattern=materialId,narrows,log"`
	}

	DeleteImportedKeyMaterialOutput struct {
		KeyId         *string
		KeyMaterialId *string
	}
)

// DisableKeyRotationInput is the input of DisableKeyRotation, which disables automatic
// rotation.
type DisableKeyRotationInput struct {
	KeyId *string `kms:"required,len=1..2048,pattern=ascii,log"`
}

// EnableKeyRotationInput is the input of EnableKeyRotation, which enables automatic
// rotation.
type EnableKeyRotationInput struct {
	KeyId                *string `kms:"required,len=1..2048,pattern=ascii,log"`
	RotationPeriodInDays *int32  `kms:"range=90..2560,log"`
}

// KeyLastUsageData describes the last use of a key.
type KeyLastUsageData struct {
	Operation         *string
	Timestamp         *time.Time
	CloudTrailEventId *string
	KmsRequestId      *string
}

// Input and output of GetKeyLastUsage, which returns when a key was last used.
type (
	GetKeyLastUsageInput struct {
		KeyId *string `kms:"required,len=1..2048,pattern=ascii,log"`
	}

	GetKeyLastUsageOutput struct {
		KeyId             *string
		KeyLastUsage      *KeyLastUsageData
		TrackingStartDate *time.Time
		KeyCreationDate   *time.Time
	}
)

// Input and output of GetKeyRotationStatus, which returns whether automatic rotation is
// enabled and when the next rotation is due.
type (
	GetKeyRotationStatusInput struct {
		KeyId *string `kms:"required,len=1..2048,pattern=ascii,log"`
	}

	GetKeyRotationStatusOutput struct {
		KeyRotationEnabled        *bool
		KeyId                     *string
		RotationPeriodInDays      *int32
		NextRotationDate          *time.Time
		OnDemandRotationStartDate *time.Time
	}
)

// Input and output of GetParametersForImport, which returns what a caller needs to import
// key material.
type (
	GetParametersForImportInput struct {
		KeyId             *string `kms:"required,len=1..2048,pattern=ascii,log"`
		WrappingAlgorithm *string `kms:"required,enum=AlgorithmSpec,log"`
		WrappingKeySpec   *string `kms:"required,enum=WrappingKeySpec,log"`
	}

	GetParametersForImportOutput struct {
		KeyId             *string
		ImportToken       []byte `kms:"public"`
		PublicKey         []byte `kms:"public"`
		ParametersValidTo *time.Time
	}
)

// Input and output of ImportKeyMaterial, which imports new material into a key, or the same
// again.
type (
	ImportKeyMaterialInput struct {
		KeyId                  *string    `kms:"required,len=1..2048,pattern=ascii,log"`
		ImportToken            []byte     `kms:"required,len=1..6144,public,nolog"`
		EncryptedKeyMaterial   []byte     `kms:"required,len=1..6144,public,nolog"`
		ValidTo                *time.Time `kms:"narrows,log"`
		ExpirationModel        *string    `kms:"enum=ExpirationModelType,log"`
		ImportType             *string    `kms:"enum=ImportType,log"`
		KeyMaterialDescription *string    `kms:"len=0..256,pattern=materialDescription,log"`
		KeyMaterialId          *string    `kms:"len=64..64,pattern=materialId,log"`
	}

	ImportKeyMaterialOutput struct {
		KeyId         *string
		KeyMaterialId *string
	}
)

// RotationsListEntry is an entry of ListKeyRotations.
type RotationsListEntry struct {
	KeyId                  *string
	KeyMaterialId          *string
	KeyMaterialDescription *string
	ImportState            *string
	KeyMaterialState       *string
	ExpirationModel        *string
	ValidTo                *time.Time
	RotationDate           *time.Time
	RotationType           *string
}

// Input and output of ListKeyRotations, which lists the materials of a key.
type (
	ListKeyRotationsInput struct {
		KeyId              *string `kms:"required,len=1..2048,pattern=ascii,log"`
		IncludeKeyMaterial *string `kms:"enum=IncludeKeyMaterial,narrows,log"`
		Limit              *int32  `kms:"range=1..1000,log"`
		Marker             *string `kms:"len=1..1024,pattern=marker,log"`
	}

	ListKeyRotationsOutput struct {
		Rotations  []RotationsListEntry
		NextMarker *string
		Truncated  *bool
	}
)

// Input and output of ReplicateKey, which creates a replica of a multi-Region key in
// another Region.
type (
	ReplicateKeyInput struct {
		KeyId                          *string `kms:"required,len=1..2048,pattern=ascii,log"`
		ReplicaRegion                  *string `kms:"required,len=1..32,pattern=region,log"`
		Policy                         *string `kms:"len=1..131072,pattern=policy,narrows,log"`
		BypassPolicyLockoutSafetyCheck *bool   `kms:"log"`
		Description                    *string `kms:"len=0..8192,log"`
		Tags                           []Tag   `kms:"open,log"`
	}

	ReplicateKeyOutput struct {
		ReplicaKeyMetadata *KeyMetadata
		ReplicaPolicy      *string
		ReplicaTags        []Tag
	}
)

// Input and output of RotateKeyOnDemand, which rotates a key at once.
type (
	RotateKeyOnDemandInput struct {
		KeyId *string `kms:"required,len=1..2048,pattern=ascii,log"`
	}

	RotateKeyOnDemandOutput struct {
		KeyId *string
	}
)

// UpdatePrimaryRegionInput is the input of UpdatePrimaryRegion, which makes a replica the
// primary key and the primary key a replica.
type UpdatePrimaryRegionInput struct {
	KeyId         *string `kms:"required,len=1..2048,pattern=ascii,log"`
	PrimaryRegion *string `kms:"required,len=1..32,pattern=region,log"`
}
