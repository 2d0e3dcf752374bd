package harness

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/conclavekms/conclave/transport/kmspb"
)

// Record is a record of the audit log.
type Record struct {
	Index     uint64
	RequestID string
	Name      string // of the event
	Type      string // of the event; "AwsApiCall" for requests of callers
	Code      string // "" for success
	Node      string // the node that answered
	Params    map[string]any
	Response  map[string]any
	Keys      []string // ARNs of the keys involved
	line      string
}

func (r *Record) param(name string) string {
	s, _ := r.Params[name].(string)
	return s
}

func (r *Record) list(name string) []string {
	var list []string
	items, _ := r.Params[name].([]any)
	for _, x := range items {
		if s, ok := x.(string); ok {
			list = append(list, s)
		}
	}
	return list
}

// key returns the key of an operation as the request named it, or, if the request named
// none, as the record has it.
func (r *Record) key() string {
	if id := r.param("keyId"); id != "" {
		return id
	}
	if len(r.Keys) > 0 {
		return r.Keys[0]
	}
	return ""
}

// tags parses the form in which records contain tags: "tagKey=NAME tagValue=VALUE".
func (r *Record) tags() (map[string]string, error) {
	tags := make(map[string]string)
	for _, line := range r.list("tags") {
		name, value, ok := strings.Cut(strings.TrimPrefix(line, "tagKey="), " tagValue=")
		if !ok {
			return nil, fmt.Errorf("tag %q in the record", line)
		}
		tags[name] = value
	}
	return tags, nil
}

// ParseRecord parses a record as the Audit service renders it.
func ParseRecord(line string) (Record, error) {
	var j struct {
		RequestID         string         `json:"requestID"`
		EventName         string         `json:"eventName"`
		EventType         string         `json:"eventType"`
		ErrorCode         string         `json:"errorCode"`
		RequestParameters map[string]any `json:"requestParameters"`
		ResponseElements  map[string]any `json:"responseElements"`
		Resources         []struct {
			Type string `json:"type"`
			ARN  string `json:"ARN"`
		} `json:"resources"`
		Conclave struct {
			Index uint64 `json:"index"`
			Node  string `json:"node"`
		} `json:"conclave"`
	}
	if err := json.Unmarshal([]byte(line), &j); err != nil {
		return Record{}, err
	}
	r := Record{
		Index: j.Conclave.Index, RequestID: j.RequestID, Name: j.EventName, Type: j.EventType, Code: j.ErrorCode,
		Node: j.Conclave.Node, Params: j.RequestParameters, Response: j.ResponseElements, line: line,
	}
	if r.Code == "AccessDenied" {
		r.Code = "AccessDeniedException" // as clients get it
	}
	for _, res := range j.Resources {
		if res.Type == "AWS::KMS::Key" {
			r.Keys = append(r.Keys, res.ARN)
		}
	}
	return r, nil
}

// ReadLog reads the audit log of a node from a position on. The result contains at least
// everything that was answered before the call.
func (n *Node) ReadLog(from uint64) []Record {
	c := n.cluster
	c.T.Helper()
	var log []Record
	c.Eventually("reading the audit log", func(ctx context.Context) error {
		// The log as read contains this request, and therefore everything before it.
		h := NewHistory()
		mark := h.GRPC(ctx, n, "ListKeys", func(ctx context.Context, opts ...grpc.CallOption) error {
			_, err := n.KMS().ListKeys(ctx, &kmspb.ListKeysRequest{}, opts...)
			return err
		})
		if mark.Code != "" {
			return errors.New(mark.Code)
		}
		var err error
		if log, err = n.readLog(ctx, from); err != nil {
			return err
		}
		if !slices.ContainsFunc(log, func(r Record) bool { return r.RequestID == mark.RequestID }) {
			return errors.New("the log does not contain a request that was answered before it was read")
		}
		return nil
	})
	return log
}

