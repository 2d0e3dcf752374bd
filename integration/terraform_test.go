package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/conclavekms/conclave/integration/harness"
)

// TestTerraform manages aliases and ciphertexts with Terraform's AWS provider, which
// has to lie in a filesystem mirror that CONCLAVE_TERRAFORM_MIRROR names. The
// resources aws_kms_key and aws_kms_key_policy ask for the rotation status, which
// is not served yet.
func TestTerraform(t *testing.T) {
	mirror := os.Getenv("CONCLAVE_TERRAFORM_MIRROR")
	if mirror == "" {
		t.Skip("CONCLAVE_TERRAFORM_MIRROR does not say where Terraform's AWS provider is")
	}
	t.Parallel()
	c := harness.Found(t, 1, harness.Options{})
	n := c.Nodes[0]
	created, err := n.SDK().CreateKey(t.Context(), &kms.CreateKeyInput{})
	if err != nil {
		t.Fatal(err)
	}
	key := *created.KeyMetadata.KeyId
	other, err := n.SDK().CreateKey(t.Context(), &kms.CreateKeyInput{})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("terraform.rc", fmt.Sprintf("provider_installation {\n  filesystem_mirror {\n    path = %q\n  }\n}\n", mirror))
	config := func(target string) string {
		return fmt.Sprintf(`
terraform {
  required_providers {
    aws = { source = "hashicorp/aws" }
  }
}
provider "aws" {
  region                      = %[1]q
  skip_credentials_validation = true
  skip_requesting_account_id  = true
  skip_metadata_api_check     = true
  skip_region_validation      = true
  endpoints {
    kms = "https://%[2]s"
  }
}
resource "aws_kms_alias" "app" {
  name          = "alias/terraform"
  target_key_id = %[3]q
}
resource "aws_kms_ciphertext" "secret" {
  key_id    = %[4]q
  plaintext = "from terraform"
  context   = { app = "test" }
}
data "aws_kms_key" "app" {
  key_id = aws_kms_alias.app.name
}
data "aws_kms_secrets" "secret" {
  secret {
    name    = "secret"
    payload = aws_kms_ciphertext.secret.ciphertext_blob
    context = { app = "test" }
  }
}
output "key" {
  value = data.aws_kms_key.app.id
}
output "secret" {
  value = nonsensitive(data.aws_kms_secrets.secret.plaintext["secret"])
}
`, harness.Region, n.AWS, target, key)
	}
	terraform := func(args ...string) (string, int) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "terraform", args...)
		cmd.Dir = dir
		cmd.Env = append(toolEnv(c), "TF_CLI_CONFIG_FILE="+filepath.Join(dir, "terraform.rc"), "TF_IN_AUTOMATION=1", "CHECKPOINT_DISABLE=1", "NO_COLOR=1")
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil {
			t.Fatalf("terraform: %v", err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	must := func(args ...string) string {
		t.Helper()
		out, code := terraform(args...)
		if code != 0 {
			t.Fatalf("terraform %s: exit code %d\n%s", strings.Join(args, " "), code, out)
		}
		return out
	}
	write("main.tf", config(key))
	must("init", "-input=false")
	must("apply", "-auto-approve", "-input=false")
	if got := strings.TrimSpace(must("output", "-raw", "secret")); got != "from terraform" {
		t.Errorf("the secret is %q", got)
	}
	if got := must("output", "-raw", "key"); !strings.Contains(got, key) {
		t.Errorf("the alias leads to %q, want %s", got, key)
	}
	// What was made is what was asked for: nothing is left to change.
	if out, code := terraform("plan", "-detailed-exitcode", "-input=false"); code != 0 {
		t.Errorf("a plan right after apply: exit code %d\n%s", code, out)
	}
	write("main.tf", config(*other.KeyMetadata.KeyId))
	must("apply", "-auto-approve", "-input=false")
	alias := "alias/terraform"
	d, err := n.SDK().DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: &alias})
	if err != nil || *d.KeyMetadata.KeyId != *other.KeyMetadata.KeyId {
		t.Errorf("after moving it, the alias leads to %v, %v", d, err)
	}
	must("destroy", "-auto-approve", "-input=false")
	if _, err := n.SDK().DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: &alias}); err == nil {
		t.Error("the alias is there after destroy")
	}
}
