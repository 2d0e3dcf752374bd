// Package verify checks the audit log of a cluster from outside. An auditor, or anybody
// who has a copy of a log directory, needs only the files and one public key. The package
// asks no server and trusts none, opens nothing for writing and takes no lock.
//
// It is separate from auditlog because it serves other people. A node relies on auditlog
// to keep a log, and on errors that stop the node if the log is damaged. An auditor relies
// on this package to report everything that is wrong with a log that somebody may have
// tampered with, and to continue after each problem. So it never uses a Log. It uses only
// those parts of auditlog that depend on nothing but their input: the formats of entries
// and checkpoints, and the Merkle tree. docs/audit-format.md specifies them in enough
// detail to write another verifier.
//
// What the caller may rely on:
//
//   - A report without problems means that the checkpoint has a valid signature by the
//     given key, and that the entries that it covers are present, intact and in order: none
//     was changed, removed, added or moved since it was signed.
//   - Entries after the checkpoint ([Report.Unsigned]) are checked only against each other.
//     Whether the last of them were cut off, or all were replaced, can be seen only with the
//     next checkpoint.
//   - A log that was rolled back as a whole, including its checkpoint, is consistent.
//     That can be detected only with a checkpoint that was kept elsewhere
//     ([Options.Earlier]).
//   - The records are encrypted and are not read. Only an unsealed node can check that
//     each of them can be decrypted.
//   - Reading a hostile directory takes memory in proportion to the number of entries
//     (8 bytes each), and never waits for a pipe or follows a symbolic link.
//
// To verify one entry against a checkpoint without the log, use checkpoint.Parse
// and auditlog.VerifyInclusion. To verify that a checkpoint extends an earlier one, use
// auditlog.VerifyConsistency.
package verify

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/checkpoint"
	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

// Options are optional inputs of Dir.
type Options struct {
	// Earlier are checkpoints that the caller kept. The log must contain the tree
	// of each, and its own checkpoint must not be older. Otherwise the log was
	// rolled back or forked.
	Earlier [][]byte
	// FS is the file system, which is only read from; the operating system's if
	// nil.
	FS auditlog.FS
	// Archive says that this is an archive, as package archive shows it: it has no mark
	// of what was made durable, and nothing after its last segment.
	Archive bool
	// Removed is where segments are read that were removed from the directory, such as an
	// archive. If it is nil, only their hashes are verified: see [Report.Unread].
	Removed auditlog.FS
}

// Report is the result of Dir.
type Report struct {
	Origin         string        // the signer of the checkpoint
	Size           uint64        // number of entries found from 0 on
	Root           auditlog.Hash // of those entries; zero if damage prevents computing it
	CheckpointSize uint64        // number of entries that the checkpoint covers
	Unsigned       uint64        // number of entries after those, which no checkpoint covers yet
	Unread         uint64        // number of entries of which there were only hashes, as their segments were moved
	Place          string        // of the archive that those were moved to, as the directory says
	Torn           int64         // bytes of an unfinished last frame, left by a running node or a crash
	Gaps           []Gap         // history that this copy lacks and reports as missing, all after the checkpoint
	Problems       []Problem
	Omitted        int // problems beyond the first maxProblems
}

// Gap is a range of entries, [From, To).
type Gap struct{ From, To uint64 }

// Problem is one thing that is wrong with a log.
type Problem struct {
	File   string // path within the log directory; empty for an earlier checkpoint
	Offset int64  // in the file
	Index  uint64 // of the entry, or of the first one that is affected
	What   string
}

func (p Problem) String() string {
	if p.File == "" {
		return p.What // which names the earlier checkpoint
	}
	return fmt.Sprintf("%s: offset %d: entry %d: %s", p.File, p.Offset, p.Index, p.What)
}

// OK reports whether there are no problems.
func (r *Report) OK() bool { return len(r.Problems) == 0 }

const maxProblems = 1000

// Dir checks a log directory, using only its files and the public keys of its
// checkpoints, one a line as in checkpoint.Parse: every frame, the order of indexes, Raft indexes and times,
// repeated request ids, every tile, every header, the names of the files, and the
// checkpoint's signature and root. It takes no lock and writes nothing, so it
// works on a copy and on the directory of a running node. Of segments that the node
// moved to an archive it checks the hashes, which lead to the checkpoint, and the
// entries if the options say where they are. To copy the log of a
// running node, copy the checkpoint first. Entries after the checkpoint are
// checked in the same way, but whether they were replaced, or cut off at a frame,
// can be seen only with the next checkpoint. Dir returns an error only if the log
// cannot be checked at all.
func Dir(dir, verifierKey string, opts Options) (*Report, error) {
	if _, err := checkpoint.CheckKeys(verifierKey); err != nil {
		return nil, err
	}
	v := &verifier{dir: dir, fs: opts.FS, key: verifierKey, archive: opts.Archive, elsewhere: opts.Removed, rep: new(Report)}
	if v.fs == nil {
		v.fs = auditlog.OSFS()
	}
	if err := v.run(opts.Earlier); err != nil {
		return nil, fmt.Errorf("verifying the audit log in %s: %w", dir, err)
	}
	return v.rep, nil
}

