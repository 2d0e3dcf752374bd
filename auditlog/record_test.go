package auditlog

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/conclavekms/conclave/auditlog/auditpb"
)

func textField(name, s string) *auditpb.Field {
	return &auditpb.Field{Name: name, Value: &auditpb.Field_Text{Text: s}}
}

func mapField(name string, kv ...string) *auditpb.Field {
	m := &auditpb.TextMap{}
	for i := 0; i < len(kv); i += 2 {
		m.Pairs = append(m.Pairs, &auditpb.TextPair{Key: kv[i], Value: kv[i+1]})
	}
	return &auditpb.Field{Name: name, Value: &auditpb.Field_Map{Map: m}}
}

func testRecord() *auditpb.Record {
	return &auditpb.Record{
		Schema: RecordSchema, Salt: bytes.Repeat([]byte{7}, 16), RequestId: []byte("0123456789abcdef"), EventTime: 1_700_000_000_123_456_789,
		EventName: "Encrypt", EventType: "AwsApiCall", EventSource: "kms.amazonaws.com",
		Identity: &auditpb.Identity{Type: "IAMUser", PrincipalId: "AIDAEXAMPLE", Arn: "arn:aws:iam::111122223333:user/alice",
			AccountId: "111122223333", AccessKeyId: "AKIAEXAMPLE", UserName: "alice", Certificate: "spiffe://example/alice",
			SessionContext: []*auditpb.Field{textField("mfaAuthenticated", "false")}},
		SourceIp: "192.0.2.1", UserAgent: "aws-cli/2.0", Region: "eu-central-1", Transport: "aws-json",
		Tls: &auditpb.Tls{Version: "TLSv1.3", Cipher: "TLS_AES_128_GCM_SHA256", Host: "kms.example:8443", KeyExchange: "X25519MLKEM768"},
		RequestParameters: []*auditpb.Field{
			textField("keyId", "alias/test"),
			mapField("encryptionContext", "department", "finance", "purpose", "test"),
			{Name: "numberOfBytes", Value: &auditpb.Field_Number{Number: 32}},
			{Name: "dryRun", Value: &auditpb.Field_Flag{Flag: false}},
			{Name: "operations", Value: &auditpb.Field_List{List: &auditpb.TextList{Items: []string{"Encrypt", "Decrypt"}}}},
			{Name: "ratio", Value: &auditpb.Field_Real{Real: 0.5}},
		},
		Additional: []*auditpb.Field{textField("keyMaterialId", "ab12")},
		Resources:  []*auditpb.Resource{{Type: "AWS::KMS::Key", AccountId: "111122223333", Arn: "arn:aws:kms:eu-central-1:111122223333:key/1"}},
		ReadOnly:   true, Node: "n1", RecipientAccountId: "111122223333",
	}
}

func TestRecordRoundTrip(t *testing.T) {
	rec := testRecord()
	b, err := EncodeRecord(rec)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeRecord(b)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(rec, got, protocmp.Transform()); d != "" {
		t.Fatal(d)
	}
	for range 20 {
		again, err := EncodeRecord(testRecord())
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("a record has two encodings: %v", err)
		}
	}
}

