package diagnose

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/conclavekms/conclave/cluster"
	"github.com/conclavekms/conclave/cluster/diskspace"
)

func dataDirectory(_ context.Context, s *subject, r *report) {
	const check = "data directory"
	dir := s.cfg.Data
	if dir == "" {
		return // the configuration has no such directory, which is said already
	}
	if err := cluster.CheckDataDir(dir); err != nil {
		r.add(check, Problem, "give the node the directory that is its own", "%v", err)
		return
	}
	st, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		r.ok(check, "%s does not exist yet: the node creates it", dir)
		return
	}
	if err != nil {
		r.add(check, Problem, "let the user that the server runs as reach the directory", "%v", err)
		return
	}
	if !st.IsDir() {
		r.add(check, Problem, "give the path of a directory", "%s is not a directory", dir)
		return
	}
	owner, _, err := cluster.DataDirOwner(dir)
	switch {
	case err != nil:
		r.add(check, Problem, "run this as the user that the server runs as, or restore the directory", "%v", err)
		return
	case owner != "" && owner != s.cfg.NodeID:
		r.add(check, Problem, "give the directory of this node, or start the node that it is of", "%s belongs to node %s, and this is node %s", dir, owner, s.cfg.NodeID)
		return
	}
	mode, me := st.Mode().Perm(), os.Geteuid()
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && int(sys.Uid) != me {
		if me == 0 {
			r.add(check, Warning, fmt.Sprintf("run this as the user that the server runs as: setpriv --reuid %d --regid %d --clear-groups conclave diagnose …", sys.Uid, sys.Gid),
				"%s belongs to user %d, and this runs as root, whom everything is permitted", dir, sys.Uid)
		} else {
			r.add(check, Problem, fmt.Sprintf("chown -R %d %s", me, dir), "%s belongs to user %d, and this is user %d", dir, sys.Uid, me)
		}
		return
	}
	switch {
	case mode&0o002 != 0:
		r.add(check, Problem, "check that nobody changed anything in it, and then: chmod 700 "+dir, "others may write to %s (mode %#o), and the server does not start", dir, mode)
	case mode&0o077 != 0:
		r.add(check, Warning, "chmod 700 "+dir, "others may look into %s (mode %#o); the server will correct that", dir, mode)
	case owner == "":
		r.ok(check, "%s is there (mode %#o) and has no node yet", dir, mode)
	default:
		r.ok(check, "%s is that of node %s (mode %#o)", dir, owner, mode)
	}
}

// existing returns the nearest directory, from dir upwards, that exists.
func existing(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for {
		_, err := os.Stat(dir)
		if err == nil || !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			return dir, err
		}
		dir = filepath.Dir(dir)
	}
}

func diskSpace(_ context.Context, s *subject, r *report) {
	const check = "disk space"
	if s.cfg.Data == "" {
		return
	}
	dir, err := existing(s.cfg.Data)
	var level diskspace.Level
	disk := diskspace.NewTracker(dir, s.cfg.Space, nil)
	if err == nil {
		level, _, err = disk.Look(s.now)
	}
	if err != nil {
		r.add(check, Problem, "let the user that the server runs as reach the directory", "%v", err)
		return
	}
	room := disk.Room()
	found := fmt.Sprintf("%d of %d MiB free, and %d of %d inodes: %v", room.Free>>20, room.Total>>20, room.FreeInodes, room.TotalInodes, level)
	const more = "make room, or give the node a larger disk: docs/operate/disk-full.md"
	switch level {
	case diskspace.Ample:
		r.ok(check, "%s", found)
	case diskspace.Full:
		r.add(check, Problem, more, "%s; the node would store and answer nothing", found)
	case diskspace.Low:
		r.add(check, Warning, more, "%s; new keys will be refused when there is still less", found)
	default:
		r.add(check, Warning, more, "%s; new keys would be refused", found)
	}
}

const (
	// writes is how often the disk is written to at most, and writing for how long.
	writes  = 200
	writing = 3 * time.Second
	// slowWrite is where docs/metrics.md tells operators to look at the disk.
	slowWrite = 50 * time.Millisecond
)

// diskLatency measures what each answer of a node waits for: a small write that is on the
// disk when fsync returns.
func diskLatency(ctx context.Context, s *subject, r *report) {
	const check = "disk latency"
	if s.cfg.Data == "" {
		return
	}
	dir, err := existing(s.cfg.Data)
	if err != nil {
		return // the check of the space has said so
	}
	f, err := os.CreateTemp(dir, ".diagnose-*")
	if err != nil {
		r.add(check, Problem, "let the user that the server runs as write there", "nothing can be written: %v", err)
		return
	}
	defer f.Close()
	// Without a name it leaves nothing behind, however this ends.
	if err := os.Remove(f.Name()); err != nil {
		r.add(check, Problem, "let the user that the server runs as write there, and remove the file", "%v", err)
		return
	}
	block := make([]byte, 4096)
	var took []time.Duration
	for begin := time.Now(); len(took) < writes && time.Since(begin) < writing && ctx.Err() == nil; {
		start := time.Now()
		if _, err := f.Write(block); err != nil {
			r.add(check, Problem, "look at the disk: dmesg", "writing in %s: %v", dir, err)
			return
		}
		if err := f.Sync(); err != nil {
			r.add(check, Problem, "look at the disk: dmesg", "fsync in %s: %v", dir, err)
			return
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	at := func(percent int) time.Duration { return took[len(took)*percent/100].Round(time.Microsecond) }
	found := fmt.Sprintf("a write with fsync takes %v (p50), %v (p99), %v at most, of %d in %s", at(50), at(99), took[len(took)-1].Round(time.Microsecond), len(took), dir)
	if at(99) > slowWrite {
		r.add(check, Warning, "give the node a faster disk of its own: each answer waits for a write, and a leader that is too slow is replaced", "%s", found)
		return
	}
	r.ok(check, "%s", found)
}
