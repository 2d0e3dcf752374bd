package integration

import (
	"flag"
	"fmt"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/conclavekms/conclave/integration/harness"
)

var update = flag.Bool("update", false, "write down anew what Terraform's provider sends, in TestTerraform")

// terraformMaterial is what the configuration imports into a key, in base64.
const terraformMaterial = "Y29uY2xhdmUtdGVycmFmb3JtLXRlc3QtbWF0ZXJpYWw="

// terraformConfig manages keys of every kind, and what belongs to keys. What changed
// says is changed the second time.
func terraformConfig(endpoint string, changed bool) string {
	pick := func(first, then string) string {
		if changed {
			return then
		}
		return first
	}
	provider := func(alias, region string) string {
		return fmt.Sprintf(`
provider "aws" {%s
  region                      = %q
  skip_credentials_validation = true
  skip_requesting_account_id  = true
  skip_metadata_api_check     = true
  skip_region_validation      = true
  endpoints {
    kms = %q
  }
}
`, alias, region, endpoint)
	}
	return `
terraform {
  required_providers {
    aws = { source = "hashicorp/aws", version = "5.100.0" }
  }
}
` + provider("", harness.Region) + provider("\n  alias = \"second\"", harness.SecondRegion) + fmt.Sprintf(`
resource "aws_kms_key" "asymmetric" {
  description              = %[2]q
  key_usage                = "SIGN_VERIFY"
  customer_master_key_spec = "ECC_NIST_P256"
  deletion_window_in_days  = 7
  is_enabled               = %[3]s
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = %[6]q
      Effect    = "Allow"
      Principal = { AWS = "arn:aws:iam::%[7]s:root" }
      Action    = ["kms:*"]
      Resource  = "*"
    }]
  })
}
resource "aws_kms_key" "rsa" {
  key_usage                = "ENCRYPT_DECRYPT"
  customer_master_key_spec = "RSA_2048"
  deletion_window_in_days  = 7
}
resource "aws_kms_key" "mac" {
  key_usage                = "GENERATE_VERIFY_MAC"
  customer_master_key_spec = "HMAC_384"
  deletion_window_in_days  = 7
  tags                     = { stage = %[4]q }
}
resource "aws_kms_key" "multi" {
  description             = "of several Regions"
  multi_region            = true
  enable_key_rotation     = true
  rotation_period_in_days = %[5]s
  deletion_window_in_days = 7
}
resource "aws_kms_replica_key" "multi" {
  provider                = aws.second
  description             = %[2]q
  primary_key_arn         = aws_kms_key.multi.arn
  deletion_window_in_days = 7
}
resource "aws_kms_external_key" "imported" {
  description             = %[2]q
  key_material_base64     = %[1]q
  enabled                 = true
  deletion_window_in_days = 7
}
resource "aws_kms_key" "symmetric" {
  deletion_window_in_days = 7
}
resource "aws_kms_key_policy" "symmetric" {
  key_id = aws_kms_key.symmetric.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = %[6]q
      Effect    = "Allow"
      Principal = { AWS = "arn:aws:iam::%[7]s:root" }
      Action    = "kms:*"
      Resource  = "*"
    }]
  })
}
resource "aws_kms_grant" "reader" {
  name               = "reader"
  key_id             = aws_kms_key.symmetric.key_id
  grantee_principal  = "arn:aws:iam::%[7]s:user/reader"
  retiring_principal = "arn:aws:iam::%[7]s:user/keeper"
  operations         = ["Decrypt", %[8]q]
  constraints {
    encryption_context_equals = { app = "test" }
  }
}
resource "aws_kms_grant" "any" {
  key_id            = aws_kms_key.symmetric.key_id
  grantee_principal = "arn:aws:iam::%[7]s:user/reader"
  operations        = ["GenerateDataKey"]
  constraints {
    encryption_context_subset = { app = "test", part = "one" }
  }
}
resource "aws_kms_alias" "app" {
  name          = "alias/terraform"
  target_key_id = aws_kms_key.%[9]s.key_id
}
resource "aws_kms_ciphertext" "secret" {
  key_id    = aws_kms_key.symmetric.key_id
  plaintext = "from terraform"
  context   = { app = "test" }
}
data "aws_kms_key" "app" {
  key_id = aws_kms_alias.app.name
}
data "aws_kms_public_key" "rsa" {
  key_id = aws_kms_key.rsa.arn
}
data "aws_kms_secrets" "secret" {
  secret {
    name    = "secret"
    payload = aws_kms_ciphertext.secret.ciphertext_blob
    context = { app = "test" }
  }
}
output "key" {
  value = data.aws_kms_key.app.arn
}
output "symmetric" {
  value = aws_kms_key.symmetric.arn
}
output "multi" {
  value = aws_kms_key.multi.arn
}
output "secret" {
  value = nonsensitive(data.aws_kms_secrets.secret.plaintext["secret"])
}
`, terraformMaterial, pick("first", "second"), pick("true", "false"), pick("test", "live"), pick("180", "365"),
		pick("First", "Second"), harness.Account, pick("Encrypt", "DescribeKey"), pick("symmetric", "multi"))
}

