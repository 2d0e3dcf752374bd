package clients

import (
	"testing"

	"gocloud.dev/gcerrors"
	"gocloud.dev/secrets"
	_ "gocloud.dev/secrets/awskms"
)

// TestGoCloudSecrets encrypts by the Go CDK, which decrypts without naming a key.
func TestGoCloudSecrets(t *testing.T) {
	overBoth(t, func(t *testing.T, s *server) {
		s.use(t)
		c := client(t)
		open := func(url string) *secrets.Keeper {
			t.Helper()
			k, err := secrets.OpenKeeper(t.Context(), url)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { k.Close() })
			return k
		}
		arn := key(t, c)
		keeper := open("awskms:///" + arn + "?region=" + region + "&context_app=test")
		ciphertext, err := keeper.Encrypt(t.Context(), []byte("secret"))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := keeper.Decrypt(t.Context(), ciphertext); err != nil || string(got) != "secret" {
			t.Errorf("Decrypt: %q, %v", got, err)
		}
		other := open("awskms:///" + arn + "?region=" + region + "&context_app=another")
		if _, err := other.Decrypt(t.Context(), ciphertext); gcerrors.Code(err) != gcerrors.InvalidArgument {
			t.Errorf("under another context: %v, want an invalid argument", err)
		}
		absent := open("awskms:///alias/none?region=" + region)
		if _, err := absent.Encrypt(t.Context(), []byte("secret")); gcerrors.Code(err) != gcerrors.NotFound {
			t.Errorf("with a key that there is not: %v, want not found", err)
		}
		disable(t, c, arn)
		if _, err := keeper.Decrypt(t.Context(), ciphertext); gcerrors.Code(err) != gcerrors.PermissionDenied {
			t.Errorf("with a disabled key: %v, want permission denied", err)
		}
	})
}
