package auditlog

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

// gaps are the entries after gaps, by index. A pending run begins when a snapshot moves
// the state past the local end, and exists until the gap before it is filled. gaps has
// no lock of its own.
type gaps struct {
	dir     *directory
	runs    []*pending
	retired []*pending // whose files the next Sync removes
}

// at returns the pending run that index i is in or follows; nil if there is
// none.
func (g *gaps) at(i uint64) *pending {
	for _, p := range slices.Backward(g.runs) {
		if p.first <= i && i <= p.next() {
			return p
		}
	}
	return nil
}

// after returns the first pending run that begins after index i.
func (g *gaps) after(i uint64) *pending {
	for _, p := range g.runs {
		if p.first > i {
			return p
		}
	}
	return nil
}

// begin finds or creates the pending run that entries after f are appended to.
func (g *gaps) begin(f Frontier) error {
	i := len(g.runs)
	for i > 0 && g.runs[i-1].first > f.size {
		i--
	}
	if i > 0 && g.runs[i-1].next() >= f.size {
		p := g.runs[i-1]
		have, err := p.at(f.size)
		if err != nil {
			return err
		}
		if !have.Equal(f) {
			return fmt.Errorf("%w: %s has other entries below %d", ErrDiverged, p.name, f.size)
		}
		return nil
	}
	if len(g.runs) >= maxPending {
		return fmt.Errorf("%w: more than %d gaps", ErrMissing, maxPending)
	}
	p, err := createPending(g.dir, f)
	if err != nil {
		return err
	}
	g.dir.dirty(layout.PendingDir)
	g.runs = slices.Insert(g.runs, i, p)
	return nil
}

// load opens the pending runs that are still separated by gaps.
func (g *gaps) load(mark *DurableMark, size uint64) error {
	durable := make(map[uint64]uint64)
	for _, p := range mark.Pending {
		durable[p.First] = p.Next
	}
	names, err := g.dir.list(layout.PendingDir)
	if err != nil {
		return err
	}
	for _, base := range names { // sorted, and so by index
		name := filepath.Join(layout.PendingDir, base)
		s, ok := strings.CutSuffix(base, ".seg")
		first, err := strconv.ParseUint(s, 10, 63)
		if !ok || err != nil || layout.PendingPath(first) != name {
			g.dir.logger.Warn("unknown file among the pending audit entries", "file", name)
			continue
		}
		next, was := durable[first]
		delete(durable, first)
		p, cut, err := openPending(g.dir, name, next)
		if errors.Is(err, ErrMalformed) && !errors.Is(err, ErrCorrupt) {
			if was {
				return fmt.Errorf("%w: %w", ErrCorrupt, err)
			}
			g.dir.logger.Warn("removing pending audit entries without a header", "file", name, "err", err)
			if err := g.dir.remove(name); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		if cut > 0 {
			g.dir.logger.Warn("cut off the torn end of pending audit entries", "file", name, "index", p.next(), "bytes", cut)
		}
		if p.next() <= size { // moved, but a crash prevented its removal
			g.retired = append(g.retired, p)
			continue
		}
		g.runs = append(g.runs, p)
	}
	for first := range durable {
		return fmt.Errorf("%w: %s is gone", ErrCorrupt, layout.PendingPath(first))
	}
	return nil
}
