package queryapi

import (
	"encoding/xml"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/iamapi/iamapitest"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport"
	"github.com/conclavekms/conclave/transport/admission"
)

// TestAnswer: an answer has AWS's headers, and the caller what the request says.
func TestAnswer(t *testing.T) {
	f := newFixture(t, nil)
	f.engine.do = func(*keyengine.Operation, any) (any, error) {
		return &iamapi.GetCallerIdentityOutput{UserId: new("AIDA"), Account: new("111122223333"), Arn: new("arn:aws:iam::111122223333:user/a")}, nil
	}
	w := f.call(t, "sts", "Action=GetCallerIdentity"+stsVersion)
	id := w.Header()[headerRequestID]
	if len(id) != 1 || w.Header().Get("Content-Type") != "text/xml" {
		t.Fatalf("headers %v", w.Header())
	}
	want := `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult><UserId>AIDA</UserId><Account>111122223333</Account>` +
		`<Arn>arn:aws:iam::111122223333:user/a</Arn></GetCallerIdentityResult><ResponseMetadata><RequestId>` + id[0] + `</RequestId></ResponseMetadata></GetCallerIdentityResponse>`
	if w.Code != 200 || w.Body.String() != want {
		t.Errorf("got %d %s\nwant %s", w.Code, w.Body, want)
	}
	if c := f.engine.caller; c.Region != "us-east-1" || c.Transport != "query" || c.Identity.Credential() != testKeyID {
		t.Errorf("caller %+v", c)
	}
}

// TestRefusals: what is wrong with a request is answered as these services do, and nothing
// reaches the engine.
func TestRefusals(t *testing.T) {
	get := "Action=GetUser" + iamVersion
	for _, tc := range []struct {
		name, form    string
		change        func(*http.Request)
		status        int
		code, message string
	}{
		{"no such operation", "Action=UploadSSHPublicKey" + iamVersion, nil, 400, "InvalidAction", "Could not find operation UploadSSHPublicKey for version 2010-05-08"},
		{"an operation with markup", escaped("Action", "<b>&\x00"+strings.Repeat("x", 100), "Version", "2010-05-08"), nil, 400, "InvalidAction", "Could not find operation <b>&\uFFFDxxx"},
		{"an operation of another service", "Action=GetCallerIdentity" + iamVersion, nil, 400, "InvalidAction", "GetCallerIdentity"},
		{"an operation in lower case", "Action=getUser" + iamVersion, nil, 400, "InvalidAction", "getUser"},
		{"a version of another service", "Action=GetUser" + stsVersion, nil, 400, "NoSuchVersion", "(2011-06-15)"},
		{"no version", "Action=GetUser", nil, 400, "NoSuchVersion", "2010-05-08"},
		{"no operation", "Version=2010-05-08", nil, 400, "MissingAction", "Action"},
		{"nothing", "", nil, 400, "MissingAction", "Action"},
		{"a list with a gap", "Action=CreateUser" + iamVersion + "&UserName=a&Tags.member.2.Key=k", nil, 400, "MalformedInput", "Tags is a list"},
		{"an unknown member that could restrict", "Action=CreateUser" + iamVersion + "&UserName=a&Until=2027", nil, 400, "ValidationError", `Unknown member "Until"`},
		{"a misspelt member", get + "&userName=a", nil, 400, "ValidationError", "Did you mean UserName?"},

		{"another body", get, func(r *http.Request) { r.Body = http.NoBody }, 403, "SignatureDoesNotMatch", "The request signature we calculated does not match"},
		{"another host", get, func(r *http.Request) { r.Host = "elsewhere" }, 403, "SignatureDoesNotMatch", "The request signature we calculated does not match"},
		{"an old request", get, func(r *http.Request) { r.Header.Set("X-Amz-Date", "20261123T110000Z") }, 403, "SignatureDoesNotMatch", "Signature expired"},
		{"an unknown key", get, edit(testKeyID, "AKIDANOTHER"), 403, "InvalidClientTokenId", "The security token included in the request is invalid."},
		{"an unsigned token", get, func(r *http.Request) { r.Header.Set("X-Amz-Security-Token", testToken) }, 403, "SignatureDoesNotMatch", "'X-Amz-Security-Token' must be a 'SignedHeader'"},
		{"a broken signature", get, edit("Signature=", "Signatur="), 400, "IncompleteSignature", "Authorization header has a parameter other than"},
		{"no signature", get, func(r *http.Request) { r.Header.Del("Authorization") }, 403, "MissingAuthenticationToken", "Request is missing Authentication Token"},
		{"no signature and no operation", "Action=Nonsense" + iamVersion, func(r *http.Request) { r.Header.Del("Authorization") }, 400, "InvalidAction", "Nonsense"},
		{"another scheme", get, func(r *http.Request) { r.Header.Set("Authorization", "Bearer x") }, 403, "MissingAuthenticationToken", "Request is missing Authentication Token"},
		{"another path", get, func(r *http.Request) { r.URL.Path = "/doc" }, 400, "InvalidAction", "POST / or GET /"},
		{"another method", get, func(r *http.Request) { r.Method = http.MethodPut }, 400, "InvalidAction", "POST / or GET /"},
		{"too large", get + "&Path=" + strings.Repeat("/", maxBody), nil, 413, "RequestEntityTooLarge", "larger"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFixture(t, nil)
			r := sign(t, newRequest(tc.form), "iam", tc.form)
			if tc.change != nil {
				tc.change(r)
			}
			wantError(t, f.serve(r), tc.status, tc.code, tc.message)
			if f.engine.dos != 0 {
				t.Error("it reached the engine")
			}
		})
	}
	t.Run("not a form", func(t *testing.T) {
		f := newFixture(t, nil)
		r := newRequest(get)
		r.Header.Set("Content-Type", "application/x-amz-json-1.1")
		wantError(t, f.serve(sign(t, r, "iam", get)), 400, "MalformedInput", "Content-Type")
	})
}

