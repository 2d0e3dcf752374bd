package kmsapi

// Inputs and outputs of the operations on signatures, MACs, key agreement, encapsulation
// and key pairs.

// Input and output of Encapsulate, which generates a secret and its ciphertext for the
// holder of the key.
type (
	EncapsulateInput struct {
		KeyId                  *string  `kms:"required,len=1..2048,pattern=ascii,log"`
		EncapsulationAlgorithm *string  `kms:"required,enum=EncapsulationAlgorithmSpec,log"`
		GrantTokens            []string `kms:"len=0..10,each.len=1..8192,nolog"`
		DryRun                 *bool    `kms:"narrows,log"`
	}

	EncapsulateOutput struct {
		KeyId                      *string
		SharedSecret               []byte `kms:"secret"`
		SharedSecretCiphertextBlob []byte `kms:"public"`
		EncapsulationAlgorithm     *string
	}
)

// Input and output of Decapsulate, which returns the secret of a ciphertext that was
// encapsulated to the key, here or elsewhere.
type (
	DecapsulateInput struct {
		KeyId                      *string  `kms:"required,len=1..2048,pattern=ascii,log"`
		SharedSecretCiphertextBlob []byte   `kms:"required,len=1..6144,public,nolog"`
		EncapsulationAlgorithm     *string  `kms:"required,enum=EncapsulationAlgorithmSpec,log"`
		GrantTokens                []string `kms:"len=0..10,each.len=1..8192,nolog"`
		DryRun                     *bool    `kms:"narrows,log"`
	}

	DecapsulateOutput struct {
		KeyId                  *string
		SharedSecret           []byte `kms:"secret"`
		EncapsulationAlgorithm *string
	}
)

// Input and output of DeriveSharedSecret, which agrees on a secret with the holder of another key.
type (
	DeriveSharedSecretInput struct {
		KeyId                 *string        `kms:"required,len=1..2048,pattern=ascii,log"`
		KeyAgreementAlgorithm *string        `kms:"required,enum=KeyAgreementAlgorithmSpec,log"`
		PublicKey             []byte         `kms:"required,len=1..8192,public,nolog"`
		GrantTokens           []string       `kms:"len=0..10,each.len=1..8192,nolog"`
		DryRun                *bool          `kms:"narrows,log"`
		Recipient             *RecipientInfo `kms:"narrows,nolog"`
	}

	DeriveSharedSecretOutput struct {
		KeyId                  *string
		SharedSecret           []byte `kms:"secret"`
		CiphertextForRecipient []byte `kms:"public"`
		KeyAgreementAlgorithm  *string
		KeyOrigin              *string
	}
)

// Input and output of GenerateDataKeyPair, which generates a key pair for use outside and
// returns the private key in the clear and encrypted.
type (
	GenerateDataKeyPairInput struct {
		EncryptionContext map[string]string `kms:"total=8192,narrows,log"`
		KeyId             *string           `kms:"required,len=1..2048,pattern=ascii,log"`
		KeyPairSpec       *string           `kms:"required,enum=DataKeyPairSpec,log"`
		GrantTokens       []string          `kms:"len=0..10,each.len=1..8192,nolog"`
		Recipient         *RecipientInfo    `kms:"narrows,nolog"`
		DryRun            *bool             `kms:"narrows,log"`
	}

	GenerateDataKeyPairOutput struct {
		PrivateKeyCiphertextBlob []byte `kms:"public"`
		PrivateKeyPlaintext      []byte `kms:"secret"`
		PublicKey                []byte `kms:"public"`
		KeyId                    *string
		KeyPairSpec              *string
		CiphertextForRecipient   []byte `kms:"public"`
		KeyMaterialId            *string
	}
)

