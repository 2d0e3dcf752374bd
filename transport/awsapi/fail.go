package awsapi

import (
	"errors"
	"net/http"

	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport"
)

var (
	errUnknownOperation = transport.ErrUnknownOperation
	// errAddress is the answer to a request that is not a POST to "/".
	errAddress     = &kmsapi.Error{Code: transport.ErrUnknownOperation.Code, Message: "Requests are POST / HTTP/1.1 or HTTP/2."}
	errContentType = &kmsapi.Error{Code: transport.ErrUnknownOperation.Code, Message: "The Content-Type of a request is " + contentType + "."}
)

// Refuse implements transport.Exchange.
func (ex *exchange) Refuse(b []byte, h http.Header, r *http.Request, id string, err error, a transport.Answer) ([]byte, int) {
	if m, ok := errors.AsType[*misdirected](err); ok && m.xml {
		h.Set("Content-Type", "text/xml")
		return append(b, m.document(id)...), http.StatusForbidden
	}
	status := a.HTTP
	if err == errAddress {
		// HTTP has its own statuses for these two cases.
		status = http.StatusNotFound
		if r.URL.Path == "/" && r.Method != http.MethodPost {
			h.Set("Allow", http.MethodPost)
			status = http.StatusMethodNotAllowed
		}
	}
	h["Content-Type"] = contentTypes
	h[headerErrorType] = []string{a.Type}
	b = append(b, `{"__type":`...)
	b = appendText(b, a.Type)
	b = append(b, `,"message":`...)
	b = appendText(b, a.Message)
	if a.Encoded != "" {
		b = append(b, `,"EncodedMessage":`...)
		b = appendText(b, a.Encoded)
	}
	return append(b, '}'), status
}
