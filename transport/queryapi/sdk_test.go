package queryapi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	sdkiam "github.com/aws/aws-sdk-go-v2/service/iam"
	iamtypes "github.com/aws/aws-sdk-go-v2/service/iam/types"
	sdksts "github.com/aws/aws-sdk-go-v2/service/sts"
	ststypes "github.com/aws/aws-sdk-go-v2/service/sts/types"
	"github.com/aws/smithy-go"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/conclavekms/conclave/integration/optional"
	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

func hashOf(body string) string {
	sum := sha256.Sum256([]byte(body))
	return hex.EncodeToString(sum[:])
}

// clients are unmodified clients of the AWS SDK, which talk to the fixture.
type clients struct {
	iam *sdkiam.Client
	sts *sdksts.Client
}

func newClients(t *testing.T, f *fixture, token string) clients {
	t.Helper()
	srv := httptest.NewServer(f.Before(http.NotFoundHandler()))
	t.Cleanup(srv.Close)
	creds := aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{AccessKeyID: testKeyID, SecretAccessKey: testSecret, SessionToken: token}, nil
	})
	return clients{
		sdkiam.New(sdkiam.Options{BaseEndpoint: &srv.URL, Region: "us-east-1", Credentials: creds, RetryMaxAttempts: 1}),
		sdksts.New(sdksts.Options{BaseEndpoint: &srv.URL, Region: "eu-test-1", Credentials: creds, RetryMaxAttempts: 1}),
	}
}

func realClock(c *Config) { c.Now = nil }

// call calls an operation of a client with an input that has the members of in.
func (c clients) call(t *testing.T, op *keyengine.Operation, in any) (out reflect.Value, err error) {
	t.Helper()
	client := reflect.ValueOf(c.iam)
	if op.Service == "sts" {
		client = reflect.ValueOf(c.sts)
	}
	method := client.MethodByName(op.Name)
	if !method.IsValid() {
		t.Fatalf("the SDK has no %s", op.Name)
	}
	input := reflect.New(method.Type().In(1).Elem())
	convert(t, op.Name, input.Elem(), reflect.ValueOf(in).Elem())
	results := method.Call([]reflect.Value{reflect.ValueOf(t.Context()), input})
	err, _ = results[1].Interface().(error)
	return results[0], err
}

// TestEveryOperation: what the SDK sends for random inputs is decoded to the same inputs,
// and what it decodes from the answers is what the engine returned.
func TestEveryOperation(t *testing.T) {
	f := newFixture(t, realClock)
	c := newClients(t, f, testToken)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	// These AWS does not have.
	own := []string{"RevokeOpenIDConnectProviderSessions", "RevokeRoleSessions", "UpdateOpenIDConnectProviderKeys"}
	for i, op := range operations() {
		if slices.Contains(own, op.Name) {
			continue
		}
		for round := range 8 {
			// The answer is wiped once it is sent, so it is made twice.
			random := func() (in, out any) {
				rng := rand.New(rand.NewPCG(seed, uint64(100*i+round)))
				in, out = op.NewInput(), op.NewOutput()
				fill(rng, op.Input(), reflect.ValueOf(in).Elem())
				fill(rng, op.Output(), reflect.ValueOf(out).Elem())
				return in, out
			}
			in, want := random()
			f.engine.do = func(*keyengine.Operation, any) (any, error) {
				_, out := random()
				return out, nil
			}
			sdk, err := c.call(t, op, in)
			if err != nil {
				t.Errorf("%s: %v", op.Name, err)
				continue
			}
			if f.engine.op != op.Name {
				t.Errorf("%s arrived as %s", op.Name, f.engine.op)
				continue
			}
			if diff := cmp.Diff(in, f.engine.in, flags); diff != "" {
				t.Errorf("%s: the input (-sent +decoded):\n%s", op.Name, diff)
			}
			if op.HasOutput() {
				got := op.NewOutput()
				convert(t, op.Name, reflect.ValueOf(got).Elem(), sdk.Elem())
				if diff := cmp.Diff(want, got, flags, cmpopts.EquateEmpty()); diff != "" {
					t.Errorf("%s: the output (-returned +decoded):\n%s", op.Name, diff)
				}
			}
			if known := f.engine.caller.Identity.Credential(); known != "" == op.Unsigned {
				t.Errorf("%s: the caller is %q", op.Name, known)
			}
		}
	}
}

// flags compares false and an absent flag as equal, as for some members the SDK does not
// tell them apart.
var flags = cmp.Transformer("flag", func(b *bool) bool { return b != nil && *b })

