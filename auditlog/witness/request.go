package witness

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/checkpoint"
)

const (
	// MaxRequest is the length of the longest request that is read, in bytes.
	MaxRequest = 64 << 10
	// AddCheckpoint is the path of requests below a witness's URL.
	AddCheckpoint = "/add-checkpoint"
	// SizeType is the content type of an answer that names the size of the newest tree that a
	// witness knows.
	SizeType = "text/x.tlog.size"

	// maxProof is the length of the longest proof, in hashes.
	maxProof = 63
)

// checkpointPath is the path, below a witness's URL, of the newest checkpoint of a log that the
// witness has cosigned.
func checkpointPath(origin string) string {
	h := sha256.Sum256([]byte(origin))
	return "/" + hex.EncodeToString(h[:]) + "/checkpoint"
}

// Request is the body of a request of add-checkpoint.
type Request struct {
	Old        uint64          // size of the newest tree of the log that the witness is thought to know
	Proof      []auditlog.Hash // that the tree of the checkpoint begins with that one; empty if Old is 0
	Checkpoint []byte          // a signed note
}

// Marshal returns the request's text.
func (r *Request) Marshal() []byte {
	b := fmt.Appendf(nil, "old %d\n", r.Old)
	for _, h := range r.Proof {
		b = append(base64.StdEncoding.AppendEncode(b, h[:]), '\n')
	}
	b = append(b, '\n')
	return append(b, r.Checkpoint...)
}

// parseRequest decodes a request. The checkpoint is not looked at. It accepts only one encoding.
// It returns auditlog.ErrMalformed for anything else.
func parseRequest(body []byte) (*Request, error) {
	bad := func(what string) (*Request, error) {
		return nil, fmt.Errorf("%w: request of a cosignature: %s", auditlog.ErrMalformed, what)
	}
	head, note, ok := bytes.Cut(body, []byte("\n\n"))
	if !ok {
		return bad("no checkpoint")
	}
	lines := strings.Split(string(head), "\n")
	if len(lines) > 1+maxProof {
		return bad("too long a proof")
	}
	r := &Request{Checkpoint: note}
	number, found := strings.CutPrefix(lines[0], "old ")
	if r.Old, ok = checkpoint.ParseSize(number); !found || !ok {
		return bad("no old size")
	}
	for _, line := range lines[1:] {
		h, err := base64.StdEncoding.Strict().DecodeString(line)
		if err != nil || len(h) != sha256.Size || base64.StdEncoding.EncodeToString(h) != line {
			return bad("a line that is not a hash")
		}
		r.Proof = append(r.Proof, auditlog.Hash(h))
	}
	return r, nil
}
