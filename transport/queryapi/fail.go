package queryapi

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"

	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport"
	"github.com/conclavekms/conclave/transport/sigv4"
)

// fault is an error of the protocol itself, with a code that only this protocol has. Other
// faces do not have such errors, so transport's table has the code of kind.
type fault struct {
	kind    *kmsapi.Error
	code    string
	message string
}

func (f *fault) Error() string { return f.code + ": " + f.message }

// Unwrap returns the error that is counted.
func (f *fault) Unwrap() error { return kmsapi.Errorf(f.kind, "%s", f.message) }

var (
	errAddress          = &fault{transport.ErrUnknownOperation, "InvalidAction", "Requests are POST / or GET /."}
	errNoAction         = &fault{transport.ErrUnknownOperation, "MissingAction", "The request does not say which operation it is for: it has no parameter 'Action'."}
	errUnsignedTooLarge = kmsapi.Errorf(transport.ErrTooLarge, "A request without a signature has at most %d bytes.", maxUnsigned)
)

// maxShown is how many bytes of a parameter's value a message repeats.
const maxShown = 64

func shown(s string) string {
	if len(s) > maxShown {
		s = s[:maxShown] + "…"
	}
	return s
}

func noAction(action, version string) error {
	return &fault{transport.ErrUnknownOperation, "InvalidAction", fmt.Sprintf("Could not find operation %s for version %s", shown(action), shown(version))}
}

func noVersion(version string) error {
	return &fault{transport.ErrUnknownOperation, "NoSuchVersion", "The requested version (" + shown(version) + ") of this service does not exist. IAM has " + iamService.version + " and STS " + stsService.version + "."}
}

func malformed(format string, args ...any) error {
	return &fault{transport.ErrSerialization, "MalformedInput", fmt.Sprintf(format, args...)}
}

// name is what an error is called in these services, if not by its own code and with the
// status of transport's table.
type name struct {
	code   string
	status int
	text   string // replaces the message, if not ""
}

var names = map[string]name{
	string(kmsapi.ErrValidation.Code):               {"ValidationError", http.StatusBadRequest, ""},
	string(kmsapi.ErrInvalidMarker.Code):            {"ValidationError", http.StatusBadRequest, ""},
	string(kmsapi.ErrAccessDenied.Code):             {"AccessDenied", http.StatusForbidden, ""},
	string(kmsapi.ErrLimitExceeded.Code):            {string(iamapi.ErrLimitExceeded.Code), http.StatusConflict, ""},
	string(kmsapi.ErrMalformedPolicy.Code):          {string(iamapi.ErrMalformedPolicyDocument.Code), http.StatusBadRequest, ""},
	string(kmsapi.ErrThrottling.Code):               {"Throttling", http.StatusBadRequest, "Rate exceeded"},
	string(kmsapi.ErrUnrecognizedClient.Code):       {"InvalidClientTokenId", http.StatusForbidden, ""},
	string(kmsapi.ErrInvalidSignature.Code):         {"SignatureDoesNotMatch", http.StatusForbidden, ""},
	string(transport.ErrIncompleteSignature.Code):   {"IncompleteSignature", http.StatusBadRequest, ""},
	string(transport.ErrMissingAuthentication.Code): {"MissingAuthenticationToken", http.StatusForbidden, "Request is missing Authentication Token"},
	string(transport.ErrUnknownOperation.Code):      {"InvalidAction", http.StatusBadRequest, ""},
	string(transport.ErrSerialization.Code):         {"MalformedInput", http.StatusBadRequest, ""},
	string(transport.ErrTooLarge.Code):              {"RequestEntityTooLarge", http.StatusRequestEntityTooLarge, ""},
	string(kmsapi.ErrExpiredToken.Code):             {"ExpiredToken", http.StatusForbidden, ""},
}

// nameOf returns what an error is called in these services. The token of a web identity and
// that of a session are called differently when they have expired.
func (ex *exchange) nameOf(err error, a transport.Answer) name {
	n := name{a.Type, a.HTTP, ""}
	if given, ok := names[a.Type]; ok {
		n = given
	}
	_, unproven := errors.AsType[*sigv4.Error](err)
	switch {
	case a.Internal:
		n.code = ex.service.internal
	case a.Type == string(kmsapi.ErrExpiredToken.Code) && !unproven && ex.op != nil && ex.op.Unsigned:
		n = name{a.Type, http.StatusBadRequest, ""}
	}
	if f, ok := errors.AsType[*fault](err); ok {
		n.code = f.code
	}
	return n
}

// Refuse implements transport.Exchange.
func (ex *exchange) Refuse(b []byte, h http.Header, r *http.Request, id string, err error, a transport.Answer) ([]byte, int) {
	h["Content-Type"] = contentTypes
	if ex.service == nil {
		ex.service = cmp.Or(serviceNamed(sigv4.ServiceOf(r)), stsService)
	}
	n, s := ex.nameOf(err, a), ex.service
	ex.service, ex.op = nil, nil
	kind := "Sender"
	if n.status >= http.StatusInternalServerError {
		kind = "Receiver"
	}
	message := a.Message
	if n.text != "" {
		message = n.text
	}
	b = appendWords(b, `<ErrorResponse xmlns="`, s.namespace, `"><Error><Type>`, kind, "</Type><Code>", n.code, "</Code><Message>")
	b = appendText(b, message)
	b = append(b, "</Message>"...)
	if a.Encoded != "" {
		b = appendWords(b, "<EncodedMessage>", a.Encoded, "</EncodedMessage>")
	}
	return appendWords(b, "</Error><RequestId>", id, "</RequestId></ErrorResponse>"), n.status
}
