package integration

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	iamtypes "github.com/aws/aws-sdk-go-v2/service/iam/types"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/smithy-go"

	"github.com/conclavekms/conclave/integration/harness"
)

// terraformIAM manages users, groups, roles, policies and an identity provider, and a key
// whose policy has conditions. Where FIRST and SECOND of a pair stand in brackets,
// configure chooses one of them.
const terraformIAM = `
terraform {
  required_providers {
    aws = { source = "hashicorp/aws", version = "5.100.0" }
  }
}
# Who calls and whose account it is, the provider finds out by itself.
provider "aws" {
  skip_metadata_api_check = true
  skip_region_validation  = true # the test's Region is none of AWS's
}

data "aws_caller_identity" "me" {}
data "aws_partition" "here" {}

resource "aws_iam_policy" "boundary" {
  name   = "boundary"
  path   = "/limits/"
  policy = data.aws_iam_policy_document.boundary.json
}
data "aws_iam_policy_document" "boundary" {
  statement {
    actions   = ["kms:*", "sts:*"]
    resources = ["*"]
  }
  statement {
    effect      = "Deny"
    not_actions = ["kms:*", "sts:*", "iam:Get*"]
    resources   = ["*"]
  }
}

resource "aws_iam_user" "app" {
  name                 = "[app|service]"
  path                 = "/[made|moved]/"
  force_destroy        = true
  permissions_boundary = [aws_iam_policy.boundary.arn|null]
  # The provider renames a user after it has changed its tags under the new name, so that
  # one change cannot do both.
  tags = { von = "Wert ß" }
}
resource "aws_iam_access_key" "app" {
  user   = aws_iam_user.app.name
  status = "[Active|Inactive]"
}
resource "aws_iam_access_key" "second" {
  user = aws_iam_user.app.name
}
resource "aws_iam_user_policy" "app" {
  name = "own"
  user = aws_iam_user.app.name
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect   = "Allow"
      Action   = ["sts:AssumeRole", "[sts:TagSession|sts:SetSourceIdentity]"]
      Resource = aws_iam_role.worker.arn
    }]
  })
}
resource "aws_iam_user" "other" {
  name          = "other"
  force_destroy = true
  tags          = { stage = "[test|live]" }
}

resource "aws_iam_group" "team" {
  name = "[team|crew]"
}
resource "aws_iam_group" "readers" {
  name = "readers"
  path = "/read/"
}
resource "aws_iam_group" "writers" {
  name = "writers"
}
resource "aws_iam_group_membership" "team" {
  name  = "team"
  group = aws_iam_group.team.name
  users = [aws_iam_user.app.name[, aws_iam_user.other.name|]]
}
resource "aws_iam_user_group_membership" "other" {
  user   = aws_iam_user.other.name
  groups = [aws_iam_group.readers.name[|, aws_iam_group.writers.name]]
}
resource "aws_iam_group_policy" "team" {
  name   = "inline"
  group  = aws_iam_group.team.name
  policy = data.aws_iam_policy_document.team.json
}
data "aws_iam_policy_document" "team" {
  statement {
    sid       = "[One|Two]"
    actions   = ["kms:ListAliases", "kms:ListKeys"]
    resources = ["*"]
    condition {
      test     = "IpAddress"
      variable = "aws:SourceIp"
      values   = ["127.0.0.0/8", "::1"]
    }
  }
}

resource "aws_iam_policy" "use" {
  name        = "use-key"
  description = "what the application may do"
  policy      = data.aws_iam_policy_document.use.json
  tags        = { stage = "[test|live]" }
}
data "aws_iam_policy_document" "use" {
  statement {
    actions   = ["kms:Encrypt"[|, "kms:GenerateDataKey"]]
    resources = ["arn:${data.aws_partition.here.partition}:kms:*:${data.aws_caller_identity.me.account_id}:key/*"]
    condition {
      test     = "StringEquals"
      variable = "kms:EncryptionContext:user"
      values   = ["&{aws:username}"]
    }
  }
}
resource "aws_iam_user_policy_attachment" "app" {
  user       = aws_iam_user.app.name
  policy_arn = aws_iam_policy.use.arn
}
resource "aws_iam_group_policy_attachment" "readers" {
  group      = aws_iam_group.readers.name
  policy_arn = aws_iam_policy.use.arn
}
resource "aws_iam_role_policy_attachment" "worker" {
  role       = aws_iam_role.worker.name
  policy_arn = aws_iam_policy.[use|boundary].arn
}

resource "aws_iam_role" "worker" {
  name                  = "worker"
  path                  = "/team/"
  description           = "[first|second]"
  max_session_duration  = [3600|7200]
  permissions_boundary  = [null|aws_iam_policy.boundary.arn]
  force_detach_policies = true
  assume_role_policy    = data.aws_iam_policy_document.trust.json
  tags                  = { stage = "[test|live]" }
}
data "aws_iam_policy_document" "trust" {
  statement {
    actions = ["sts:AssumeRole"[|, "sts:TagSession"]]
    principals {
      type        = "AWS"
      identifiers = [data.aws_caller_identity.me.account_id]
    }
    condition {
      test     = "StringEquals"
      variable = "sts:ExternalId"
      values   = ["[abc|def]"]
    }
  }
}
resource "aws_iam_role_policy" "worker" {
  name   = "inline"
  role   = aws_iam_role.worker.id
  policy = jsonencode({
    Version   = "2012-10-17"
    Statement = { Effect = "Allow", Action = "kms:[Decrypt|Describe*]", Resource = "*" }
  })
}

resource "aws_iam_openid_connect_provider" "pods" {
  url             = "https://oidc.example.com/cluster"
  client_id_list  = ["sts.amazonaws.com"[|, "more"]]
  thumbprint_list = ["[990f4193972f2becf12ddeda5237f9c952f20d9e|1c58a3a8518e8759bf075b76b750d4f2df264fcd]"]
  tags            = { stage = "[test|live]" }
}
resource "aws_iam_role" "pod" {
  name = "pod"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRoleWithWebIdentity"
      Principal = { Federated = aws_iam_openid_connect_provider.pods.arn }
      Condition = { StringEquals = {
        "oidc.example.com/cluster:sub" = "system:serviceaccount:default:app"
        "oidc.example.com/cluster:aud" = "sts.amazonaws.com"
      } }
    }]
  })
}

resource "aws_kms_key" "data" {
  description             = "[first|second]"
  deletion_window_in_days = 7
  policy                  = data.aws_iam_policy_document.key.json
}
data "aws_iam_policy_document" "key" {
  statement {
    sid       = "Account"
    actions   = ["kms:*"]
    resources = ["*"]
    principals {
      type        = "AWS"
      identifiers = ["arn:aws:iam::${data.aws_caller_identity.me.account_id}:root"]
    }
  }
  statement {
    sid       = "Worker"
    actions   = ["kms:Decrypt", "kms:DescribeKey"]
    resources = ["*"]
    principals {
      type        = "AWS"
      identifiers = [aws_iam_role.worker.arn, aws_iam_role.pod.arn]
    }
    condition {
      test     = "StringEquals"
      variable = "kms:EncryptionContext:stage"
      values   = ["[test|live]"]
    }
    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["true"]
    }
  }
}

data "aws_iam_user" "app" {
  user_name = aws_iam_user.app.name
}
data "aws_iam_group" "team" {
  group_name = aws_iam_group_membership.team.group
}
data "aws_iam_role" "worker" {
  name = aws_iam_role.worker.name
}
data "aws_iam_policy" "use" {
  arn = aws_iam_policy.use.arn
}
data "aws_iam_openid_connect_provider" "pods" {
  arn = aws_iam_openid_connect_provider.pods.arn
}
data "aws_iam_roles" "work" {
  path_prefix = "/team/"
  depends_on  = [aws_iam_role.worker]
}
data "aws_iam_users" "all" {
  depends_on = [aws_iam_user.app, aws_iam_user.other]
}

output "account" {
  value = data.aws_caller_identity.me.account_id
}
output "caller" {
  value = data.aws_caller_identity.me.arn
}
output "user" {
  value = data.aws_iam_user.app.arn
}
output "members" {
  value = join(",", sort([for u in data.aws_iam_group.team.users : u.user_name]))
}
output "roles" {
  value = join(",", data.aws_iam_roles.work.names)
}
output "users" {
  value = join(",", sort(data.aws_iam_users.all.names))
}
output "key" {
  value = aws_kms_key.data.arn
}
output "id" {
  value = aws_iam_access_key.app.id
}
output "secret" {
  value     = aws_iam_access_key.app.secret
  sensitive = true
}
`

