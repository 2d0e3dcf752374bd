package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/level"
	"github.com/conclavekms/conclave/fsm/wire"
)

// generated decodes an entry with only the generated code.
func generated(data []byte) (*fsmpb.Entry, error) {
	e := new(fsmpb.Entry)
	if err := proto.Unmarshal(data, e); err != nil {
		return nil, err
	}
	if e.Schema < level.Oldest || e.Schema > level.Newest {
		return nil, fmt.Errorf("schema %d", e.Schema)
	}
	// An unknown kind makes a record invalid, but not its entry unreadable.
	c := proto.CloneOf(e)
	for _, b := range c.GetBatches().GetBatches() {
		for _, read := range b.SharedReads {
			read.Kind = fsmpb.Kind_KIND_KEY
		}
		for _, r := range b.Records {
			for _, read := range r.Reads {
				read.Kind = fsmpb.Kind_KIND_KEY
			}
		}
	}
	for _, b := range c.GetBatches().GetBatches() {
		if err := wire.CheckGroup(b.Group); err != nil {
			return nil, err
		}
	}
	if err := wire.Known(c.ProtoReflect()); err != nil {
		return nil, err
	}
	return e, inline(e)
}

// inline adds to the records' reads those that they share.
func inline(e *fsmpb.Entry) error {
	for _, b := range e.GetBatches().GetBatches() {
		for _, r := range b.Records {
			if len(r.SharedReads) > 256 {
				return fmt.Errorf("%d shared reads", len(r.SharedReads))
			}
			for _, n := range r.SharedReads {
				if int(n) >= len(b.SharedReads) {
					return fmt.Errorf("there is no shared read %d", n)
				}
				r.Reads = append(r.Reads, b.SharedReads[n])
			}
			r.SharedReads = nil
		}
	}
	return nil
}

// messageOf returns the message from which e was decoded, but with all reads in the records.
func messageOf(e *wire.Entry) *fsmpb.Entry {
	p := &fsmpb.Entry{Schema: e.Schema, Clock: e.Clock, StateCheck: e.Check, Origin: e.Origin}
	switch c := e.Command.(type) {
	case *fsmpb.RegisterNode:
		p.Command = &fsmpb.Entry_RegisterNode{RegisterNode: c}
	case []wire.Batch:
		bs := make([]*fsmpb.Batch, len(c))
		for i, b := range c {
			bs[i] = &fsmpb.Batch{
				Node: string(b.Node), Incarnation: b.Incarnation, Seq: b.Seq, SettledBelow: b.SettledBelow, Watermark: b.Watermark,
				Group: b.Group,
			}
			for _, read := range b.SharedReads {
				bs[i].SharedReads = append(bs[i].SharedReads, &fsmpb.Read{Kind: read.Kind, Id: read.ID, Version: read.Version})
			}
			for _, r := range b.Records {
				n := &fsmpb.Record{
					RequestId: r.RequestID, Commitment: r.Commitment, Body: r.Body, Generation: r.Generation, Salt: r.Salt,
					NotBefore: r.NotBefore, NotAfter: r.NotAfter, Changes: r.Changes,
				}
				for _, read := range r.Reads {
					n.Reads = append(n.Reads, &fsmpb.Read{Kind: read.Kind, Id: read.ID, Version: read.Version})
				}
				for _, u := range r.Uses {
					n.Uses = append(n.Uses, &fsmpb.Use{Read: u.Read, Operation: u.Operation})
				}
				bs[i].Records = append(bs[i].Records, n)
			}
		}
		p.Command = &fsmpb.Entry_Batches{Batches: &fsmpb.Batches{Batches: bs}}
	}
	return p
}

// compareDecoders compares Decode with the generated code.
func compareDecoders(t *testing.T, data []byte) (readable bool) {
	t.Helper()
	before := bytes.Clone(data)
	got, err := wire.Decode(data)
	want, wantErr := generated(data)
	switch {
	case (err == nil) != (wantErr == nil) && len(data) <= wire.MaxEntry:
		t.Fatalf("%x: error %v, of the generated code %v", data, err, wantErr)
	case err != nil && !errors.Is(err, ErrUnreadable):
		t.Fatalf("%x: error %v", data, err)
	case err == nil && !proto.Equal(messageOf(got), want):
		t.Fatalf("%x: got %v, want %v", data, messageOf(got), want)
	case !bytes.Equal(data, before):
		t.Fatal("decoding changes its input")
	}
	return err == nil
}