type verifier struct {
	dir string
	fs  auditlog.FS
	key string
	rep *Report
	// archive and elsewhere are Archive and Removed of Options.
	archive   bool
	elsewhere auditlog.FS
	removed   uint64   // number of segments, from 0 on, that were removed from the directory
	moved     []uint64 // those of them that were read elsewhere

	checkpoint checkpoint.Checkpoint
	mark       auditlog.DurableMark
	targets    []target
	size       uint64            // number of entries read so far, including those in missing files
	tree       auditlog.Frontier // of those entries, unless broken
	broken     bool              // entries are missing from the tree, so it is meaningless
	partial    [][]auditlog.Hash
	ids        []uint64
	raft       uint64
	time       int64
	tiles      [8][]uint64 // numbers found, by level
	segments   []uint64
	pendings   []string
	covered    uint64 // index after the last entry seen
}

// target is a tree that the log must contain.
type target struct {
	size  uint64
	check func(auditlog.Frontier)
	short func() // called if the log is shorter
}

func (v *verifier) problem(file string, off int64, index uint64, format string, args ...any) {
	if len(v.rep.Problems) == maxProblems {
		v.rep.Omitted++
		return
	}
	v.rep.Problems = append(v.rep.Problems, Problem{file, off, index, fmt.Sprintf(format, args...)})
}

// run reads the checkpoint and the durable mark before the entries. A running
// node writes them in the opposite order, so all entries that they cover must
// be there.
func (v *verifier) run(earlier [][]byte) error {
	top, err := v.fs.ReadDir(v.dir)
	if err != nil {
		return err
	}
	haveCheckpoint := v.readCheckpoint()
	haveMark := v.readMark()
	v.readEarlier(earlier)
	v.list(top)
	v.readRemoved() // a node writes that it removes a segment before it does
	if !haveMark && !v.archive {
		v.problem(layout.DurableFile, 0, 0, "the file is missing")
	}
	slices.SortStableFunc(v.targets, func(a, b target) int { return cmp.Compare(a.size, b.size) })
	v.time = math.MinInt64
	// The size is signed, and so are no more than the files may have. To grow step by step would
	// take three times the memory.
	v.ids = make([]uint64, 0, min(v.checkpoint.Size, uint64(len(v.segments))*auditlog.SegmentSize))
	v.reach()
	due := uint64(0)
	for i, n := range v.segments {
		removed := min(n, v.removed)
		for ; due < removed && !v.broken; due++ {
			v.removedSegment(due)
		}
		due = max(due, removed) // those after one that is broken belong to no tree, but are not missing
		if n != due {
			v.problem(layout.SegmentPath(due), 0, due*auditlog.SegmentSize, "the files of %d segments are missing", n-due)
			v.broken = true
		}
		v.segment(n, i == len(v.segments)-1 && !v.archive)
		due = n + 1
	}
	if due < v.removed {
		v.problem(layout.RemovedFile, 0, due*auditlog.SegmentSize, "it says that %d segments were removed, but none follows them", v.removed)
	}
	if at := v.size; at%auditlog.SegmentSize == 0 && at < max(v.checkpoint.Size, v.mark.Tree.Size()) {
		v.problem(layout.SegmentPath(at/auditlog.SegmentSize), 0, at, "the file is missing")
	}
	for _, t := range v.targets {
		if t.size > v.size {
			t.short()
		}
	}
	v.rep.Size = v.size
	if !v.broken {
		v.rep.Root = v.tree.Root()
	}
	v.rep.CheckpointSize = v.checkpoint.Size
	v.rep.Unsigned = v.size - min(v.size, v.checkpoint.Size)
	if !haveCheckpoint && v.size > 0 {
		v.problem(layout.CheckpointFile, 0, 0, "there is none: nothing vouches for the %d entries", v.size)
	}
	for level, ns := range v.tiles {
		for _, n := range ns {
			if n >= v.size>>(layout.TileHeight*(level+1)) && !v.broken {
				v.problem(layout.TilePath(level, n), 0, 0, "a tile without entries")
			}
		}
	}
	v.covered = v.size
	for _, name := range v.pendings { // by ascending index
		v.pending(name)
	}
	v.repeated()
	return nil
}

func (v *verifier) readCheckpoint() bool {
	b, err := auditlog.ReadFile(v.fs, filepath.Join(v.dir, layout.CheckpointFile), layout.MaxCheckpoint)
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	var c checkpoint.Checkpoint
	if err == nil {
		c, err = checkpoint.Parse(b, v.key)
	}
	if err != nil {
		v.problem(layout.CheckpointFile, 0, 0, "%v", err)
		return true
	}
	v.checkpoint, v.rep.Origin = c, c.Origin
	v.targets = append(v.targets, target{c.Size, func(f auditlog.Frontier) {
		if f.Root() != c.Root {
			v.problem(layout.CheckpointFile, 0, 0, "the root of the first %d entries is not the signed one", c.Size)
		}
	}, func() {
		v.problem(layout.CheckpointFile, 0, v.size, "it covers %d entries, but there are %d", c.Size, v.size)
	}})
	return true
}