func TestLongValues(t *testing.T) {
	mark := func(s string) string { return fmt.Sprintf("sha256:%x (%d bytes)", sha256.Sum256([]byte(s)), len(s)) }
	long := strings.Repeat("x", MaxText+1)
	bad := "not \xff UTF-8"
	for name, c := range map[string]struct {
		set  func(*auditpb.Record)
		want func(*auditpb.Record)
	}{
		"text":         {func(r *auditpb.Record) { r.UserAgent = long }, func(r *auditpb.Record) { r.UserAgent = mark(long) }},
		"at the limit": {func(r *auditpb.Record) { r.UserAgent = long[1:] }, func(r *auditpb.Record) { r.UserAgent = long[1:] }},
		"not UTF-8":    {func(r *auditpb.Record) { r.SourceIp = bad }, func(r *auditpb.Record) { r.SourceIp = mark(bad) }},
		"identity":     {func(r *auditpb.Record) { r.Identity.Arn = long }, func(r *auditpb.Record) { r.Identity.Arn = mark(long) }},
		"tls":          {func(r *auditpb.Record) { r.Tls.Cipher = long }, func(r *auditpb.Record) { r.Tls.Cipher = mark(long) }},
		"host":         {func(r *auditpb.Record) { r.Tls.Host = bad }, func(r *auditpb.Record) { r.Tls.Host = mark(bad) }},
		"resource":     {func(r *auditpb.Record) { r.Resources[0].Arn = bad }, func(r *auditpb.Record) { r.Resources[0].Arn = mark(bad) }},
		"field": {func(r *auditpb.Record) { r.RequestParameters[0] = textField("policy", long) },
			func(r *auditpb.Record) { r.RequestParameters[0] = textField("policy", mark(long)) }},
		"name": {func(r *auditpb.Record) { r.RequestParameters[0] = textField(long, "v") },
			func(r *auditpb.Record) { r.RequestParameters[0] = textField(mark(long), "v") }},
		"list item": {func(r *auditpb.Record) { r.RequestParameters[4].GetList().Items[1] = long },
			func(r *auditpb.Record) { r.RequestParameters[4].GetList().Items[1] = mark(long) }},
		"map value": {func(r *auditpb.Record) { r.RequestParameters[1] = mapField("m", "a", bad, "b", "v") },
			func(r *auditpb.Record) { r.RequestParameters[1] = mapField("m", "a", mark(bad), "b", "v") }},
		"map key": {func(r *auditpb.Record) { r.RequestParameters[1] = mapField("m", "a", "v", long, "w", "z", "v") },
			func(r *auditpb.Record) { r.RequestParameters[1] = mapField("m", "a", "v", mark(long), "w", "z", "v") }},
		"map out of order": {func(r *auditpb.Record) { r.RequestParameters[1] = mapField("m", "b", "1", "a", "2") },
			func(r *auditpb.Record) { r.RequestParameters[1] = mapField("m", "a", "2", "b", "1") }},
		"map with a key twice": {func(r *auditpb.Record) { r.RequestParameters[1] = mapField("m", "a", "1", "a", "2") },
			func(r *auditpb.Record) {
				r.RequestParameters[1] = textField("m", mark2("a", "1", "a", "2"))
			}},
		"list of many": {func(r *auditpb.Record) { r.RequestParameters[4].GetList().Items = make([]string, maxItems+1) },
			func(r *auditpb.Record) {
				r.RequestParameters[4] = textField("operations", mark2(make([]string, maxItems+1)...))
			}},
	} {
		t.Run(name, func(t *testing.T) {
			rec, want := testRecord(), testRecord()
			c.set(rec)
			c.want(want)
			before := proto.CloneOf(rec)
			b, err := EncodeRecord(rec)
			if err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(rec, before) {
				t.Fatal("EncodeRecord changed the record")
			}
			got, err := DecodeRecord(b)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
				t.Fatal(d)
			}
		})
	}
}

func mark2(texts ...string) string {
	h, n := sha256.New(), 0
	for _, s := range texts {
		fmt.Fprintf(h, "%c%c%c%c%s", 0, 0, 0, len(s), s)
		n += len(s)
	}
	return fmt.Sprintf("sha256:%x (%d bytes)", h.Sum(nil), n)
}

