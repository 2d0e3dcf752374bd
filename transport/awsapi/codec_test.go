package awsapi

import (
	"encoding/base64"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// everything has members of all kinds.
type everything struct {
	Text   *string
	Number *int32
	Flag   *bool
	When   *time.Time
	Blob   []byte `kms:"public"`
	Texts  []string
	Map    map[string]string
	Inner  *inner
	Inners []inner
}

type inner struct {
	Text *string
	Deep *deep
}

type deep struct {
	Plaintext []byte `kms:"secret"`
}

// encoded returns the JSON of what v points to.
func encoded[T any](t testing.TB, v *T) []byte {
	t.Helper()
	b, err := appendOutput(nil, kmsapi.OutputSchema[T](), v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDecode(t *testing.T) {
	s := kmsapi.OutputSchema[everything]()
	for _, tc := range []struct {
		name, body string
		want       everything
	}{
		{"empty body", ``, everything{}},
		{"empty object", ` {} `, everything{}},
		{"nulls are absent", `{"Text":null,"Number":null,"Flag":null,"When":null,"Blob":null,"Texts":null,"Map":null,"Inner":null,"Inners":null}`, everything{}},
		{"empty is not absent", `{"Text":"","Blob":"","Texts":[],"Map":{},"Inner":{},"Inners":[]}`,
			everything{Text: ptr(""), Blob: []byte{}, Texts: []string{}, Map: map[string]string{}, Inner: &inner{}, Inners: []inner{}}},
		{"all", `{"Text":"a\u00e9\n\"","Number":-7,"Flag":true,"When":1593622000.191,"Blob":"aGk=","Texts":["x","y"],"Map":{"k":"v","k\u0032":""},"Inner":{"Text":"i","Deep":{"Plaintext":"AA=="}},"Inners":[{"Text":"1"},{}]}`,
			everything{Text: ptr("aé\n\""), Number: ptr(int32(-7)), Flag: ptr(true), When: ptr(time.UnixMilli(1593622000191).UTC()), Blob: []byte("hi"),
				Texts: []string{"x", "y"}, Map: map[string]string{"k": "v", "k2": ""}, Inner: &inner{Text: ptr("i"), Deep: &deep{Plaintext: []byte{0}}},
				Inners: []inner{{Text: ptr("1")}, {}}}},
		{"unknown members", `{"X":1,"Texx":"other","Y":{"a":[{"Text":"no"},[],null,true]},"Text":"t","Z":"s"}`, everything{Text: ptr("t")}},
		{"escaped name", `{"T\u0065xt":"t"}`, everything{Text: ptr("t")}},
		{"escaped slash in a blob", `{"Blob":"\/\/8="}`, everything{Blob: []byte{0xff, 0xff}}},
		{"time as integer", `{"When":0}`, everything{When: ptr(time.Unix(0, 0).UTC())}},
		{"time with exponent", `{"When":1.593622000191E9}`, everything{When: ptr(time.UnixMilli(1593622000191).UTC())}},
		{"largest number", `{"Number":2147483647}`, everything{Number: ptr(int32(2147483647))}},
		{"false", `{"Flag":false}`, everything{Flag: ptr(false)}},
		{"whitespace", "\n{ \"Text\" :\t\"t\" ,\r\n\"Texts\" : [ \"a\" , \"b\" ] }\n", everything{Text: ptr("t"), Texts: []string{"a", "b"}}},
		{"31 levels of an unknown member", `{"X":` + strings.Repeat("[", 31) + strings.Repeat("]", 31) + `}`, everything{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var d decoder
			for range 2 { // a decoder is used again
				var got everything
				if err := d.decode(s, &got, []byte(tc.body)); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(everything{})); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
}

// narrow has members that restrict a request, one within another.
type narrow struct {
	Text   *string
	Limits *limits `kms:"narrows"`
	Open   *inner
	Opens  []inner
}

type limits struct {
	Text  *string
	Deep  *deep
	Deeps []deep
}

// TestUnknownMembers: unknown members are refused next to a member that restricts,
// and inside of it at every depth. Elsewhere, only misspelt names of members are
// refused.
func TestUnknownMembers(t *testing.T) {
	s := kmsapi.OutputSchema[narrow]()
	const hint = " Members that this version does not know are not passed over here, as they could restrict the request. Leave it out if it does not."
	for _, tc := range []struct{ name, body, want string }{
		{"beside", `{"X":1}`, `Unknown member "X".` + hint},
		{"null", `{"X":null}`, `Unknown member "X".` + hint},
		{"nameless", `{"":{}}`, `Unknown member "".` + hint},
		{"with a structure", `{"Text":"t","X":{"a":[1,{}]}}`, `Unknown member "X".` + hint},
		{"the first of two", `{"X":1,"Limits":{"Y":1}}`, `Unknown member "X".` + hint},
		{"inside", `{"Limits":{"Text":"t","Y":1}}`, `Unknown member "Y" in Limits.` + hint},
		{"deeper", `{"Limits":{"Deep":{"Plaintext":"","Z":1}}}`, `Unknown member "Z" in Deep.` + hint},
		{"in a list", `{"Limits":{"Deeps":[{},{"Z":1}]}}`, `Unknown member "Z" in Deeps.` + hint},
		{"escaped", `{"Limits":{"\u0059":1}}`, `Unknown member "Y" in Limits.` + hint},
		{"control characters", `{"a\n\u0000\u202e":1}`, `Unknown member "a\n\x00\u202e".` + hint},
		{"long", `{"` + strings.Repeat("x", 1000) + `":1}`, `Unknown member "` + strings.Repeat("x", 64) + `\u2026".` + hint},
		{"other case", `{"text":"t"}`, `Unknown member "text". Did you mean Text?`},
		{"other case where nothing restricts", `{"Open":{"TEXT":"t"}}`, `Unknown member "TEXT" in Open. Did you mean Text?`},
		{"separators where nothing restricts", `{"Opens":[{"te_x-t":"t"}]}`, `Unknown member "te_x-t" in Opens. Did you mean Text?`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var d decoder
			err := d.decode(s, new(narrow), []byte(tc.body))
			if e, ok := errors.AsType[*kmsapi.Error](err); !ok || e.Code != kmsapi.ErrValidation.Code || e.Message != tc.want {
				t.Errorf("got  %v\nwant ValidationException: %s", err, tc.want)
			}
			if err := d.decode(s, new(narrow), []byte(`{"Text":"t"}`)); err != nil {
				t.Errorf("the next body: %v", err)
			}
		})
	}
	var got narrow
	if err := new(decoder).decode(s, &got, []byte(`{"Open":{"X":{"Limits":1}},"Opens":[{"Y":[]}]}`)); err != nil {
		t.Errorf("unknown members where nothing restricts: %v", err)
	}
	// Invalid JSON takes precedence.
	for _, body := range []string{`{"X":1,"Text":1}`, `{"X":1`, `{"X":1,"X":2}`, `{"X":1} x`} {
		if e, ok := errors.AsType[*kmsapi.Error](new(decoder).decode(s, &got, []byte(body))); !ok || e.Code != "SerializationException" {
			t.Errorf("%s: %v", body, e)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	s := kmsapi.OutputSchema[everything]()
	const notJSON = "The request body is not valid JSON, at byte %d."
	const twice = "The request body has a JSON object with the same member twice."
	tooDeep := fmt.Sprintf("The request body is nested more than %d deep.", maxDepth)
	tooMany := fmt.Sprintf("The request body has more than %d values.", maxValues)
	for _, tc := range []struct{ name, body, want string }{
		{"not JSON", `hello`, fmt.Sprintf(notJSON, 0)},
		{"white space", ` `, "The request body is not valid JSON."},
		{"half an object", `{"Text":"t"`, fmt.Sprintf(notJSON, 11)},
		{"half a string", `{"Text":"t`, fmt.Sprintf(notJSON, 10)},
		{"half a null", `{"Text":nul`, fmt.Sprintf(notJSON, 11)},
		{"half a null in unknown", `{"X":nul`, fmt.Sprintf(notJSON, 8)},
		{"half a name", `{"Te`, fmt.Sprintf(notJSON, 4)},
		{"trailing comma", `{"Text":"t",}`, fmt.Sprintf(notJSON, 11)},
		{"no colon", `{"Text" "t"}`, fmt.Sprintf(notJSON, 8)},
		{"comment", `{/**/}`, fmt.Sprintf(notJSON, 1)},
		{"single quotes", `{'Text':'t'}`, fmt.Sprintf(notJSON, 1)},
		{"byte order mark", "\ufeff{}", fmt.Sprintf(notJSON, 0)},
		{"NaN", `{"When":NaN}`, fmt.Sprintf(notJSON, 8)},
		{"control character", "{\"Text\":\"a\x00b\"}", fmt.Sprintf(notJSON, 10)},
		{"invalid UTF-8", "{\"Text\":\"a\xff\"}", fmt.Sprintf(notJSON, 10)},
		{"invalid UTF-8 in unknown", "{\"X\":[\"\xc0\xaf\"]}", fmt.Sprintf(notJSON, 7)},
		{"invalid UTF-8 in a name", "{\"\xff\":1}", fmt.Sprintf(notJSON, 2)},
		{"lone surrogate", `{"Text":"\ud800"}`, fmt.Sprintf(notJSON, 9)},
		{"something after", `{} {}`, "Something follows the JSON object of the request body."},
		{"garbage after", `{}x`, "Something follows the JSON object of the request body."},
		{"a list", `[]`, "Start of list found where not expected."},
		{"a string", `"x"`, "STRING_VALUE can not be converted to a structure."},
		{"null", `null`, "NULL_VALUE can not be converted to a structure."},
		{"member twice", `{"Text":"a","Text":"b"}`, twice},
		{"member twice, escaped", `{"Text":"a","\u0054ext":"b"}`, twice},
		{"unknown member twice", `{"X":{"a":1,"a":2}}`, twice},
		{"map key twice", `{"Map":{"a":"1","a":"2"}}`, twice},
		{"number for text", `{"Text":1}`, "NUMBER_VALUE can not be converted to a String (Text)."},
		{"true for text", `{"Text":true}`, "TRUE_VALUE can not be converted to a String (Text)."},
		{"list for text", `{"Text":[]}`, "Start of list found where not expected (Text)."},
		{"object for text", `{"Text":{}}`, "Start of structure or map found where not expected (Text)."},
		{"text for number", `{"Number":"1"}`, "STRING_VALUE can not be converted to an Integer (Number)."},
		{"fraction for number", `{"Number":1.5}`, "NUMBER_VALUE can not be converted to an Integer (Number)."},
		{"exponent for number", `{"Number":1e3}`, "NUMBER_VALUE can not be converted to an Integer (Number)."},
		{"number over 32 bits", `{"Number":2147483648}`, "NUMBER_VALUE can not be converted to an Integer (Number)."},
		{"long number", `{"Number":` + strings.Repeat("1", 100_000) + `}`, "NUMBER_VALUE can not be converted to an Integer (Number)."},
		{"long time", `{"When":` + strings.Repeat("1", 100_000) + `}`, "NUMBER_VALUE can not be converted to a Timestamp (When)."},
		{"time out of range", `{"When":1e300}`, "NUMBER_VALUE can not be converted to a Timestamp (When)."},
		{"time as text", `{"When":"2026-11-23T12:36:00Z"}`, "STRING_VALUE can not be converted to a Timestamp (When)."},
		{"text for flag", `{"Flag":"true"}`, "STRING_VALUE can not be converted to a Boolean (Flag)."},
		{"number for flag", `{"Flag":1}`, "NUMBER_VALUE can not be converted to a Boolean (Flag)."},
		{"number for blob", `{"Blob":1}`, "NUMBER_VALUE can not be converted to a Blob (Blob)."},
		{"blob not base64", `{"Blob":"%%"}`, "STRING_VALUE can not be converted to a Blob (Blob): it is not base64."},
		{"blob without padding", `{"Blob":"aGk"}`, "STRING_VALUE can not be converted to a Blob (Blob): it is not base64."},
		{"blob in the URL alphabet", `{"Blob":"__8="}`, "STRING_VALUE can not be converted to a Blob (Blob): it is not base64."},
		{"blob with a line break", `{"Blob":"aG\nk="}`, "STRING_VALUE can not be converted to a Blob (Blob): it is not base64."},
		{"blob with line breaks behind", `{"Blob":"aGk=\r\n\r\n"}`, "STRING_VALUE can not be converted to a Blob (Blob): it is not base64."},
		{"blob of line breaks", `{"Blob":"\n\n\n\n"}`, "STRING_VALUE can not be converted to a Blob (Blob): it is not base64."},
		{"blob with padding inside", `{"Blob":"aG==aGk="}`, "STRING_VALUE can not be converted to a Blob (Blob): it is not base64."},
		{"blob of padding", `{"Blob":"===="}`, "STRING_VALUE can not be converted to a Blob (Blob): it is not base64."},
		{"blob with stray bits", `{"Blob":"aGl="}`, "STRING_VALUE can not be converted to a Blob (Blob): it is not base64."},
		{"text for list", `{"Texts":"a"}`, "STRING_VALUE can not be converted to a list (Texts)."},
		{"null in a list", `{"Texts":[null]}`, "NULL_VALUE can not be converted to a String (Texts)."},
		{"number in a list", `{"Texts":["a",1]}`, "NUMBER_VALUE can not be converted to a String (Texts)."},
		{"list for map", `{"Map":[]}`, "Start of list found where not expected (Map)."},
		{"number in a map", `{"Map":{"a":1}}`, "NUMBER_VALUE can not be converted to a String (Map)."},
		{"null in a map", `{"Map":{"a":null}}`, "NULL_VALUE can not be converted to a String (Map)."},
		{"text for structure", `{"Inner":"x"}`, "STRING_VALUE can not be converted to a structure (Inner)."},
		{"wrong type deep down", `{"Inner":{"Deep":{"Plaintext":[]}}}`, "Start of list found where not expected (Plaintext)."},
		{"object for list of structures", `{"Inners":{}}`, "Start of structure or map found where not expected (Inners)."},
		{"null in list of structures", `{"Inners":[null]}`, "NULL_VALUE can not be converted to a structure (Inners)."},
		{"deep unknown member", `{"X":` + strings.Repeat("[", 32) + strings.Repeat("]", 32) + `}`, tooDeep},
		{"a million deep", `{"X":` + strings.Repeat("[", 1_000_000), tooDeep},
		{"a million objects deep", `{"X":` + strings.Repeat(`{"a":`, 200_000), tooDeep},
		{"a million deep at the top", strings.Repeat("[", 1_000_000), "Start of list found where not expected."},
		{"a million deep for a name", `{` + strings.Repeat("[", 1_000_000), "Start of list found where not expected."},
		{"a million deep for a text", `{"Text":` + strings.Repeat("[", 1_000_000), "Start of list found where not expected (Text)."},
		{"too many values", `{"X":[` + strings.Repeat("1,", 20_000) + `1]}`, tooMany},
		{"too many list items", `{"Texts":["a"` + strings.Repeat(`,""`, 20_000) + `]}`, tooMany},
		{"too many members", manyMembers(), tooMany},
		{"too many keys", `{"Map":` + strings.ReplaceAll(manyMembers(), ":1", `:""`) + `}`, tooMany},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var d decoder
			var got everything
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			err := d.decode(s, &got, []byte(tc.body))
			runtime.ReadMemStats(&after)
			e, ok := errors.AsType[*kmsapi.Error](err)
			if !ok || e.Code != "SerializationException" || e.Message != tc.want {
				t.Errorf("got  %v\nwant SerializationException: %s", err, tc.want)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 8<<20 {
				t.Errorf("%d bytes allocated for a body of %d", n, len(tc.body))
			}
			// The decoder can be used again.
			if err := d.decode(s, new(everything), []byte(`{"Text":"t"}`)); err != nil {
				t.Errorf("the next body: %v", err)
			}
		})
	}
}

func manyMembers() string {
	var b strings.Builder
	b.WriteByte('{')
	for i := range 20_000 {
		fmt.Fprintf(&b, `"%d":1,`, i)
	}
	b.WriteString(`"x":1}`)
	return b.String()
}

func TestEncode(t *testing.T) {
	for _, tc := range []struct {
		name string
		out  *everything
		want string
	}{
		{"absent members", &everything{}, `{}`},
		{"no output", (*everything)(nil), `{}`},
		{"all", &everything{Text: ptr(`a"<é>&` + "\n\u2028"), Number: ptr(int32(-7)), Flag: ptr(false), When: ptr(time.UnixMilli(1593622000191)),
			Blob: []byte{0xff, 0xfe}, Texts: []string{"x", "y"}, Map: map[string]string{"b": "2", "a": "1", "c": ""},
			Inner: &inner{Deep: &deep{Plaintext: []byte("p")}}, Inners: []inner{{Text: ptr("1")}, {}}},
			`{"Text":"a\"<é>&\n` + "\u2028" + `","Number":-7,"Flag":false,"When":1593622000.191,"Blob":"//4=","Texts":["x","y"],"Map":{"a":"1","b":"2","c":""},"Inner":{"Deep":{"Plaintext":"cA=="}},"Inners":[{"Text":"1"},{}]}`},
		{"empty is not absent", &everything{Text: ptr(""), Blob: []byte{}, Texts: []string{}, Map: map[string]string{}, Inner: &inner{}, Inners: []inner{}},
			`{"Text":"","Blob":"","Texts":[],"Map":{},"Inner":{},"Inners":[]}`},
		{"whole seconds", &everything{When: ptr(time.Unix(1593622000, 999_999))}, `{"When":1593622000}`},
		{"five milliseconds", &everything{When: ptr(time.UnixMilli(1593622000005))}, `{"When":1593622000.005}`},
		{"before 1970", &everything{When: ptr(time.UnixMilli(-1500))}, `{"When":-1.500}`},
		{"invalid UTF-8", &everything{Text: ptr("a\xff")}, `{"Text":"a` + "\uFFFD" + `"}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := appendOutput(make([]byte, 0, 4), kmsapi.OutputSchema[everything](), tc.out)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

// A buffer that became too small for a secret does not keep the part that it
// held.
func TestGrowthOverwrites(t *testing.T) {
	small := make([]byte, 0, 64)
	type output struct {
		Plaintext    []byte `kms:"secret"`
		SharedSecret []byte `kms:"secret"`
	}
	out := output{[]byte("secret"), make([]byte, 1000)}
	if _, err := appendOutput(small, kmsapi.OutputSchema[output](), &out); err != nil {
		t.Fatal(err)
	}
	if held := small[:cap(small)]; strings.Contains(string(held), base64.StdEncoding.EncodeToString([]byte("secret"))) {
		t.Errorf("left behind: %q", held)
	}
}

// A schema belongs to one type and cannot be used with another.
func TestOtherTypesAreRefused(t *testing.T) {
	s := kmsapi.OutputSchema[everything]()
	for _, v := range []any{nil, everything{}, &inner{}, (*inner)(nil), new(*everything)} {
		if b, err := appendOutput(nil, s, v); err == nil {
			t.Errorf("%T was written: %s", v, b)
		}
		if err := new(decoder).decode(s, v, []byte("{}")); err == nil {
			t.Errorf("%T was read", v)
		}
	}
}

// FuzzDecode: every input has an answer, and what is accepted is the same after
// it was encoded and decoded again.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{``, `{}`, `{"Text":"t","Number":1,"Flag":true,"When":1.5,"Blob":"aGk=","Texts":["x"],"Map":{"k":"v"},"Inner":{"Deep":{"Plaintext":""}},"Inners":[{}]}`,
		`{"X":[[[{}]]]}`, `{"Text":null}`, `{"TexT":null}`, "{\"Text\":\"\xff\"}", `{"When":-1e9}`, `{"Texts":[`} {
		f.Add([]byte(s))
	}
	s := kmsapi.OutputSchema[everything]()
	f.Fuzz(func(t *testing.T, body []byte) {
		var d decoder
		var in, again everything
		if err := d.decode(s, &in, body); err != nil {
			// A member that is spelled almost like a known one is named.
			if e, ok := errors.AsType[*kmsapi.Error](err); !ok || e.Code != "SerializationException" && e.Code != kmsapi.ErrValidation.Code {
				t.Fatalf("got %v", err)
			}
			return
		}
		out := encoded(t, &in)
		if err := d.decode(s, &again, out); err != nil {
			t.Fatalf("%s: %v", out, err)
		}
		if diff := cmp.Diff(in, again); diff != "" {
			t.Fatalf("%s\n%s", out, diff)
		}
	})
}

func BenchmarkEncryptCodec(b *testing.B) {
	blob := make([]byte, 1024)
	body := encoded(b, &kmsapi.EncryptInput{
		KeyId:             ptr("arn:aws:kms:eu-test-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"),
		Plaintext:         blob,
		EncryptionContext: map[string]string{"tenant": "17", "purpose": "test"},
	})
	out := &kmsapi.EncryptOutput{
		CiphertextBlob:      make([]byte, 1200),
		KeyId:               ptr("arn:aws:kms:eu-test-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"),
		EncryptionAlgorithm: ptr("SYMMETRIC_DEFAULT"),
	}
	input, output := kmsapi.InputSchema[kmsapi.EncryptInput](), kmsapi.OutputSchema[kmsapi.EncryptOutput]()
	var d decoder
	buf := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		if err := d.decode(input, new(kmsapi.EncryptInput), body); err != nil {
			b.Fatal(err)
		}
		if _, err := appendOutput(buf, output, out); err != nil {
			b.Fatal(err)
		}
	}
}