// fill gives members of a structure random values: those that are required, and three
// quarters of the others.
func fill(rng *rand.Rand, s *kmsapi.Schema, v reflect.Value) {
	for i := range s.Members {
		m, f := &s.Members[i], v.Field(i)
		if !m.Required && rng.IntN(4) == 0 {
			continue
		}
		switch m.Kind {
		case kmsapi.KindText:
			f.Set(reflect.ValueOf(new(randomText(rng))))
		case kmsapi.KindNumber:
			f.Set(reflect.ValueOf(new(1 + rng.Int32N(1<<31-1))))
		case kmsapi.KindFlag:
			f.Set(reflect.ValueOf(new(rng.IntN(2) == 0)))
		case kmsapi.KindBlob:
			f.SetBytes([]byte(randomText(rng)))
		case kmsapi.KindTime:
			f.Set(reflect.ValueOf(new(time.Unix(rng.Int64N(1<<32), 0).UTC())))
		case kmsapi.KindTextList:
			list := make([]string, rng.IntN(13)) // more than ten, whose order is not that of their texts
			for j := range list {
				list[j] = randomText(rng)
			}
			f.Set(reflect.ValueOf(list))
		case kmsapi.KindTextMap:
			f.Set(reflect.ValueOf(map[string]string{randomText(rng): randomText(rng), randomText(rng): randomText(rng)}))
		case kmsapi.KindNumberMap:
			f.Set(reflect.ValueOf(map[string]int32{randomText(rng): rng.Int32(), randomText(rng): -rng.Int32()}))
		case kmsapi.KindStructure:
			f.Set(reflect.New(m.Inner.Type))
			fill(rng, m.Inner, f.Elem())
		case kmsapi.KindStructureList:
			f.Set(reflect.MakeSlice(f.Type(), rng.IntN(4), 4))
			for j := range f.Len() {
				fill(rng, m.Inner, f.Index(j))
				if item := f.Index(j).Field(0); item.IsZero() && m.Inner.Members[0].Kind == kmsapi.KindText {
					item.Set(reflect.ValueOf(new("x"))) // the SDK does not send items without members
				}
			}
		}
	}
}

// alphabet has what forms and XML escape.
var alphabet = []rune("aZ09 <>&\"';=%+/?#[]{}:,.~-_*|\t\n\r\u00a0éß€日\U0001F511\u2028")

// randomText returns a text that does not begin or end with space, which the SDK removes.
func randomText(rng *rand.Rand) string {
	r := make([]rune, rng.IntN(20))
	for i := range r {
		r[i] = alphabet[rng.IntN(len(alphabet))]
	}
	return "x" + string(r) + "<"
}

// convert sets the members of a structure to those of another one, of the SDK or ours, with
// the same names.
func convert(t *testing.T, path string, to, from reflect.Value) {
	t.Helper()
	isBoth := func(kind reflect.Kind) bool { return to.Kind() == kind && from.Kind() == kind }
	switch {
	case from.Kind() == reflect.Pointer && from.IsNil(), from.Kind() == reflect.Slice && from.IsNil(), from.Kind() == reflect.Map && from.IsNil():
	case to.Type() == from.Type():
		to.Set(from)
	case from.Kind() == reflect.Pointer && to.Kind() != reflect.Pointer:
		convert(t, path, to, from.Elem())
	case to.Kind() == reflect.Pointer:
		if from.Kind() == reflect.Pointer {
			from = from.Elem()
		} else if from.IsZero() {
			return
		}
		to.Set(reflect.New(to.Type().Elem()))
		convert(t, path, to.Elem(), from)
	case isBoth(reflect.String):
		to.SetString(from.String())
	case isBoth(reflect.Slice):
		to.Set(reflect.MakeSlice(to.Type(), from.Len(), from.Len()))
		for i := range from.Len() {
			convert(t, path, to.Index(i), from.Index(i))
		}
	case isBoth(reflect.Map):
		to.Set(reflect.MakeMap(to.Type()))
		for k, v := range from.Seq2() {
			value := reflect.New(to.Type().Elem()).Elem()
			convert(t, path, value, v)
			to.SetMapIndex(k.Convert(to.Type().Key()), value)
		}
	case isBoth(reflect.Struct):
		ours := from
		if strings.HasSuffix(to.Type().PkgPath(), "/iamapi") {
			ours = to
		}
		for f := range ours.Type().Fields() {
			same := func(name string) bool { return strings.EqualFold(name, f.Name) }
			src, dst := from.FieldByNameFunc(same), to.FieldByNameFunc(same)
			if !src.IsValid() || !dst.IsValid() {
				t.Errorf("%s: the SDK has no %s", path, f.Name)
				continue
			}
			convert(t, path+"."+f.Name, dst, src)
			if documents[f.Name] && ours == to && !dst.IsNil() {
				plain, err := url.PathUnescape(dst.Elem().String())
				if err != nil {
					t.Errorf("%s: %v", path, err)
				}
				dst.Set(reflect.ValueOf(&plain))
			}
		}
	default:
		t.Fatalf("%s: %v cannot be %v", path, from.Type(), to.Type())
	}
}

