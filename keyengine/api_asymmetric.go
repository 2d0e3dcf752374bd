package keyengine

// Inputs and outputs of the operations on signatures, MACs, key agreement and key pairs.

// Input and output of DeriveSharedSecret, which agrees on a secret with the holder of another key.
type (
	DeriveSharedSecretInput struct {
		KeyId                 *string        `kms:"required,len=1..2048,log"`
		KeyAgreementAlgorithm *string        `kms:"required,enum=KeyAgreementAlgorithmSpec,log"`
		PublicKey             []byte         `kms:"required,len=1..8192,nolog"`
		GrantTokens           []string       `kms:"len=0..10,each.len=1..8192,nolog"`
		DryRun                *bool          `kms:"log"`
		Recipient             *RecipientInfo `kms:"nolog"`
	}

	DeriveSharedSecretOutput struct {
		KeyId                  *string
		SharedSecret           []byte
		CiphertextForRecipient []byte
		KeyAgreementAlgorithm  *string
		KeyOrigin              *string
	}
)

// Input and output of GenerateDataKeyPair, which makes a key pair for use elsewhere, the private key in the clear and encrypted.
type (
	GenerateDataKeyPairInput struct {
		EncryptionContext map[string]string `kms:"total=8192,log"`
		KeyId             *string           `kms:"required,len=1..2048,log"`
		KeyPairSpec       *string           `kms:"required,enum=DataKeyPairSpec,log"`
		GrantTokens       []string          `kms:"len=0..10,each.len=1..8192,nolog"`
		Recipient         *RecipientInfo    `kms:"nolog"`
		DryRun            *bool             `kms:"log"`
	}

	GenerateDataKeyPairOutput struct {
		PrivateKeyCiphertextBlob []byte
		PrivateKeyPlaintext      []byte
		PublicKey                []byte
		KeyId                    *string
		KeyPairSpec              *string
		CiphertextForRecipient   []byte
		KeyMaterialId            *string
	}
)

// Input and output of GenerateDataKeyPairWithoutPlaintext, which makes a key pair for use elsewhere, the private key encrypted only.
type (
	GenerateDataKeyPairWithoutPlaintextInput struct {
		EncryptionContext map[string]string `kms:"total=8192,log"`
		KeyId             *string           `kms:"required,len=1..2048,log"`
		KeyPairSpec       *string           `kms:"required,enum=DataKeyPairSpec,log"`
		GrantTokens       []string          `kms:"len=0..10,each.len=1..8192,nolog"`
		DryRun            *bool             `kms:"log"`
	}

	GenerateDataKeyPairWithoutPlaintextOutput struct {
		PrivateKeyCiphertextBlob []byte
		PublicKey                []byte
		KeyId                    *string
		KeyPairSpec              *string
		KeyMaterialId            *string
	}
)

// Input and output of GenerateMac, which authenticates a message.
type (
	GenerateMacInput struct {
		Message      []byte   `kms:"required,len=1..4096,nolog"`
		KeyId        *string  `kms:"required,len=1..2048,log"`
		MacAlgorithm *string  `kms:"required,enum=MacAlgorithmSpec,log"`
		GrantTokens  []string `kms:"len=0..10,each.len=1..8192,nolog"`
		DryRun       *bool    `kms:"log"`
	}

	GenerateMacOutput struct {
		Mac          []byte
		MacAlgorithm *string
		KeyId        *string
	}
)

// Input and output of GetPublicKey, which gives out the public half of an asymmetric key.
type (
	GetPublicKeyInput struct {
		KeyId       *string  `kms:"required,len=1..2048,log"`
		GrantTokens []string `kms:"len=0..10,each.len=1..8192,nolog"`
	}

	GetPublicKeyOutput struct {
		KeyId                  *string
		PublicKey              []byte
		CustomerMasterKeySpec  *string
		KeySpec                *string
		KeyUsage               *string
		EncryptionAlgorithms   []string
		SigningAlgorithms      []string
		KeyAgreementAlgorithms []string
	}
)

// Input and output of Sign, which signs a message or its digest.
type (
	SignInput struct {
		KeyId            *string  `kms:"required,len=1..2048,log"`
		Message          []byte   `kms:"required,len=1..4096,nolog"`
		MessageType      *string  `kms:"enum=MessageType,log"`
		GrantTokens      []string `kms:"len=0..10,each.len=1..8192,nolog"`
		SigningAlgorithm *string  `kms:"required,enum=SigningAlgorithmSpec,log"`
		DryRun           *bool    `kms:"log"`
	}

	SignOutput struct {
		KeyId            *string
		Signature        []byte
		SigningAlgorithm *string
	}
)

// Input and output of Verify, which checks what Sign made.
type (
	VerifyInput struct {
		KeyId            *string  `kms:"required,len=1..2048,log"`
		Message          []byte   `kms:"required,len=1..4096,nolog"`
		MessageType      *string  `kms:"enum=MessageType,log"`
		Signature        []byte   `kms:"required,len=1..6144,nolog"`
		SigningAlgorithm *string  `kms:"required,enum=SigningAlgorithmSpec,log"`
		GrantTokens      []string `kms:"len=0..10,each.len=1..8192,nolog"`
		DryRun           *bool    `kms:"log"`
	}

	VerifyOutput struct {
		KeyId            *string
		SignatureValid   *bool
		SigningAlgorithm *string
	}
)

// Input and output of VerifyMac, which checks what GenerateMac made.
type (
	VerifyMacInput struct {
		Message      []byte   `kms:"required,len=1..4096,nolog"`
		KeyId        *string  `kms:"required,len=1..2048,log"`
		MacAlgorithm *string  `kms:"required,enum=MacAlgorithmSpec,log"`
		Mac          []byte   `kms:"required,len=1..6144,nolog"`
		GrantTokens  []string `kms:"len=0..10,each.len=1..8192,nolog"`
		DryRun       *bool    `kms:"log"`
	}

	VerifyMacOutput struct {
		KeyId        *string
		MacValid     *bool
		MacAlgorithm *string
	}
)
