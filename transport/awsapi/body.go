package awsapi

import (
	"io"
	"net/http"

	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/transport"
)

const (
	// freeBody is how much of a body is read without asking whether there is room:
	// enough for nearly every request there is.
	freeBody = 8 << 10
	// maxKept is the largest buffer that is kept for the next request.
	maxKept = 64 << 10
)

var (
	errTooLarge = &keyengine.Error{Code: transport.ErrTooLarge.Code, Message: "The request is larger than any operation takes."}
	errBody     = &keyengine.Error{Code: transport.ErrSerialization.Code, Message: "The request body could not be read to its end."}
	errBusy     = &keyengine.Error{Code: keyengine.ErrUnavailable.Code, Message: "The node has too many requests to answer. Try again."}
)

// readBody reads the body into the exchange. Memory follows what has really
// arrived, not what Content-Length announces, and beyond freeBody comes out of
// what all requests share: at this point nobody is authenticated.
func (h *Handler) readBody(r *http.Request, ex *exchange) error {
	limit := h.cfg.MaxBody
	if r.ContentLength > int64(limit) {
		return errTooLarge
	}
	b := ex.body[:0]
	defer func() { ex.body = b }()
	for {
		if len(b) == cap(b) {
			size := min(2*cap(b), limit+1)
			if len(b) > limit {
				return errTooLarge
			}
			if cap(b) < size {
				h.bodies.Add(int64(size))
				ex.charged += int64(size)
				if h.bodies.Load() > h.cfg.MaxBodies {
					return errBusy
				}
				bigger := make([]byte, len(b), size)
				copy(bigger, b)
				clear(b)
				b = bigger
			}
		}
		n, err := r.Body.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		switch {
		case len(b) > limit:
			return errTooLarge
		case err == io.EOF:
			return nil
		case err != nil:
			return errBody
		}
	}
}
