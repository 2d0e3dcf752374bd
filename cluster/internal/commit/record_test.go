package commit

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// decodedCheck is CheckBatch by the generated code.
func decodedCheck(encoded []byte) (*fsmpb.Batch, error) {
	b := &fsmpb.Batch{}
	if err := proto.Unmarshal(encoded, b); err != nil {
		return b, err
	}
	if b.Seq == 0 || len(b.Records) > MaxBatchRecords || len(encoded) > MaxBatch {
		return b, errors.New("beyond a limit")
	}
	if b.Group != 0 {
		return b, errors.New("of another Raft group")
	}
	for _, r := range b.Records {
		beyond := func(n uint32) bool { return int(n) >= len(b.SharedReads) }
		if len(r.SharedReads) > 256 || slices.ContainsFunc(r.SharedReads, beyond) {
			return b, errors.New("shared reads that are not there")
		}
	}
	return b, allKnown(b.ProtoReflect())
}

// allKnown refuses unknown fields and states of keys; an unknown kind of a read only
// makes the record invalid.
func allKnown(m protoreflect.Message) error {
	if len(m.GetUnknown()) > 0 {
		return errors.New("unknown field")
	}
	if k, ok := m.Interface().(*fsmpb.Key); ok {
		if _, known := fsmpb.KeyState_name[int32(k.State)]; !known {
			return errors.New("unknown state")
		}
	}
	var err error
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap() || fd.Message() == nil:
		case fd.IsList():
			for i := 0; i < v.List().Len() && err == nil; i++ {
				err = allKnown(v.List().Get(i).Message())
			}
		default:
			err = allKnown(v.Message())
		}
		return err == nil
	})
	return err
}