// edit changes the Authorization header.
func edit(from, to string) func(*http.Request) {
	return func(r *http.Request) {
		r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), from, to, 1))
	}
}

// TestSealed: that the node cannot answer is not said to be about the signature.
func TestSealed(t *testing.T) {
	f := newFixture(t, nil)
	f.engine.authErr = kmsapi.Errorf(kmsapi.ErrUnavailable, "This node is sealed.")
	w := f.call(t, "iam", "Action=GetUser"+iamVersion)
	wantError(t, w, 503, "ServiceUnavailable", "This node is sealed.")
	if w.Header().Get("Retry-After") == "" {
		t.Error("there is no Retry-After")
	}
}

// TestInternal: nothing internal is in an answer, whether it failed or panicked.
func TestInternal(t *testing.T) {
	f := newFixture(t, nil)
	f.engine.do = func(*keyengine.Operation, any) (any, error) { return nil, errors.New("bolt: page 7") }
	w := f.call(t, "iam", "Action=GetUser"+iamVersion)
	wantError(t, w, 500, "ServiceFailure", "An internal error occurred.")
	f.engine.do = func(*keyengine.Operation, any) (any, error) { panic("page 8") }
	w2 := f.call(t, "sts", "Action=GetCallerIdentity"+stsVersion)
	wantError(t, w2, 500, "InternalFailure", "An internal error occurred.")
	if strings.Contains(w.Body.String()+w2.Body.String(), "page") || !strings.Contains(f.log.String(), "page 7") || !strings.Contains(f.log.String(), "page 8") {
		t.Errorf("answered %s %s, logged %s", w.Body, w2.Body, f.log)
	}
	// The next request is not answered for the service of this one.
	if got := f.serve(newRequest("Action=x" + iamVersion)).Body.String(); !strings.Contains(got, iamService.namespace) {
		t.Errorf("got %s", got)
	}
}

