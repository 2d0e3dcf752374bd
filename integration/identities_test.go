package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/integration/optional"
	"github.com/conclavekms/conclave/keyengine/issuertest"
)

const podSubject = "system:serviceaccount:default:app"

// commandLine is the AWS CLI with an environment of its own.
type commandLine struct {
	t   *testing.T
	run func(args []string) (cliAnswer, error)
}

// newCommandLine starts a CLI. All files that the environment names must be there.
func newCommandLine(t *testing.T, env []string) *commandLine {
	t.Helper()
	return &commandLine{t, startCLI(t, env)}
}

// does runs a command, which has to succeed, and returns its output, "" if it has none.
func (l *commandLine) does(args ...string) string {
	l.t.Helper()
	a, err := l.run(append(args, "--output", "json"))
	if err != nil {
		l.t.Fatal(err)
	}
	if a.Code != 0 {
		l.t.Fatalf("aws %s: exit code %d\n%s", strings.Join(args, " "), a.Code, a.Err)
	}
	return a.Out
}

// text runs a command, which has to succeed, and returns the texts that a query finds.
func (l *commandLine) text(query string, args ...string) string {
	l.t.Helper()
	a, err := l.run(append(args, "--query", query, "--output", "text"))
	if err != nil {
		l.t.Fatal(err)
	}
	if a.Code != 0 {
		l.t.Fatalf("aws %s: exit code %d\n%s", strings.Join(args, " "), a.Code, a.Err)
	}
	return strings.Join(strings.Fields(a.Out), " ")
}

// is runs a command, which has to succeed, and checks the texts that a query finds.
func (l *commandLine) is(want, query string, args ...string) {
	l.t.Helper()
	if got := l.text(query, args...); got != want {
		l.t.Errorf("aws %s: %s is %q, want %q", strings.Join(args, " "), query, got, want)
	}
}

// fails runs a command, which has to fail in this way.
func (l *commandLine) fails(code, operation string, args ...string) {
	l.t.Helper()
	a, err := l.run(args)
	if err != nil {
		l.t.Fatal(err)
	}
	m := cliError.FindStringSubmatch(a.Err)
	if a.Code == 0 || m == nil || m[1] != code || m[2] != operation {
		l.t.Errorf("aws %s: exit code %d, %s\nwant %s of %s", strings.Join(args, " "), a.Code, a.Err, code, operation)
	}
}

// identitySetting is a cluster with what tools need: an administrator, a key, and an issuer of
// web identities.
type identitySetting struct {
	c      *harness.Cluster
	issuer *issuertest.Issuer
	admin  *iam.Client
	env    []string // of the administrator
	key    string
	dir    string
}

func newIdentitySetting(t *testing.T) *identitySetting {
	t.Helper()
	s := &identitySetting{issuer: issuertest.New(t), dir: t.TempDir()}
	s.c = harness.NewCluster(t, 1, harness.Options{Configure: harness.TrustIssuer(t, s.issuer)})
	var keys *kms.Client
	s.admin, keys, s.env = administrator(t, s.c, s.c.Nodes[0])
	// The CLI keeps the sessions of profiles there, for its next run.
	s.env = append(s.env, "HOME="+s.dir)
	key, err := keys.CreateKey(t.Context(), &kms.CreateKeyInput{})
	if err != nil {
		t.Fatal(err)
	}
	s.key = *key.KeyMetadata.Arn
	return s
}

func (s *identitySetting) write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// without is the administrator's environment with other variables and no access key.
func (s *identitySetting) without(vars map[string]string) []string {
	env := slices.DeleteFunc(slices.Clone(s.env), func(v string) bool {
		return strings.HasPrefix(v, "AWS_ACCESS_KEY_ID=") || strings.HasPrefix(v, "AWS_SECRET_ACCESS_KEY=")
	})
	for _, name := range slices.Sorted(maps.Keys(vars)) {
		env = append(env, name+"="+vars[name])
	}
	return env
}

