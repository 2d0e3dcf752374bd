// Package tlogapi publishes the audit log as a tiled transparency log (C2SP tlog-tiles), with
// which anybody can verify checkpoints, proofs and receipts and watch that the log only grows:
//
//	GET /tlog/checkpoint                      the newest signed tree head, cosigned by witnesses if there are some
//	GET /tlog/tile/<L>/<N>[.p/<W>]            hashes of the tree
//	GET /tlog/tile/entries/<N>[.p/<W>]        the leaves, for authorised readers
//
// The checkpoint and the tiles are public. They have hashes only, each over 16 random bytes and
// more, so nothing can be guessed from them but how many records there are. The leaves show the
// ids and times of requests. They need the permission conclave:ReadAudit: the header
// Authorization has "Bearer" and the token of a session, as calls over gRPC do.
//
// A hostile caller can ask for any tile at any rate. Each costs at most one file and 8 KiB, and
// few are worked on at once; a request that is over the limits is answered with 503. Nothing
// that a caller sends is part of a file's name: paths are parsed into numbers first.
package tlogapi

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/checkpoint"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport"
	"github.com/conclavekms/conclave/transport/admission"
)

// Prefix begins the path of everything that the handler serves.
const Prefix = "/tlog/"

// maxCalls is how many requests are worked on at once. Others have to wait or come back, so
// that whoever copies the log takes no more of the node than that.
const maxCalls = 16

// Log is the part of the node's audit log that is published. *auditlog.Log implements it.
type Log interface {
	Checkpoint() []byte
	Tile(level int, n uint64, width int, size uint64) ([]auditlog.Hash, error)
}

// Engine has the checkpoints, and authorises readers of the leaves. *keyengine.Engine implements it.
type Engine interface {
	AuthenticateSession(ctx context.Context, token string) (iam.Identity, error)
	// PublishedCheckpoint returns the checkpoint to show, with the cosignatures of witnesses; nil
	// if there is none. The log's own one covers at least as much.
	PublishedCheckpoint() []byte
	AuditLeaves(ctx context.Context, c *iam.Caller, from uint64, n int) ([]auditlog.Entry, error)
}

// Config configures a Handler. Log and Engine are required.
type Config struct {
	Log    Log
	Engine Engine
	// Logger is slog.Default() if nil.
	Logger *slog.Logger
	// Metrics may be nil.
	Metrics prometheus.Registerer
	// Proxies are as in transport.APIConfig.
	Proxies transport.Proxies
}

// Handler serves the log. It is safe for concurrent use.
type Handler struct {
	cfg Config
	api *transport.API
}

// New returns a handler.
func New(cfg Config) (*Handler, error) {
	api, err := transport.NewAPI(transport.APIConfig{Name: "tlog", MaxCalls: maxCalls, Proxies: cfg.Proxies, Logger: cfg.Logger, Metrics: cfg.Metrics})
	if err != nil {
		return nil, err
	}
	return &Handler{cfg, api}, nil
}

// Before returns a handler that serves the log and leaves other requests to next.
func (h *Handler) Before(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, Prefix) {
			h.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

var (
	errNotFound = errors.New("not found")
	errMethod   = kmsapi.Errorf(transport.ErrUnknownOperation, "The log is read with GET.")
	errToken    = kmsapi.Errorf(transport.ErrMissingAuthentication, "The header Authorization must have Bearer and the token of a session.")
)

// ServeHTTP serves one resource of the log.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	request, ctx, err := h.api.Arrive(r.Context(), transport.Arrival{
		Remote: r.RemoteAddr, Forwarded: r.Header[transport.HeaderForwardedFor], Conn: admission.FromContext(r.Context()), Pool: h.api.Strangers,
	})
	defer request.End()
	defer func() {
		if p := recover(); p != nil {
			h.fail(w, request, h.api.Panicked(request, p))
		}
	}()
	if err == nil && r.Method != http.MethodGet && r.Method != http.MethodHead {
		err = errMethod
	}
	if err == nil {
		err = request.Arrived()
	}
	if err == nil {
		err = h.serve(ctx, w, r, request)
	}
	if err != nil {
		h.fail(w, request, err)
	}
}

