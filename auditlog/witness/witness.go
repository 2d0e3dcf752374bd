// Package witness is a witness of transparency logs (C2SP tlog-witness v1.0.0), and the form of
// the requests to one.
//
// A witness knows the newest tree of each log that it has cosigned. It cosigns another one only
// if that begins with the one it knows, so a log that shows different trees to different people
// gets the cosignatures of its witnesses for one of them at most. Who verifies a checkpoint by a
// quorum of witnesses does not have to compare it with what others see.
//
// What keeps that true:
//
//   - The new tree is on disk before the cosignature leaves. A crash before that leaves the old
//     tree, and nobody has a cosignature. A crash after that leaves the new one.
//   - Requests about logs are decided one at a time, from the comparison with the known tree
//     until the new one is on disk. Of two forks that arrive together, one is refused.
//   - A state that cannot be read, or that does not verify, is an error and not an empty one.
//
// Anybody may send requests. One costs the verification of a signature at most, unless the log
// has signed what is in it; requests are bounded in length, and those that have arrived in number
// at once. How long one may take to arrive, and how many may do so at once, is for the server to
// bound whose handler the witness is.
package witness

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"sync"

	"golang.org/x/mod/sumdb/note"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/checkpoint"
)

// maxRequests is how many requests are worked on at once. Others are refused.
const maxRequests = 64

// Config configures a Witness. Everything is required but Logger.
type Config struct {
	// Signers make the cosignatures. They have the same name and different algorithms.
	Signers []*checkpoint.Cosigner
	// Logs has the public keys of each log that is cosigned, one a line. Their name is the log's
	// origin. A checkpoint has to be signed by one of them.
	Logs   []string
	Store  Store
	Logger *slog.Logger // slog.Default() if nil
}

// Witness cosigns checkpoints. It is safe for concurrent use.
type Witness struct {
	signers []note.Signer
	own     []note.Verifier
	logs    map[string]note.Verifiers // by origin
	paths   map[string]string         // checkpointPath to origin
	store   Store
	log     *slog.Logger
	room    chan struct{}

	mu     sync.Mutex // held from the comparison with what is known until the new state is on disk
	newest map[string]tree
}

// New returns a Witness that goes on from the state in the store. It returns auditlog.ErrCorrupt
// if that cannot be used.
func New(cfg Config) (*Witness, error) {
	w := &Witness{
		logs: make(map[string]note.Verifiers), paths: make(map[string]string),
		store: cfg.Store, log: cfg.Logger, room: make(chan struct{}, maxRequests),
	}
	if w.log == nil {
		w.log = slog.Default()
	}
	for _, s := range cfg.Signers {
		w.signers, w.own = append(w.signers, s), append(w.own, s.Verifier)
	}
	if len(w.signers) == 0 {
		return nil, errors.New("a witness without a key")
	}
	for _, text := range cfg.Logs {
		keys, err := checkpoint.ParseVerifiers(text)
		if err != nil {
			return nil, fmt.Errorf("key of a log: %w", err)
		}
		origin := keys[0].Name()
		if w.logs[origin] != nil {
			return nil, fmt.Errorf("two logs have the origin %q", origin)
		}
		w.logs[origin], w.paths[checkpointPath(origin)] = note.VerifierList(keys...), origin
	}
	state, err := cfg.Store.Load()
	if err != nil {
		return nil, fmt.Errorf("the state of the witness: %w", err)
	}
	w.newest, err = decodeState(state, w.own)
	return w, err
}

// refusal is an answer that is not a cosignature.
type refusal struct {
	status int
	text   string
	size   bool // text is the size of the tree that the witness knows
}

func (r *refusal) Error() string { return r.text }

func refuse(status int, format string, args ...any) error {
	return &refusal{status: status, text: fmt.Sprintf(format, args...)}
}

// ServeHTTP answers the requests of logs and of monitors.
func (w *Witness) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	body, err := w.serve(rw, r)
	if err == nil {
		rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = rw.Write(body) // an error means that the client has gone
		return
	}
	var no *refusal
	switch {
	case !errors.As(err, &no):
		w.log.Error("a request to the witness failed", "err", err)
		http.Error(rw, "The witness cannot do that now.", http.StatusInternalServerError)
	case no.size:
		rw.Header().Set("Content-Type", SizeType)
		rw.WriteHeader(no.status)
		_, _ = io.WriteString(rw, no.text+"\n")
	default:
		http.Error(rw, no.text, no.status)
	}
}

func (w *Witness) serve(rw http.ResponseWriter, r *http.Request) ([]byte, error) {
	origin, known := w.paths[r.URL.Path]
	var work func() ([]byte, error)
	switch {
	case r.URL.Path == AddCheckpoint:
		body, err := read(rw, r)
		if err != nil {
			return nil, err
		}
		work = func() ([]byte, error) { return w.add(body) }
	case !known:
		return nil, refuse(http.StatusNotFound, "There is no such resource, or the witness does not know the log.")
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		rw.Header().Set("Allow", "GET, HEAD")
		return nil, refuse(http.StatusMethodNotAllowed, "Checkpoints are read with GET.")
	default:
		work = func() ([]byte, error) { return w.show(origin) }
	}
	// Room is taken after the request has been read: otherwise, whoever sends slowly could occupy
	// all of it.
	select {
	case w.room <- struct{}{}:
		defer func() { <-w.room }()
		return work()
	default:
		rw.Header().Set("Retry-After", "1")
		return nil, refuse(http.StatusServiceUnavailable, "The witness is busy.")
	}
}