// Input and output of GenerateDataKeyPairWithoutPlaintext, which generates a key pair for
// use outside and returns the private key encrypted only.
type (
	GenerateDataKeyPairWithoutPlaintextInput struct {
		EncryptionContext map[string]string `kms:"total=8192,narrows,log"`
		KeyId             *string           `kms:"required,len=1..2048,pattern=ascii,log"`
		KeyPairSpec       *string           `kms:"required,enum=DataKeyPairSpec,log"`
		GrantTokens       []string          `kms:"len=0..10,each.len=1..8192,nolog"`
		DryRun            *bool             `kms:"narrows,log"`
	}

	GenerateDataKeyPairWithoutPlaintextOutput struct {
		PrivateKeyCiphertextBlob []byte `kms:"public"`
		PublicKey                []byte `kms:"public"`
		KeyId                    *string
		KeyPairSpec              *string
		KeyMaterialId            *string
	}
)

// Input and output of GenerateMac, which authenticates a message.
type (
	GenerateMacInput struct {
		Message      []byte   `kms:"required,len=1..4096,secret,nolog"`
		KeyId        *string  `kms:"required,len=1..2048,pattern=ascii,log"`
		MacAlgorithm *string  `kms:"required,enum=MacAlgorithmSpec,log"`
		GrantTokens  []string `kms:"len=0..10,each.len=1..8192,nolog"`
		DryRun       *bool    `kms:"narrows,log"`
	}

	GenerateMacOutput struct {
		Mac          []byte `kms:"public"`
		MacAlgorithm *string
		KeyId        *string
	}
)

// Input and output of GetPublicKey, which returns the public key of an asymmetric key.
type (
	GetPublicKeyInput struct {
		KeyId       *string  `kms:"required,len=1..2048,pattern=ascii,log"`
		GrantTokens []string `kms:"len=0..10,each.len=1..8192,nolog"`
	}

	GetPublicKeyOutput struct {
		KeyId                   *string
		PublicKey               []byte `kms:"public"`
		CustomerMasterKeySpec   *string
		KeySpec                 *string
		KeyUsage                *string
		EncryptionAlgorithms    []string
		SigningAlgorithms       []string
		KeyAgreementAlgorithms  []string
		EncapsulationAlgorithms []string
	}
)

// Input and output of Sign, which signs a message or its digest.
type (
	SignInput struct {
		KeyId            *string  `kms:"required,len=1..2048,pattern=ascii,log"`
		Message          []byte   `kms:"required,len=1..4096,secret,nolog"`
		MessageType      *string  `kms:"enum=MessageType,log"`
		GrantTokens      []string `kms:"len=0..10,each.len=1..8192,nolog"`
		SigningAlgorithm *string  `kms:"required,enum=SigningAlgorithmSpec,log"`
		DryRun           *bool    `kms:"narrows,log"`
	}

	SignOutput struct {
		KeyId            *string
		Signature        []byte `kms:"public"`
		SigningAlgorithm *string
	}
)

// Input and output of Verify, which verifies a signature of Sign.
type (
	VerifyInput struct {
		KeyId            *string  `kms:"required,len=1..2048,pattern=ascii,log"`
		Message          []byte   `kms:"required,len=1..4096,secret,nolog"`
		MessageType      *string  `kms:"enum=MessageType,log"`
		Signature        []byte   `kms:"required,len=1..6144,public,nolog"`
		SigningAlgorithm *string  `kms:"required,enum=SigningAlgorithmSpec,log"`
		GrantTokens      []string `kms:"len=0..10,each.len=1..8192,nolog"`
		DryRun           *bool    `kms:"narrows,log"`
	}

	VerifyOutput struct {
		KeyId            *string
		SignatureValid   *bool
		SigningAlgorithm *string
	}
)

// Input and output of VerifyMac, which verifies a MAC of GenerateMac.
type (
	VerifyMacInput struct {
		Message      []byte   `kms:"required,len=1..4096,secret,nolog"`
		KeyId        *string  `kms:"required,len=1..2048,pattern=ascii,log"`
		MacAlgorithm *string  `kms:"required,enum=MacAlgorithmSpec,log"`
		Mac          []byte   `kms:"required,len=1..6144,public,nolog"`
		GrantTokens  []string `kms:"len=0..10,each.len=1..8192,nolog"`
		DryRun       *bool    `kms:"narrows,log"`
	}

	VerifyMacOutput struct {
		KeyId        *string
		MacValid     *bool
		MacAlgorithm *string
	}
)
