package containercreds

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/config"

	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

const role = "arn:aws:iam::111122223333:role/path/app"

var expires = time.Date(2040, 1, 2, 3, 4, 5, 0, time.UTC)

// fakeEngine answers with credentials or an error, and keeps the last request.
type fakeEngine struct {
	err    error
	caller *iam.Caller
	in     iamapi.AssumeRoleWithWebIdentityInput
	calls  int
}

func (f *fakeEngine) Do(_ context.Context, c *iam.Caller, op *keyengine.Operation, in any) (any, error) {
	f.calls++
	f.caller, f.in = c, *in.(*iamapi.AssumeRoleWithWebIdentityInput)
	if f.err != nil {
		return nil, f.err
	}
	if op.Name != "AssumeRoleWithWebIdentity" {
		return nil, errors.New("another operation")
	}
	return &iamapi.AssumeRoleWithWebIdentityOutput{
		Credentials:     &iamapi.Credentials{AccessKeyId: new("ASIAEXAMPLE"), SecretAccessKey: new("secret/+"), SessionToken: new("token"), Expiration: &expires},
		AssumedRoleUser: &iamapi.AssumedRoleUser{Arn: new("arn:aws:sts::111122223333:assumed-role/app/container"), AssumedRoleId: new("AROA:container")},
	}, nil
}

// start serves a handler before one that answers 418.
func start(t *testing.T) (*fakeEngine, *httptest.Server) {
	t.Helper()
	f := new(fakeEngine)
	h, err := New(Config{Engine: f, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(h.Before(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })))
	t.Cleanup(s.Close)
	return f, s
}

func get(t *testing.T, method, url, token string) (int, http.Header, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", token)
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, res.Header, string(b)
}

func TestCredentials(t *testing.T) {
	f, s := start(t)
	for url, session := range map[string]string{
		Path + "?role=" + role: "container",
		Path + "/" + role:      "container",
		Path + "/" + strings.ReplaceAll(role, "/", "%2F"): "container",
		Path + "/?role=" + role + "&session=web-7":        "web-7",
	} {
		status, header, body := get(t, http.MethodGet, s.URL+url, "web identity ")
		var got map[string]string
		if err := json.Unmarshal([]byte(body), &got); err != nil || status != http.StatusOK {
			t.Fatalf("%s: got %d %s", url, status, body)
		}
		want := map[string]string{
			"RoleArn": role, "AccessKeyId": "ASIAEXAMPLE", "SecretAccessKey": "secret/+", "Token": "token", "AccountId": "111122223333", "Expiration": "2040-01-02T03:04:05Z",
		}
		for k, v := range want {
			if got[k] != v {
				t.Errorf("%s: %s is %q, want %q", url, k, got[k], v)
			}
		}
		if header.Get("Cache-Control") != "no-store" || len(header.Get(headerRequestID)) != 36 {
			t.Errorf("%s: headers %v", url, header)
		}
		if *f.in.RoleArn != role || *f.in.RoleSessionName != session || *f.in.WebIdentityToken != "web identity" {
			t.Errorf("%s: got role %s, session %s, token %s", url, *f.in.RoleArn, *f.in.RoleSessionName, *f.in.WebIdentityToken)
		}
		if c := f.caller; c.Identity.Credential() != "" || c.SourceIP != "127.0.0.1" || c.Transport != "container" {
			t.Errorf("%s: caller %+v", url, c)
		}
	}
}

func TestRefusals(t *testing.T) {
	f, s := start(t)
	for name, tt := range map[string]struct {
		method, url, token string
		err                error // of the engine
		status             int
		code               string
	}{
		"no token":    {"GET", Path + "?role=" + role, "", nil, 401, "MissingAuthenticationTokenException"},
		"no role":     {"GET", Path, "t", nil, 400, "ValidationException"},
		"method":      {"POST", Path + "?role=" + role, "t", nil, 405, "UnknownOperationException"},
		"token":       {"GET", Path + "?role=" + role, "t", iamapi.ErrInvalidIdentityToken, 401, "InvalidIdentityToken"},
		"expired":     {"GET", Path + "?role=" + role, "t", kmsapi.ErrExpiredToken, 401, "ExpiredTokenException"},
		"denied":      {"GET", Path + "?role=" + role, "t", kmsapi.ErrAccessDenied, 403, "AccessDeniedException"},
		"throttled":   {"GET", Path + "?role=" + role, "t", kmsapi.ErrThrottling, 429, "ThrottlingException"},
		"unavailable": {"GET", Path + "?role=" + role, "t", kmsapi.ErrUnavailable, 503, "ServiceUnavailable"},
		"internal":    {"GET", Path + "?role=" + role, "t", errors.New("disk at /secret/path"), 500, "KMSInternalException"},
	} {
		f.err, f.calls = tt.err, 0
		status, _, body := get(t, tt.method, s.URL+tt.url, tt.token)
		var got failure
		if err := json.Unmarshal([]byte(body), &got); err != nil || status != tt.status || got.Code != tt.code || got.Message == "" || strings.Contains(body, "secret") {
			t.Errorf("%s: got %d %s", name, status, body)
		}
		if (f.calls > 0) != (tt.err != nil) {
			t.Errorf("%s: the engine was called %d times", name, f.calls)
		}
	}
	for _, path := range []string{"/", "/v1/credentialsx", "/v1", "/v1/"} {
		if status, _, _ := get(t, http.MethodGet, s.URL+path, "t"); status != http.StatusTeapot {
			t.Errorf("%s: got %d, want it to be left to the next handler", path, status)
		}
	}
}

// TestSDK: AWS's SDK gets credentials as it does in a container.
func TestSDK(t *testing.T) {
	f, s := start(t)
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("service account token"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", s.URL+Path+"?role="+role)
	t.Setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", file)
	for _, k := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"} {
		t.Setenv(k, "")
	}
	t.Setenv("AWS_CONFIG_FILE", os.DevNull)
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", os.DevNull)
	cfg, err := config.LoadDefaultConfig(t.Context(), config.WithRegion("eu-west-1"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := cfg.Credentials.Retrieve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got.AccessKeyID != "ASIAEXAMPLE" || got.SecretAccessKey != "secret/+" || got.SessionToken != "token" || got.AccountID != "111122223333" || got.Expires.After(expires) || expires.Sub(got.Expires) > time.Hour || *f.in.WebIdentityToken != "service account token" {
		t.Errorf("got %+v with token %s", got, *f.in.WebIdentityToken)
	}
}