// TestUnsigned: only an operation whose input proves who sends it takes requests without a
// signature, and its caller has no identity. The form is short.
func TestUnsigned(t *testing.T) {
	const form = "Action=AssumeRoleWithWebIdentity" + stsVersion + "&RoleArn=r&RoleSessionName=s&WebIdentityToken=secret"
	t.Run("POST", func(t *testing.T) {
		f := newFixture(t, nil)
		w := f.serve(newRequest(form))
		in, _ := f.engine.in.(*iamapi.AssumeRoleWithWebIdentityInput)
		if w.Code != 200 || in == nil || *in.WebIdentityToken != "secret" || f.engine.caller.Identity != (iam.Identity{}) || f.engine.caller.Region != "" || f.engine.proofs != 0 {
			t.Errorf("got %d %s, decoded %+v of %+v", w.Code, w.Body, in, f.engine.caller)
		}
		if strings.Contains(f.log.String(), "secret") {
			t.Errorf("logged %s", f.log)
		}
	})
	t.Run("GET", func(t *testing.T) {
		f := newFixture(t, nil)
		if w := f.serve(httptest.NewRequest(http.MethodGet, "/?"+form, nil)); w.Code != 200 || f.engine.dos != 1 {
			t.Errorf("got %d %s", w.Code, w.Body)
		}
	})
	t.Run("signed", func(t *testing.T) {
		f := newFixture(t, nil)
		if w := f.call(t, "sts", form); w.Code != 200 || f.engine.proofs != 1 || f.engine.caller.Identity == (iam.Identity{}) {
			t.Errorf("got %d %s by %+v", w.Code, w.Body, f.engine.caller)
		}
	})
	t.Run("signed wrongly", func(t *testing.T) {
		f := newFixture(t, nil)
		r := sign(t, newRequest(form), "sts", "another form")
		wantError(t, f.serve(r), 403, "SignatureDoesNotMatch", "does not match")
	})
	t.Run("large", func(t *testing.T) {
		for _, announced := range []bool{true, false} {
			f := newFixture(t, nil)
			r := newRequest(form + strings.Repeat("x", maxUnsigned))
			if !announced {
				r.ContentLength = -1
			}
			wantError(t, f.serve(r), 413, "RequestEntityTooLarge", "65536 bytes")
		}
	})
	t.Run("many parameters", func(t *testing.T) {
		f := newFixture(t, nil)
		wantError(t, f.serve(newRequest(form+strings.Repeat("&", maxUnsignedParameters))), 400, "MalformedInput", "more than 64 parameters")
	})
	t.Run("every other operation", func(t *testing.T) {
		for _, op := range iamapitest.Operations() {
			if op.Unsigned {
				continue
			}
			f := newFixture(t, nil)
			version := iamVersion
			if op.Service == "sts" {
				version = stsVersion
			}
			for _, r := range []*http.Request{newRequest("Action=" + op.Name + version), httptest.NewRequest(http.MethodGet, "/?Action="+op.Name+version, nil)} {
				wantError(t, f.serve(r), 403, "MissingAuthenticationToken", "Request is missing Authentication Token")
			}
			if f.engine.dos != 0 {
				t.Errorf("%s reached the engine", op.Name)
			}
		}
	})
}