// TestEncodedBatchesAreChecked holds the check of encoded batches against that
// of decoded ones: a batch that passes the first and not the second would stop
// every node.
func TestEncodedBatchesAreChecked(t *testing.T) {
	change := func(c *fsmpb.Change) *fsmpb.Record { return &fsmpb.Record{Changes: []*fsmpb.Change{c}} }
	key := func(k *fsmpb.Key) *fsmpb.Record {
		return change(&fsmpb.Change{Change: &fsmpb.Change_PutKey{PutKey: k}})
	}
	id := fsm.KeyID{Region: "r", ID: [16]byte{1}}
	whole := &fsmpb.Batch{Node: "n1", Incarnation: 1, Seq: 300, SettledBelow: 4, Watermark: 1 << 40, Records: []*fsmpb.Record{
		{}, clustertest.UsualRecord(), clustertest.PolicyChange(fsm.New(fsm.Config{}).Current(), id, "é"),
		key(&fsmpb.Key{Id: id.ID[:], State: fsmpb.KeyState_KEY_STATE_ENABLED, Materials: []*fsmpb.Material{{Id: id.ID[:]}}, Rotation: &fsmpb.Rotation{Next: -1}}),
	}}
	for _, r := range whole.Records { // short, so that most damage hits what counts
		r.Body, r.Commitment = r.Body[:min(len(r.Body), 3)], nil
	}
	whole.SharedReads = whole.Records[1].Reads[:2]
	whole.Records[0].SharedReads, whole.Records[2].SharedReads = []uint32{0, 1}, []uint32{1}
	good, err := proto.Marshal(whole)
	if err != nil {
		t.Fatal(err)
	}
	field := func(n protowire.Number, value []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, n, protowire.BytesType), value)
	}
	with := func(r *fsmpb.Record) []byte {
		b, err := proto.MarshalOptions{AllowPartial: true}.Marshal(&fsmpb.Batch{Node: "n1", Seq: 1, Records: []*fsmpb.Record{r}})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	inRecord := func(fields []byte) []byte { return slices.Concat(good, field(6, fields)) }
	unknown := []byte{0xf8, 0x07, 1} // field 127
	many := &fsmpb.Batch{Node: "n1", Seq: 1, Records: slices.Repeat([]*fsmpb.Record{{}}, MaxBatchRecords)}
	full, _ := proto.Marshal(many)
	for name, tc := range map[string]struct {
		encoded []byte
		ok      bool
	}{
		"good":                          {good, true},
		"cut":                           {good[:len(good)-1], false},
		"nothing":                       {nil, false},
		"unknown field":                 {slices.Concat(good, unknown), false},
		"unknown group":                 {slices.Concat(good, []byte{0x7b, 0x7c}), false},
		"group that never ends":         {slices.Concat(good, []byte{0x7b}), false},
		"known field of another type":   {slices.Concat(good, []byte{1 << 3, 1}), false},
		"field 0":                       {slices.Concat(good, []byte{0, 1}), false},
		"reserved field":                {slices.Concat(good, field(15, nil)), false},
		"long number":                   {slices.Concat(good, []byte{3 << 3, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 2}), false},
		"number with padding":           {slices.Concat(good, []byte{3 << 3, 0x81, 0x80, 0}), true},
		"tag with padding":              {slices.Concat(good, []byte{3<<3 | 0x80, 0, 1}), true},
		"another Raft group":            {slices.Concat(good, []byte{7 << 3, 1}), false},
		"group 0 at last":               {slices.Concat(good, []byte{7 << 3, 1, 7 << 3, 0}), true},
		"seq 0 at last":                 {slices.Concat(good, []byte{3 << 3, 0}), false},
		"node is not UTF-8 at first":    {slices.Concat(field(1, []byte("\xff")), good), false},
		"as many records as may be":     {full, true},
		"one more":                      {slices.Concat(full, field(6, nil)), false},
		"as large as may be":            {with(&fsmpb.Record{Body: make([]byte, MaxBatch-20)}), true},
		"too large":                     {with(&fsmpb.Record{Body: make([]byte, MaxBatch)}), false},
		"unknown in a record":           {inRecord(unknown), false},
		"unknown in a read":             {inRecord(field(6, unknown)), false},
		"unknown in a use":              {inRecord(field(10, unknown)), false},
		"unknown in a change":           {inRecord(field(9, unknown)), false},
		"unknown in a key":              {inRecord(field(9, field(2, unknown))), false},
		"cut read":                      {inRecord(field(6, []byte{8})), false},
		"cut change":                    {inRecord(field(9, []byte{10})), false},
		"change of nothing":             {inRecord(field(9, nil)), true},
		"unknown state of a key":        {with(key(&fsmpb.Key{State: 99})), false},
		"unknown state in a second one": {inRecord(field(9, slices.Concat(field(2, []byte{9 << 3, 1}), field(2, []byte{9 << 3, 99})))), false},
		"unknown kind of a read":        {with(&fsmpb.Record{Reads: []*fsmpb.Read{{Kind: 99}}}), true}, // the record is invalid
		"text that is not UTF-8":        {inRecord(field(9, field(2, field(2, []byte("\xff"))))), false},
	} {
		_, err := CheckBatch(tc.encoded)
		if (err == nil) != tc.ok {
			t.Errorf("%s: CheckBatch = %v, want ok %v", name, err, tc.ok)
		}
		if err != nil && !errors.Is(err, ErrRecord) {
			t.Errorf("%s: CheckBatch = %v, want %v", name, err, ErrRecord)
		}
		if _, err := decodedCheck(tc.encoded); (err == nil) != tc.ok {
			t.Errorf("%s: decoded, %v, want ok %v", name, err, tc.ok)
		}
	}

	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	passed := 0
	for range 100_000 {
		data := slices.Clone(good)
		for range 1 + random.IntN(3) {
			at := random.IntN(len(data))
			switch random.IntN(4) {
			case 0:
				data[at] ^= 1 << random.IntN(8)
			case 1:
				data[at] = byte(random.Uint32())
			case 2:
				data = slices.Insert(data, at, byte(random.Uint32()))
			case 3:
				data = slices.Delete(data, at, at+1)
			}
		}
		b, err := CheckBatch(data)
		decoded, want := decodedCheck(data)
		if (err == nil) != (want == nil) {
			t.Fatalf("%x: CheckBatch = %v, decoded %v", data, err, want)
		}
		if err != nil {
			continue
		}
		passed++
		if b.Node != decoded.Node || b.Seq != decoded.Seq || b.Records != len(decoded.Records) {
			t.Fatalf("%x: batch %d of %s with %d records, decoded %v", data, b.Seq, b.Node, b.Records, decoded)
		}
	}
	if passed == 0 {
		t.Error("no damaged batch passed: nothing was compared")
	}
}