// read reads the body of a request of a cosignature.
func read(rw http.ResponseWriter, r *http.Request) ([]byte, error) {
	if r.Method != http.MethodPost {
		rw.Header().Set("Allow", http.MethodPost)
		return nil, refuse(http.StatusMethodNotAllowed, "Checkpoints are sent with POST.")
	}
	body, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, MaxRequest))
	var tooLong *http.MaxBytesError
	if errors.As(err, &tooLong) {
		return nil, refuse(http.StatusRequestEntityTooLarge, "The request is longer than %d bytes.", MaxRequest)
	}
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "The request is cut off.")
	}
	return body, nil
}

// show answers with the newest checkpoint of a log that the witness has cosigned.
func (w *Witness) show(origin string) ([]byte, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	newest, ok := w.newest[origin]
	if !ok {
		return nil, refuse(http.StatusNotFound, "The witness has not cosigned a checkpoint of this log yet.")
	}
	return []byte(newest.note), nil
}

// add answers a request of a cosignature with the signature lines. Which status is which is in
// C2SP tlog-witness. What can be refused by its text alone is, before a signature is verified; the
// old size is compared with what the witness knows after that, as the specification has it.
func (w *Witness) add(body []byte) ([]byte, error) {
	r, err := parseRequest(body)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "The request is malformed.")
	}
	text := r.Checkpoint[:bytes.LastIndex(r.Checkpoint, []byte("\n\n"))+1] // what note.Open verifies
	c, err := checkpoint.DecodeText(string(text))
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "The checkpoint is malformed.")
	}
	keys, ok := w.logs[c.Origin]
	if !ok {
		return nil, refuse(http.StatusNotFound, "The witness does not know the log.")
	}
	if r.Old > c.Size {
		return nil, refuse(http.StatusBadRequest, "The old size is larger than that of the checkpoint.")
	}
	n, err := note.Open(r.Checkpoint, keys)
	var unsigned *note.UnverifiedNoteError
	var wrong *note.InvalidSignatureError
	switch {
	case errors.As(err, &unsigned), errors.As(err, &wrong):
		return nil, refuse(http.StatusForbidden, "The log has not signed the checkpoint with a key that the witness trusts.")
	case err != nil:
		return nil, refuse(http.StatusBadRequest, "The checkpoint is malformed.")
	}
	for _, s := range n.Sigs {
		// note.Open accepts more than one form. The witness shows what it has cosigned, and whoever
		// changes the form without the log's key must not make that unreadable for others.
		if _, err := base64.StdEncoding.Strict().DecodeString(s.Base64); err != nil {
			return nil, refuse(http.StatusBadRequest, "The checkpoint is malformed.")
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	known := w.newest[c.Origin]
	if err := follows(known.Checkpoint, c, r); err != nil {
		if no := new(refusal); errors.As(err, &no) && no.status == http.StatusUnprocessableEntity {
			// The log has signed it, so it may prove that the log has forked.
			w.log.Warn("a checkpoint that its log has signed was refused", "reason", no.text, "known_size", known.Size, "checkpoint", string(r.Checkpoint))
		}
		return nil, err
	}
	return w.cosign(n, c)
}

// follows checks that the tree of a checkpoint begins with the one that is known.
func follows(known, c checkpoint.Checkpoint, r *Request) error {
	switch {
	case r.Old != known.Size:
		return &refusal{http.StatusConflict, strconv.FormatUint(known.Size, 10), true}
	case c.Size == 0 && c.Root != sha256.Sum256(nil):
		return refuse(http.StatusUnprocessableEntity, "The root of the empty tree is not that of RFC 6962.")
	case (r.Old == 0 || r.Old == c.Size) && len(r.Proof) > 0:
		return refuse(http.StatusUnprocessableEntity, "The proof is not empty.")
	case r.Old == 0:
		return nil
	case r.Old == c.Size && c.Root != known.Root:
		return refuse(http.StatusUnprocessableEntity, "The witness has cosigned another tree of the same size.")
	case r.Old == c.Size:
		return nil
	}
	if err := auditlog.VerifyConsistency(r.Proof, r.Old, c.Size, known.Root, c.Root); err != nil {
		return refuse(http.StatusUnprocessableEntity, "The proof does not show that the tree begins with the one that the witness knows.")
	}
	return nil
}

// cosign cosigns a checkpoint, and keeps it before it returns the signatures. Only what is on
// disk is known from then on, so whatever becomes of a failed attempt, nobody has a cosignature
// of it. The caller holds mu.
func (w *Witness) cosign(n *note.Note, c checkpoint.Checkpoint) ([]byte, error) {
	signed, err := note.Sign(&note.Note{Text: n.Text, Sigs: n.Sigs}, w.signers...)
	if err != nil {
		return nil, fmt.Errorf("cosigning a checkpoint of %s: %w", c.Origin, err)
	}
	mine, err := note.Open(signed, note.VerifierList(w.own...))
	if err != nil {
		return nil, fmt.Errorf("cosigning a checkpoint of %s: %w", c.Origin, err)
	}
	notes := map[string]string{c.Origin: string(signed)}
	for origin, known := range w.newest {
		if origin != c.Origin {
			notes[origin] = known.note
		}
	}
	state := encodeState(notes)
	if len(state) > MaxState {
		return nil, fmt.Errorf("keeping a checkpoint of %s: the state of all logs would be longer than %d bytes", c.Origin, MaxState)
	}
	if err := w.store.Save(state); err != nil {
		return nil, fmt.Errorf("keeping a checkpoint of %s: %w", c.Origin, err)
	}
	w.newest[c.Origin] = tree{c, string(signed)}
	return checkpoint.Append(nil, mine.Sigs...), nil
}