// TestPresigned: a request that is signed in its query string has its form there, and
// everything in it is signed.
func TestPresigned(t *testing.T) {
	const form = "Action=GetCallerIdentity" + stsVersion
	for _, tc := range []struct {
		name   string
		token  string
		change func(*http.Request)
		status int
		code   string
	}{
		{"as it was signed", "", nil, 200, ""},
		{"with a session", testToken, nil, 200, ""},
		{"with another session", "other", nil, 403, "InvalidClientTokenId"},
		{"another operation", "", func(r *http.Request) {
			r.URL.RawQuery = strings.Replace(r.URL.RawQuery, "GetCallerIdentity", "GetSessionToken", 1)
		}, 403, "SignatureDoesNotMatch"},
		{"a parameter more", "", func(r *http.Request) { r.URL.RawQuery += "&DurationSeconds=900" }, 403, "SignatureDoesNotMatch"},
		{"another method", "", func(r *http.Request) { r.Method = http.MethodPost }, 403, "SignatureDoesNotMatch"},
		{"another service", "", func(r *http.Request) { r.URL.RawQuery = strings.Replace(r.URL.RawQuery, "%2Fsts%2F", "%2Fiam%2F", 1) }, 403, "SignatureDoesNotMatch"},
		{"without the token", testToken, func(r *http.Request) {
			r.URL.RawQuery = strings.Replace(r.URL.RawQuery, "&X-Amz-Security-Token="+url.QueryEscape(testToken), "", 1)
		}, 403, "SignatureDoesNotMatch"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFixture(t, nil)
			r := presign(t, http.MethodGet, "sts", form, tc.token)
			if tc.change != nil {
				tc.change(r)
			}
			w := f.serve(r)
			if tc.status != 200 {
				wantError(t, w, tc.status, tc.code, "")
			} else if w.Code != 200 || f.engine.op != "GetCallerIdentity" {
				t.Errorf("got %d %s", w.Code, w.Body)
			}
			if (w.Code == 200) != (f.engine.dos == 1) {
				t.Error("it reached the engine")
			}
		})
	}
	t.Run("POST with the form in the query string", func(t *testing.T) { // as botocore presigns by default
		f := newFixture(t, nil)
		if w := f.serve(presign(t, http.MethodPost, "sts", form, "")); w.Code != 200 {
			t.Errorf("got %d %s", w.Code, w.Body)
		}
	})
}

// TestHandles: requests for IAM and STS are told from those of other services.
func TestHandles(t *testing.T) {
	f := newFixture(t, nil)
	const form = "Action=GetCallerIdentity" + stsVersion
	signed := func(service string) *http.Request { return sign(t, newRequest(form), service, form) }
	plain := func(method, uri, kind string) *http.Request {
		r := httptest.NewRequest(method, uri, nil)
		if kind != "" {
			r.Header.Set("Content-Type", kind)
		}
		return r
	}
	for name, tc := range map[string]struct {
		request *http.Request
		want    bool
	}{
		"IAM":                             {signed("iam"), true},
		"STS":                             {signed("sts"), true},
		"KMS":                             {signed("kms"), false},
		"another service with a form":     {signed("sqs"), false},
		"presigned for STS":               {presign(t, http.MethodGet, "sts", form, ""), true},
		"presigned for KMS":               {presign(t, http.MethodGet, "kms", form, ""), false},
		"an unsigned form":                {plain("POST", "/", formType), true},
		"an unsigned form with a charset": {plain("POST", "/", formType+"; charset=utf-8"), true},
		"an unsigned query":               {plain("GET", "/?Version=2011-06-15&Action=GetCallerIdentity", ""), true},
		"another query":                   {plain("GET", "/?list-type=2&xAction=1", ""), false},
		"a query for an object":           {plain("GET", "/bucket?Action=x", ""), false},
		"JSON":                            {plain("POST", "/", "application/x-amz-json-1.1"), false},
		"a preflight":                     {plain("OPTIONS", "/", ""), false},
		"health":                          {plain("GET", "/", ""), false},
	} {
		w := httptest.NewRecorder()
		f.Before(http.NotFoundHandler()).ServeHTTP(w, tc.request)
		if got := Handles(tc.request); got != tc.want || (w.Code != http.StatusNotFound) != tc.want {
			t.Errorf("%s: got %v, answered %d", name, got, w.Code)
		}
	}
}

