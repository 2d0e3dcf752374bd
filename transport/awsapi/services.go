package awsapi

import (
	"bytes"
	"encoding/xml"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"github.com/conclavekms/conclave/transport/sigv4"
)

// Who sets one endpoint for all of AWS sends requests for other services here: a
// tool that asks STS who it is, a store that looks for its bucket. They are told what
// to set instead, in the form that these clients read, which for most of them is XML.

// misdirected is the answer to a request for another service.
type misdirected struct {
	service string // "" where the request does not say
	xml     bool
}

func (m *misdirected) Error() string { return "request for the service " + strconv.Quote(m.service) }

// Unwrap is the error as clients of KMS are told it.
func (m *misdirected) Unwrap() error {
	return &sigv4.Error{Code: sigv4.CodeInvalid, Reason: sigv4.ReasonScope, Message: m.message()}
}

// message says what to set.
func (m *misdirected) message() string {
	what := "This is the endpoint of Conclave, which serves AWS KMS alone, and the request is not for KMS."
	if m.service != "" {
		what = "This is the endpoint of Conclave, which serves AWS KMS alone, and the request is signed for the service '" + m.service +
			"'. Credential should be scoped to correct service: '" + service + "'."
	}
	return what + " Set AWS_ENDPOINT_URL_KMS, or endpoint_url for kms alone in a profile's services, instead of AWS_ENDPOINT_URL." +
		" In Terraform's AWS provider set endpoints { kms = … }, skip_credentials_validation, skip_requesting_account_id and skip_metadata_api_check."
}

// wantsXML tells whether the client of another service reads XML: all but those that
// send JSON.
func wantsXML(r *http.Request) bool {
	if len(r.Header[headerTarget]) > 0 {
		return false
	}
	t, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return !strings.HasPrefix(t, "application/x-amz-json") && t != "application/json"
}

// isForm tells whether a request is of AWS's query protocol, which KMS does not
// speak: STS and IAM do, some of their requests without a signature.
func isForm(r *http.Request) bool {
	t, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return t == "application/x-www-form-urlencoded"
}

// forAnother is the answer to a request that is not of KMS's form, if it is of
// another service's; nil if it is nobody's.
func forAnother(r *http.Request) error {
	if name := sigv4.ServiceOf(r); name != "" && name != service {
		return &misdirected{name, wantsXML(r)}
	}
	if r.Method == http.MethodPost && isForm(r) {
		return &misdirected{"", true}
	}
	return nil
}

// document is the answer in the form of the query protocol, whose code the clients of
// XML services find in S3's form too: they look for Code and Message below Error.
func (m *misdirected) document(id string) []byte {
	var b bytes.Buffer
	b.WriteString(xml.Header + "<ErrorResponse><Error><Type>Sender</Type><Code>SignatureDoesNotMatch</Code><Message>")
	_ = xml.EscapeText(&b, []byte(m.message())) // a buffer takes everything
	b.WriteString("</Message></Error><RequestId>" + id + "</RequestId></ErrorResponse>")
	return b.Bytes()
}