// TestCLIIdentities manages users, groups, roles and policies with `aws iam`, and uses them
// with `aws sts`, by profiles with a role, and as a pod with a web identity.
func TestCLIIdentities(t *testing.T) {
	t.Parallel()
	s := newIdentitySetting(t)
	root := "arn:aws:iam::" + harness.Account
	aws := newCommandLine(t, s.env)
	aws.is(root+":user/admin", "Arn", "sts", "get-caller-identity")

	allow := func(action, resource string) string {
		return fmt.Sprintf(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":%q,"Resource":%q}]}`, action, resource)
	}
	aws.does("iam", "create-user", "--user-name", "app", "--path", "/apps/", "--tags", "Key=stage,Value=test")
	aws.does("iam", "wait", "user-exists", "--user-name", "app")
	aws.is("test", "Tags[].Value", "iam", "list-user-tags", "--user-name", "app")
	aws.fails("EntityAlreadyExists", "CreateUser", "iam", "create-user", "--user-name", "app")
	aws.fails("NoSuchEntity", "GetUser", "iam", "get-user", "--user-name", "nobody")
	var made struct {
		AccessKey struct{ AccessKeyId, SecretAccessKey string }
	}
	if err := json.Unmarshal([]byte(aws.does("iam", "create-access-key", "--user-name", "app")), &made); err != nil {
		t.Fatal(err)
	}
	// The pages are one user each. The CLI reads on to the end.
	aws.is("admin app", "Users[].UserName", "iam", "list-users", "--page-size", "1")

	aws.does("iam", "create-group", "--group-name", "team")
	aws.does("iam", "add-user-to-group", "--group-name", "team", "--user-name", "app")
	aws.is("app", "Users[].UserName", "iam", "get-group", "--group-name", "team")
	aws.does("iam", "put-group-policy", "--group-name", "team", "--policy-name", "assume", "--policy-document", allow("sts:AssumeRole", root+":role/*"))
	use := aws.text("Policy.Arn", "iam", "create-policy", "--policy-name", "use", "--policy-document", allow("kms:Encrypt", s.key))
	aws.fails("MalformedPolicyDocument", "CreatePolicy", "iam", "create-policy", "--policy-name", "bad", "--policy-document", "{}")

	trust := s.write(t, "trust.json", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"sts:AssumeRole","Principal":{"AWS":"`+root+`:user/apps/app"},`+
		`"Condition":{"StringEquals":{"sts:ExternalId":"abc"}}}]}`)
	aws.does("iam", "create-role", "--role-name", "worker", "--assume-role-policy-document", "file://"+trust)
	aws.is("abc", "Role.AssumeRolePolicyDocument.Statement[].Condition.StringEquals.\"sts:ExternalId\"", "iam", "get-role", "--role-name", "worker")
	aws.does("iam", "attach-role-policy", "--role-name", "worker", "--policy-arn", use)
	aws.is("worker", "PolicyRoles[].RoleName", "iam", "list-entities-for-policy", "--policy-arn", use)
	provider := aws.text("OpenIDConnectProviderArn", "iam", "create-open-id-connect-provider", "--url", s.issuer.URL, "--client-id-list", harness.Audience)
	federated := s.write(t, "federated.json", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"sts:AssumeRoleWithWebIdentity","Principal":{"Federated":"`+provider+`"},`+
		`"Condition":{"StringEquals":{"`+s.issuer.Name()+`:sub":"`+podSubject+`"}}}]}`)
	aws.does("iam", "create-role", "--role-name", "pod", "--assume-role-policy-document", "file://"+federated)
	aws.does("iam", "put-role-policy", "--role-name", "pod", "--policy-name", "own", "--policy-document", allow("kms:Encrypt", s.key))
	aws.is("pod worker", "RoleDetailList[].RoleName", "iam", "get-account-authorization-details", "--filter", "Role")
	aws.is("2", "SummaryMap.Users", "iam", "get-account-summary")

	// A profile with a role takes the access key of another profile.
	files := map[string]string{
		"AWS_SHARED_CREDENTIALS_FILE": s.write(t, "credentials", "[app]\naws_access_key_id = "+made.AccessKey.AccessKeyId+"\naws_secret_access_key = "+made.AccessKey.SecretAccessKey+"\n"),
		"AWS_CONFIG_FILE": s.write(t, "config", "[profile worker]\nrole_arn = "+root+":role/worker\nsource_profile = app\nexternal_id = abc\nrole_session_name = by-profile\n"+
			"[profile stranger]\nrole_arn = "+root+":role/worker\nsource_profile = app\n"),
	}
	app := newCommandLine(t, s.without(files))
	app.is(root+":user/apps/app", "Arn", "sts", "get-caller-identity", "--profile", "app")
	app.is("arn:aws:sts::"+harness.Account+":assumed-role/worker/by-profile", "Arn", "sts", "get-caller-identity", "--profile", "worker")
	plain := "fileb://" + s.write(t, "plain", "text")
	app.is(s.key, "KeyId", "kms", "encrypt", "--key-id", s.key, "--plaintext", plain, "--profile", "worker")
	app.fails("AccessDeniedException", "Encrypt", "kms", "encrypt", "--key-id", s.key, "--plaintext", plain, "--profile", "app")
	app.fails("AccessDeniedException", "DescribeKey", "kms", "describe-key", "--key-id", s.key, "--profile", "worker")
	app.fails("AccessDenied", "AssumeRole", "sts", "get-caller-identity", "--profile", "stranger")
	app.fails("AccessDenied", "CreateUser", "iam", "create-user", "--user-name", "more", "--profile", "app")
	aws.is(harness.Account, "Account", "sts", "get-access-key-info", "--access-key-id", made.AccessKey.AccessKeyId)

	// Session tokens, as those who type them in have them.
	var session struct {
		Credentials struct{ AccessKeyId, SecretAccessKey, SessionToken string }
	}
	if err := json.Unmarshal([]byte(app.does("sts", "get-session-token", "--duration-seconds", "900", "--profile", "app")), &session); err != nil {
		t.Fatal(err)
	}
	temporary := newCommandLine(t, s.without(map[string]string{
		"AWS_ACCESS_KEY_ID": session.Credentials.AccessKeyId, "AWS_SECRET_ACCESS_KEY": session.Credentials.SecretAccessKey, "AWS_SESSION_TOKEN": session.Credentials.SessionToken,
	}))
	temporary.is(root+":user/apps/app", "Arn", "sts", "get-caller-identity")

	// A pod has nothing but a token.
	pod := newCommandLine(t, s.without(s.podVariables(t)))
	pod.is("arn:aws:sts::"+harness.Account+":assumed-role/pod/pod-1", "Arn", "sts", "get-caller-identity")
	pod.is(s.key, "KeyId", "kms", "encrypt", "--key-id", s.key, "--plaintext", plain)

	aws.fails("DeleteConflict", "DeleteUser", "iam", "delete-user", "--user-name", "app")
	aws.does("iam", "delete-access-key", "--user-name", "app", "--access-key-id", made.AccessKey.AccessKeyId)
	app.fails("InvalidClientTokenId", "GetCallerIdentity", "sts", "get-caller-identity", "--profile", "app")
	temporary.fails("InvalidClientTokenId", "GetCallerIdentity", "sts", "get-caller-identity")
	aws.does("iam", "remove-user-from-group", "--group-name", "team", "--user-name", "app")
	aws.does("iam", "delete-group-policy", "--group-name", "team", "--policy-name", "assume")
	aws.does("iam", "delete-group", "--group-name", "team")
	aws.does("iam", "delete-user", "--user-name", "app")
	aws.does("iam", "detach-role-policy", "--role-name", "worker", "--policy-arn", use)
	aws.does("iam", "delete-policy", "--policy-arn", use)
	aws.does("iam", "delete-role", "--role-name", "worker")
	aws.does("iam", "delete-open-id-connect-provider", "--open-id-connect-provider-arn", provider)
	aws.is("admin", "Users[].UserName", "iam", "list-users")
	s.c.NoFaults()
}

