package clients

import (
	"maps"
	"testing"

	mpl "github.com/aws/aws-cryptographic-material-providers-library/releases/go/mpl/awscryptographymaterialproviderssmithygenerated"
	mpltypes "github.com/aws/aws-cryptographic-material-providers-library/releases/go/mpl/awscryptographymaterialproviderssmithygeneratedtypes"
	esdk "github.com/aws/aws-encryption-sdk/releases/go/encryption-sdk/awscryptographyencryptionsdksmithygenerated"
	esdktypes "github.com/aws/aws-encryption-sdk/releases/go/encryption-sdk/awscryptographyencryptionsdksmithygeneratedtypes"
)

// TestEncryptionSDK encrypts and decrypts messages with AWS's Encryption SDK, which
// keeps the key's ARN in the message and compares it byte by byte.
func TestEncryptionSDK(t *testing.T) {
	overBoth(t, func(t *testing.T, s *server) {
		s.use(t)
		c := client(t)
		materials, err := mpl.NewClient(mpltypes.MaterialProvidersConfig{})
		if err != nil {
			t.Fatal(err)
		}
		sdk, err := esdk.NewClient(esdktypes.AwsEncryptionSdkConfig{})
		if err != nil {
			t.Fatal(err)
		}
		keyring := func(arn string) mpltypes.IKeyring {
			t.Helper()
			k, err := materials.CreateAwsKmsKeyring(t.Context(), mpltypes.CreateAwsKmsKeyringInput{KmsClient: c, KmsKeyId: arn})
			if err != nil {
				t.Fatal(err)
			}
			return k
		}
		arn := key(t, c)
		context := map[string]string{"purpose": "test", "is not": "secret"}
		enc, err := sdk.Encrypt(t.Context(), esdktypes.EncryptInput{Plaintext: []byte("a message"), EncryptionContext: context, Keyring: keyring(arn)})
		if err != nil {
			t.Fatal(err)
		}
		decrypt := func(arn string, context map[string]string) (*esdktypes.DecryptOutput, error) {
			t.Helper()
			return sdk.Decrypt(t.Context(), esdktypes.DecryptInput{Ciphertext: enc.Ciphertext, EncryptionContext: context, Keyring: keyring(arn)})
		}
		dec, err := decrypt(arn, context)
		if err != nil {
			t.Fatal(err)
		}
		if string(dec.Plaintext) != "a message" {
			t.Errorf("the plaintext is %q", dec.Plaintext)
		}
		for name, value := range context {
			if dec.EncryptionContext[name] != value {
				t.Errorf("the context has %s: %q, want %q", name, dec.EncryptionContext[name], value)
			}
		}
		wrong := maps.Clone(context)
		wrong["purpose"] = "another"
		if _, err := decrypt(arn, wrong); err == nil {
			t.Error("it decrypts under another context")
		}
		if _, err := decrypt(key(t, c), context); err == nil {
			t.Error("it decrypts with another key")
		}
		disable(t, c, arn)
		if _, err := decrypt(arn, context); err == nil {
			t.Error("it decrypts with a disabled key")
		}
	})
}