// configure chooses among the pairs [FIRST|SECOND] of a configuration.
func configure(config string, second bool) string {
	var b strings.Builder
	for {
		before, rest, ok := strings.Cut(config, "|")
		if !ok {
			return b.String() + config
		}
		// The bracket of the pair is the last before the bar that is not closed.
		open, depth := len(before)-1, 0
		for ; open >= 0 && (before[open] != '[' || depth > 0); open-- {
			switch before[open] {
			case ']':
				depth++
			case '[':
				depth--
			}
		}
		end := 0
		for depth = 0; rest[end] != ']' || depth > 0; end++ {
			switch rest[end] {
			case '[':
				depth++
			case ']':
				depth--
			}
		}
		b.WriteString(before[:open])
		if second {
			b.WriteString(rest[:end])
		} else {
			b.WriteString(before[open+1:])
		}
		config = rest[end+1:]
	}
}

// as returns clients of the SDK on a node with credentials of their own.
func as(t *testing.T, c *harness.Cluster, n *harness.Node, id, secret string) (*iam.Client, *kms.Client) {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: harness.RootsOf(t, c)}}
	t.Cleanup(transport.CloseIdleConnections)
	cfg := aws.Config{
		BaseEndpoint: aws.String("https://" + n.AWS), Region: harness.Region, Credentials: credentials.NewStaticCredentialsProvider(id, secret, ""),
		HTTPClient: &http.Client{Transport: transport, Timeout: harness.Patience}, Retryer: func() aws.Retryer { return aws.NopRetryer{} },
	}
	return iam.NewFromConfig(cfg), kms.NewFromConfig(cfg)
}