// TestErrorsOfSDK: the SDK recognises every error that its model has, with AWS's status.
func TestErrorsOfSDK(t *testing.T) {
	f := newFixture(t, realClock)
	c := newClients(t, f, "")
	var gone *iamtypes.NoSuchEntityException
	for _, tc := range []struct {
		err    *kmsapi.Error
		status int
		code   string
		target any // a pointer to a type of the SDK's; nil if it has none
		sts    any
	}{
		{iamapi.ErrNoSuchEntity, 404, "NoSuchEntity", &gone, nil},
		{iamapi.ErrEntityAlreadyExists, 409, "EntityAlreadyExists", new(*iamtypes.EntityAlreadyExistsException), nil},
		{iamapi.ErrLimitExceeded, 409, "LimitExceeded", new(*iamtypes.LimitExceededException), nil},
		{kmsapi.ErrLimitExceeded, 409, "LimitExceeded", new(*iamtypes.LimitExceededException), nil},
		{iamapi.ErrDeleteConflict, 409, "DeleteConflict", new(*iamtypes.DeleteConflictException), nil},
		{iamapi.ErrConcurrentModification, 409, "ConcurrentModification", new(*iamtypes.ConcurrentModificationException), nil},
		{iamapi.ErrInvalidInput, 400, "InvalidInput", new(*iamtypes.InvalidInputException), nil},
		{iamapi.ErrMalformedPolicyDocument, 400, "MalformedPolicyDocument", new(*iamtypes.MalformedPolicyDocumentException), new(*ststypes.MalformedPolicyDocumentException)},
		{kmsapi.ErrMalformedPolicy, 400, "MalformedPolicyDocument", new(*iamtypes.MalformedPolicyDocumentException), new(*ststypes.MalformedPolicyDocumentException)},
		{iamapi.ErrPolicyNotAttachable, 400, "PolicyNotAttachable", new(*iamtypes.PolicyNotAttachableException), nil},
		{iamapi.ErrUnmodifiableEntity, 400, "UnmodifiableEntity", new(*iamtypes.UnmodifiableEntityException), nil},
		{iamapi.ErrPolicyEvaluation, 500, "PolicyEvaluation", new(*iamtypes.PolicyEvaluationException), nil},
		{iamapi.ErrOpenIDIdPCommunication, 400, "OpenIdIdpCommunicationError", new(*iamtypes.OpenIdIdpCommunicationErrorException), nil},
		{iamapi.ErrInvalidIdentityToken, 400, "InvalidIdentityToken", nil, new(*ststypes.InvalidIdentityTokenException)},
		{iamapi.ErrIDPRejectedClaim, 403, "IDPRejectedClaim", nil, new(*ststypes.IDPRejectedClaimException)},
		{iamapi.ErrIDPCommunication, 400, "IDPCommunicationError", nil, new(*ststypes.IDPCommunicationErrorException)},
		{iamapi.ErrPackedPolicyTooLarge, 400, "PackedPolicyTooLarge", nil, new(*ststypes.PackedPolicyTooLargeException)},
		{iamapi.ErrRegionDisabled, 403, "RegionDisabledException", nil, new(*ststypes.RegionDisabledException)},
		{iamapi.ErrInvalidAuthorizationMessage, 400, "InvalidAuthorizationMessageException", nil, new(*ststypes.InvalidAuthorizationMessageException)},
		{kmsapi.ErrExpiredToken, 400, "ExpiredTokenException", nil, new(*ststypes.ExpiredTokenException)},
		{kmsapi.ErrValidation, 400, "ValidationError", nil, nil},
		{kmsapi.ErrInvalidMarker, 400, "ValidationError", nil, nil},
		{kmsapi.ErrAccessDenied, 403, "AccessDenied", nil, nil},
		{kmsapi.ErrThrottling, 400, "Throttling", nil, nil},
		{kmsapi.ErrUnavailable, 503, "ServiceUnavailable", nil, nil},
		{kmsapi.ErrInternal, 500, "ServiceFailure", new(*iamtypes.ServiceFailureException), nil},
	} {
		f.engine.do = func(*keyengine.Operation, any) (any, error) {
			return nil, kmsapi.Errorf(tc.err, "it was <b>refused</b> & that's it")
		}
		check := func(service string, err error, target any) {
			t.Helper()
			e, ok := errors.AsType[smithy.APIError](err)
			if !ok {
				t.Errorf("%s of %s: got %v", tc.err.Code, service, err)
				return
			}
			code := tc.code
			if tc.err == kmsapi.ErrInternal && service == "sts" {
				code = "InternalFailure"
			}
			quiet := tc.err == kmsapi.ErrInternal || tc.err == kmsapi.ErrThrottling
			if e.ErrorCode() != code && !strings.HasPrefix(e.ErrorCode(), code) || !quiet && e.ErrorMessage() != "it was <b>refused</b> & that's it" {
				t.Errorf("%s of %s: got %s: %s", tc.err.Code, service, e.ErrorCode(), e.ErrorMessage())
			}
			if target != nil && !errors.As(err, target) {
				t.Errorf("%s of %s is %T", tc.err.Code, service, e)
			}
			response, ok := errors.AsType[*awshttp.ResponseError](err)
			if !ok || response.HTTPStatusCode() != tc.status || len(response.ServiceRequestID()) != 36 {
				t.Errorf("%s of %s: got status %d and request id %q", tc.err.Code, service, response.HTTPStatusCode(), response.ServiceRequestID())
			}
		}
		if tc.err != kmsapi.ErrExpiredToken { // which has another meaning there
			_, err := c.iam.GetUser(t.Context(), &sdkiam.GetUserInput{})
			check("iam", err, tc.target)
		}
		_, err := c.sts.AssumeRoleWithWebIdentity(t.Context(), &sdksts.AssumeRoleWithWebIdentityInput{
			RoleArn: aws.String("arn:aws:iam::111122223333:role/r"), RoleSessionName: aws.String("me"), WebIdentityToken: aws.String("token"),
		})
		check("sts", err, tc.sts)
	}
	if text := f.log.String(); strings.Contains(text, "refused</b>") {
		t.Errorf("logged %s", text)
	}
}