func (n *Node) readLog(ctx context.Context, from uint64) ([]Record, error) {
	stream, err := n.Audit().Read(ctx, &kmspb.ReadAuditRequest{From: from})
	if err != nil {
		return nil, err
	}
	var log []Record
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return log, nil
		}
		if err != nil {
			return nil, err
		}
		r, err := ParseRecord(m.GetJson())
		if err != nil {
			return nil, fmt.Errorf("record %d: %w", m.GetIndex(), err)
		}
		log = append(log, r)
	}
}

// maxComplaints bounds the number of errors that a check reports: one bug has many
// consequences.
const maxComplaints = 20

// CheckWitness checks a complete log and history, and returns the state after the last
// record.
func CheckWitness(log []Record, ops []Op) (*Spec, error) {
	w := NewWitness()
	err := w.Check(log, ops)
	return w.Spec, err
}

// Witness checks that the audit log is what it claims to be: the order in which everything
// happened. It reads a log in one piece or, for a long run, in several.
type Witness struct {
	// Spec is the state after the last record.
	Spec *Spec
	// Next is the position of the first record that has not been read.
	Next uint64

	// Receipts is the number of definite answers that named their record, which all do that the
	// cluster gives from feature level 2 on.
	Receipts int
	// Lost is the number of calls without a definite answer that have a record all the same.
	Lost int

	finalized bool // the records that were read last are of feature level 2
	// The calls without a definite answer whose record was not read yet: those with a request
	// id, and the number of others by operation.
	waiting map[string]bool
	unnamed map[string]int
	// The requests of records for which no call was found yet, by operation.
	orphans map[string][]string

	// seen has the positions of all request ids, keyed by the beginning of their SHA-256,
	// which takes a third of the memory of the ids.
	seen map[[16]byte]uint64
}

// NewWitness returns a Witness of an empty log.
func NewWitness() *Witness {
	return &Witness{
		Spec: NewSpec(), waiting: make(map[string]bool), unnamed: make(map[string]int), orphans: make(map[string][]string),
		seen: make(map[[16]byte]uint64),
	}
}

