// Package diagnose finds out what would keep a machine from running a node: it looks at what
// a server with a given configuration would use, in the way the server would. It changes
// nothing: what it writes to measure a disk has no name any more while it is written, and
// the ports that it tries are closed again.
package diagnose

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/cmd/conclave/node"
)

// State is what a check came to.
type State string

// A problem keeps a node from starting or from serving; a warning does not, or not yet.
const (
	OK      State = "ok"
	Warning State = "warning"
	Problem State = "problem"
)

// Finding is what one check found. Next says what to do about it; it is empty if there is
// nothing to do.
type Finding struct {
	Check string `json:"check"`
	State State  `json:"state"`
	Found string `json:"found"`
	Next  string `json:"next,omitempty"`
}

// limit bounds each check. A disk or a network that answers later than that is itself what
// is to be found.
const limit = 15 * time.Second

// report collects findings; checks run at the same time.
type report struct {
	mu   sync.Mutex
	list []Finding
}

func (r *report) add(check string, s State, next, found string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, Finding{Check: check, State: s, Found: fmt.Sprintf(found, args...), Next: next})
}

func (r *report) ok(check, found string, args ...any) { r.add(check, OK, "", found, args...) }

// subject is what the checks look at.
type subject struct {
	cfg *node.Config
	now time.Time
	// identity is nil if the files of it cannot be used.
	identity *pki.Identity
}

// checks are in the order in which they are shown. Each is alone responsible for what it
// names, so none has to wait for another.
var checks = []struct {
	name string
	run  func(context.Context, *subject, *report)
}{
	{"clock", clock},
	{"certificates", certificates},
	{"revocation lists", revocationLists},
	{"gossip key", gossipKey},
	{"data directory", dataDirectory},
	{"disk space", diskSpace},
	{"disk latency", diskLatency},
	{"locked memory", lockedMemory},
	{"open files", openFiles},
	{"ports", ports},
	{"peers", peers},
}

// Run looks at this machine with the eyes of a server that has this configuration. faults
// are those of the configuration itself. It takes at most some 15 seconds.
func Run(ctx context.Context, cfg *node.Config, faults []error) []Finding {
	r := new(report)
	for _, err := range faults {
		r.add("configuration", Problem, "correct the flag or the variable; conclave server --help describes them", "%v", err)
	}
	if len(faults) == 0 {
		r.ok("configuration", "complete, for node %s", cfg.NodeID)
	}
	s := &subject{cfg: cfg, now: time.Now()}
	if cfg.TLSCert != "" && cfg.TLSKey != "" && cfg.TLSCA != "" {
		// The error is reported by the check of the certificates.
		s.identity, _ = pki.LoadIdentity(cfg.TLSCert, cfg.TLSKey, cfg.TLSCA)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	done := make([]chan *report, len(checks))
	for i, c := range checks {
		done[i] = make(chan *report, 1)
		go func() {
			own := new(report)
			c.run(ctx, s, own)
			done[i] <- own
		}()
	}
	for i, c := range checks {
		select {
		case own := <-done[i]:
			r.list = append(r.list, own.list...)
		case <-ctx.Done():
			// The check is still waiting, for a disk that hangs for example.
			r.add(c.name, Problem, "look for what hangs: dmesg, and the storage or the network behind it", "no answer within %v", limit)
		}
	}
	stepped(s, r)
	return r.list
}

// Worst returns the worst state of all findings.
func Worst(list []Finding) State {
	order := []State{OK, Warning, Problem}
	worst := slices.MaxFunc(append(list, Finding{State: OK}), func(a, b Finding) int {
		return cmp.Compare(slices.Index(order, a.State), slices.Index(order, b.State))
	})
	return worst.State
}
