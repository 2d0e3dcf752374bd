package raftlogger

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// TestDeadPeerIsLoggedOnceAPeriod: Raft has several lines a second about a peer that
// cannot be reached; the log has one in five minutes, with how many were left out.
func TestDeadPeerIsLoggedOnceAPeriod(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	now := time.Unix(0, 0)
	l := New(slog.New(slog.NewTextHandler(&out, nil)), "raft").(*logger)
	l.lost.now = func() time.Time { return now }
	noise := func() {
		server := raft.Server{ID: "n2", Address: "n2:7602"}
		l.Error("failed to heartbeat to", "peer", server.Address, "error", errors.New("refused"))
		l.Named("sub").Error("failed to appendEntries to", "peer", server, "error", errors.New("refused"))
		l.With("a", "b").Error("failed to make requestVote RPC", "target", server, "error", errors.New("refused"))
	}
	for range 100 {
		noise()
		l.Warn("Election timeout reached, restarting election")
		now = now.Add(time.Second)
	}
	if got := strings.Count(out.String(), "n2:7602"); got != 1 {
		t.Errorf("%d lines about one peer:\n%s", got, &out)
	}
	if got := strings.Count(out.String(), "Election timeout"); got != 1 {
		t.Errorf("%d lines about elections", got)
	}
	// Another peer, and what is not about its being reached, are not held back.
	l.Error("failed to heartbeat to", "peer", raft.ServerAddress("n3:7602"))
	l.Error("peer has newer term, stopping replication", "peer", raft.ServerAddress("n2:7602"))
	for _, want := range []string{"n3:7602", "newer term"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no line about %s:\n%s", want, &out)
		}
	}
	out.Reset()
	now = now.Add(lostPeerInterval)
	noise()
	if got := out.String(); strings.Count(got, "n2:7602") != 1 || !strings.Contains(got, "lines_left_out=299") {
		t.Errorf("after the interval:\n%s", got)
	}
}