// TestExpiredSession: the token of a session that has expired is called otherwise than that
// of a web identity, whether the signature or the evaluation is refused.
func TestExpiredSession(t *testing.T) {
	f := newFixture(t, nil)
	f.engine.authErr = kmsapi.Errorf(kmsapi.ErrExpiredToken, "The security token included in the request is expired")
	wantError(t, f.call(t, "sts", "Action=GetCallerIdentity"+stsVersion), 403, "ExpiredToken", "expired")
	f.engine.authErr = nil
	f.engine.do = func(*keyengine.Operation, any) (any, error) { return nil, kmsapi.ErrExpiredToken }
	wantError(t, f.call(t, "iam", "Action=GetUser"+iamVersion), 403, "ExpiredToken", "expired")
}

// TestPresignedBySDK: a URL that the SDK presigned, which is how systems that trust AWS let
// clients prove who they are, is answered.
func TestPresignedBySDK(t *testing.T) {
	f := newFixture(t, realClock)
	c := newClients(t, f, testToken)
	p, err := sdksts.NewPresignClient(c.sts).PresignGetCallerIdentity(t.Context(), &sdksts.GetCallerIdentityInput{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), p.Method, p.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header = p.SignedHeader
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != 200 || f.engine.op != "GetCallerIdentity" || f.engine.caller.Region != "eu-test-1" || f.engine.caller.Identity == (iam.Identity{}) {
		t.Errorf("got %s %s for %s by %+v", resp.Status, body, f.engine.op, f.engine.caller)
	}
}

// TestPython: botocore and the AWS CLI, which have codecs of their own, understand the face.
func TestPython(t *testing.T) {
	optional.Program(t, "aws")
	if err := exec.Command("python3", "-c", "import boto3").Run(); err != nil {
		optional.Skip(t, "python3 with boto3 is not installed: %v", err)
	}
	f := newFixture(t, realClock)
	f.engine.do = func(op *keyengine.Operation, in any) (any, error) {
		switch in := in.(type) {
		case *iamapi.CreateRoleInput:
			return &iamapi.CreateRoleOutput{Role: &iamapi.Role{
				RoleName: in.RoleName, AssumeRolePolicyDocument: in.AssumeRolePolicyDocument, Tags: in.Tags, CreateDate: &testTime,
			}}, nil
		case *iamapi.ListUsersInput:
			if in.Marker == nil {
				return &iamapi.ListUsersOutput{Users: []iamapi.User{{UserName: new("a")}}, IsTruncated: new(true), Marker: new("m<&")}, nil
			}
			return &iamapi.ListUsersOutput{Users: []iamapi.User{{UserName: in.Marker}}, IsTruncated: new(false)}, nil
		case *iamapi.GetUserInput:
			return nil, kmsapi.Errorf(iamapi.ErrNoSuchEntity, "The user with name %s cannot be found.", *in.UserName)
		case *iamapi.GetAccountSummaryInput:
			return &iamapi.GetAccountSummaryOutput{SummaryMap: map[string]int32{"Users": 7}}, nil
		case *iamapi.GetCallerIdentityInput:
			return &iamapi.GetCallerIdentityOutput{Account: new("111122223333"), Arn: new("arn:aws:iam::111122223333:root"), UserId: new("111122223333")}, nil
		case *iamapi.AssumeRoleWithWebIdentityInput:
			return &iamapi.AssumeRoleWithWebIdentityOutput{SubjectFromWebIdentityToken: in.WebIdentityToken}, nil
		}
		return op.NewOutput(), nil
	}
	srv := httptest.NewServer(f.Before(http.NotFoundHandler()))
	t.Cleanup(srv.Close)
	const script = `
import boto3, botocore, json, urllib.request
iam, sts = boto3.client('iam'), boto3.client('sts')
document = {'Version': '2012-10-17', 'Statement': [{'Effect': 'Allow', 'Principal': '*', 'Action': 'sts:AssumeRole & <\u00e9+ %>'}]}
role = iam.create_role(RoleName='r', AssumeRolePolicyDocument=json.dumps(document), Tags=[{'Key': str(i), 'Value': 'v+%&'} for i in range(12)])['Role']
assert role['AssumeRolePolicyDocument'] == document, role
assert [t['Key'] for t in role['Tags']] == [str(i) for i in range(12)] and role['Tags'][0]['Value'] == 'v+%&', role
assert role['CreateDate'].isoformat() == '2026-11-23T12:36:00+00:00', role
assert [u['UserName'] for u in iam.get_paginator('list_users').paginate().search('Users')] == ['a', 'm<&']
assert iam.get_account_summary()['SummaryMap'] == {'Users': 7}
assert iam.list_mfa_devices()['MFADevices'] == []
answer = iam.delete_user(UserName='a')['ResponseMetadata']
assert answer['HTTPStatusCode'] == 200 and len(answer['RequestId']) == 36, answer
try:
    iam.get_user(UserName='n<')
    raise SystemExit('no error')
except iam.exceptions.NoSuchEntityException as e:
    assert e.response['Error']['Message'] == 'The user with name n< cannot be found.', e
try:
    iam.create_saml_provider(SAMLMetadataDocument='x'*1000, Name='n')
    raise SystemExit('no error')
except botocore.exceptions.ClientError as e:
    assert e.response['Error']['Code'] == 'InvalidAction' and 'CreateSAMLProvider' in e.response['Error']['Message'], e
assert sts.get_caller_identity()['Account'] == '111122223333'
assert sts.assume_role_with_web_identity(RoleArn='arn:aws:iam::111122223333:role/r', RoleSessionName='session', WebIdentityToken='a.b-c')['SubjectFromWebIdentityToken'] == 'a.b-c'
for method in 'GET', 'POST':
    url = sts.generate_presigned_url('get_caller_identity', HttpMethod=method)
    assert b'111122223333' in urllib.request.urlopen(urllib.request.Request(url, method=method)).read()
`
	for _, command := range [][]string{
		{"python3", "-c", script},
		{"aws", "sts", "get-caller-identity"},
		{"aws", "iam", "list-users", "--query", "Users[].UserName"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, command[0], command[1:]...)
		cmd.Env = append(os.Environ(), "AWS_ACCESS_KEY_ID="+testKeyID, "AWS_SECRET_ACCESS_KEY="+testSecret, "AWS_SESSION_TOKEN="+testToken, "AWS_REGION=eu-test-1", "AWS_DEFAULT_REGION=eu-test-1",
			"AWS_ENDPOINT_URL_IAM="+srv.URL, "AWS_ENDPOINT_URL_STS="+srv.URL, "AWS_EC2_METADATA_DISABLED=true", "AWS_MAX_ATTEMPTS=1",
			"AWS_CONFIG_FILE="+os.DevNull, "AWS_SHARED_CREDENTIALS_FILE="+os.DevNull)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", command[0], err, out)
		}
	}
}