// TestTerraform manages keys of every kind with Terraform's AWS provider, which
// has to lie in a filesystem mirror that CONCLAVE_TERRAFORM_MIRROR names: it makes
// them, finds nothing left to do, changes them, and destroys them. With -update the
// provider's calls are written down for TestTerraformReplay.
func TestTerraform(t *testing.T) {
	tf := newTerraform(t)
	t.Parallel()
	c := harness.NewCluster(t, 1, harness.Options{Regions: []string{harness.Region, harness.SecondRegion}})
	n := c.Nodes[0]
	c.MakePrincipals("user/reader", "user/keeper")
	r := newCallRecorder(t, c, n)
	tf.env = toolEnv(c)
	// One call after the other, so that what is written down has one order.
	tf.flags = []string{"-parallelism=1"}
	tf.write("main.tf", terraformConfig(r.url, false))
	tf.must("init", "-input=false")
	tf.apply()
	first := tf.outputs()
	if got := first["secret"]; got != "from terraform" {
		t.Errorf("the secret is %q", got)
	}
	symmetric, multi := first["symmetric"], first["multi"]
	if got := first["key"]; got != symmetric {
		t.Errorf("the alias leads to %q, want %s", got, symmetric)
	}
	tf.write("main.tf", terraformConfig(r.url, true))
	tf.apply()
	if got := tf.outputs()["key"]; got != multi {
		t.Errorf("after moving it, the alias leads to %q, want %s", got, multi)
	}
	s, err := n.SDK().GetKeyRotationStatus(t.Context(), &kms.GetKeyRotationStatusInput{KeyId: &multi})
	if err != nil || !s.KeyRotationEnabled || *s.RotationPeriodInDays != 365 {
		t.Errorf("the rotation status is %+v, %v", s, err)
	}
	// To let go of a key policy the provider puts the account's default one, for which it
	// has to ask STS whose account it is.
	tf.must("state", "rm", "aws_kms_key_policy.symmetric")
	tf.destroy()
	keys, err := n.SDK().ListKeys(t.Context(), &kms.ListKeysInput{})
	if err != nil || len(keys.Keys) != 6 {
		t.Fatalf("%d keys, %v", len(keys.Keys), err)
	}
	for _, k := range keys.Keys {
		d, err := n.SDK().DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: k.KeyId})
		if err != nil || d.KeyMetadata.KeyState != types.KeyStatePendingDeletion && d.KeyMetadata.KeyState != types.KeyStatePendingReplicaDeletion {
			t.Errorf("after destroy %s is %v, %v", *k.KeyId, d, err)
		}
	}
	if _, err := n.SDK().DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: aws.String("alias/terraform")}); err == nil {
		t.Error("the alias is there after destroy")
	}
	if *update && !t.Failed() {
		r.save(terraformCalls)
	}
	c.NoFaults()
}