// everyField returns entries in which each field has a distinct value, including
// the ends of its range.
func everyField(t *testing.T) [][]byte {
	r := func(n uint64) *fsmpb.Record {
		r := reads(reads(record(putKey(keyOf(testKey(byte(n)))), credential("A")), fsmpb.Kind_KIND_KEY, []byte{byte(n)}, n), 1<<31-1, nil, 1)
		r.NotBefore, r.NotAfter, r.Generation = int64(n), -int64(n), uint32(n)
		return used(used(r, 1, uint32(n)), uint32(n), 0)
	}
	b := func(n uint64) *fsmpb.Batch {
		return &fsmpb.Batch{Node: fmt.Sprint("n", n), Incarnation: n, Seq: n + 1, SettledBelow: n + 2, Watermark: n + 3,
			Records: []*fsmpb.Record{r(n), {}, r(n + 1), {Reads: []*fsmpb.Read{{}}, Uses: []*fsmpb.Use{{}}}}}
	}
	clock := &fsmpb.Clock{Wall: 1, Elapsed: -2, Readings: []*fsmpb.ClockReading{{Node: "n", Wall: 3}}}
	check := &fsmpb.StateCheck{Index: 4, Hash: []byte("hash")}
	two := batchEntry(b(7), b(1<<63))
	two.Clock, two.StateCheck = clock, check
	sharing := b(9)
	sharing.SharedReads = []*fsmpb.Read{{Kind: fsmpb.Kind_KIND_KEY, Id: []byte{1}, Version: 1}, {}, {Kind: fsmpb.Kind_KIND_USER, Version: 2}}
	sharing.Records = append(sharing.Records, r(10))
	sharing.Records[0].SharedReads = []uint32{0, 2, 1, 2}
	for _, i := range []int{1, 3, 4} {
		sharing.Records[i].SharedReads = []uint32{2, 0}
	}
	sharing.Records[4].Reads = nil
	join := &fsmpb.Entry{Clock: clock, Command: &fsmpb.Entry_RegisterNode{RegisterNode: &fsmpb.RegisterNode{Node: "n1", Incarnation: 9}}}
	rejoin := &fsmpb.Entry{Command: &fsmpb.Entry_RegisterNode{RegisterNode: &fsmpb.RegisterNode{Release: "r", Watermark: 9}}}
	var all [][]byte
	for _, e := range []*fsmpb.Entry{two, batchEntry(b(1)), batchEntry(), batchEntry(sharing, b(2)), {StateCheck: check}, join, rejoin, {}} {
		all = append(all, mustEncode(t, e))
	}
	return all
}

func TestEntriesAreReadAsProtobufReadsThem(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	whole := everyField(t)
	for _, l := range history(t, seed, 50)[1:] {
		whole = append(whole, l.Data)
	}
	for _, data := range whole {
		if !compareDecoders(t, data) {
			t.Fatalf("%x is not readable", data)
		}
		// Pieces of messages are merged, and a command replaces one of another kind.
		more := slices.Concat(data, whole[rnd.IntN(len(whole))], whole[rnd.IntN(len(whole))])
		if !compareDecoders(t, more) {
			t.Fatalf("%x is not readable", more)
		}
	}
	readable := 0
	const n = 50_000
	for range n {
		b := bytes.Clone(whole[rnd.IntN(len(whole))])
		if rnd.IntN(4) == 0 {
			b = append(b, whole[rnd.IntN(len(whole))]...)
		}
		for range 1 + rnd.IntN(2) {
			i := rnd.IntN(len(b) + 1)
			switch what := rnd.IntN(4); {
			case what == 0 && i < len(b):
				b[i] ^= 1 << rnd.IntN(8)
			case what == 1 && i < len(b):
				b[i] = byte(rnd.Uint32())
			case what == 2:
				b = slices.Delete(b, i, min(len(b), i+1+rnd.IntN(3)))
			default:
				b = slices.Insert(b, i, byte(rnd.Uint32()))
			}
		}
		if compareDecoders(t, b) {
			readable++
		}
	}
	if readable < n/10 || readable > n*9/10 {
		t.Errorf("%d of %d damaged entries are readable: the test compares little", readable, n)
	}
}

