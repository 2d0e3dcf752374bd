package clients

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the table in docs/clients.md anew")

// terraformProvider is what stands before the version in configurations of Terraform.
const terraformProvider = `aws = { source = "hashicorp/aws`

// tested are the clients that tests use, in the order of docs/clients.md.
var tested = []struct {
	name string
	// module is a Go module, a package of npm's or a provider of Terraform's, and file says
	// which version of it is used.
	module, file string
	setting      string
	test         string
}{
	{"AWS CLI", "", "", "`AWS_ENDPOINT_URL_KMS`; versions of before 2023 `--endpoint-url`", "TestCLIProcess"},
	{"`aws iam`, `aws sts`, profiles with a role", "", "", "`AWS_ENDPOINT_URL_IAM` and `AWS_ENDPOINT_URL_STS`", "TestCLIIdentities"},
	{"boto3", "", "", "`AWS_ENDPOINT_URL_KMS`, or `endpoint_url=`", "TestClients"},
	{"boto3, IAM and STS", "", "", "`AWS_ENDPOINT_URL_IAM` and `AWS_ENDPOINT_URL_STS`", "TestBoto3Identities"},
	{"AWS SDK for Go v2, all operations", "github.com/aws/aws-sdk-go-v2/service/kms", "../../go.mod", "`AWS_ENDPOINT_URL_KMS`, or `BaseEndpoint`", "TestAWSSDKAllOperations"},
	{"AWS SDK for Go v2, IAM", "github.com/aws/aws-sdk-go-v2/service/iam", "../../go.mod", "`AWS_ENDPOINT_URL_IAM`, or `BaseEndpoint`", "TestAWSSDKIdentities"},
	{"AWS SDK for Go v2, credential providers", "github.com/aws/aws-sdk-go-v2/config", "../../go.mod", "`AWS_ENDPOINT_URL_STS`", "TestCredentialProviders"},
	{"Terraform's AWS provider, KMS", terraformProvider, "../terraform_test.go", "`endpoints { kms = … }`, or `AWS_ENDPOINT_URL_KMS`", "TestTerraform"},
	{"Terraform's AWS provider, IAM and STS", terraformProvider, "../terraform_iam_test.go", "`AWS_ENDPOINT_URL_IAM` and `AWS_ENDPOINT_URL_STS`", "TestTerraformIAM"},
	{"AWS SDK for JavaScript v3", "@aws-sdk/client-kms", "js/package.json", "`AWS_ENDPOINT_URL_KMS`; the CA in `NODE_EXTRA_CA_CERTS`", "TestJavaScript"},
	{"the same, IAM, STS and credential providers", "@aws-sdk/client-sts", "js/package.json", "`AWS_ENDPOINT_URL_IAM` and `AWS_ENDPOINT_URL_STS`", "TestJavaScript"},
	{"AWS Encryption SDK for Go", "github.com/aws/aws-encryption-sdk/releases/go/encryption-sdk", "go.mod", "`AWS_ENDPOINT_URL_KMS`", "TestEncryptionSDK"},
	{"Tink", "github.com/tink-crypto/tink-go-awskms/v3", "go.mod", "`AWS_ENDPOINT_URL_KMS`", "TestTink"},
	{"Go CDK secrets", "gocloud.dev", "go.mod", "`AWS_ENDPOINT_URL_KMS`", "TestGoCloudSecrets"},
	{"go-kms-wrapping, Vault's seal", "github.com/hashicorp/go-kms-wrapping/wrappers/awskms/v2", "go.mod", "`endpoint` in the stanza `seal \"awskms\"`", "TestGoKMSWrapping"},
	{"step-ca's awskms", "go.step.sm/crypto", "go.mod", "`AWS_ENDPOINT_URL_KMS`", "TestStepCrypto"},
	{"sops", "github.com/getsops/sops/v3", "sops/go.mod", "`AWS_ENDPOINT_URL_KMS`", "TestSops"},
	{"cosign", "github.com/sigstore/cosign/v3", "cosign/go.mod", "`AWS_ENDPOINT_URL_KMS`, or `awskms://HOST:PORT/alias/NAME` with TLS", "TestCosign"},
	{"SeaweedFS with SSE-KMS", "github.com/seaweedfs/seaweedfs", "seaweedfs/go.mod", "`endpoint` in the configuration of its S3 API", "TestSeaweedFS"},
	{"Ethereum signer for ethers", "@nexusmutual/ethers-v6-aws-kms-signer", "js/package.json", "`AWS_ENDPOINT_URL_KMS`", "TestJavaScript"},
}

const (
	tableBegin = "<!-- table of clients begin -->\n"
	tableEnd   = "<!-- table of clients end -->\n"
)

// docs is docs/clients.md.
func docs(t *testing.T) (file, text string) {
	t.Helper()
	file = filepath.Join("..", "..", "docs", "clients.md")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return file, string(b)
}

// TestDocsTable holds the table in docs/clients.md against what is tested here.
func TestDocsTable(t *testing.T) {
	var want strings.Builder
	want.WriteString("| Client | Version | What points it at Conclave | Test |\n| --- | --- | --- | --- |\n")
	for _, c := range tested {
		version := "–"
		if c.file != "" {
			version = versionIn(t, c.file, c.module)
		}
		fmt.Fprintf(&want, "| %s | %s | %s | `%s` |\n", c.name, version, c.setting, c.test)
	}
	file, text := docs(t)
	before, rest, ok := strings.Cut(text, tableBegin)
	got, after, ok2 := strings.Cut(rest, tableEnd)
	if !ok || !ok2 {
		t.Fatalf("%s has lost the lines %q and %q", file, tableBegin, tableEnd)
	}
	if *update {
		if err := os.WriteFile(file, []byte(before+tableBegin+want.String()+tableEnd+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got != want.String() {
		t.Errorf("the table in %s is\n%swant\n%s`go test . -run TestDocsTable -update` in integration/clients writes it", file, got, want.String())
	}
}

// versionIn is the version of a module that a file asks for.
func versionIn(t *testing.T, file, module string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.FromSlash(file))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^\s*"?` + regexp.QuoteMeta(module) + `(?: |": "|", version = ")v?([0-9][^\s",]*)`).FindSubmatch(b)
	if m == nil {
		t.Fatalf("%s asks for no exact version of %s", file, module)
	}
	return string(m[1])
}

// walk has a shell carry out the commands under a heading of docs/clients.md, as
// they stand.
func (s *server) walk(t *testing.T, heading string) string {
	t.Helper()
	_, text := docs(t)
	_, section, ok := strings.Cut(text, "\n"+heading+"\n")
	if !ok {
		t.Fatalf("docs/clients.md has no %q", heading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	blocks := regexp.MustCompile("(?s)\n```sh\n(.*?)\n```").FindAllStringSubmatch(section, -1)
	if len(blocks) == 0 {
		t.Fatalf("docs/clients.md has no commands under %q", heading)
	}
	var script strings.Builder
	for _, b := range blocks {
		script.WriteString(b[1] + "\n")
	}
	return s.does(t, "bash", "-euo", "pipefail", "-c", script.String())
}
