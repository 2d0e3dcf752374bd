package integration

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/conclavekms/conclave/integration/harness"
)

// terraformCalls are the calls that Terraform's AWS provider made in TestTerraform.
var terraformCalls = filepath.Join("testdata", "terraform-aws-5.100.0.json")

// recordedCall is one of a client's calls, with what it was answered.
type recordedCall struct {
	Region    string
	Operation string
	Request   json.RawMessage
	Error     string          `json:",omitempty"` // its type, where it is one
	Response  json.RawMessage `json:",omitempty"`
}

// callRecorder stands between a client and a node, and writes down what they say.
type callRecorder struct {
	t   *testing.T
	url string

	mu    sync.Mutex
	calls []recordedCall
}

func newCallRecorder(t *testing.T, c *harness.Cluster, n *harness.Node) *callRecorder {
	t.Helper()
	f := harness.NewFace(t, c, n)
	r := &callRecorder{t: t}
	to := &url.URL{Scheme: "https", Host: n.AWS}
	proxy := &httputil.ReverseProxy{
		Transport: f.HTTP.Transport,
		// The host stays, since it is signed.
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host, p.Out.Host = to.Scheme, to.Host, p.In.Host
		},
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			t.Errorf("reading a request: %v", err)
			return
		}
		req.Body = io.NopCloser(bytes.NewReader(body))
		answer := httptest.NewRecorder()
		proxy.ServeHTTP(answer, req)
		r.add(req, body, answer)
		maps.Copy(w.Header(), answer.Header())
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes()) // a client that has gone is no matter of the test's
	}))
	t.Cleanup(s.Close)
	r.url = s.URL
	return r
}

