package fsm

import (
	"errors"
	"fmt"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// What every request has is read here straight from the wire: every node decodes
// every record, and the generated code makes a dozen objects of each, which cost
// more than the rest of apply. The result is what proto.Unmarshal would give, and
// a test holds the two against each other. Changes and the rare parts are left to
// proto.

// wireEntry is a decoded fsmpb.Entry. Its bytes are those of the encoded one.
type wireEntry struct {
	schema  uint32
	clock   *fsmpb.Clock
	check   *fsmpb.StateCheck
	command any // []wireBatch, *fsmpb.RegisterNode, or nil
	// unknown is what nobody knows within command. It goes when a command of
	// another kind follows, which takes the place of the first.
	unknown error
}

type wireBatch struct {
	node                                      []byte
	incarnation, seq, settledBelow, watermark uint64
	records                                   []wireRecord
}

type wireRecord struct {
	requestID, commitment, body, salt []byte
	generation                        uint32
	reads                             []wireRead
	notBefore, notAfter               int64
	changes                           []*fsmpb.Change
	uses                              []wireUse
}

type wireRead struct {
	kind    fsmpb.Kind
	id      []byte
	version Version
}

type wireUse struct{ read, operation uint32 }

// decodeEntry decodes an entry and refuses fields that this binary does not know,
// which protobuf would pass over in silence.
func decodeEntry(data []byte) (*wireEntry, error) {
	if len(data) > MaxEntry {
		return nil, fmt.Errorf("%w: %d bytes", ErrUnreadable, len(data))
	}
	var e wireEntry
	err := e.decode(data)
	if err == nil {
		err = e.unknown
	}
	if err != nil && !errors.Is(err, errUnknownField) {
		return nil, fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	// Said first, for it is why there are unknown fields.
	if e.schema < SchemaMin || e.schema > SchemaMax {
		return nil, fmt.Errorf("%w: schema %d, this binary knows %d to %d", ErrUnreadable, e.schema, SchemaMin, SchemaMax)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	return &e, nil
}

// BatchHead is what a batch says of itself.
type BatchHead struct {
	Node    string
	Seq     uint64
	Records int
}

// ReadBatch reads an encoded fsmpb.Batch just as apply will when an entry has it: a
// batch that it refuses, with ErrUnreadable, would stop every node. It reads none
// with more than maxRecords records.
func ReadBatch(b []byte, maxRecords int) (head BatchHead, err error) {
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
		err = new(wireBatch).decode(b)
	}
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	return head, err
}

// CheckRecord holds an encoded record against the same rules.
func CheckRecord(b []byte) error {
	if err := new(wireRecord).decode(b); err != nil {
		return fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	return nil
}

// CheckRegistration refuses what apply could not read of a node's registration.
func CheckRegistration(r *fsmpb.RegisterNode) error {
	if err := known(r.ProtoReflect()); err != nil {
		return fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	return nil
}

// Wire types of the fields below. A field of another type than its own is an
// unknown one, so that a tag is number and type together.
const (
	varint = uint64(protowire.VarintType)
	length = uint64(protowire.BytesType)
)

// fields calls fn with the tag of each field of a message, and with its bytes or
// its number. Unknown fields do not end it, but are its error if there is no other.
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
			if !errors.Is(err, errUnknownField) {
				return err
			}
			unknown = err
		}
	}
	return unknown
}

// merge is how protobuf reads a message that may come in pieces.
func merge(b []byte, m proto.Message) error {
	if err := (proto.UnmarshalOptions{Merge: true}).Unmarshal(b, m); err != nil {
		return err
	}
	return known(m.ProtoReflect())
}

func (e *wireEntry) decode(b []byte) error {
	return fields(b, func(tag uint64, v []byte, n uint64) error {
		switch tag {
		case 1<<3 | varint:
			e.schema = uint32(n)
		case 2<<3 | length:
			if e.clock == nil {
				e.clock = new(fsmpb.Clock)
			}
			return merge(v, e.clock)
		case 3<<3 | length:
			if e.check == nil {
				e.check = new(fsmpb.StateCheck)
			}
			return merge(v, e.check)
		case 10<<3 | length:
			batches, ok := e.command.([]wireBatch)
			if !ok {
				e.unknown = nil
			}
			batches, err := decodeBatches(v, batches)
			e.command = batches
			return e.within(err)
		case 11<<3 | length:
			r, ok := e.command.(*fsmpb.RegisterNode)
			if !ok {
				r, e.unknown = new(fsmpb.RegisterNode), nil
				e.command = r
			}
			return e.within(merge(v, r))
		default:
			return errUnknownField
		}
		return nil
	})
}

// within keeps an error of the command that may not be the last one's.
func (e *wireEntry) within(err error) error {
	if errors.Is(err, errUnknownField) {
		e.unknown, err = err, nil
	}
	return err
}

// decodeBatches adds the batches of a fsmpb.Batches.
func decodeBatches(b []byte, batches []wireBatch) ([]wireBatch, error) {
	err := fields(b, func(tag uint64, v []byte, _ uint64) error {
		if tag != 1<<3|length {
			return errUnknownField
		}
		var one wireBatch
		err := one.decode(v)
		batches = append(batches, one)
		return err
	})
	return batches, err
}

func (t *wireBatch) decode(b []byte) error {
	// As many as such a batch usually has, all records' reads and uses in one piece.
	t.records = make([]wireRecord, 0, len(b)/512)
	reads, uses := make([]wireRead, 0, len(b)/128), make([]wireUse, 0, len(b)/512)
	return fields(b, func(tag uint64, v []byte, n uint64) error {
		switch tag {
		case 1<<3 | length:
			if !utf8.Valid(v) {
				return errors.New("a node's name is not UTF-8")
			}
			t.node = v
		case 2<<3 | varint:
			t.incarnation = n
		case 3<<3 | varint:
			t.seq = n
		case 4<<3 | varint:
			t.settledBelow = n
		case 5<<3 | varint:
			t.watermark = n
		case 6<<3 | length:
			r := wireRecord{reads: reads[len(reads):], uses: uses[len(uses):]}
			err := r.decode(v)
			reads, uses = r.reads, r.uses
			t.records = append(t.records, r)
			return err
		default:
			return errUnknownField
		}
		return nil
	})
}

func (r *wireRecord) decode(b []byte) error {
	return fields(b, func(tag uint64, v []byte, n uint64) error {
		switch tag {
		case 1<<3 | length:
			r.requestID = v
		case 2<<3 | length:
			r.commitment = v
		case 3<<3 | length:
			r.body = v
		case 4<<3 | varint:
			r.generation = uint32(n)
		case 5<<3 | length:
			r.salt = v
		case 6<<3 | length:
			var one wireRead
			err := one.decode(v)
			r.reads = append(r.reads, one)
			return err
		case 7<<3 | varint:
			r.notBefore = int64(n)
		case 8<<3 | varint:
			r.notAfter = int64(n)
		case 9<<3 | length:
			c := new(fsmpb.Change)
			r.changes = append(r.changes, c)
			return merge(v, c)
		case 10<<3 | length:
			var one wireUse
			err := one.decode(v)
			r.uses = append(r.uses, one)
			return err
		default:
			return errUnknownField
		}
		return nil
	})
}

func (r *wireRead) decode(b []byte) error {
	return fields(b, func(tag uint64, v []byte, n uint64) error {
		switch tag {
		case 1<<3 | varint:
			r.kind = fsmpb.Kind(n)
		case 2<<3 | length:
			r.id = v
		case 3<<3 | varint:
			r.version = n
		default:
			return errUnknownField
		}
		return nil
	})
}

func (u *wireUse) decode(b []byte) error {
	return fields(b, func(tag uint64, _ []byte, n uint64) error {
		switch tag {
		case 1<<3 | varint:
			u.read = uint32(n)
		case 2<<3 | varint:
			u.operation = uint32(n)
		default:
			return errUnknownField
		}
		return nil
	})
}
