// Package raftlogger passes the log of hashicorp/raft on to slog.
package raftlogger

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// logger passes Raft's log on to slog. Raft logs at Info and Warn what needs no attention,
// so everything except errors goes one level lower.
type logger struct {
	l    *slog.Logger
	name string
	args []any
	lost *lostPeers
}

// New returns a logger for the part of Raft with the given name.
func New(l *slog.Logger, name string) hclog.Logger {
	return &logger{l: l.With("part", name), name: name, lost: &lostPeers{now: time.Now}}
}

const (
	// lostPeerInterval is the minimum time between two lines about an unreachable peer.
	// Raft logs several for each of its attempts.
	lostPeerInterval = 5 * time.Minute
	// maxLostPeers bounds the number of peers that are remembered.
	maxLostPeers = 64
)

// lostPeers records when a line about each unreachable peer was last logged.
type lostPeers struct {
	now   func() time.Time
	mu    sync.Mutex
	peers map[string]*lostPeer
}

type lostPeer struct {
	said  time.Time
	since int // lines that were left out since then
}

// unreachable lists the messages of Raft about failed calls to a peer or, without a peer,
// to too many of them.
var unreachable = []string{
	"failed to heartbeat to", "failed to appendEntries to", "failed to pipeline appendEntries", "failed to start pipeline replication to",
	"failed to make requestVote RPC", "failed to send snapshot to", "failed to install snapshot",
	"failed to contact", "Election timeout reached, restarting election",
}

// pass reports whether to log a line, and how many lines about the same peer were left out
// before it.
func (p *lostPeers) pass(msg string, args []any) (left int, ok bool) {
	if p == nil || !slices.Contains(unreachable, msg) {
		return 0, true
	}
	peer := peerOf(args)
	now := p.now()
	p.mu.Lock()
	defer p.mu.Unlock()
	was := p.peers[peer]
	if was != nil && now.Sub(was.said) < lostPeerInterval {
		was.since++
		return 0, false
	}
	if was != nil {
		left = was.since
	}
	if p.peers == nil || len(p.peers) >= maxLostPeers {
		p.peers = make(map[string]*lostPeer)
	}
	p.peers[peer] = &lostPeer{said: now}
	return left, true
}

// peerOf returns the address that a line of Raft's log is about.
func peerOf(args []any) string {
	for i := 0; i+1 < len(args); i += 2 {
		if args[i] != "peer" && args[i] != "target" && args[i] != "server-id" {
			continue
		}
		if s, ok := args[i+1].(raft.Server); ok {
			return string(s.Address)
		}
		return fmt.Sprint(args[i+1])
	}
	return ""
}

func slogLevel(l hclog.Level) slog.Level {
	switch l {
	case hclog.Error:
		return slog.LevelError
	case hclog.Warn:
		return slog.LevelInfo
	default:
		return slog.LevelDebug
	}
}

// Log implements hclog.Logger, like the methods below.
func (r *logger) Log(level hclog.Level, msg string, args ...any) {
	sl := slogLevel(level)
	ctx := context.Background()
	if level == hclog.Trace || level == hclog.Off || !r.l.Enabled(ctx, sl) {
		return
	}
	left, ok := r.lost.pass(msg, args)
	if !ok {
		return
	}
	if left > 0 {
		args = append(args[:len(args):len(args)], "lines_left_out", left)
	}
	for i, a := range args {
		if f, ok := a.(hclog.Format); ok && len(f) > 0 { // hclog formats these lazily
			format, _ := f[0].(string)
			args[i] = fmt.Sprintf(format, f[1:]...)
		}
	}
	r.l.Log(ctx, sl, msg, args...)
}

func (r *logger) Trace(string, ...any)          {}
func (r *logger) Debug(msg string, args ...any) { r.Log(hclog.Debug, msg, args...) }
func (r *logger) Info(msg string, args ...any)  { r.Log(hclog.Info, msg, args...) }
func (r *logger) Warn(msg string, args ...any)  { r.Log(hclog.Warn, msg, args...) }
func (r *logger) Error(msg string, args ...any) { r.Log(hclog.Error, msg, args...) }

func (r *logger) enabled(l hclog.Level) bool {
	return r.l.Enabled(context.Background(), slogLevel(l))
}
func (r *logger) IsTrace() bool { return false }
func (r *logger) IsDebug() bool { return r.enabled(hclog.Debug) }
func (r *logger) IsInfo() bool  { return r.enabled(hclog.Info) }
func (r *logger) IsWarn() bool  { return r.enabled(hclog.Warn) }
func (r *logger) IsError() bool { return r.enabled(hclog.Error) }

func (r *logger) ImpliedArgs() []any { return r.args }
func (r *logger) With(args ...any) hclog.Logger {
	return &logger{l: r.l.With(args...), name: r.name, lost: r.lost, args: append(r.args[:len(r.args):len(r.args)], args...)}
}
func (r *logger) Name() string { return r.name }
func (r *logger) Named(name string) hclog.Logger {
	return &logger{l: r.l, name: r.name + "." + name, args: r.args, lost: r.lost}
}
func (r *logger) ResetNamed(name string) hclog.Logger {
	return &logger{l: r.l, name: name, args: r.args, lost: r.lost}
}
func (r *logger) SetLevel(hclog.Level)  {}
func (r *logger) GetLevel() hclog.Level { return hclog.Debug }
func (r *logger) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return slog.NewLogLogger(r.l.Handler(), slog.LevelDebug)
}
func (r *logger) StandardWriter(*hclog.StandardLoggerOptions) io.Writer {
	return r.StandardLogger(nil).Writer()
}
