package wire

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/level"
)

// The parts of an entry that every request has are decoded by hand: every node
// decodes every record, and the generated code allocates a dozen objects for
// each, which costs more than the rest of apply. The result is that of
// proto.Unmarshal, and a test compares the two. Changes and rare parts are left
// to proto.

// Entry is a decoded fsmpb.Entry. Its byte slices point into the encoded entry.
type Entry struct {
	Schema  uint32
	Clock   *fsmpb.Clock
	Check   *fsmpb.StateCheck
	Command any // []Batch, *fsmpb.RegisterNode, or nil
	Origin  *fsmpb.Origin
	// Signed is what Origin signs; nil if there is no origin, or if it is not
	// at the end.
	Signed []byte
	// unknown is the error for something unknown within Command. It is dropped
	// when a command of another kind follows, which replaces the first.
	unknown error
}

// Batch is a decoded fsmpb.Batch.
type Batch struct {
	Node                                      []byte
	Incarnation, Seq, SettledBelow, Watermark uint64
	Records                                   []Record
	Group                                     uint32
	SharedReads                               []Read
}

// Record is a decoded fsmpb.Record.
type Record struct {
	RequestID, Commitment, Body, Salt []byte
	Generation                        uint32
	// Reads has what the record shares with others too. Several records can have the same
	// slice.
	Reads               []Read
	NotBefore, NotAfter int64
	Changes             []*fsmpb.Change
	Uses                []Use

	// shared are the indexes of shared reads, encoded, each of which is complete and valid;
	// nil if the record was encoded without that field.
	shared []byte
}

// Read is a decoded fsmpb.Read.
type Read struct {
	Kind    fsmpb.Kind
	ID      []byte
	Version uint64

	encoded []byte
}

// Equal reports whether two reads name the same version of the same object.
func (r *Read) Equal(o *Read) bool {
	return r.Version == o.Version && r.Kind == o.Kind && bytes.Equal(r.ID, o.ID)
}

// Use is a decoded fsmpb.Use.
type Use struct{ Read, Operation uint32 }

