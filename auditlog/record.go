package auditlog

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"slices"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog/auditpb"
)

const (
	// RecordSchema is the newest schema of records. Schema 1 is still written and read: a
	// release that knows no other takes a record of schema 2 for one that cannot be opened.
	RecordSchema = 2
	// OldRecordSchema is the oldest schema of records that this package reads.
	OldRecordSchema = 1
	// MaxRecord is the longest encoded record, in bytes.
	MaxRecord = 65_535
	// MaxText is the longest text in a record, in bytes; a longer one is replaced
	// by its SHA-256.
	MaxText = 1024

	maxItems     = 128      // of a list or map; a longer one is replaced by its SHA-256
	maxValue     = 16 << 10 // bytes in a list or map; likewise
	maxFields    = 64       // in one list of fields, which the caller does not determine
	maxResources = 16
)

// ErrSchema is returned for a record of a schema that this binary does not
// know.
var ErrSchema = errors.New("audit record of an unknown schema")

// EncodeRecord encodes a record for encryption. Texts, lists and maps that are
// too long, or are not UTF-8, are replaced by "sha256:<hex> (<n> bytes)". If
// the record is still longer than MaxRecord, the largest values are replaced
// too, until it fits. So nothing that a caller sends can prevent a record from
// being written, and an error is a bug in the program that made the record. rec
// is not changed.
func EncodeRecord(rec *auditpb.Record) ([]byte, error) {
	if !knownSchema(rec.GetSchema()) || len(rec.GetSalt()) != 16 || len(rec.GetRequestId()) != 16 {
		return nil, fmt.Errorf("%w: a record needs schema %d or %d, and a salt and request id of 16 bytes", ErrMalformed, OldRecordSchema, RecordSchema)
	}
	if err := cmp.Or(checkSchema(rec), checkCounts(rec)); err != nil {
		return nil, err
	}
	if fits(rec) {
		b, err := recordEncoding.Marshal(rec)
		if err == nil && len(b) <= MaxRecord {
			return b, nil
		}
	}
	rec = proto.CloneOf(rec)
	shorten(rec)
	for {
		b, err := recordEncoding.Marshal(rec)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
		}
		if len(b) <= MaxRecord {
			return b, nil
		}
		if !shrink(rec) {
			return nil, fmt.Errorf("%w: a record of %d bytes", ErrMalformed, len(b))
		}
	}
}

// The schema has no protobuf map, so a record has only one encoding anyway.
// Deterministic is set in case it gets one.
var recordEncoding = proto.MarshalOptions{Deterministic: true}

// fieldLists returns the record's lists of fields.
func fieldLists(rec *auditpb.Record) [5][]*auditpb.Field {
	return [5][]*auditpb.Field{
		rec.GetRequestParameters(), rec.GetResponseElements(), rec.GetAdditional(),
		rec.GetServiceEventDetails(), rec.GetIdentity().GetSessionContext(),
	}
}

func knownSchema(schema uint32) bool { return schema >= OldRecordSchema && schema <= RecordSchema }

// checkSchema checks that a record has no field that is newer than its schema.
func checkSchema(rec *auditpb.Record) error {
	if t := rec.GetTls(); rec.GetSchema() < 2 && (t.GetHost() != "" || t.GetKeyExchange() != "") {
		return fmt.Errorf("%w: a record of schema %d has fields of schema 2", ErrMalformed, rec.GetSchema())
	}
	return nil
}

func checkCounts(rec *auditpb.Record) error {
	for _, fields := range fieldLists(rec) {
		if len(fields) > maxFields || slices.Contains(fields, nil) {
			return fmt.Errorf("%w: %d fields, or none where one is required", ErrMalformed, len(fields))
		}
	}
	if r := rec.GetResources(); len(r) > maxResources || slices.Contains(r, nil) {
		return fmt.Errorf("%w: %d resources, or none where one is required", ErrMalformed, len(r))
	}
	return nil
}

// texts returns the record's texts outside of lists.
func texts(rec *auditpb.Record) [11]*string {
	return [11]*string{
		&rec.EventName, &rec.EventType, &rec.EventSource, &rec.SourceIp, &rec.UserAgent, &rec.Region,
		&rec.Transport, &rec.ErrorCode, &rec.ErrorMessage, &rec.Node, &rec.RecipientAccountId,
	}
}

