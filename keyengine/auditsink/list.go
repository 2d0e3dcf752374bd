package auditsink

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/auditfeed"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// Status says how far a receiver is.
type Status struct {
	Name string
	// Kind is what the receiver is: file, syslog, webhook or otlp. It is empty if this node is
	// not configured with it.
	Kind string
	// Confirmed is how many records the receiver has confirmed, which are those before the one
	// with that index, or passed over. A node that does not send knows what the cluster remembers,
	// which may be a few seconds old, and does not count up to maxPassed records that a limited
	// sink has passed over since.
	Confirmed uint64
	// Node sends, or was lost while it did; empty for nobody.
	Node string
	// Lag is the number of records that the receiver has not confirmed, and Age how old the
	// first of them is. The first ones do not count if they only store such a number.
	Lag uint64
	Age time.Duration
	// Error is why sending failed last, on this node while it sends; empty if it has not failed.
	Error   string
	ErrorAt time.Time
}

// List returns the sinks that the cluster remembers and those that this node is configured with,
// ordered by name. Lags are of the first size records of the log. Errors: vault.ErrSealed, auditlog.ErrMissing, and what reading files returns.
func (s *Service) List(size uint64) ([]Status, error) {
	var list []Status
	state := s.cfg.Replica.State()
	for o := range fsm.Objects[*fsmpb.Setting](state, []byte(setting("")), "") {
		name := strings.TrimPrefix(o.Name, setting(""))
		p, err := placeOf(state, name)
		if err != nil {
			return nil, err
		}
		status := Status{Name: name, Confirmed: p.Next}
		if !p.Done {
			status.Node = p.Node
		}
		list = append(list, status)
	}
	for _, st := range s.streams {
		i := slices.IndexFunc(list, func(status Status) bool { return status.Name == st.sink.Name })
		if i < 0 {
			i, list = len(list), append(list, Status{Name: st.sink.Name})
		}
		st.mu.Lock()
		list[i].Kind = st.sink.kind()
		if st.running && st.status.next > 0 {
			list[i].Confirmed = st.status.next
		}
		list[i].Error, list[i].ErrorAt = st.status.err, st.status.errAt
		st.mu.Unlock()
	}
	for i := range list {
		if err := s.lag(&list[i], size); err != nil {
			return nil, fmt.Errorf("audit sink %s: %w", list[i].Name, err)
		}
	}
	slices.SortFunc(list, func(a, b Status) int { return cmp.Compare(a.Name, b.Name) })
	return list, nil
}

// lag sets the lag of a sink in the first size records.
func (s *Service) lag(status *Status, size uint64) error {
	if status.Confirmed >= size {
		return nil
	}
	items, err := s.cfg.Feed.Read(status.Confirmed, int(min(maxSinks, size-status.Confirmed)))
	if err != nil || len(items) == 0 {
		return err
	}
	// Each sink that is idle leaves one such record behind.
	first := slices.IndexFunc(items, func(it auditfeed.Item) bool { return !acknowledges(&it) })
	if first < 0 {
		if first = len(items) - 1; items[first].Entry.Index+1 >= size {
			return nil
		}
	}
	e := &items[first].Entry
	status.Lag, status.Age = size-e.Index, max(0, s.cfg.Events.Clock.Now().Sub(time.Unix(0, e.Time)))
	return nil
}

// Forgettable returns the name of the setting by which a state remembers a sink that may be
// forgotten; leads says that this node leads. A sink that is still configured would send the
// whole log again. What other nodes are configured with is not known, but which one sends is; and
// that it was lost and no longer does is known to the node that leads. Errors: ErrNotFound,
// ErrInvalidState.
func (s *Service) Forgettable(state *fsm.State, name string, leads bool) (string, error) {
	m, _ := fsm.Object[*fsmpb.Setting](state, []byte(setting(name)))
	if m == nil {
		return "", kmsapi.Errorf(kmsapi.ErrNotFound, "The cluster remembers no audit sink with the name %.*q.", maxName, name)
	}
	if slices.ContainsFunc(s.streams, func(st *stream) bool { return st.sink.Name == name }) {
		return "", kmsapi.Errorf(kmsapi.ErrInvalidState, "Node %s is configured with the audit sink %s. Remove it from the configuration of all nodes first.", s.cfg.NodeID, name)
	}
	// A value that cannot be read is no reason to keep it.
	if p, err := placeOf(state, name); err == nil && p.Node != "" && !p.Done && !leads {
		return "", kmsapi.Errorf(kmsapi.ErrInvalidState, "Node %s sends to the audit sink %s, or was lost while it did. Ask the node that leads.", p.Node, name)
	}
	return setting(name), nil
}

// kind returns what the receiver is.
func (s *Sink) kind() string {
	switch {
	case s.File != nil:
		return "file"
	case s.Syslog != nil:
		return "syslog"
	case s.Webhook != nil:
		return "webhook"
	default:
		return "otlp"
	}
}
