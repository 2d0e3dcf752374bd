package awsapi

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"
	"github.com/google/go-cmp/cmp"

	"github.com/conclavekms/conclave/integration/optional"
	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport"
)

// serveTLS serves the handler over TLS with the real clock. It returns the
// endpoint, and the certificate to trust, in a pool and in a file.
func (f *fixture) serveTLS(t testing.TB) (endpoint string, roots *x509.CertPool, bundle string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots = x509.NewCertPool()
	roots.AddCert(cert)
	bundle = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	l := listen(t)
	srv := transport.NewHTTPServer(transport.HTTPConfig{
		TLS: &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}},
	}, f.Handler)
	done := make(chan error, 1)
	go func() { done <- transport.Serve(srv, l) }()
	t.Cleanup(func() {
		srv.Close()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return "https://" + l.Addr().String(), roots, bundle
}

// newSDKClient returns an unmodified client of the AWS SDK.
func newSDKClient(t *testing.T, f *fixture, http2 bool) *kms.Client {
	t.Helper()
	endpoint, roots, _ := f.serveTLS(t)
	return newSDKClientAt(endpoint, roots, http2)
}

func newSDKClientAt(endpoint string, roots *x509.CertPool, http2 bool) *kms.Client {
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: http2}
	return kms.New(kms.Options{
		BaseEndpoint: &endpoint,
		Region:       testRegion,
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: testKeyID, SecretAccessKey: testSecret}, nil
		}),
		HTTPClient:       &http.Client{Transport: tr, Timeout: 30 * time.Second},
		RetryMaxAttempts: 1,
	})
}

func realClock(c *Config) { c.Now = nil }

func TestSDK(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("http2=%v", http2), func(t *testing.T) { testSDK(t, http2) })
	}
}

func testSDK(t *testing.T, http2 bool) {
	f := newFixture(t, realClock)
	client := newSDKClient(t, f, http2)
	ctx := t.Context()
	got := make(chan any, 1)
	answers := func(out any) {
		f.engine.does(func(_ context.Context, _ *iam.Caller, op *keyengine.Operation, in any) (any, error) {
			c := reflect.New(reflect.TypeOf(in).Elem())
			c.Elem().Set(reflect.ValueOf(in).Elem())
			if e, ok := c.Interface().(*kmsapi.EncryptInput); ok {
				e.Plaintext = append([]byte(nil), e.Plaintext...) // wiped after the answer
			}
			got <- c.Interface()
			return out, nil
		})
	}
	arn := ptr("arn:aws:kms:eu-test-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab")

	answers(&kmsapi.EncryptOutput{CiphertextBlob: []byte{1, 2, 0xff}, KeyId: arn, EncryptionAlgorithm: ptr("SYMMETRIC_DEFAULT")})
	enc, err := client.Encrypt(ctx, &kms.EncryptInput{
		KeyId: ptr("alias/ключ +%/"), Plaintext: []byte("plain <&> text"), EncryptionContext: map[string]string{"a": "b", "é\"": "\u2028"},
		GrantTokens: []string{"t"}, EncryptionAlgorithm: types.EncryptionAlgorithmSpecSymmetricDefault, DryRun: ptr(false),
	})
	if err != nil {
		t.Fatal(err)
	}
	want := &kmsapi.EncryptInput{KeyId: ptr("alias/ключ +%/"), Plaintext: []byte("plain <&> text"), EncryptionContext: map[string]string{"a": "b", "é\"": "\u2028"},
		GrantTokens: []string{"t"}, EncryptionAlgorithm: ptr("SYMMETRIC_DEFAULT"), DryRun: ptr(false)}
	if diff := cmp.Diff(any(want), <-got); diff != "" {
		t.Errorf("Encrypt input:\n%s", diff)
	}
	if string(enc.CiphertextBlob) != "\x01\x02\xff" || *enc.KeyId != *arn || enc.EncryptionAlgorithm != "SYMMETRIC_DEFAULT" {
		t.Errorf("Encrypt output: %+v", enc)
	}
	if c := f.engine.caller(t); c.Region != testRegion || c.TLS.Version != "TLSv1.3" || c.TLS.Cipher == "" || c.SourceIP != "127.0.0.1" || !strings.Contains(c.UserAgent, "aws-sdk-go-v2/") {
		t.Errorf("caller %+v", c)
	}

	created := time.UnixMilli(1593622000191).UTC()
	answers(&kmsapi.CreateKeyOutput{KeyMetadata: &kmsapi.KeyMetadata{Arn: arn, KeyId: ptr("id"), CreationDate: &created, Enabled: ptr(true), MultiRegion: ptr(false),
		EncryptionAlgorithms: []string{"SYMMETRIC_DEFAULT"}, KeyState: ptr("Enabled")}})
	ck, err := client.CreateKey(ctx, &kms.CreateKeyInput{Tags: []types.Tag{{TagKey: ptr("k"), TagValue: ptr("")}}, Policy: ptr(`{"a":"b"}`)})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(any(&kmsapi.CreateKeyInput{Tags: []kmsapi.Tag{{TagKey: ptr("k"), TagValue: ptr("")}}, Policy: ptr(`{"a":"b"}`)}), <-got); diff != "" {
		t.Errorf("CreateKey input:\n%s", diff)
	}
	if m := ck.KeyMetadata; !m.CreationDate.Equal(created) || *m.Arn != *arn || !m.Enabled || m.KeyState != types.KeyStateEnabled || len(m.EncryptionAlgorithms) != 1 || m.DeletionDate != nil {
		t.Errorf("CreateKey output: %+v", m)
	}

	answers(&kmsapi.ListKeysOutput{Keys: []kmsapi.KeyListEntry{{KeyId: ptr("id"), KeyArn: arn}}, NextMarker: ptr("m"), Truncated: ptr(true)})
	lk, err := client.ListKeys(ctx, &kms.ListKeysInput{Limit: ptr(int32(1))})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(any(&kmsapi.ListKeysInput{Limit: ptr(int32(1))}), <-got); diff != "" {
		t.Errorf("ListKeys input:\n%s", diff)
	}
	if len(lk.Keys) != 1 || *lk.Keys[0].KeyArn != *arn || !lk.Truncated || *lk.NextMarker != "m" {
		t.Errorf("ListKeys output: %+v", lk)
	}

	answers(nil)
	if _, err := client.EnableKey(ctx, &kms.EnableKeyInput{KeyId: ptr("id")}); err != nil {
		t.Fatal(err)
	}
	<-got
}

