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

// service is what the face has to know of a service, besides its operations.
type service struct {
	name     string   // in the scope of signatures
	prefixes []string // of the header that names the operation: clients use any of them
	verifier *sigv4.Verifier
}

// The operation must be signed.
var (
	kmsService        = &service{"kms", []string{"TrentService."}, sigv4.NewVerifier("kms", headerTarget)}
	cloudTrailService = &service{
		"cloudtrail", []string{"com.amazonaws.cloudtrail.v20131101.CloudTrail_20131101.", "CloudTrail_20131101."}, sigv4.NewVerifier("cloudtrail", headerTarget),
	}
)

// operation returns the name of the operation in a target, or "" if it is not one of the service.
func (s *service) operation(target string) string {
	for _, p := range s.prefixes {
		if name, ok := strings.CutPrefix(target, p); ok {
			return name
		}
	}
	return ""
}

// serviceNamed returns the service with that name in signatures, or nil.
func serviceNamed(name string) *service {
	for _, s := range [...]*service{kmsService, cloudTrailService} {
		if s.name == name {
			return s
		}
	}
	return nil
}

// If one endpoint is set for all of AWS, requests for other services arrive here, such as
// from a store that looks for its bucket. The answer says what to set instead, in the
// format that the client reads, which for most of them is XML. Requests for IAM and STS go
// to package queryapi, before they come here.

// misdirected is the answer to a request for another service.
type misdirected struct {
	service string
	xml     bool
}

func (m *misdirected) Error() string { return "request for the service " + strconv.Quote(m.service) }

// Unwrap returns the error that a client of KMS is given.
func (m *misdirected) Unwrap() error {
	return &sigv4.Error{Code: sigv4.CodeInvalid, Reason: sigv4.ReasonScope, Message: m.message()}
}

// message returns the text that says what to set.
func (m *misdirected) message() string {
	return "This is the endpoint of Conclave, which serves AWS KMS, IAM and STS and CloudTrail's LookupEvents, and the request is signed for the service '" + m.service +
		"'. Credential should be scoped to correct service: 'kms', 'iam', 'sts' or 'cloudtrail'." +
		" Set AWS_ENDPOINT_URL_KMS, AWS_ENDPOINT_URL_IAM, AWS_ENDPOINT_URL_STS and AWS_ENDPOINT_URL_CLOUDTRAIL, or endpoint_url for these services alone in a profile's services, instead of AWS_ENDPOINT_URL." +
		" In Terraform's AWS provider set endpoints { kms = …, iam = …, sts = … }."
}

// wantsXML reports whether the client of another service reads XML, as all do that
// do not send JSON.
func wantsXML(r *http.Request) bool {
	if len(r.Header[headerTarget]) > 0 {
		return false
	}
	t, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return !strings.HasPrefix(t, "application/x-amz-json") && t != "application/json"
}

// forAnother returns the answer to a request for another service that does not
// have the form of a request to KMS; nil if it is not recognised as one.
func forAnother(r *http.Request) error {
	if name := sigv4.ServiceOf(r); name != "" && serviceNamed(name) == nil {
		return &misdirected{name, wantsXML(r)}
	}
	return nil
}

// document returns the answer in the format of the query protocol. S3's clients find
// the code in it too: they look for Code and Message below Error.
func (m *misdirected) document(id string) []byte {
	var b bytes.Buffer
	b.WriteString(xml.Header + "<ErrorResponse><Error><Type>Sender</Type><Code>SignatureDoesNotMatch</Code><Message>")
	_ = xml.EscapeText(&b, []byte(m.message())) // writing to a buffer never fails
	b.WriteString("</Message></Error><RequestId>" + id + "</RequestId></ErrorResponse>")
	return b.Bytes()
}