func (v *verifier) readMark() bool {
	m, err := auditlog.ReadDurableMark(v.fs, v.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	if err != nil {
		v.problem(layout.DurableFile, 0, 0, "%v", err)
		return true
	}
	v.mark = m
	v.targets = append(v.targets, target{m.Tree.Size(), func(f auditlog.Frontier) {
		if !f.Equal(m.Tree) {
			v.problem(layout.DurableFile, 0, 0, "the first %d entries are not the ones that were made durable", m.Tree.Size())
		}
	}, func() {
		v.problem(layout.DurableFile, 0, v.size, "%d entries were durable, but there are %d", m.Tree.Size(), v.size)
	}})
	return true
}

func (v *verifier) readRemoved() {
	r, err := auditlog.ReadRemoved(v.fs, v.dir)
	if err != nil {
		v.problem(layout.RemovedFile, 0, 0, "%v", err)
	}
	v.removed, v.rep.Place = r.Segments, r.Place
}

func (v *verifier) readEarlier(earlier [][]byte) {
	for i, b := range earlier {
		c, err := checkpoint.ParseKept(b, v.key)
		if err != nil {
			v.problem("", 0, 0, "earlier checkpoint %d: %v", i, err)
			continue
		}
		if c.Size > v.checkpoint.Size {
			v.problem(layout.CheckpointFile, 0, v.checkpoint.Size, "it covers %d entries, earlier checkpoint %d covered %d: the log was rolled back, or this copy lags",
				v.checkpoint.Size, i, c.Size)
		}
		v.targets = append(v.targets, target{c.Size, func(f auditlog.Frontier) {
			if f.Root() != c.Root {
				v.problem("", 0, 0, "earlier checkpoint %d: its %d entries are not the first ones of this log", i, c.Size)
			}
		}, func() {
			v.problem("", 0, v.size, "earlier checkpoint %d: it covered %d entries, but there are %d", i, c.Size, v.size)
		}})
	}
}

// reach compares the tree with those targets that it has reached.
func (v *verifier) reach() {
	for len(v.targets) > 0 && v.targets[0].size == v.size {
		if !v.broken {
			v.targets[0].check(v.tree)
		}
		v.targets = v.targets[1:]
	}
}

// list notes the files and reports those that do not belong. It lists tiles
// before segments, because a running node writes them after segments.
func (v *verifier) list(top []string) {
	for _, name := range top {
		switch name {
		case layout.LockFile, layout.DurableFile, layout.CheckpointFile, layout.RemovedFile, layout.TmpDir + "/", layout.TileDir + "/", layout.SegmentDir + "/", layout.PendingDir + "/":
		default:
			v.problem(name, 0, 0, "an unknown file")
		}
	}
	v.each(layout.TileDir, func(name string) bool {
		level, err := strconv.Atoi(strings.TrimSuffix(filepath.Base(name), "/"))
		if err != nil || level < 0 || level >= len(v.tiles) || name != filepath.Join(layout.TileDir, strconv.Itoa(level))+"/" {
			return false
		}
		v.listTiles(level, strings.TrimSuffix(name, "/"), 0)
		return true
	})
	v.each(layout.SegmentDir, func(name string) bool {
		n, ok := layout.SegmentNumber(filepath.Base(name))
		if ok {
			v.segments = append(v.segments, n)
		}
		return ok
	})
	slices.Sort(v.segments)
	v.each(layout.PendingDir, func(name string) bool {
		s, _ := strings.CutSuffix(filepath.Base(name), ".seg")
		n, err := strconv.ParseUint(s, 10, 63)
		if err != nil || layout.PendingPath(n) != name {
			return false
		}
		v.pendings = append(v.pendings, name)
		return true
	})
}

// each calls fn with the names in a directory and reports those that fn does not
// know.
func (v *verifier) each(dir string, fn func(name string) bool) {
	names, err := v.fs.ReadDir(filepath.Join(v.dir, dir))
	if err != nil {
		v.problem(dir, 0, 0, "%v", err)
		return
	}
	for _, base := range names {
		if name := dir + "/" + base; !fn(name) {
			v.problem(name, 0, 0, "an unknown file")
		}
	}
}

func (v *verifier) listTiles(level int, dir string, n uint64) {
	v.each(dir, func(name string) bool {
		base := filepath.Base(name)
		if s, isDir := strings.CutSuffix(name, "/"); isDir {
			i, err := strconv.ParseUint(strings.TrimPrefix(base, "x"), 10, 16)
			if err != nil || n > 1<<40 || base != fmt.Sprintf("x%03d", i) {
				return false
			}
			v.listTiles(level, s, n*1000+i)
			return true
		}
		i, err := strconv.ParseUint(base, 10, 16)
		if err != nil || layout.TilePath(level, n*1000+i) != name {
			return false
		}
		v.tiles[level] = append(v.tiles[level], n*1000+i)
		return true
	})
}
