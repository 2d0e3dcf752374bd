package witness

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/go-json-experiment/json"
	"golang.org/x/mod/sumdb/note"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/checkpoint"
)

// MaxState is the length of the longest state that is read, in bytes.
const MaxState = 64 << 20

const stateHeader = "conclave witness state v1\n"

// A Store keeps the state of a witness.
type Store interface {
	// Load returns what was saved last. A witness does not start without.
	Load() ([]byte, error)
	// Save replaces the state. When it returns nil, the new state survives a crash, and the old
	// one cannot come back. After an error either is there.
	Save(state []byte) error
}

// EmptyState is the state of a witness that has not cosigned anything.
func EmptyState() []byte { return encodeState(nil) }

// encodeState encodes the newest cosigned checkpoint of each log: a header, a line of JSON, and
// the SHA-256 of both, since a changed or missing checkpoint would allow a fork.
func encodeState(newest map[string]string) []byte {
	b, err := json.Marshal(newest, json.Deterministic(true))
	if err != nil {
		panic(err) // a map of valid UTF-8, which checkpoints are
	}
	text := append([]byte(stateHeader), b...)
	text = append(text, '\n')
	return fmt.Appendf(text, "%x\n", sha256.Sum256(text))
}

// decodeState decodes a state, and verifies the checkpoints with the witness's own keys. It
// returns auditlog.ErrCorrupt for anything else.
func decodeState(b []byte, own []note.Verifier) (map[string]tree, error) {
	bad := func(format string, args ...any) (map[string]tree, error) {
		return nil, fmt.Errorf("%w: witness state: %s", auditlog.ErrCorrupt, fmt.Sprintf(format, args...))
	}
	const digest = 2*sha256.Size + 1
	if len(b) > MaxState || len(b) < len(stateHeader)+digest || !bytes.HasPrefix(b, []byte(stateHeader)) {
		return bad("it does not begin with %q and end with a digest", strings.TrimSpace(stateHeader))
	}
	text, sum := b[:len(b)-digest], b[len(b)-digest:]
	if h := sha256.Sum256(text); string(sum) != hex.EncodeToString(h[:])+"\n" {
		return bad("it does not have its digest")
	}
	var notes map[string]string
	if err := json.Unmarshal(text[len(stateHeader):], &notes); err != nil {
		return bad("%v", err)
	}
	newest := make(map[string]tree)
	for origin, msg := range notes {
		n, err := note.Open([]byte(msg), note.VerifierList(own...))
		if err != nil || len(n.Sigs) != len(own) {
			return bad("the checkpoint of %q is not signed by this witness", origin)
		}
		c, err := checkpoint.DecodeText(n.Text)
		if err != nil || c.Origin != origin {
			return bad("the checkpoint of %q is that of another log, or none", origin)
		}
		newest[origin] = tree{c, msg}
	}
	return newest, nil
}

// tree is the newest tree of a log that the witness has cosigned.
type tree struct {
	checkpoint.Checkpoint
	note string // with the log's signatures and the witness's
}