// TestNew: an operation has one row, and rows of other services are left out.
func TestNew(t *testing.T) {
	all := append(iamapitest.Operations(), keyengine.OperationNamed(keyengine.KMS, "Encrypt"))
	f := newFixture(t, func(c *Config) { c.Operations = all })
	wantError(t, f.call(t, "iam", "Action=Encrypt"+iamVersion), 400, "InvalidAction", "Encrypt")
	if _, err := New(Config{Engine: f.engine, Operations: append(all, all[0])}); err == nil {
		t.Error("an operation is listed twice")
	}
}

// TestNothingButXML: whatever is requested, the answer is XML.
func TestNothingButXML(t *testing.T) {
	f := newFixture(t, nil)
	for _, r := range []*http.Request{
		httptest.NewRequest("GET", "/", nil), httptest.NewRequest("DELETE", "/x?y", nil), newRequest("%"), newRequest("Action=%00&Version=%00"),
		newRequest("Action=x&Version=" + strings.Repeat("9", 1000)), httptest.NewRequest("POST", "/?Action=GetUser", strings.NewReader("x")),
	} {
		w := f.serve(r)
		var e answeredError
		if err := xml.Unmarshal(w.Body.Bytes(), &e); err != nil || w.Code < 400 || e.Error.Code == "" || w.Header().Get("Content-Type") != "text/xml" {
			t.Errorf("%s %s: got %d %s (%v)", r.Method, r.URL, w.Code, w.Body, err)
		}
	}
}

// TestStrangersStayStrangers: a request without a signature does not promote its connection
// in the node's budget, and a signed one does.
func TestStrangersStayStrangers(t *testing.T) {
	f := newFixture(t, nil)
	budget, err := admission.New(admission.Config{})
	if err != nil {
		t.Fatal(err)
	}
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var class admission.Class
	srv := transport.NewHTTPServer(transport.HTTPConfig{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.ServeHTTP(httptest.NewRecorder(), r)
		class = admission.FromContext(r.Context()).Class()
	}))
	done := make(chan error, 1)
	go func() {
		done <- transport.Serve(srv, budget.Listener(inner, admission.Share{Face: "aws", Sixteenths: 8}))
	}()
	t.Cleanup(func() {
		srv.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	const form = "Action=AssumeRoleWithWebIdentity" + stsVersion
	for signed, want := range map[bool]admission.Class{false: admission.Stranger, true: admission.Client} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+inner.Addr().String(), strings.NewReader(form))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", formType)
		if signed {
			sign(t, r, "sts", form)
		}
		client := &http.Client{Transport: new(http.Transport)} // a connection of its own
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		client.CloseIdleConnections()
		if class != want {
			t.Errorf("signed %v: class %v, want %v", signed, class, want)
		}
	}
	if f.engine.dos != 2 {
		t.Errorf("%d requests reached the engine", f.engine.dos)
	}
}

// BenchmarkHandles measures what telling requests apart costs those for KMS.
func BenchmarkHandles(b *testing.B) {
	r := sign(b, newRequest("{}"), "kms", "{}")
	b.ReportAllocs()
	for b.Loop() {
		if Handles(r) {
			b.Fatal("taken for IAM or STS")
		}
	}
}

// The encoded message of a denial follows AWS's elements, which clients do not mind.
func TestEncodedMessage(t *testing.T) {
	f := newFixture(t, nil)
	f.engine.do = func(*keyengine.Operation, any) (any, error) {
		return nil, &kmsapi.Error{Code: kmsapi.ErrAccessDenied.Code, Message: "no", Encoded: "abc-_"}
	}
	w := f.call(t, "iam", "Action=GetUser"+iamVersion)
	if want := "<Code>AccessDenied</Code><Message>no</Message><EncodedMessage>abc-_</EncodedMessage></Error>"; w.Code != 403 || !strings.Contains(w.Body.String(), want) {
		t.Errorf("got %d %s, want %s", w.Code, w.Body, want)
	}
}
