package auditwitness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/checkpoint"
	"github.com/conclavekms/conclave/auditlog/witness"
	"github.com/conclavekms/conclave/keyengine/internal/outbound"
)

const (
	// askTimeout bounds the time in which a witness has to cosign a checkpoint.
	askTimeout = 5 * time.Second
	// maxAnswer bounds what is read of an answer, in bytes.
	maxAnswer = 32 << 10
	// maxTries is how often a witness is asked at once, as it may say that it knows a tree of another
	// size.
	maxTries = 3
	// maxAhead is how far a witness's clock may be ahead.
	maxAhead = 5 * time.Minute
)

// The reasons why there is no cosignature, which are values of the label reason.
const (
	unreachable = "unreachable" // no answer, or one that tells to come back; or this node cannot prove yet that its log only grew
	refused     = "refused"     // the witness does not know the log or its key, or the request is wrong for it
	conflict    = "conflict"    // the witness knows another log than this one
	invalid     = "invalid"     // the answer is not one of the protocol, or the cosignature is wrong
)

var reasons = []string{unreachable, refused, conflict, invalid}

// failure is an error with a reason.
type failure struct {
	reason string
	err    error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func failed(reason, format string, args ...any) error {
	return &failure{reason, fmt.Errorf(format, args...)}
}

// client asks one witness.
type client struct {
	keys *checkpoint.Witness
	url  string
	http *http.Client
	// known is the size of the tree that the witness knows, from what it has said or cosigned last.
	known uint64
}

func (w *Witness) open(keys *checkpoint.Witness) (client, error) {
	u, err := outbound.ParseURL(w.URL)
	if err != nil {
		return client{}, err
	}
	if u.RawQuery != "" {
		return client{}, errors.New("the URL has a query")
	}
	c := client{keys: keys, url: strings.TrimSuffix(u.String(), "/") + witness.AddCheckpoint}
	c.http, err = outbound.Client(u, w.TLS, askTimeout)
	return c, err
}

// ask returns the witness's cosignatures of a checkpoint. The errors are failures.
func (c *client) ask(ctx context.Context, msg []byte, head checkpoint.Checkpoint, log Log) ([]note.Signature, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	for range maxTries {
		r := &witness.Request{Old: c.known, Checkpoint: msg}
		if r.Old > head.Size {
			c.known = 0 // it says anew what it knows
			return nil, failed(conflict, "the witness knows a tree of %d records, and this node has signed %d: the log was rolled back, or this node is behind", r.Old, head.Size)
		}
		if r.Old != 0 && r.Old < head.Size {
			var err error
			if r.Proof, err = log.ProveConsistency(r.Old, head.Size); err != nil {
				return nil, failed(unreachable, "proving that the log only grew: %w", err) // this node still fetches its own history
			}
		}
		status, kind, body, err := c.post(ctx, r.Marshal())
		switch {
		case err != nil:
			return nil, err
		case status == http.StatusOK:
			sigs, err := c.verified(msg, body)
			if err == nil {
				c.known = head.Size
			}
			return sigs, err
		case status == http.StatusConflict && kind == witness.SizeType:
			size, ok := checkpoint.ParseSize(strings.TrimSuffix(string(body), "\n"))
			if !ok || size == c.known {
				return nil, failed(invalid, "the witness names the size %.30q", body)
			}
			c.known = size
		case status == http.StatusConflict, status == http.StatusUnprocessableEntity:
			c.known = 0
			return nil, failed(conflict, "the witness does not accept that the log begins with the one that it knows (status %d)", status)
		case status >= 500 || status == http.StatusTooManyRequests:
			return nil, failed(unreachable, "the witness answered with status %d", status)
		default:
			return nil, failed(refused, "the witness answered with status %d", status)
		}
	}
	return nil, failed(invalid, "the witness names another size each time that it is asked")
}

func (c *client) post(ctx context.Context, body []byte) (status int, kind string, answer []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(body))
	if err != nil {
		return 0, "", nil, failed(refused, "%w", err)
	}
	req.Header = http.Header{"Content-Type": {"text/plain; charset=utf-8"}, "User-Agent": {"conclave"}}
	res, err := c.http.Do(req)
	if err != nil {
		return 0, "", nil, failed(unreachable, "%w", outbound.WithoutURL(err))
	}
	defer res.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return 0, "", nil, failed(unreachable, "%w", outbound.WithoutURL(err))
	}
	if len(answer) > maxAnswer {
		return 0, "", nil, failed(invalid, "the witness's answer is longer than %d bytes", maxAnswer)
	}
	return res.StatusCode, res.Header.Get("Content-Type"), answer, nil
}

// verified returns the witness's own cosignatures from its answer. Others are dropped. This is
// where a cosignature is verified before it becomes part of a checkpoint; Service does not do so
// again.
func (c *client) verified(msg, answer []byte) ([]note.Signature, error) {
	// The answer must not become part of the text that is verified.
	if !bytes.HasPrefix(answer, []byte("— ")) || !bytes.HasSuffix(answer, []byte("\n")) || bytes.Contains(answer, []byte("\n\n")) {
		return nil, failed(invalid, "the witness's answer has no signature lines")
	}
	sigs, err := c.keys.Cosignatures(append(bytes.Clone(msg), answer...))
	if err != nil {
		return nil, failed(invalid, "the witness's answer: %w", err)
	}
	for _, s := range sigs {
		if at, err := checkpoint.CosignatureTime(s); err != nil || time.Until(at) > maxAhead {
			return nil, failed(invalid, "the witness's cosignature is of %v, which is in the future", at.UTC())
		}
	}
	return sigs, nil
}

// Log is the node's audit log.
type Log interface {
	// Checkpoint returns the newest checkpoint that this node has signed; nil if there is none.
	Checkpoint() []byte
	// ProveConsistency proves that the log of size records begins with that of old ones.
	ProveConsistency(old, size uint64) ([]auditlog.Hash, error)
}
