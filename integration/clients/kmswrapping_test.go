package clients

import (
	"strings"
	"testing"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"github.com/hashicorp/go-kms-wrapping/wrappers/awskms/v2"
)

// TestGoKMSWrapping wraps by the code of Vault's `awskms` seal. It is built on
// AWS's first SDK for Go, which takes no endpoint from AWS_ENDPOINT_URL_KMS.
func TestGoKMSWrapping(t *testing.T) {
	overBoth(t, func(t *testing.T, s *server) {
		s.use(t)
		c := client(t)
		seal := func(key string) (*awskms.Wrapper, error) {
			w := awskms.NewWrapper()
			_, err := w.SetConfig(t.Context(), wrapping.WithConfigMap(map[string]string{
				"kms_key_id": key, "region": region, "endpoint": s.settings["AWS_ENDPOINT_URL_KMS"],
			}))
			return w, err
		}
		arn := key(t, c)
		w, err := seal(arn)
		if err != nil {
			t.Fatal(err)
		}
		blob, err := w.Encrypt(t.Context(), []byte("root key"))
		if err != nil {
			t.Fatal(err)
		}
		if got := blob.GetKeyInfo().GetKeyId(); got != arn {
			t.Errorf("the blob names the key %s, want %s", got, arn)
		}
		again, err := seal(arn)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := again.Decrypt(t.Context(), blob); err != nil || string(got) != "root key" {
			t.Errorf("Decrypt: %q, %v", got, err)
		}
		if _, err := seal("alias/none"); err == nil || !strings.Contains(err.Error(), "NotFoundException") {
			t.Errorf("with a key that there is not: %v, want NotFoundException", err)
		}
		disable(t, c, arn)
		if _, err := again.Decrypt(t.Context(), blob); err == nil || !strings.Contains(err.Error(), "DisabledException") {
			t.Errorf("with a disabled key: %v, want DisabledException", err)
		}
	})
}