// TestRecordAlwaysFits fills everything that a caller can influence.
func TestRecordAlwaysFits(t *testing.T) {
	rec := testRecord()
	full := strings.Repeat("ü", MaxText/2)
	rec.RequestParameters, rec.ResponseElements = nil, nil
	for i := range maxFields {
		var kv []string
		for k := range 16 {
			kv = append(kv, fmt.Sprintf("%03d", k), full)
		}
		kv = kv[:30]
		rec.RequestParameters = append(rec.RequestParameters, mapField(fmt.Sprint(i), kv...))
		rec.ResponseElements = append(rec.ResponseElements, textField(fmt.Sprint(i), full))
	}
	for _, s := range texts(rec) {
		*s = full
	}
	b, err := EncodeRecord(rec)
	if err != nil || len(b) > MaxRecord {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if len(b) < MaxRecord/2 {
		t.Fatalf("only %d bytes are left: more was cut than needed", len(b))
	}
	if _, err := DecodeRecord(b); err != nil {
		t.Fatal(err)
	}
}

func TestEncodeRefuses(t *testing.T) {
	for name, set := range map[string]func(*auditpb.Record){
		"schema":      func(r *auditpb.Record) { r.Schema = RecordSchema + 1 },
		"salt":        func(r *auditpb.Record) { r.Salt = nil },
		"request id":  func(r *auditpb.Record) { r.RequestId = make([]byte, 17) },
		"many fields": func(r *auditpb.Record) { r.Additional = make([]*auditpb.Field, maxFields+1) },
		"nil field":   func(r *auditpb.Record) { r.Additional = []*auditpb.Field{nil} },
		"resources":   func(r *auditpb.Record) { r.Resources = make([]*auditpb.Resource, maxResources+1) },
	} {
		rec := testRecord()
		set(rec)
		if _, err := EncodeRecord(rec); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v, want ErrMalformed", name, err)
		}
	}
	if _, err := EncodeRecord(nil); !errors.Is(err, ErrMalformed) {
		t.Errorf("nil: %v", err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	raw := func(set func(*auditpb.Record)) []byte {
		rec := testRecord()
		set(rec)
		b, err := proto.Marshal(rec)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	good := raw(func(*auditpb.Record) {})
	for name, b := range map[string][]byte{
		"cut":                        good[:len(good)-1],
		"long text":                  raw(func(r *auditpb.Record) { r.Node = strings.Repeat("x", MaxText+1) }),
		"map out of order":           raw(func(r *auditpb.Record) { r.RequestParameters[0] = mapField("m", "b", "", "a", "") }),
		"too many fields":            raw(func(r *auditpb.Record) { r.Additional = make([]*auditpb.Field, maxFields+1) }),
		"no salt":                    raw(func(r *auditpb.Record) { r.Salt = nil }),
		"too long":                   make([]byte, MaxRecord+1),
		"empty":                      nil,
		"invalid UTF-8 in the bytes": bytes.Replace(good, []byte("alice"), []byte("al\xffce"), 1),
	} {
		if _, err := DecodeRecord(b); !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrSchema) {
			t.Errorf("%s: %v, want ErrMalformed", name, err)
		}
	}
	if _, err := DecodeRecord(raw(func(r *auditpb.Record) { r.Schema = RecordSchema + 1 })); !errors.Is(err, ErrSchema) {
		t.Errorf("newer schema: %v, want ErrSchema", err)
	}
}

// TestDecodeRefusesUnknownFields: an unknown field is noticed in each message of a record, and
// the record that shows that has a message of each type.
func TestDecodeRefusesUnknownFields(t *testing.T) {
	rec := testRecord()
	for _, fields := range []*[]*auditpb.Field{&rec.RequestParameters, &rec.ResponseElements, &rec.Additional, &rec.ServiceEventDetails, &rec.Identity.SessionContext} {
		*fields = []*auditpb.Field{
			{Name: "text", Value: &auditpb.Field_Text{Text: "x"}},
			{Name: "list", Value: &auditpb.Field_List{List: &auditpb.TextList{Items: []string{"x"}}}},
			mapField("map", "a", "b", "c", "d"),
		}
	}
	types := make(map[protoreflect.FullName]bool)
	var visit func(path string, m protoreflect.Message)
	visit = func(path string, m protoreflect.Message) {
		types[m.Descriptor().FullName()] = true
		m.SetUnknown([]byte{0xf8, 0x3f, 1})
		b, err := proto.Marshal(rec)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeRecord(b); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v, want ErrMalformed", path, err)
		}
		m.SetUnknown(nil)
		m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			path := path + "." + string(fd.Name())
			switch {
			case fd.Message() == nil:
			case fd.IsList():
				for i := range v.List().Len() {
					visit(fmt.Sprintf("%s[%d]", path, i), v.List().Get(i).Message())
				}
			default:
				visit(path, v.Message())
			}
			return true
		})
	}
	visit("record", rec.ProtoReflect())
	messages := rec.ProtoReflect().Descriptor().ParentFile().Messages()
	for i := range messages.Len() {
		if name := messages.Get(i).FullName(); !types[name] {
			t.Errorf("the record has no %s", name)
		}
	}
	if b, err := proto.Marshal(rec); err != nil {
		t.Error(err)
	} else if _, err := DecodeRecord(b); err != nil {
		t.Errorf("without unknown fields: %v", err)
	}
}

