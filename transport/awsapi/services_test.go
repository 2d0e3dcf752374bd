package awsapi

import (
	"encoding/xml"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/conclavekms/conclave/transport/sigv4"
)

// TestOtherServices: the answer to a request for another service says what to set,
// in the format that its client reads.
func TestOtherServices(t *testing.T) {
	const form = "application/x-www-form-urlencoded; charset=utf-8"
	for _, tc := range []struct {
		name, method, uri, kind, target, service string
		xml                                      bool
	}{
		{"SQS, a form", "POST", "/", form, "", "sqs", true},
		{"S3, a bucket", "GET", "/bucket?list-type=2", "", "", "s3", true},
		{"S3, an object", "PUT", "/bucket/key", "application/octet-stream", "", "s3", true},
		{"a JSON service", "POST", "/", contentType, "secretsmanager.ListSecrets", "secretsmanager", false},
		{"a JSON service of another version", "POST", "/", "application/x-amz-json-1.0", "DynamoDB_20120810.ListTables", "dynamodb", false},
		{"a REST service", "GET", "/2015-03-31/functions", "application/json", "", "lambda", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFixture(t, nil)
			r := httptest.NewRequest(tc.method, tc.uri, strings.NewReader("Action=ListQueues"))
			for name, v := range map[string]string{"Content-Type": tc.kind, "X-Amz-Target": tc.target} {
				if v != "" {
					r.Header.Set(name, v)
				}
			}
			r.Header.Set("X-Amz-Date", testTime.Format(sigv4.TimeFormat))
			r.Header.Set("Authorization", header("AKIDEXAMPLE/20261123/eu-test-1/"+tc.service+"/aws4_request", "host;x-amz-date", goodSig))
			w := httptest.NewRecorder()
			f.ServeHTTP(w, r)
			body := w.Body.String()
			if !strings.Contains(body, "AWS_ENDPOINT_URL_KMS") || f.engine.proofs.Load() != 0 {
				t.Errorf("got %d %s", w.Code, body)
			}
			if !tc.xml {
				if w.Code != 400 || !strings.HasPrefix(body, `{"__type":"InvalidSignatureException","message":"`) {
					t.Errorf("got %d %s", w.Code, body)
				}
				return
			}
			var e struct {
				Error     struct{ Type, Code, Message string }
				RequestId string
			}
			if err := xml.Unmarshal(w.Body.Bytes(), &e); err != nil || w.Code != http.StatusForbidden || e.Error.Code != "SignatureDoesNotMatch" || e.RequestId == "" {
				t.Errorf("got %d %v %+v", w.Code, err, e)
			}
			if !strings.Contains(e.Error.Message, "the service '"+tc.service+"'") {
				t.Errorf("got %s", e.Error.Message)
			}
		})
	}
	// A request for no known service is answered as before, and the answer repeats
	// only a valid name of a service.
	f := newFixture(t, nil)
	for _, service := range []string{"<b>", strings.Repeat("s", 65), "S3", "a&b"} {
		r := httptest.NewRequest("GET", "/x", nil)
		r.Header.Set("Authorization", header("AKIDEXAMPLE/20261123/eu-test-1/"+service+"/aws4_request", "host;x-amz-date", goodSig))
		w := httptest.NewRecorder()
		f.ServeHTTP(w, r)
		if w.Code != 404 || strings.Contains(w.Body.String(), service) {
			t.Errorf("%s: got %d %s", service, w.Code, w.Body)
		}
	}
}