// TestEveryFieldIsRead fails if Decode lacks a field of the schema.
func TestEveryFieldIsRead(t *testing.T) {
	for _, e := range []*fsmpb.Entry{
		batchEntry(new(fsmpb.Batch)),
		{Command: &fsmpb.Entry_RegisterNode{RegisterNode: new(fsmpb.RegisterNode)}},
	} {
		n := int64(0)
		fill(e.ProtoReflect(), &n)
		for _, b := range e.GetBatches().GetBatches() {
			b.Group = wire.Group // another one is refused, see TestAnotherGroupIsRefused
			for _, r := range b.Records {
				r.SharedReads = []uint32{0} // there is one
			}
		}
		if !compareDecoders(t, mustEncode(t, e)) {
			t.Errorf("%v is not readable", e)
		}
	}
}

// fill sets all fields to distinct values. In a oneof it keeps the field that is
// set, or sets the first one. It adds one element to each list.
func fill(m protoreflect.Message, n *int64) {
	fds := m.Descriptor().Fields()
	for i := range fds.Len() {
		fd := fds.Get(i)
		if o := fd.ContainingOneof(); o != nil && m.WhichOneof(o) != nil && m.WhichOneof(o) != fd {
			continue
		}
		*n++
		switch {
		case fd.IsList() && fd.Kind() == protoreflect.MessageKind:
			list := m.Mutable(fd).List()
			list.AppendMutable()
			for k := range list.Len() {
				fill(list.Get(k).Message(), n)
			}
		case fd.IsList():
			m.Mutable(fd).List().Append(valueOf(fd, *n))
		case fd.Kind() == protoreflect.MessageKind:
			fill(m.Mutable(fd).Message(), n)
		default:
			m.Set(fd, valueOf(fd, *n))
		}
	}
}

func valueOf(fd protoreflect.FieldDescriptor, n int64) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(n))
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(uint64(n))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(n)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(1)
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(fmt.Append(nil, n))
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(fmt.Sprint(n))
	}
	panic(fmt.Sprintf("%s is a %s", fd.FullName(), fd.Kind()))
}