// podVariables are those that Kubernetes gives a pod with the role pod.
func (s *identitySetting) podVariables(t *testing.T) map[string]string {
	t.Helper()
	return map[string]string{
		"AWS_ROLE_ARN": "arn:aws:iam::" + harness.Account + ":role/pod", "AWS_ROLE_SESSION_NAME": "pod-1",
		"AWS_WEB_IDENTITY_TOKEN_FILE": s.write(t, "token", harness.Token(s.issuer, podSubject)),
	}
}

// TestBoto3Identities does the same with boto3, in testdata/boto3_identities.py.
func TestBoto3Identities(t *testing.T) {
	t.Parallel()
	needBoto3(t)
	s := newIdentitySetting(t)
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "python3", filepath.Join("testdata", "boto3_identities.py"), s.dir)
	cmd.WaitDelay = 5 * time.Second
	cmd.Env = append(s.env, "TEST_ACCOUNT="+harness.Account, "TEST_KEY="+s.key, "TEST_ISSUER="+s.issuer.URL, "TEST_AUDIENCE="+harness.Audience,
		"TEST_TOKEN="+harness.Token(s.issuer, podSubject), "TEST_SUBJECT="+podSubject)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	s.c.NoFaults()
}

// needBoto3 skips a test if Python has no boto3.
func needBoto3(t testing.TB) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "python3", "-c", "import boto3").CombinedOutput(); err != nil {
		optional.Skip(t, "python3 has no boto3: %v\n%s", err, out)
	}
}