func (r *callRecorder) add(req *http.Request, body []byte, answer *httptest.ResponseRecorder) {
	_, scope, _ := strings.Cut(req.Header.Get("Authorization"), "Credential=")
	parts := strings.Split(scope, "/")
	if len(parts) < 5 {
		r.t.Errorf("a request without a signature: %s %s", req.Method, req.URL)
		return
	}
	call := recordedCall{Region: parts[2], Operation: strings.TrimPrefix(req.Header.Get("X-Amz-Target"), "TrentService."), Request: body}
	if answer.Code != http.StatusOK {
		call.Error = answer.Header().Get("X-Amzn-Errortype")
	} else if answer.Body.Len() > 0 {
		call.Response = answer.Body.Bytes()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	// Providers ask the same again until they have seen it a few times.
	if last := len(r.calls) - 1; last >= 0 && call.Error == "" && r.calls[last].Error == "" && call.Operation == r.calls[last].Operation &&
		bytes.Equal(call.Request, r.calls[last].Request) && bytes.Equal(call.Response, r.calls[last].Response) {
		return
	}
	r.calls = append(r.calls, call)
}

func (r *callRecorder) save(name string) {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	var b bytes.Buffer
	b.WriteString("[\n")
	for i, c := range r.calls {
		line, err := json.Marshal(c)
		if err != nil {
			r.t.Fatal(err)
		}
		if b.Write(line); i < len(r.calls)-1 {
			b.WriteByte(',')
		}
		b.WriteByte('\n')
	}
	b.WriteString("]\n")
	if err := os.WriteFile(name, b.Bytes(), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

// issued are members whose values a cluster gives, so that they are others each time.
var issued = []string{"KeyId", "Arn", "KeyArn", "TargetKeyId", "CurrentKeyMaterialId", "KeyMaterialId", "GrantId", "GrantToken",
	"CiphertextBlob", "ImportToken", "PublicKey"}

// TestTerraformReplay sends what Terraform's AWS provider sent when keys of every kind
// were made, read, changed and destroyed with it, and compares the answers member by
// member with those that the provider was content with: whatever it takes for drift
// is a difference here.
func TestTerraformReplay(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(terraformCalls)
	if err != nil {
		t.Fatal(err)
	}
	var calls []recordedCall
	if err := json.Unmarshal(b, &calls); err != nil {
		t.Fatal(err)
	}
	c := harness.NewCluster(t, 1, harness.Options{Regions: []string{harness.Region, harness.SecondRegion}})
	c.MakePrincipals("user/reader", "user/keeper")
	f := harness.NewFace(t, c, c.Nodes[0])
	p := &replay{f: f, now: make(map[string]string)}
	seen := make(map[string]bool)
	for i, call := range calls {
		seen[call.Operation] = true
		if p.call(call); t.Failed() {
			t.Fatalf("call %d of %d: %s %s", i+1, len(calls), call.Operation, call.Request)
		}
	}
	for _, op := range []string{"CreateKey", "ReplicateKey", "ImportKeyMaterial", "GetKeyRotationStatus", "EnableKeyRotation", "PutKeyPolicy",
		"CreateGrant", "RevokeGrant", "ListGrants", "CreateAlias", "UpdateAlias", "DeleteAlias", "TagResource", "UpdateKeyDescription",
		"DisableKey", "ScheduleKeyDeletion", "Encrypt", "Decrypt", "GetPublicKey"} {
		if !seen[op] {
			t.Errorf("nothing recorded calls %s", op)
		}
	}
	c.NoFaults()
}

// replay sends recorded calls, with the values that this cluster gave in place of
// those that the recorded one did.
type replay struct {
	f   *harness.Face
	now map[string]string // by the recorded value
	// wrapping is the public key that this cluster gave last for an import.
	wrapping []byte
}

func (p *replay) call(call recordedCall) {
	t := p.f.T
	t.Helper()
	body := string(call.Request)
	// The longest first: an ARN has an id in it.
	for _, was := range slices.SortedFunc(maps.Keys(p.now), func(a, b string) int { return len(b) - len(a) }) {
		body = strings.ReplaceAll(body, was, p.now[was])
	}
	if call.Operation == "ImportKeyMaterial" {
		body = p.wrapped(body)
	}
	f := *p.f
	f.Region = call.Region
	a, err := f.Send(f.Signed("TrentService."+call.Operation, body))
	if err != nil {
		t.Fatal(err)
	}
	if a.Type != call.Error {
		t.Errorf("got %d %s: %s, want %q", a.Status, a.Type, a.Message, call.Error)
		return
	}
	if call.Response == nil || call.Error != "" {
		return
	}
	var was, is any
	for raw, v := range map[*any][]byte{&was: call.Response, &is: a.Body} {
		if err := json.Unmarshal(v, raw); err != nil {
			t.Fatalf("%v: %s", err, v)
		}
	}
	if call.Operation == "GetParametersForImport" {
		var parameters struct{ PublicKey []byte }
		if err := json.Unmarshal(a.Body, &parameters); err != nil {
			t.Fatal(err)
		}
		p.wrapping = parameters.PublicKey
	}
	p.compare("", was, is)
}

// compare holds an answer against the recorded one. Times are only looked for.
func (p *replay) compare(path string, was, is any) {
	t := p.f.T
	t.Helper()
	switch was := was.(type) {
	case map[string]any:
		is, _ := is.(map[string]any)
		if want, got := slices.Sorted(maps.Keys(was)), slices.Sorted(maps.Keys(is)); !slices.Equal(want, got) {
			t.Errorf("%s has the members %v, want %v", path, got, want)
			return
		}
		for name := range was {
			p.compare(path+"."+name, was[name], is[name])
		}
	case []any:
		is, _ := is.([]any)
		if len(is) != len(was) {
			t.Errorf("%s has %d items, want %d", path, len(is), len(was))
			return
		}
		is = p.inOrder(was, is)
		for i := range was {
			p.compare(fmt.Sprintf("%s[%d]", path, i), was[i], is[i])
		}
	case float64:
		if _, ok := is.(float64); !ok {
			t.Errorf("%s is %v, want a number", path, is)
		}
	case string:
		got, _ := is.(string)
		name := path[strings.LastIndex(path, ".")+1:]
		if now, ok := p.now[was]; slices.Contains(issued, name) && got != "" && (!ok || now == got) {
			p.now[was] = got
		} else if got != was {
			t.Errorf("%s is %q, want %q", path, got, was)
		}
	default:
		if is != was {
			t.Errorf("%s is %v, want %v", path, is, was)
		}
	}
}

// inOrder puts a list of grants into the order that the recorded one has: it is that
// of their ids, which are random. The ids are known from when the grants were made.
func (p *replay) inOrder(was, is []any) []any {
	ordered := slices.Clone(is)
	for i, w := range was {
		grant, _ := w.(map[string]any)
		id, ok := grant["GrantId"].(string)
		if !ok {
			return is
		}
		for _, o := range is {
			if o, _ := o.(map[string]any); o["GrantId"] == p.now[id] {
				ordered[i] = o
			}
		}
	}
	return ordered
}

// wrapped puts the configuration's material into an import, wrapped by the key that
// this cluster gave for it.
func (p *replay) wrapped(body string) string {
	t := p.f.T
	t.Helper()
	var in map[string]any
	if err := json.Unmarshal([]byte(body), &in); err != nil {
		t.Fatal(err)
	}
	public, err := x509.ParsePKIXPublicKey(p.wrapping)
	if err != nil {
		t.Fatal(err)
	}
	material, err := base64.StdEncoding.DecodeString(terraformMaterial)
	if err != nil {
		t.Fatal(err)
	}
	blob, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, public.(*rsa.PublicKey), material, nil)
	if err != nil {
		t.Fatal(err)
	}
	in["EncryptedKeyMaterial"] = blob
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
