package sdk

import (
	"context"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/credentials/endpointcreds"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	ststypes "github.com/aws/aws-sdk-go-v2/service/sts/types"

	"github.com/conclavekms/conclave/cmd/conclave/node"
	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/keyengine/issuertest"
)

const (
	workerRole = arnOf + "role/worker"
	podRole    = arnOf + "role/pod"
	podSubject = "system:serviceaccount:default:app"
)

// sessions is a cluster with a user "app" that may do nothing but assume the role worker,
// which may encrypt under a key, and a role for pods, which may do it as well.
type sessions struct {
	*identities
	issuer *issuertest.Issuer
	app    aws.Credentials
	key    string
}

func newSessions(t *testing.T, more func(*node.Config)) *sessions {
	t.Helper()
	s := &sessions{issuer: issuertest.New(t)}
	trustIssuer := harness.TrustIssuer(t, s.issuer)
	c := harness.NewCluster(t, 3, harness.Options{Configure: func(n *harness.Node, cfg *node.Config) {
		trustIssuer(n, cfg)
		if more != nil {
			more(cfg)
		}
	}})
	s.identities = newIdentities(t, c)
	key, err := c.Nodes[0].SDK().CreateKey(t.Context(), &kms.CreateKeyInput{})
	if err != nil {
		t.Fatal(err)
	}
	s.key = *key.KeyMetadata.Arn
	if s.app, err = s.user("app", allow(workerRole, "sts:AssumeRole", "sts:TagSession")).Retrieve(t.Context()); err != nil {
		t.Fatal(err)
	}
	provider := iamCall(s.identities, (*iam.Client).CreateOpenIDConnectProvider, &iam.CreateOpenIDConnectProviderInput{
		Url: &s.issuer.URL, ClientIDList: []string{harness.Audience},
	}).OpenIDConnectProviderArn
	for name, policy := range map[string]*string{
		"worker": trust(`"AWS":"`+arnOf+`user/app"`, "sts:AssumeRole", `{"StringEquals":{"sts:ExternalId":"secret-of-two"}}`),
		"pod": trust(`"Federated":"`+*provider+`"`, "sts:AssumeRoleWithWebIdentity",
			`{"StringEquals":{"`+s.issuer.Name()+`:sub":"`+podSubject+`"}}`),
	} {
		iamCall(s.identities, (*iam.Client).CreateRole, &iam.CreateRoleInput{RoleName: &name, AssumeRolePolicyDocument: policy})
		iamCall(s.identities, (*iam.Client).PutRolePolicy, &iam.PutRolePolicyInput{
			RoleName: &name, PolicyName: aws.String("own"), PolicyDocument: allow(s.key, "kms:Encrypt", "kms:Decrypt"),
		})
	}
	return s
}

// environment leaves nothing of AWS in the environment but what a workload on a node would
// have, and more.
func (s *sessions) environment(t *testing.T, n int, more map[string]string) {
	t.Helper()
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "AWS_") {
			t.Setenv(name, "") // has it come back with the end of the test
			os.Unsetenv(name)
		}
	}
	vars := map[string]string{
		"AWS_REGION": harness.Region, "AWS_CA_BUNDLE": s.c.CAFile(), "AWS_EC2_METADATA_DISABLED": "true",
		"AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull,
	}
	for _, service := range []string{"KMS", "STS"} {
		vars["AWS_ENDPOINT_URL_"+service] = "https://" + s.c.Nodes[n].AWS
	}
	for _, all := range []map[string]string{vars, more} {
		for name, value := range all {
			t.Setenv(name, value)
		}
	}
}