// fits reports whether every value is within its limits, so that only the total
// length can be too long.
func fits(rec *auditpb.Record) bool {
	for _, s := range texts(rec) {
		if len(*s) > MaxText {
			return false
		}
	}
	if id := rec.Identity; id != nil {
		if max(len(id.Type), len(id.PrincipalId), len(id.Arn), len(id.AccountId), len(id.AccessKeyId),
			len(id.Certificate), len(id.UserName), len(id.InvokedBy)) > MaxText {
			return false
		}
	}
	if t := rec.Tls; t != nil && max(len(t.Version), len(t.Cipher), len(t.Host), len(t.KeyExchange)) > MaxText {
		return false
	}
	for _, r := range rec.Resources {
		if max(len(r.Type), len(r.AccountId), len(r.Arn)) > MaxText {
			return false
		}
	}
	for _, fields := range fieldLists(rec) {
		for _, f := range fields {
			if len(f.Name) > MaxText || !valueFits(f) {
				return false
			}
		}
	}
	return true
}

func valueFits(f *auditpb.Field) bool {
	switch v := f.Value.(type) {
	case *auditpb.Field_Text:
		return len(v.Text) <= MaxText
	case *auditpb.Field_List:
		items := v.List.GetItems()
		size := 0
		for _, s := range items {
			if size += len(s); len(s) > MaxText {
				return false
			}
		}
		return len(items) <= maxItems && size <= maxValue
	case *auditpb.Field_Map:
		pairs := v.Map.GetPairs()
		size := 0
		for i, p := range pairs {
			if p == nil || i > 0 && pairs[i-1].Key >= p.Key {
				return false
			}
			if size += len(p.Key) + len(p.Value); max(len(p.Key), len(p.Value)) > MaxText {
				return false
			}
		}
		return len(pairs) <= maxItems && size <= maxValue
	}
	return true
}

// shorten replaces values that are too long or not UTF-8.
func shorten(rec *auditpb.Record) {
	for _, s := range texts(rec) {
		shortenText(s)
	}
	if id := rec.Identity; id != nil {
		for _, s := range []*string{&id.Type, &id.PrincipalId, &id.Arn, &id.AccountId, &id.AccessKeyId, &id.Certificate, &id.UserName, &id.InvokedBy} {
			shortenText(s)
		}
	}
	if t := rec.Tls; t != nil {
		shortenText(&t.Version)
		shortenText(&t.Cipher)
		shortenText(&t.Host)
		shortenText(&t.KeyExchange)
	}
	for _, r := range rec.Resources {
		shortenText(&r.Type)
		shortenText(&r.AccountId)
		shortenText(&r.Arn)
	}
	for _, fields := range fieldLists(rec) {
		for _, f := range fields {
			shortenText(&f.Name)
			shortenValue(f)
		}
	}
}

func shortenText(s *string) {
	if len(*s) > MaxText || !utf8.ValidString(*s) {
		*s = textDigest(*s)
	}
}

func textDigest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return digestMark(sum[:], len(s))
}

func digestMark(sum []byte, n int) string { return fmt.Sprintf("sha256:%x (%d bytes)", sum, n) }

// shortenValue makes the value of f fit. It first sorts a map that is not in
// order. If a key occurs twice, the map is replaced by a digest of all its
// pairs.
func shortenValue(f *auditpb.Field) {
	switch v := f.Value.(type) {
	case *auditpb.Field_Text:
		shortenText(&v.Text)
	case *auditpb.Field_List:
		if size := 0; len(v.List.GetItems()) <= maxItems {
			for i, s := range v.List.GetItems() {
				size += len(s)
				shortenText(&v.List.Items[i])
			}
			if size <= maxValue {
				return
			}
		}
		digestValue(f)
	case *auditpb.Field_Map:
		if v.Map == nil {
			return
		}
		pairs := slices.DeleteFunc(v.Map.Pairs, func(p *auditpb.TextPair) bool { return p == nil })
		slices.SortStableFunc(pairs, func(a, b *auditpb.TextPair) int { return strings.Compare(a.Key, b.Key) })
		v.Map.Pairs = pairs
		size, twice := 0, false
		for i, p := range pairs {
			size += len(p.Key) + len(p.Value)
			twice = twice || i > 0 && pairs[i-1].Key == p.Key
		}
		if twice || len(pairs) > maxItems || size > maxValue {
			digestValue(f)
			return
		}
		for _, p := range pairs {
			shortenText(&p.Key)
			shortenText(&p.Value)
		}
		// A digest that replaces a key may sort differently.
		slices.SortFunc(pairs, func(a, b *auditpb.TextPair) int { return strings.Compare(a.Key, b.Key) })
		for i, p := range pairs {
			if i > 0 && pairs[i-1].Key == p.Key {
				digestValue(f)
				return
			}
		}
	}
}