func (h *Handler) serve(ctx context.Context, w http.ResponseWriter, r *http.Request, request *transport.Request) error {
	path := strings.TrimPrefix(r.URL.Path, Prefix)
	if path == "checkpoint" {
		if err := request.Work(&h.api.Calls); err != nil {
			return err
		}
		signed := h.cfg.Engine.PublishedCheckpoint()
		if signed == nil {
			return errNotFound
		}
		answer(w, "text/plain; charset=utf-8", "public, max-age=1", signed)
		return nil
	}
	t, ok := parseTile(path)
	if !ok {
		return errNotFound
	}
	var caller *iam.Caller
	if t.entries {
		token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !ok {
			return errToken
		}
		caller = request.Caller(r.UserAgent(), r.Host, r.TLS)
		var err error
		if caller.Identity, err = h.cfg.Engine.AuthenticateSession(ctx, token); err != nil {
			return err
		}
		request.Proved()
	}
	if err := request.Work(&h.api.Calls); err != nil {
		return err
	}
	// Only what the checkpoint covers is served, so that every tile can be verified.
	c, err := checkpoint.Decode(h.cfg.Log.Checkpoint())
	if err != nil {
		return errNotFound // there is none yet
	}
	hashes, err := h.cfg.Log.Tile(t.level, t.n, t.width, c.Size)
	if errors.Is(err, auditlog.ErrProof) {
		return errNotFound
	}
	if err != nil {
		return err
	}
	if !t.entries {
		var b []byte
		for i := range hashes {
			b = append(b, hashes[i][:]...)
		}
		answer(w, "application/octet-stream", "public, max-age=31536000, immutable", b)
		return nil
	}
	entries, err := h.cfg.Engine.AuditLeaves(ctx, caller, t.n*auditlog.TileWidth, t.width)
	transport.SetAuditIndex(w.Header(), caller)
	if err != nil {
		return err
	}
	if len(entries) != t.width {
		return errNotFound
	}
	var b []byte
	for i := range entries {
		leaf := entries[i].AppendLeaf(nil)
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(leaf))), leaf...)
	}
	answer(w, "application/octet-stream", "private, max-age=31536000, immutable", b)
	return nil
}

func answer(w http.ResponseWriter, contentType, caching string, body []byte) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Cache-Control", caching)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body) // an error means that the client has gone
}

func (h *Handler) fail(w http.ResponseWriter, request *transport.Request, err error) {
	w.Header().Set("Cache-Control", "no-store")
	if err == errNotFound {
		http.Error(w, "There is no such resource of the log, or no checkpoint covers it yet.", http.StatusNotFound)
		return
	}
	if errors.Is(err, auditlog.ErrMissing) {
		err = kmsapi.Errorf(kmsapi.ErrUnavailable, "This node does not have this part of the log. Ask another node.")
	}
	a := h.api.Answer(request, err)
	if a.GRPC == codes.Unauthenticated {
		w.Header().Set("WWW-Authenticate", "Bearer")
		a.HTTP = http.StatusUnauthorized
	}
	if a.HTTP == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	http.Error(w, a.Message, a.HTTP)
}

// tile names a tile of hashes, or one of leaves.
type tile struct {
	entries bool
	level   int
	n       uint64
	width   int
}

// parseTile parses the path of a tile. It accepts one path for each.
func parseTile(path string) (t tile, ok bool) {
	rest, ok := strings.CutPrefix(path, "tile/")
	if !ok || len(rest) > 64 {
		return t, false
	}
	level, rest, ok := strings.Cut(rest, "/")
	if !ok {
		return t, false
	}
	if level == "entries" {
		t.entries = true
	} else if n, ok := number(level, 63); ok {
		t.level = int(n)
	} else {
		return t, false
	}
	t.width = auditlog.TileWidth
	number3, width, partial := strings.Cut(rest, ".p/")
	if partial {
		n, ok := number(width, auditlog.TileWidth-1)
		if !ok || n == 0 {
			return t, false
		}
		t.width = int(n)
	}
	parts := strings.Split(number3, "/")
	for i, part := range parts {
		digits := part
		if i < len(parts)-1 {
			if digits, ok = strings.CutPrefix(part, "x"); !ok {
				return t, false
			}
		}
		n, err := strconv.ParseUint(digits, 10, 16)
		if err != nil || len(digits) != 3 || i == 0 && n == 0 && len(parts) > 1 || t.n > 1<<50 {
			return t, false
		}
		t.n = t.n*1000 + n
	}
	return t, true
}

// number parses a decimal number without leading zeros.
func number(text string, limit uint64) (uint64, bool) {
	n, err := strconv.ParseUint(text, 10, 32)
	return n, err == nil && n <= limit && strconv.FormatUint(n, 10) == text
}