// load is the SDK's configuration, with nothing but the environment to go by.
func load(t *testing.T, opts ...func(*config.LoadOptions) error) aws.Config {
	t.Helper()
	cfg, err := config.LoadDefaultConfig(t.Context(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// caller is whom requests with a configuration come from.
func caller(t *testing.T, cfg aws.Config) string {
	t.Helper()
	out, err := sts.NewFromConfig(cfg).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
	if err != nil {
		t.Fatal(err)
	}
	return *out.Arn
}

// usable checks that credentials open a key on all nodes, and nothing else.
func (s *sessions) usable(t *testing.T, p aws.CredentialsProvider) {
	t.Helper()
	for n := range s.c.Nodes {
		client := kms.NewFromConfig(configOf(t, s.c, n, p))
		var enc *kms.EncryptOutput
		s.c.Eventually("an encryption", func(ctx context.Context) (err error) { // a busy machine may withhold an answer
			enc, err = client.Encrypt(ctx, &kms.EncryptInput{KeyId: &s.key, Plaintext: []byte("of a session")})
			return err
		})
		dec, err := client.Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: enc.CiphertextBlob})
		if err != nil || string(dec.Plaintext) != "of a session" {
			t.Errorf("Decrypt: %v", err)
		}
		if _, err := client.DisableKey(t.Context(), &kms.DisableKeyInput{KeyId: &s.key}); errorCode(err) != "AccessDeniedException" {
			t.Errorf("DisableKey: %v, want AccessDeniedException", err)
		}
	}
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestCredentialProviders has the providers of AWS's Go SDK get temporary credentials, and
// uses these on all nodes.
func TestCredentialProviders(t *testing.T) {
	s := newSessions(t, nil)
	t.Run("profile", s.profile)
	t.Run("profile without the external id", s.profileRefused)
	t.Run("web identity", s.webIdentity)
	t.Run("container", s.container)
	t.Run("refresh", s.refresh)
	t.Run("tokens", s.tokens)
	t.Run("session token", s.sessionToken)
	t.Run("session policy", s.sessionPolicy)
	t.Run("revocation", s.revocation)
	s.c.NoFaults()
}

func (s *sessions) sharedFiles(t *testing.T, profile string) map[string]string {
	return map[string]string{
		"AWS_SHARED_CREDENTIALS_FILE": write(t, "credentials", "[app]\naws_access_key_id = "+s.app.AccessKeyID+"\naws_secret_access_key = "+s.app.SecretAccessKey+"\n"),
		"AWS_CONFIG_FILE":             write(t, "config", "[profile worker]\nrole_arn = "+workerRole+"\nsource_profile = app\n"+profile),
		"AWS_PROFILE":                 "worker",
	}
}

func (s *sessions) profile(t *testing.T) {
	s.environment(t, 0, s.sharedFiles(t, "external_id = secret-of-two\nrole_session_name = by-profile\nduration_seconds = 1800\n"))
	cfg := load(t)
	same(t, "the caller", caller(t, cfg), "arn:aws:sts::"+harness.Account+":assumed-role/worker/by-profile")
	creds, err := cfg.Credentials.Retrieve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if life := time.Until(creds.Expires); !creds.CanExpire || life < 25*time.Minute || life > 31*time.Minute {
		t.Errorf("the credentials expire in %v, want half an hour", life)
	}
	same(t, "the account of the credentials", creds.AccountID, harness.Account)
	if !strings.HasPrefix(creds.AccessKeyID, "ASIA") {
		t.Errorf("the access key id is %s", creds.AccessKeyID)
	}
	s.usable(t, cfg.Credentials)
}

func (s *sessions) profileRefused(t *testing.T) {
	s.environment(t, 1, s.sharedFiles(t, "external_id = another\n"))
	_, err := load(t).Credentials.Retrieve(t.Context())
	if errorCode(err) != "AccessDenied" || !strings.Contains(err.Error(), "is not authorized to perform: sts:AssumeRole on resource: "+workerRole) {
		t.Errorf("assuming the role with another external id: %v, want AccessDenied", err)
	}
}

// pod is the environment of a pod in Kubernetes with a token.
func (s *sessions) pod(t *testing.T, n int, token string) (file string) {
	file = write(t, "token", token)
	s.environment(t, n, map[string]string{"AWS_ROLE_ARN": podRole, "AWS_WEB_IDENTITY_TOKEN_FILE": file, "AWS_ROLE_SESSION_NAME": "pod-1"})
	return file
}

func (s *sessions) webIdentity(t *testing.T) {
	s.pod(t, 2, harness.Token(s.issuer, podSubject))
	cfg := load(t)
	same(t, "the caller", caller(t, cfg), "arn:aws:sts::"+harness.Account+":assumed-role/pod/pod-1")
	s.usable(t, cfg.Credentials)
}

// container is a pod that gets its credentials from the endpoint for containers, which needs
// no STS.
func (s *sessions) container(t *testing.T) {
	file := write(t, "token", harness.Token(s.issuer, podSubject))
	at := func(role string) map[string]string {
		return map[string]string{
			"AWS_CONTAINER_CREDENTIALS_FULL_URI":     "https://" + s.c.Nodes[1].AWS + "/v1/credentials?role=" + url.QueryEscape(role),
			"AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": file,
		}
	}
	// This provider ignores AWS_CA_BUNDLE. In a container, the CA is one of the system's.
	client := config.WithEndpointCredentialOptions(func(o *endpointcreds.Options) { o.HTTPClient = configOf(t, s.c, 1, nil).HTTPClient })
	s.environment(t, 0, at(podRole))
	cfg := load(t, client)
	same(t, "the caller", caller(t, cfg), "arn:aws:sts::"+harness.Account+":assumed-role/pod/container")
	creds, err := cfg.Credentials.Retrieve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	same(t, "the account of the credentials", creds.AccountID, harness.Account)
	if life := time.Until(creds.Expires); !creds.CanExpire || life < 50*time.Minute || life > 61*time.Minute {
		t.Errorf("the credentials expire in %v, want an hour", life)
	}
	s.usable(t, cfg.Credentials)

	s.environment(t, 0, at(workerRole))
	if _, err := load(t, client).Credentials.Retrieve(t.Context()); errorCode(err) != "AccessDeniedException" {
		t.Errorf("a role that does not trust the issuer: %v, want AccessDeniedException", err)
	}
}

// refresh has credentials that the SDK takes for old after each use. Each time it reads the
// token anew, also when the issuer's key is another one.
func (s *sessions) refresh(t *testing.T) {
	file := s.pod(t, 0, harness.Token(s.issuer, podSubject))
	cfg := load(t, config.WithCredentialsCacheOptions(func(o *aws.CredentialsCacheOptions) { o.ExpiryWindow = 24 * time.Hour }))
	first, err := cfg.Credentials.Retrieve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	old := harness.Token(s.issuer, podSubject)
	s.issuer.Rotate("ES256")
	if err := os.WriteFile(file, []byte(harness.Token(s.issuer, podSubject)), 0o600); err != nil {
		t.Fatal(err)
	}
	// Nodes ask an issuer for keys that they do not know, but only every few seconds.
	var second aws.Credentials
	s.c.Eventually("the issuer's new key to be known", func(ctx context.Context) error {
		second, err = cfg.Credentials.Retrieve(ctx)
		return err
	})
	if first.AccessKeyID == second.AccessKeyID || first.SessionToken == second.SessionToken {
		t.Error("the credentials are the same after a refresh")
	}
	for _, creds := range []aws.Credentials{first, second} {
		s.usable(t, credentials.StaticCredentialsProvider{Value: creds})
	}
	// The key that was withdrawn is not accepted any more.
	if err := os.WriteFile(file, []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = cfg.Credentials.Retrieve(t.Context())
	if _, ok := errors.AsType[*ststypes.InvalidIdentityTokenException](err); !ok {
		t.Errorf("a token of the old key: %v, want InvalidIdentityTokenException", err)
	}
}

// tokens are refused that prove nothing.
func (s *sessions) tokens(t *testing.T) {
	s.environment(t, 0, nil)
	client := sts.NewFromConfig(configOf(t, s.c, 0, nil))
	with := func(token string) error {
		_, err := client.AssumeRoleWithWebIdentity(t.Context(), &sts.AssumeRoleWithWebIdentityInput{
			RoleArn: aws.String(podRole), RoleSessionName: aws.String("pod-2"), WebIdentityToken: &token,
		})
		return err
	}
	good := harness.Token(s.issuer, podSubject)
	if err := with(good); err != nil {
		t.Errorf("a good token: %v", err)
	}
	if err := with(good[:len(good)-8] + "AAAAAAAA"); !isError[*ststypes.InvalidIdentityTokenException](err) {
		t.Errorf("a forged token: %v, want InvalidIdentityTokenException", err)
	}
	if err := with("no token"); !isError[*ststypes.InvalidIdentityTokenException](err) {
		t.Errorf("no token: %v, want InvalidIdentityTokenException", err)
	}
	if err := with(s.issuer.Sign(s.issuer.Claims(time.Now(), podSubject, harness.Audience).With(issuertest.Claims{"exp": time.Now().Add(-time.Minute).Unix()}))); !isError[*ststypes.ExpiredTokenException](err) {
		t.Errorf("an expired token: %v, want ExpiredTokenException", err)
	}
	if err := with(harness.Token(s.issuer, "system:serviceaccount:default:other")); errorCode(err) != "AccessDenied" {
		t.Errorf("a token of another subject: %v, want AccessDenied", err)
	}
	if err := with(harness.Token(issuertest.New(t), podSubject)); !isError[*ststypes.InvalidIdentityTokenException](err) {
		t.Errorf("a token of an issuer that is not registered: %v, want InvalidIdentityTokenException", err)
	}
}

func isError[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

func (s *sessions) sessionToken(t *testing.T) {
	root := credentials.NewStaticCredentialsProvider(s.c.AccessKeyID, s.c.Secret(), "")
	out, err := sts.NewFromConfig(configOf(t, s.c, 0, root)).GetSessionToken(t.Context(), &sts.GetSessionTokenInput{DurationSeconds: aws.Int32(900)})
	if err != nil {
		t.Fatal(err)
	}
	p := credentials.NewStaticCredentialsProvider(*out.Credentials.AccessKeyId, *out.Credentials.SecretAccessKey, *out.Credentials.SessionToken)
	same(t, "the caller", s.callers(p), []string{arnOf + "root"})
	p.Value.SessionToken = p.Value.SessionToken[:len(p.Value.SessionToken)-4] + "AAAA"
	same(t, "the caller with an altered token", s.callers(p), []string{"InvalidClientTokenId"})
}

func (s *sessions) sessionPolicy(t *testing.T) {
	app := credentials.StaticCredentialsProvider{Value: s.app}
	p := stscreds.NewAssumeRoleProvider(sts.NewFromConfig(configOf(t, s.c, 1, app)), workerRole, func(o *stscreds.AssumeRoleOptions) {
		o.ExternalID, o.RoleSessionName, o.Policy = aws.String("secret-of-two"), "narrow", allow(s.key, "kms:Encrypt")
	})
	client := kms.NewFromConfig(configOf(t, s.c, 2, aws.NewCredentialsCache(p)))
	enc, err := client.Encrypt(t.Context(), &kms.EncryptInput{KeyId: &s.key, Plaintext: []byte("x")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: enc.CiphertextBlob}); errorCode(err) != "AccessDeniedException" {
		t.Errorf("Decrypt, which the session policy does not have: %v, want AccessDeniedException", err)
	}
}

// revocation of what a session stands on holds on all nodes at once.
func (s *sessions) revocation(t *testing.T) {
	s.pod(t, 0, harness.Token(s.issuer, podSubject))
	creds, err := load(t).Credentials.Retrieve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.usable(t, credentials.StaticCredentialsProvider{Value: creds})
	s.identities.T = t
	role := aws.String("pod")
	iamCall(s.identities, (*iam.Client).DeleteRolePolicy, &iam.DeleteRolePolicyInput{RoleName: role, PolicyName: aws.String("own")})
	for n := range s.c.Nodes {
		client := kms.NewFromConfig(configOf(t, s.c, n, credentials.StaticCredentialsProvider{Value: creds}))
		if _, err := client.Encrypt(t.Context(), &kms.EncryptInput{KeyId: &s.key, Plaintext: []byte("x")}); errorCode(err) != "AccessDeniedException" {
			t.Errorf("Encrypt after the role's policy was deleted: %v, want AccessDeniedException", err)
		}
	}
	iamCall(s.identities, (*iam.Client).DeleteRole, &iam.DeleteRoleInput{RoleName: role})
	same(t, "the caller after the role was deleted", s.callers(credentials.StaticCredentialsProvider{Value: creds}), []string{"InvalidClientTokenId"})
}

// laterClock is ahead of the machine's by a time.
type laterClock struct{ by *atomic.Int64 }

func (c laterClock) Now() time.Time { return time.Now().Add(time.Duration(c.by.Load())) }

// TestSessionExpires uses temporary credentials until they have expired.
func TestSessionExpires(t *testing.T) {
	t.Parallel()
	var later atomic.Int64
	c := harness.NewCluster(t, 1, harness.Options{Configure: func(_ *harness.Node, cfg *node.Config) { cfg.Test.Clock = laterClock{&later} }})
	root := credentials.NewStaticCredentialsProvider(c.AccessKeyID, c.Secret(), "")
	out, err := sts.NewFromConfig(configOf(t, c, 0, root)).GetSessionToken(t.Context(), &sts.GetSessionTokenInput{DurationSeconds: aws.Int32(900)})
	if err != nil {
		t.Fatal(err)
	}
	// The SDK has no clock of tests, so that its requests would be too old.
	f := harness.NewFace(t, c, c.Nodes[0])
	f.As = aws.Credentials{AccessKeyID: *out.Credentials.AccessKeyId, SecretAccessKey: *out.Credentials.SecretAccessKey, SessionToken: *out.Credentials.SessionToken}
	for _, after := range []time.Duration{0, 14 * time.Minute} {
		later.Store(int64(after))
		f.At = time.Now().Add(after)
		if a, err := f.Send(f.Signed("TrentService.ListKeys", "{}")); err != nil || a.Type != "" {
			t.Errorf("ListKeys after %v: %s %v", after, a.Type, err)
		}
	}
	later.Store(int64(16 * time.Minute))
	f.At = time.Now().Add(16 * time.Minute)
	f.Refuses("ListKeys after 16 minutes", f.Signed("TrentService.ListKeys", "{}"), 400, "ExpiredTokenException")
}