// administrator makes a user who may do everything, and returns the clients and the
// environment for tools that use its access key.
func administrator(t *testing.T, c *harness.Cluster, n *harness.Node) (*iam.Client, *kms.Client, []string) {
	t.Helper()
	root, _ := as(t, c, n, c.AccessKeyID, c.Secret())
	name := aws.String("admin")
	if _, err := root.CreateUser(t.Context(), &iam.CreateUserInput{UserName: name}); err != nil {
		t.Fatal(err)
	}
	if _, err := root.PutUserPolicy(t.Context(), &iam.PutUserPolicyInput{
		UserName: name, PolicyName: aws.String("all"),
		PolicyDocument: aws.String(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}`),
	}); err != nil {
		t.Fatal(err)
	}
	made, err := root.CreateAccessKey(t.Context(), &iam.CreateAccessKeyInput{UserName: name})
	if err != nil {
		t.Fatal(err)
	}
	id, secret := *made.AccessKey.AccessKeyId, *made.AccessKey.SecretAccessKey
	admin, keys := as(t, c, n, id, secret)
	env := append(toolEnv(c), "AWS_ACCESS_KEY_ID="+id, "AWS_SECRET_ACCESS_KEY="+secret)
	for _, service := range []string{"IAM", "STS", "KMS"} {
		env = append(env, "AWS_ENDPOINT_URL_"+service+"=https://"+n.AWS)
	}
	return admin, keys, env
}

// codeOf returns the code of the error that AWS's SDK returned; "" if it was none.
func codeOf(err error) string {
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		return api.ErrorCode()
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

// TestTerraformIAM manages users, groups, roles, policies and an identity provider with
// Terraform's AWS provider, as a user who is an administrator: it makes them, finds nothing
// left to do, changes them, and destroys them. What was made is used.
func TestTerraformIAM(t *testing.T) {
	tf := newTerraform(t)
	t.Parallel()
	c := harness.NewCluster(t, 1, harness.Options{})
	n := c.Nodes[0]
	var admin *iam.Client
	var keys *kms.Client
	admin, keys, tf.env = administrator(t, c, n)
	tf.write("main.tf", configure(terraformIAM, false))
	tf.must("init", "-input=false")
	tf.apply()
	is := tf.outputs()
	for name, want := range map[string]string{
		"account": harness.Account, "caller": "arn:aws:iam::" + harness.Account + ":user/admin", "user": "arn:aws:iam::" + harness.Account + ":user/made/app",
		"members": "app,other", "roles": "worker", "users": "admin,app,other",
	} {
		if got := is[name]; got != want {
			t.Errorf("the output %s is %q, want %q", name, got, want)
		}
	}
	// The user's policy allows it to encrypt under its own name, and nothing else.
	key, id, secret := is["key"], is["id"], is["secret"]
	_, app := as(t, c, n, id, secret)
	encrypt := func(user string) error {
		_, err := app.Encrypt(t.Context(), &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x"), EncryptionContext: map[string]string{"user": user}})
		return err
	}
	if err := encrypt("app"); err != nil {
		t.Errorf("the user's policy allows it, but: %v", err)
	}
	if err := encrypt("other"); codeOf(err) != "AccessDeniedException" {
		t.Errorf("encrypting as another user: %v, want AccessDeniedException", err)
	}

	tf.write("main.tf", configure(terraformIAM, true))
	tf.apply()
	is = tf.outputs()
	for name, want := range map[string]string{"user": "arn:aws:iam::" + harness.Account + ":user/moved/service", "members": "service"} {
		if got := is[name]; got != want {
			t.Errorf("after the change the output %s is %q, want %q", name, got, want)
		}
	}
	if err := encrypt("service"); codeOf(err) != "UnrecognizedClientException" {
		t.Errorf("encrypting with an inactive key: %v, want UnrecognizedClientException", err)
	}
	// Terraform does not know of these, and removes them with their user.
	if _, err := admin.CreateAccessKey(t.Context(), &iam.CreateAccessKeyInput{UserName: aws.String("other")}); err != nil {
		t.Fatal(err)
	}

	tf.destroy()
	gone(t, "user", func(ctx context.Context) error {
		_, err := admin.GetUser(ctx, &iam.GetUserInput{UserName: aws.String("other")})
		return err
	})
	gone(t, "role", func(ctx context.Context) error {
		_, err := admin.GetRole(ctx, &iam.GetRoleInput{RoleName: aws.String("worker")})
		return err
	})
	gone(t, "group", func(ctx context.Context) error {
		_, err := admin.GetGroup(ctx, &iam.GetGroupInput{GroupName: aws.String("crew")})
		return err
	})
	policies, err := admin.ListPolicies(t.Context(), &iam.ListPoliciesInput{Scope: iamtypes.PolicyScopeTypeLocal})
	if err != nil || len(policies.Policies) != 0 {
		t.Errorf("after destroy the policies are %v, %v", policies, err)
	}
	providers, err := admin.ListOpenIDConnectProviders(t.Context(), &iam.ListOpenIDConnectProvidersInput{})
	if err != nil || len(providers.OpenIDConnectProviderList) != 0 {
		t.Errorf("after destroy the identity providers are %v, %v", providers, err)
	}
	if d, err := keys.DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: &key}); err != nil || d.KeyMetadata.KeyState != "PendingDeletion" {
		t.Errorf("after destroy the key is %v, %v", d, err)
	}
	c.NoFaults()
}

func gone(t *testing.T, what string, get func(context.Context) error) {
	t.Helper()
	if _, ok := errors.AsType[*iamtypes.NoSuchEntityException](get(t.Context())); !ok {
		t.Errorf("a %s is there after destroy: %v", what, fmt.Sprint(get(t.Context())))
	}
}