// Each error arrives as the SDK's own type, with its message and request id.
func TestSDKErrors(t *testing.T) {
	f := newFixture(t, realClock)
	client := newSDKClient(t, f, false)
	for _, tc := range []struct {
		code kmsapi.Code
		want any
	}{
		{"NotFoundException", new(*types.NotFoundException)},
		{"DisabledException", new(*types.DisabledException)},
		{"InvalidCiphertextException", new(*types.InvalidCiphertextException)},
		{"IncorrectKeyException", new(*types.IncorrectKeyException)},
		{"InvalidKeyUsageException", new(*types.InvalidKeyUsageException)},
		{"InvalidGrantTokenException", new(*types.InvalidGrantTokenException)},
		{"KMSInvalidStateException", new(*types.KMSInvalidStateException)},
		{"KMSInternalException", new(*types.KMSInternalException)},
		{"DryRunOperationException", new(*types.DryRunOperationException)},
	} {
		t.Run(string(tc.code), func(t *testing.T) {
			f.engine.does(answer(nil, &kmsapi.Error{Code: tc.code, Message: "what happened"}))
			_, err := client.Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: []byte("x")})
			if !errors.As(err, tc.want) {
				t.Fatalf("got %v, want a %T", err, tc.want)
			}
			if id := transport.FormatRequestID(f.engine.caller(t).RequestID); !strings.Contains(err.Error(), id) {
				t.Errorf("%v does not have the request id %s", err, id)
			}
			if tc.code != "KMSInternalException" && !strings.Contains(err.Error(), "what happened") {
				t.Errorf("%v does not have the message", err)
			}
		})
	}
	for _, code := range []kmsapi.Code{"AccessDeniedException", "ValidationException", "ThrottlingException", "ServiceUnavailable"} {
		f.engine.does(answer(nil, &kmsapi.Error{Code: code, Message: "what happened"}))
		_, err := client.Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: []byte("x")})
		if e, ok := errors.AsType[smithy.APIError](err); !ok || e.ErrorCode() != string(code) || e.ErrorMessage() != "what happened" {
			t.Errorf("got %v, want %s", err, code)
		}
	}
	f.engine.authErr = kmsapi.ErrUnrecognizedClient
	_, err := client.Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: []byte("x")})
	if e, ok := errors.AsType[smithy.APIError](err); !ok || e.ErrorCode() != "UnrecognizedClientException" {
		t.Errorf("got %v", err)
	}
}

// clientEnv returns the environment that points any AWS client to the handler.
func clientEnv(endpoint, bundle string) []string {
	return append(os.Environ(), "AWS_ACCESS_KEY_ID="+testKeyID, "AWS_SECRET_ACCESS_KEY="+testSecret, "AWS_DEFAULT_REGION="+testRegion, "AWS_REGION="+testRegion,
		"AWS_ENDPOINT_URL_KMS="+endpoint, "AWS_CA_BUNDLE="+bundle, "AWS_EC2_METADATA_DISABLED=true", "AWS_MAX_ATTEMPTS=1",
		"AWS_CONFIG_FILE="+os.DevNull, "AWS_SHARED_CREDENTIALS_FILE="+os.DevNull)
}