func TestRenderGolden(t *testing.T) {
	e := testEntry(5)
	copy(e.RequestID[:], "0123456789abcdef")
	b, err := RenderJSON(e, testRecord())
	if err != nil {
		t.Fatal(err)
	}
	leaf := e.LeafHash()
	event := EventID(leaf)
	want := `{"eventVersion":"1.11","userIdentity":{"type":"IAMUser","principalId":"AIDAEXAMPLE","arn":"arn:aws:iam::111122223333:user/alice",` +
		`"accountId":"111122223333","accessKeyId":"AKIAEXAMPLE","userName":"alice","sessionContext":{"mfaAuthenticated":"false"}},` +
		`"eventTime":"2023-11-14T22:13:20Z","eventSource":"kms.amazonaws.com","eventName":"Encrypt","awsRegion":"eu-central-1",` +
		`"sourceIPAddress":"192.0.2.1","userAgent":"aws-cli/2.0",` +
		`"requestParameters":{"keyId":"alias/test","encryptionContext":{"department":"finance","purpose":"test"},"numberOfBytes":32,` +
		`"dryRun":false,"operations":["Encrypt","Decrypt"],"ratio":0.5},"responseElements":null,"additionalEventData":{"keyMaterialId":"ab12"},` +
		`"requestID":"30313233-3435-3637-3839-616263646566","eventID":"` + uuid(event[:]) + `","readOnly":true,` +
		`"resources":[{"accountId":"111122223333","type":"AWS::KMS::Key","ARN":"arn:aws:kms:eu-central-1:111122223333:key/1"}],` +
		`"eventType":"AwsApiCall","managementEvent":true,"recipientAccountId":"111122223333","eventCategory":"Management",` +
		`"tlsDetails":{"tlsVersion":"TLSv1.3","cipherSuite":"TLS_AES_128_GCM_SHA256","clientProvidedHostHeader":"kms.example:8443","keyExchange":"X25519MLKEM768"},` +
		fmt.Sprintf(`"conclave":{"index":5,"raftIndex":101,"leafHash":"%x","node":"n1","originTime":"2023-11-14T22:13:20.123456789Z",`, leaf[:]) +
		`"transport":"aws-json","certificate":"spiffe://example/alice"}}`
	if d := cmp.Diff(want, string(b)); d != "" {
		t.Fatal(d)
	}
	empty, err := RenderJSON(e, &auditpb.Record{})
	if err != nil || !json.Valid(empty) || !strings.Contains(string(empty), `"requestParameters":null,"responseElements":null,`) ||
		!strings.Contains(string(empty), `"resources":[]`) {
		t.Fatalf("%s, %v", empty, err)
	}
	id := uuid(event[:])
	if len(id) != 36 || id[14] != '8' || !strings.ContainsRune("89ab", rune(id[19])) {
		t.Fatalf("event id %s is no version 8 UUID", id)
	}
}

// TestOldSchema: a record of schema 1 has none of the fields that readers of that schema do not
// know, and would take for a sign of damage.
func TestOldSchema(t *testing.T) {
	rec := testRecord()
	rec.Schema = OldRecordSchema
	if _, err := EncodeRecord(rec); !errors.Is(err, ErrMalformed) {
		t.Errorf("encoding a record of schema 1 with fields of schema 2: %v", err)
	}
	b, err := proto.Marshal(rec)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := DecodeRecord(b); !errors.Is(err, ErrMalformed) {
		t.Errorf("decoding it: %v", err)
	}
	rec.Tls.Host, rec.Tls.KeyExchange = "", ""
	if b, err = EncodeRecord(rec); err != nil {
		t.Fatal(err)
	}
	got, err := DecodeRecord(b)
	if err != nil || !proto.Equal(got, rec) {
		t.Errorf("got %v and error %v", got, err)
	}
}