// Decode decodes an entry and refuses fields that this binary does not know,
// which protobuf would pass over in silence.
func Decode(data []byte) (*Entry, error) {
	if len(data) > MaxEntry {
		return nil, fmt.Errorf("%w: %d bytes", ErrUnreadable, len(data))
	}
	var e Entry
	err := e.decode(data)
	if err == nil {
		err = e.unknown
	}
	if err != nil && !passed(err) {
		return nil, fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	// This error takes precedence, as it explains unknown fields.
	if err := level.Known.Check(e.Schema); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	if e.Origin != nil {
		if end := AppendOrigin(nil, e.Origin); bytes.HasSuffix(data, end) {
			e.Signed = data[:len(data)-len(end)]
		}
	}
	return &e, nil
}

// Head is the beginning of a batch, without its records.
type Head struct {
	Node    string
	Seq     uint64
	Records int
	Levels
}

// Levels are the feature levels that a record or a batch has to do with.
type Levels struct {
	// Needed is the level of the newest form in it.
	Needed uint32
	// Raised is the level to which it raises that of the cluster; 0 if it does not.
	Raised uint32
}

// Both returns the levels of two together.
func (l Levels) Both(m Levels) Levels {
	return Levels{Needed: max(l.Needed, m.Needed), Raised: max(l.Raised, m.Raised)}
}

// Levels returns the levels of a record.
func (r *Record) Levels() (l Levels) {
	for _, c := range r.Changes {
		l = l.Both(Levels{Needed: level.Of(c), Raised: c.GetRaiseLevel().GetLevel()})
	}
	for _, read := range r.Reads {
		l.Needed = max(l.Needed, level.OfKind(read.Kind))
	}
	if r.shared != nil {
		l.Needed = max(l.Needed, level.SharedReads)
	}
	return l
}

// ReadBatch reads an encoded fsmpb.Batch exactly as apply does. A batch that it
// refuses with ErrUnreadable would stop every node. It also refuses a batch with
// more than maxRecords records.
func ReadBatch(b []byte, maxRecords int) (head Head, err error) {
	// Counted first: empty records are two bytes each, and much more once decoded.
	err = fields(b, func(tag uint64, v []byte, n uint64) error {
		switch tag {
		case 1<<3 | length:
			head.Node = string(v)
		case 3<<3 | varint:
			head.Seq = n
		case 6<<3 | length:
			head.Records++
		}
		return nil
	})
	if err == nil && head.Records > maxRecords {
		err = fmt.Errorf("%d records", head.Records)
	}
	if err == nil {
		var batch Batch
		err = batch.decode(b)
		for i := range batch.Records {
			head.Levels = head.Both(batch.Records[i].Levels())
		}
		if len(batch.SharedReads) > 0 {
			head.Needed = max(head.Needed, level.SharedReads)
		}
	}
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	return head, err
}

// CheckRecord checks an encoded record by the same rules, and returns its levels. Only in a
// batch can a record have shared reads.
func CheckRecord(b []byte) (Levels, error) {
	r := Record{Reads: make([]Read, 0, 8), Uses: make([]Use, 0, 2)} // usually enough
	err := r.decode(b, nil)
	if err == nil && r.shared != nil {
		err = errShared
	}
	if err != nil {
		return Levels{}, fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	return r.Levels(), nil
}

// CheckRegistration refuses a node's registration that apply could not read.
func CheckRegistration(r *fsmpb.RegisterNode) error {
	if err := Known(r.ProtoReflect()); err != nil {
		return fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	return nil
}

// Wire types of the fields below. A field with the wrong wire type counts as
// unknown, so a tag is compared as a whole, number and type together.
const (
	varint = uint64(protowire.VarintType)
	length = uint64(protowire.BytesType)
)

// passed reports whether decoding continues after an error, because what follows can
// replace what caused it, or be a worse error.
func passed(err error) bool {
	return errors.Is(err, errUnknownField) || errors.Is(err, errShared) || errors.Is(err, ErrGroup)
}

// fields calls fn with the tag of each field of a message, and with its bytes or its
// number. An error that is passed over does not end the loop, but is returned if there is
// no other.
func fields(b []byte, fn func(tag uint64, v []byte, n uint64) error) error {
	var unknown error
	for len(b) > 0 {
		num, typ, k := protowire.ConsumeTag(b)
		if k < 0 {
			return protowire.ParseError(k)
		}
		b = b[k:]
		var v []byte
		var n uint64
		switch typ {
		case protowire.VarintType:
			n, k = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			v, k = protowire.ConsumeBytes(b)
		default:
			k = protowire.ConsumeFieldValue(num, typ, b)
		}
		if k < 0 {
			return protowire.ParseError(k)
		}
		b = b[k:]
		if err := fn(protowire.EncodeTag(num, typ), v, n); err != nil {
			if !passed(err) {
				return err
			}
			unknown = err
		}
	}
	return unknown
}

// merge adds encoded fields to m, as protobuf does for a message that comes in
// pieces.
func merge(b []byte, m proto.Message) error {
	if err := (proto.UnmarshalOptions{Merge: true}).Unmarshal(b, m); err != nil {
		return err
	}
	return Known(m.ProtoReflect())
}

func (e *Entry) decode(b []byte) error {
	return fields(b, func(tag uint64, v []byte, n uint64) error {
		switch tag {
		case 1<<3 | varint:
			e.Schema = uint32(n)
		case 2<<3 | length:
			if e.Clock == nil {
				e.Clock = new(fsmpb.Clock)
			}
			return merge(v, e.Clock)
		case 3<<3 | length:
			if e.Check == nil {
				e.Check = new(fsmpb.StateCheck)
			}
			return merge(v, e.Check)
		case 10<<3 | length:
			batches, ok := e.Command.([]Batch)
			if !ok {
				e.unknown = nil
			}
			batches, err := decodeBatches(v, batches)
			e.Command = batches
			return e.within(err)
		case 11<<3 | length:
			r, ok := e.Command.(*fsmpb.RegisterNode)
			if !ok {
				r, e.unknown = new(fsmpb.RegisterNode), nil
				e.Command = r
			}
			return e.within(merge(v, r))
		case 20<<3 | length:
			if e.Origin == nil {
				e.Origin = new(fsmpb.Origin)
			}
			return merge(v, e.Origin)
		default:
			return errUnknownField
		}
		return nil
	})
}

// within stores an error in a command that another command may still replace.
func (e *Entry) within(err error) error {
	if passed(err) {
		e.unknown, err = err, nil
	}
	return err
}

// decodeBatches appends the batches of an encoded fsmpb.Batches.
func decodeBatches(b []byte, batches []Batch) ([]Batch, error) {
	err := fields(b, func(tag uint64, v []byte, _ uint64) error {
		if tag != 1<<3|length {
			return errUnknownField
		}
		var one Batch
		err := one.decode(v)
		batches = append(batches, one)
		return err
	})
	return batches, err
}

func (t *Batch) decode(b []byte) error {
	// Sized for what a batch of this size usually has. The reads of all records
	// share one slice, as do the uses.
	t.Records = make([]Record, 0, len(b)/512)
	var before, reads []Read // before is of the record before
	uses := make([]Use, 0, len(b)/256)
	err := fields(b, func(tag uint64, v []byte, n uint64) error {
		switch tag {
		case 1<<3 | length:
			if !utf8.Valid(v) {
				return errors.New("a node's name is not UTF-8")
			}
			t.Node = v
		case 2<<3 | varint:
			t.Incarnation = n
		case 3<<3 | varint:
			t.Seq = n
		case 4<<3 | varint:
			t.SettledBelow = n
		case 5<<3 | varint:
			t.Watermark = n
		case 6<<3 | length:
			r := Record{Reads: reads[len(reads):], Uses: uses[len(uses):]}
			err := r.decode(v, before)
			before, reads, uses = r.Reads, r.Reads, r.Uses
			if len(t.Records) == 0 && len(reads) > 0 {
				reads = make([]Read, 0, len(b)/128)
			}
			t.Records = append(t.Records, r)
			return err
		case 7<<3 | varint:
			t.Group = uint32(n)
		case 8<<3 | length:
			var one Read
			err := one.decode(v)
			t.SharedReads = append(t.SharedReads, one)
			return err
		default:
			return errUnknownField
		}
		return nil
	})
	if err == nil {
		err = t.share()
	}
	if err != nil {
		return err
	}
	return CheckGroup(t.Group)
}

// maxShared bounds what a few bytes can become in memory. No level allows more reads.
const maxShared = 256

// share adds to the records' reads those that they share. They may come after the records.
func (t *Batch) share() error {
	var before *Record // the newest one that has shared reads and no others
	for i := range t.Records {
		r := &t.Records[i]
		if len(r.shared) == 0 {
			continue
		}
		alone := len(r.Reads) == 0
		if alone && before != nil && bytes.Equal(r.shared, before.shared) {
			r.Reads = before.Reads
			continue
		}
		reads := make([]Read, len(r.Reads), len(r.Reads)+min(len(r.shared), maxShared))
		copy(reads, r.Reads)
		err := numbers(r.shared, func(n uint64) error {
			n = uint64(uint32(n)) // as protobuf reads it
			if len(reads)-len(r.Reads) == maxShared || n >= uint64(len(t.SharedReads)) {
				return errShared
			}
			reads = append(reads, t.SharedReads[n])
			return nil
		})
		if err != nil {
			return err
		}
		if r.Reads = reads; alone {
			before = r
		}
	}
	return nil
}

// numbers calls fn with each of a list of encoded numbers.
func numbers(b []byte, fn func(n uint64) error) error {
	for len(b) > 0 {
		n, k := protowire.ConsumeVarint(b)
		if k < 0 {
			return protowire.ParseError(k)
		}
		if err := fn(n); err != nil {
			return err
		}
		b = b[k:]
	}
	return nil
}

// decode decodes a record. Records by one caller with one key read the same objects in the same
// order, so a read that is encoded like the one at its place in before need not be decoded.
func (r *Record) decode(b []byte, before []Read) error {
	return fields(b, func(tag uint64, v []byte, n uint64) error {
		switch tag {
		case 1<<3 | length:
			r.RequestID = v
		case 2<<3 | length:
			r.Commitment = v
		case 3<<3 | length:
			r.Body = v
		case 4<<3 | varint:
			r.Generation = uint32(n)
		case 5<<3 | length:
			r.Salt = v
		case 6<<3 | length:
			if i := len(r.Reads); i < len(before) && bytes.Equal(v, before[i].encoded) {
				r.Reads = append(r.Reads, before[i])
				return nil
			}
			one := Read{encoded: v}
			err := one.decode(v)
			r.Reads = append(r.Reads, one)
			return err
		case 7<<3 | varint:
			r.NotBefore = int64(n)
		case 8<<3 | varint:
			r.NotAfter = int64(n)
		case 9<<3 | length:
			c := new(fsmpb.Change)
			r.Changes = append(r.Changes, c)
			return merge(v, c)
		case 10<<3 | length:
			var one Use
			err := one.decode(v)
			r.Uses = append(r.Uses, one)
			return err
		case 11<<3 | length: // a list in one field, which can come in pieces
			if err := numbers(v, func(uint64) error { return nil }); err != nil {
				return err
			}
			if r.shared == nil {
				r.shared = v
				return nil
			}
			r.shared = append(slices.Clip(r.shared), v...)
		case 11<<3 | varint: // one item
			r.shared = protowire.AppendVarint(slices.Clip(r.shared), n)
		default:
			return errUnknownField
		}
		return nil
	})
}

func (r *Read) decode(b []byte) error {
	return fields(b, func(tag uint64, v []byte, n uint64) error {
		switch tag {
		case 1<<3 | varint:
			r.Kind = fsmpb.Kind(n)
		case 2<<3 | length:
			r.ID = v
		case 3<<3 | varint:
			r.Version = n
		default:
			return errUnknownField
		}
		return nil
	})
}

func (u *Use) decode(b []byte) error {
	return fields(b, func(tag uint64, _ []byte, n uint64) error {
		switch tag {
		case 1<<3 | varint:
			u.Read = uint32(n)
		case 2<<3 | varint:
			u.Operation = uint32(n)
		default:
			return errUnknownField
		}
		return nil
	})
}