// Check reads the next records of the log, and the calls that clients made since the
// previous piece was read. No call may have been in flight at that time. It checks that
//
//   - positions are dense and no request has two records,
//   - each outcome is the one that Spec gives at that position,
//   - each answer that a client received has exactly one record, with that outcome, which is
//     the one that the answer names, if it names one; and that it does at feature level 2,
//   - a request that was answered before another one was made comes before it.
//
// So if Check finds no error in any piece, the history is linearizable: calls of an earlier
// piece were answered before those of a later piece were made, and come before them. The
// record of a call without an answer may be in a later piece, because such a call has to
// come before no other.
func (w *Witness) Check(log []Record, ops []Op) error {
	var errs []error
	complain := func(format string, args ...any) {
		if len(errs) < maxComplaints {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	first := w.Next
	at := make(map[string]int, len(log))
	finalized := len(log) // the first record of feature level 2
	if w.finalized {
		finalized = 0
	}
	for i := range log {
		r := &log[i]
		if r.Index != w.Next {
			complain("record %d stands at position %d", r.Index, w.Next)
		}
		w.Next++
		sum := sha256.Sum256([]byte(r.RequestID))
		if earlier, twice := w.seen[[16]byte(sum[:])]; twice {
			complain("request %s has two records, %d and %d: %s", r.RequestID, earlier, w.Next-1, r.line)
			continue
		}
		w.seen[[16]byte(sum[:])] = w.Next - 1
		at[r.RequestID] = i
		if r.Name == "FinalizeUpgrade" && r.Code == "" && !w.finalized {
			w.finalized, finalized = true, i
		}
		want, err := w.Spec.Apply(r)
		if err != nil {
			complain("record %d: %w: %s", w.Next-1, err, r.line)
		} else if want != r.Code {
			complain("record %d: the outcome is %q, and %q by the specification: %s", w.Next-1, r.Code, want, r.line)
		}
	}
	type placed struct {
		Op
		pos int
	}
	var known []placed
	for _, o := range ops {
		pos, recorded := at[o.RequestID]
		if o.Definite() {
			switch {
			case o.RequestID == "":
				complain("%s on %s was answered %q without a request id", o.Name, o.Node, o.Code)
				continue
			case !recorded:
				complain("%s %s on %s was answered %q, and has no record", o.Name, o.RequestID, o.Node, o.Code)
				continue
			case log[pos].Code != o.Code || log[pos].Name != o.Name:
				complain("%s %s on %s was answered %q, and its record %d says %s %q", o.Name, o.RequestID, o.Node, o.Code, first+uint64(pos), log[pos].Name, log[pos].Code)
			case o.Record == nil && pos >= finalized:
				complain("%s %s on %s was answered %q, and the answer does not name record %d", o.Name, o.RequestID, o.Node, o.Code, first+uint64(pos))
			case o.Record != nil && *o.Record != first+uint64(pos):
				complain("%s %s on %s was answered %q, with record %d, but has record %d", o.Name, o.RequestID, o.Node, o.Code, *o.Record, first+uint64(pos))
			case o.Record != nil:
				w.Receipts++
			}
		}
		if recorded {
			known = append(known, placed{o, pos})
		}
	}
	// Real time: an operation must not come before one that was answered before it was
	// made. An operation with an unknown outcome was never answered.
	slices.SortFunc(known, func(a, b placed) int { return b.pos - a.pos })
	earliest := placed{Op: Op{Returned: time.Duration(1<<63 - 1)}}
	for _, o := range known {
		if earliest.Returned < o.Invoked {
			complain("%s %s (record %d) was answered at %v, before %s %s (record %d) was made at %v, and stands after it",
				earliest.Name, earliest.RequestID, first+uint64(earliest.pos), earliest.Returned, o.Name, o.RequestID, first+uint64(o.pos), o.Invoked)
		}
		if o.Definite() && o.Returned < earliest.Returned {
			earliest = o
		}
	}
	w.account(log, ops)
	return errors.Join(errs...)
}

// account looks for the calls of records, and the records of calls, that have no definite answer.
func (w *Witness) account(log []Record, ops []Op) {
	answered := make(map[string]bool, len(ops))
	for _, o := range ops {
		switch {
		case o.Definite():
			answered[o.RequestID] = true
		case o.RequestID != "":
			w.waiting[o.RequestID] = true
		default:
			w.unnamed[o.Name]++
		}
	}
	for i := range log {
		r := &log[i]
		// The harness itself lists keys, which is in no history.
		if r.Type != "AwsApiCall" || r.Name == "ListKeys" || answered[r.RequestID] {
			continue
		}
		w.orphans[r.Name] = append(w.orphans[r.Name], r.RequestID)
	}
	for name, ids := range w.orphans {
		w.orphans[name] = slices.DeleteFunc(ids, func(id string) bool {
			if !w.waiting[id] {
				return false
			}
			delete(w.waiting, id)
			w.Lost++
			return true
		})
	}
}

// Unexplained returns an error if there are records of calls that nobody made, as far as the
// histories have all calls: a record that no definite answer is of must be that of a call whose answer was
// lost to a fault, by its request id or, if the client was not even told that, one of as many
// calls of the same operation. Unexplained adds the latter to Lost, and is called at the end.
func (w *Witness) Unexplained() error {
	var errs []error
	for name, ids := range w.orphans {
		explained := min(len(ids), w.unnamed[name])
		w.Lost += explained
		if more := ids[explained:]; len(more) > 0 {
			errs = append(errs, fmt.Errorf("there are %d records of %s, and calls without an answer for %d of them; some are of requests %.10q", len(ids), name, explained, more))
		}
	}
	return errors.Join(errs...)
}