func TestOddFields(t *testing.T) {
	tag, bytesOf := protowire.AppendTag, protowire.AppendBytes
	schema := []byte{1 << 3, level.Newest}
	batches := func(b []byte) []byte {
		return slices.Concat(schema, bytesOf(tag(nil, 10, protowire.BytesType), bytesOf(tag(nil, 1, protowire.BytesType), b)))
	}
	seq := func(v []byte) []byte { return batches(append(tag(nil, 3, protowire.VarintType), v...)) }
	record := func(b []byte) []byte { return batches(bytesOf(tag(nil, 6, protowire.BytesType), b)) }
	sharing := func(b ...byte) []byte { // a record of a batch with two reads to share
		return batches(slices.Concat([]byte{8<<3 | 2, 0}, bytesOf(tag(nil, 6, protowire.BytesType), b), []byte{8<<3 | 2, 2, 3 << 3, 1}))
	}
	many := func(n int) []byte {
		return sharing(bytesOf(tag(nil, 11, protowire.BytesType), make([]byte, n))...)
	}
	// A registration after a batch and the other way round, which no honest entry
	// has.
	join := []byte{11<<3 | 2, 0}
	unknown := []byte{15 << 3, 1}
	group := tag(tag(nil, 3, protowire.StartGroupType), 3, protowire.EndGroupType)
	cases := map[string]struct {
		data []byte
		ok   bool
	}{
		"empty batch":               {batches(nil), true},
		"name is not UTF-8":         {batches([]byte("\x0a\x01\xff")), false},
		"earlier name is not UTF-8": {batches([]byte("\x0a\x01\xff\x0a\x01n")), false},
		"the last seq counts":       {batches([]byte{3 << 3, 1, 3 << 3, 2}), true},
		"seq in too many bytes":     {seq([]byte{0x81, 0x80, 0x80, 0x00}), true},
		"seq of 65 bits":            {seq([]byte{255, 255, 255, 255, 255, 255, 255, 255, 255, 2}), false},
		"seq of 64 bits":            {seq([]byte{255, 255, 255, 255, 255, 255, 255, 255, 255, 1}), true},
		"generation of 33 bits":     {record([]byte{4 << 3, 0x81, 0x80, 0x80, 0x80, 0x10}), true},
		"kind of 33 bits":           {record([]byte{6<<3 | 2, 6, 1 << 3, 0x82, 0x80, 0x80, 0x80, 0x10}), true},
		"seq as bytes":              {batches([]byte{3<<3 | 2, 0}), false},
		"seq as fixed64":            {batches([]byte{3<<3 | 1, 1, 0, 0, 0, 0, 0, 0, 0}), false},
		"seq as fixed32":            {batches([]byte{3<<3 | 5, 1, 0, 0, 0}), false},
		"seq as a group":            {batches(group), false},
		"group without an end":      {batches(group[:1]), false},
		"end without a group":       {batches(group[1:]), false},
		"field 0":                   {batches([]byte{0, 0}), false},
		"reserved wire type":        {batches([]byte{3<<3 | 6, 0}), false},
		"body beyond the record":    {record([]byte{3<<3 | 2, 2, 'x'}), false},
		"schema as bytes":           {[]byte{1<<3 | 2, 1, 1}, false},
		"unknown in the command":    {batches(unknown), false},
		"in one that was replaced":  {slices.Concat(batches(unknown), join), true},
		"in the one that replaces":  {slices.Concat(schema, join, batches(unknown)), false},
		"in a piece of the command": {slices.Concat(batches(unknown), batches(nil)), false},
		"beside the commands":       {slices.Concat(schema, unknown, join), false},
		"cut in a replaced command": {slices.Concat(batches([]byte{1}), join), false},
		"shared reads":              {sharing(11<<3|2, 2, 1, 0), true},
		"in pieces":                 {sharing(11<<3|2, 1, 1, 11<<3|2, 0, 11<<3|2, 2, 0, 1), true},
		"one by one":                {sharing(11<<3, 1, 11<<3, 0, 11<<3|2, 1, 1), true},
		"one after a list":          {sharing(11<<3|2, 1, 1, 11<<3, 0, 11<<3|2, 1, 1), true},
		"none":                      {sharing(11<<3|2, 0), true},
		"as many as may be":         {many(256), true},
		"one more":                  {many(257), false},
		"beyond them":               {sharing(11<<3|2, 1, 2), false},
		"beyond them in a replaced": {slices.Concat(sharing(11<<3|2, 1, 2), join), true},
		"index of 33 bits":          {sharing(11<<3|2, 5, 0x81, 0x80, 0x80, 0x80, 0x10), true},
		"index of 65 bits":          {sharing(11<<3|2, 10, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2), false},
		"cut index":                 {sharing(11<<3|2, 1, 0x81, 11<<3|2, 1, 0), false},
		"index as fixed32":          {sharing(11<<3|5, 0, 0, 0, 0), false},
		"none to share":             {record([]byte{11<<3 | 2, 1, 0}), false},
		"unknown in a shared read":  {batches([]byte{8<<3 | 2, 2, 15 << 3, 1}), false},
		"the last schema counts":    {slices.Concat([]byte{1 << 3, level.Newest + 1}, schema), true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if ok := compareDecoders(t, c.data); ok != c.ok {
				t.Errorf("readable: %v, want %v", ok, c.ok)
			}
		})
	}
}

// The entry of a newer binary is refused because of its schema, whatever else
// is new in it.
func TestNewerSchemaIsNamed(t *testing.T) {
	data, err := proto.Marshal(&fsmpb.Entry{Schema: level.Newest + 1})
	if err != nil {
		t.Fatal(err)
	}
	_, err = wire.Decode(protowire.AppendVarint(protowire.AppendTag(data, 4000, protowire.VarintType), 1))
	if !errors.Is(err, ErrUnreadable) || strings.Contains(err.Error(), "unknown field") {
		t.Errorf("got %v, want the schema", err)
	}
}

func FuzzDecodeEntry(f *testing.F) {
	for _, data := range everyField(&testing.T{}) {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) { compareDecoders(t, data) })
}
