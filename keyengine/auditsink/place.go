package auditsink

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/auditfeed"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/auditsend"
	"github.com/conclavekms/conclave/keyengine/internal/record"
)

// eventName is the name of the records that store a place. They are no news: what follows the
// confirmation of such a record alone is not stored, so that an idle cluster stays idle.
const eventName = "AcknowledgeAuditSink"

// place is the value of the setting of a sink.
type place struct {
	Next uint64 `json:"next"` // index of the record that follows the last confirmed one
	Node string `json:"node"` // that sends
	// Done means that the node has stopped, and that all it has sent is before Next.
	Done bool `json:"done,omitzero"`

	version fsm.Version
}

func setting(sink string) string { return "audit-sink/" + sink }

// placeOf returns the place of a sink in a state; version is 0 if there is none yet.
func placeOf(s *fsm.State, sink string) (p place, err error) {
	m, version := fsm.Object[*fsmpb.Setting](s, []byte(setting(sink)))
	if m == nil {
		return place{}, nil
	}
	if err := json.Unmarshal(m.Value, &p, json.RejectUnknownMembers(true)); err != nil {
		return place{}, fmt.Errorf("the setting %s cannot be read: %w", setting(sink), err)
	}
	p.version = version
	return p, nil
}

// Has reports whether the receivers of all sinks have confirmed the records below an index.
func (s *Service) Has(index uint64) bool {
	for _, st := range s.streams {
		if p, err := placeOf(st.cfg.Replica.State(), st.sink.Name); err != nil || p.Next < index {
			return false
		}
	}
	return true
}

// resume sets where to go on. If another node has sent, it waits for a while for what that node
// stores last.
func (st *stream) resume(ctx context.Context, began time.Time) (err error) {
	for {
		if st.held, err = placeOf(st.cfg.Replica.State(), st.sink.Name); err != nil {
			return err
		}
		if st.held.Node == "" || st.held.Node == st.cfg.NodeID || st.held.Done || time.Since(began) >= takeOver {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	st.dirty, st.acked = false, time.Now()
	if st.held.version == 0 && st.sink.From == "end" {
		return st.store(ctx, place{Next: st.cfg.Feed.Size(), Node: st.cfg.NodeID})
	}
	if size := st.cfg.Feed.Size(); st.held.Next > size {
		return fmt.Errorf("the receiver has confirmed record %d, and the log has %d", st.held.Next-1, size)
	}
	st.next = st.held.Next
	return nil
}

// release stores what was confirmed, and, if this node stops, that it has.
func (st *stream) release(ctx context.Context, stops bool) error {
	if st.held.Node != st.cfg.NodeID || st.held.Done {
		return nil // nothing was sent
	}
	return st.store(ctx, place{Next: st.next, Node: st.cfg.NodeID, Done: stops})
}

// store replaces the place of the sink, unless another node has done so.
func (st *stream) store(ctx context.Context, p place) error {
	value, err := json.Marshal(p)
	if err != nil {
		return err
	}
	name := setting(st.sink.Name)
	put := &fsmpb.Change{Change: &fsmpb.Change_PutSetting{PutSetting: &fsmpb.Setting{Name: name, Value: value}}}
	d, err := st.cfg.Events.CommitEvent(ctx, func(s *fsm.State) (record.Event, error) {
		if err := s.Allows(put); err != nil {
			return record.Event{}, err
		}
		if s.VersionOf(fsmpb.Kind_KIND_SETTING, []byte(name)) != st.held.version {
			return record.Event{}, errTaken
		}
		ev := record.ServiceEvent(eventName, st.cfg.Events.Clock.Now(), fields(st.sink.Name, p)...)
		ev.Reads = []*fsmpb.Read{{Kind: fsmpb.Kind_KIND_SETTING, Id: []byte(name), Version: st.held.version}}
		ev.Changes = []*fsmpb.Change{put}
		return ev, nil
	})
	if errors.Is(err, record.ErrConflict) {
		err = errTaken
	}
	if err != nil {
		return err
	}
	if err := st.cfg.Replica.WaitApplied(ctx, d.Index); err != nil {
		return err
	}
	st.held, st.next, st.dirty, st.acked = p, p.Next, false, time.Now()
	st.held.version = d.Index
	return nil
}

func fields(sink string, p place) []*auditpb.Field {
	return []*auditpb.Field{auditfield.Text("sink", sink), auditfield.Number("nextIndex", int(p.Next)), auditfield.Flag("stopped", p.Done)}
}

// acknowledges reports whether a record stores the place of a sink.
func acknowledges(it *auditfeed.Item) bool {
	return it.Record.GetEventName() == eventName && it.Record.GetEventType() == record.KindService
}

func recordOf(it *auditfeed.Item, line []byte) auditsend.Record {
	name := it.Record.GetEventName()
	if it.Record == nil {
		name = auditlog.UnopenableEvent
	}
	return auditsend.Record{
		Index: it.Entry.Index, EventID: record.UUID(auditlog.EventID(it.Entry.LeafHash())), Time: time.Unix(0, it.Entry.Time),
		Name: name, Failed: it.Record == nil || it.Record.GetErrorCode() != "", Line: line,
	}
}