// digestValue replaces the value of f by the SHA-256 of its texts, each preceded
// by its length in 4 bytes.
func digestValue(f *auditpb.Field) {
	h, n := sha256.New(), 0
	add := func(s string) {
		n += len(s)
		hashText(h, s)
	}
	switch v := f.Value.(type) {
	case *auditpb.Field_Text:
		f.Value = &auditpb.Field_Text{Text: textDigest(v.Text)}
		return
	case *auditpb.Field_List:
		for _, s := range v.List.GetItems() {
			add(s)
		}
	case *auditpb.Field_Map:
		for _, p := range v.Map.GetPairs() {
			add(p.GetKey())
			add(p.GetValue())
		}
	default:
		return
	}
	f.Value = &auditpb.Field_Text{Text: digestMark(h.Sum(nil), n)}
}

func hashText(h hash.Hash, s string) {
	var size [4]byte
	binary.BigEndian.PutUint32(size[:], uint32(len(s)))
	h.Write(size[:])
	h.Write([]byte(s))
}

// shrink replaces the largest value that is larger than its digest, and reports
// whether there was one.
func shrink(rec *auditpb.Record) bool {
	var largest *auditpb.Field
	size := 128 // more than a digest takes
	for _, fields := range fieldLists(rec) {
		for _, f := range fields {
			if n := proto.Size(f) - len(f.Name); n > size {
				largest, size = f, n
			}
		}
	}
	if largest == nil {
		return false
	}
	digestValue(largest)
	return true
}

// DecodeRecord decodes the result of EncodeRecord. It refuses unknown fields,
// which protobuf would ignore: a reader must not miss part of a record without
// knowing.
func DecodeRecord(b []byte) (*auditpb.Record, error) {
	if len(b) > MaxRecord {
		return nil, fmt.Errorf("%w: a record of %d bytes", ErrMalformed, len(b))
	}
	rec := new(auditpb.Record)
	if err := proto.Unmarshal(b, rec); err != nil {
		return nil, fmt.Errorf("%w: record: %w", ErrMalformed, err)
	}
	if !knownSchema(rec.Schema) {
		return nil, fmt.Errorf("%w: %d", ErrSchema, rec.Schema)
	}
	if hasUnknown(rec) {
		return nil, fmt.Errorf("%w: unknown fields in a record", ErrMalformed)
	}
	if len(rec.Salt) != 16 || len(rec.RequestId) != 16 {
		return nil, fmt.Errorf("%w: a record's salt and request id have 16 bytes each", ErrMalformed)
	}
	if err := cmp.Or(checkSchema(rec), checkCounts(rec)); err != nil {
		return nil, err
	}
	if !fits(rec) {
		return nil, fmt.Errorf("%w: a value in a record is too long or out of order", ErrMalformed)
	}
	return rec, nil
}

// hasUnknown reports whether a message in a record has fields that the schema does not name.
// Reflection would find the messages by itself, but takes as long as decoding the record.
func hasUnknown(rec *auditpb.Record) bool {
	if unknown(rec) || unknown(rec.GetIdentity()) || unknown(rec.GetTls()) {
		return true
	}
	for _, r := range rec.GetResources() {
		if unknown(r) {
			return true
		}
	}
	for _, fields := range fieldLists(rec) {
		for _, f := range fields {
			if unknown(f) || unknown(f.GetList()) || unknown(f.GetMap()) {
				return true
			}
			for _, p := range f.GetMap().GetPairs() {
				if unknown(p) {
					return true
				}
			}
		}
	}
	return false
}

func unknown(m proto.Message) bool { return len(m.ProtoReflect().GetUnknown()) > 0 }