func TestBoto3(t *testing.T) {
	if err := exec.Command("python3", "-c", "import boto3").Run(); err != nil {
		optional.Skip(t, "python3 with boto3 is not installed: %v", err)
	}
	f := newFixture(t, realClock)
	endpoint, _, bundle := f.serveTLS(t)
	f.engine.does(func(_ context.Context, _ *iam.Caller, op *keyengine.Operation, in any) (any, error) {
		switch in := in.(type) {
		case *kmsapi.EncryptInput:
			return &kmsapi.EncryptOutput{CiphertextBlob: append([]byte("sealed:"), in.Plaintext...), KeyId: in.KeyId}, nil
		case *kmsapi.EnableKeyInput:
			return nil, nil
		case *kmsapi.ListKeysInput:
			return &kmsapi.ListKeysOutput{}, nil
		case *kmsapi.DescribeKeyInput:
			return nil, &kmsapi.Error{Code: "NotFoundException", Message: "Alias é is not found."}
		}
		return nil, fmt.Errorf("asked for %s", op.Name)
	})
	const script = `
import boto3, botocore.config, os, ssl, urllib.error, urllib.request
k = boto3.client('kms')
r = k.encrypt(KeyId='alias/\u00e9 +', Plaintext=b'\x00\xff', EncryptionContext={'a': '1'})
assert r['CiphertextBlob'] == b'sealed:\x00\xff', r
assert r['KeyId'] == 'alias/\u00e9 +', r
assert len(r['ResponseMetadata']['RequestId']) == 36, r
assert k.enable_key(KeyId='x')['ResponseMetadata']['HTTPStatusCode'] == 200
try:
    k.describe_key(KeyId='alias/none')
    raise SystemExit('no error')
except k.exceptions.NotFoundException as e:
    assert e.response['Error']['Message'] == 'Alias \u00e9 is not found.', e
try:
    boto3.client('kms', aws_access_key_id=os.environ['AWS_ACCESS_KEY_ID'], aws_secret_access_key='wrong').encrypt(KeyId='x', Plaintext=b'x')
    raise SystemExit('no error')
except botocore.exceptions.ClientError as e:
    assert e.response['Error']['Code'] == 'InvalidSignatureException', e
try:
    boto3.client('kms', aws_access_key_id=os.environ['AWS_ACCESS_KEY_ID'], aws_secret_access_key=os.environ['AWS_SECRET_ACCESS_KEY'], aws_session_token='token').encrypt(KeyId='x', Plaintext=b'x')
    raise SystemExit('no error')
except botocore.exceptions.ClientError as e:
    assert e.response['Error']['Code'] == 'UnrecognizedClientException', e
# boto3 presigns a request without a body, so that it is of use for operations that need no member.
url = k.generate_presigned_url('list_keys', HttpMethod='POST')
ctx = ssl.create_default_context(cafile=os.environ['AWS_CA_BUNDLE'])
def post(data):
    return urllib.request.urlopen(urllib.request.Request(url, method='POST', data=data, headers={
        'Content-Type': 'application/x-amz-json-1.1', 'X-Amz-Target': 'TrentService.ListKeys'}), context=ctx)
assert post(b'').status == 200
try:
    post(b'{}')
    raise SystemExit('no error')
except urllib.error.HTTPError as e:
    assert e.code == 400 and b'InvalidSignatureException' in e.read(), e
try:
    boto3.client('s3', endpoint_url=k.meta.endpoint_url, config=botocore.config.Config(s3={'addressing_style': 'path'})).list_objects_v2(Bucket='b')
    raise SystemExit('no error')
except botocore.exceptions.ClientError as e:
    assert e.response['Error']['Code'] == 'SignatureDoesNotMatch' and 'AWS_ENDPOINT_URL_KMS' in e.response['Error']['Message'], e
try:
    boto3.client('secretsmanager', endpoint_url=k.meta.endpoint_url).list_secrets()
    raise SystemExit('no error')
except botocore.exceptions.ClientError as e:
    assert e.response['Error']['Code'] == 'InvalidSignatureException' and 'AWS_ENDPOINT_URL_KMS' in e.response['Error']['Message'], e
`
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "python3", "-c", script)
	cmd.Env = clientEnv(endpoint, bundle)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func TestAWSCLI(t *testing.T) {
	optional.Program(t, "aws")
	f := newFixture(t, realClock)
	endpoint, _, bundle := f.serveTLS(t)
	f.engine.does(func(_ context.Context, _ *iam.Caller, _ *keyengine.Operation, in any) (any, error) {
		return &kmsapi.EncryptOutput{CiphertextBlob: append([]byte("sealed:"), in.(*kmsapi.EncryptInput).Plaintext...)}, nil
	})
	file := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(file, []byte("hi"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "aws", "kms", "encrypt", "--key-id", "alias/x", "--plaintext", "fileb://"+file, "--query", "CiphertextBlob", "--output", "text")
	cmd.Env = clientEnv(endpoint, bundle)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v %s", err, err.(*exec.ExitError).Stderr)
	}
	if got := strings.TrimSpace(string(out)); got != "c2VhbGVkOmhp" {
		t.Errorf("got %q", got)
	}
}