// TestRenderShared: a call that reaches what belongs to another account is an event of both,
// unless it was denied.
func TestRenderShared(t *testing.T) {
	e := testEntry(5)
	leaf := e.LeafHash()
	id := SharedEventID(leaf)
	for name, c := range map[string]struct {
		owner, code string
		want        bool
	}{
		"own":              {"111122223333", "", false},
		"another's":        {"444455556666", "", true},
		"another's, fails": {"444455556666", "DisabledException", true},
		"denied":           {"444455556666", "AccessDeniedException", false},
	} {
		rec := testRecord()
		rec.Resources[0].AccountId, rec.ErrorCode = c.owner, c.code
		line, err := RenderJSON(e, rec)
		if err != nil {
			t.Fatal(err)
		}
		var got struct{ SharedEventID, EventID, ErrorCode, RecipientAccountID string }
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatal(err)
		}
		if (got.SharedEventID == uuid(id[:])) != c.want || (got.SharedEventID != "") != c.want || got.SharedEventID == got.EventID || got.RecipientAccountID != "111122223333" {
			t.Errorf("%s: %s", name, line)
		}
		if want := strings.TrimSuffix(c.code, "DeniedException"); c.code == "AccessDeniedException" && got.ErrorCode != want+"Denied" || c.code != "AccessDeniedException" && got.ErrorCode != c.code {
			t.Errorf("%s: the error code is %s", name, got.ErrorCode)
		}
	}
}

// hostile are texts that must not end a line, control a terminal or break the
// JSON.
var hostile = []string{
	"\n", "\r\n", "a\nb", `"}{"`, `\`, `\"`, "\x1b[2J\x1b[31m", "\x1b]0;title\x07", "\x00", "\x7f", "\u009b31m", "\u0085",
	"\u2028\u2029", "\u202eevil\u2066", "\u200b\ufeff\u061c", "\ufffd", "\U000e0041", "\U0001f512", "日本語", "</script>", "a\tb", "\u00a0\u3000",
}

func TestRenderInjection(t *testing.T) {
	for _, s := range append(hostile, strings.Join(hostile, "")) {
		rec := testRecord()
		for _, p := range texts(rec) {
			*p = s
		}
		rec.Identity = &auditpb.Identity{Type: s, PrincipalId: s, Arn: s, AccountId: s, AccessKeyId: s, Certificate: s, UserName: s, InvokedBy: s,
			SessionContext: []*auditpb.Field{textField(s, s)}}
		rec.Tls = &auditpb.Tls{Version: s, Cipher: s, Host: s, KeyExchange: s}
		rec.Resources[0] = &auditpb.Resource{Type: s, AccountId: s, Arn: s}
		fields := []*auditpb.Field{textField(s, s), mapField(s+"m", s, s), {Name: s + "l", Value: &auditpb.Field_List{List: &auditpb.TextList{Items: []string{s, s}}}},
			{Name: "none"}, {Name: "nan", Value: &auditpb.Field_Real{Real: math.NaN()}}, {Name: "inf", Value: &auditpb.Field_Real{Real: math.Inf(-1)}}}
		rec.RequestParameters, rec.ResponseElements, rec.Additional, rec.ServiceEventDetails = fields, fields, fields, fields
		b, err := EncodeRecord(rec)
		if err != nil {
			t.Fatal(err)
		}
		if rec, err = DecodeRecord(b); err != nil {
			t.Fatal(err)
		}
		line, err := RenderJSON(testEntry(1), rec)
		if err != nil {
			t.Fatal(err)
		}
		checkLine(t, line)
		var got struct {
			UserAgent         string
			RequestParameters map[string]any
			Conclave          struct{ Index uint64 }
		}
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatalf("%q: %v\n%s", s, err, line)
		}
		if got.UserAgent != s || got.RequestParameters[s] != s || got.Conclave.Index != 1 {
			t.Fatalf("%q comes back as %q", s, got.UserAgent)
		}
	}
}

func checkLine(t testing.TB, line []byte) {
	t.Helper()
	if !json.Valid(line) {
		t.Fatalf("not JSON: %s", line)
	}
	for _, r := range string(line) {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			t.Fatalf("unprintable %U in %q", r, line)
		}
	}
}

func BenchmarkEncodeRecord(b *testing.B) {
	rec := testRecord()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := EncodeRecord(rec); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRenderJSON(b *testing.B) {
	rec, e := testRecord(), testEntry(1)
	for b.Loop() {
		if _, err := RenderJSON(e, rec); err != nil {
			b.Fatal(err)
		}
	}
}
