package queryapi

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"math/rand/v2"
	"os"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// everything has members of all kinds.
type everything struct {
	Text    *string
	Number  *int32
	Flag    *bool
	When    *time.Time
	Blob    []byte `kms:"public"`
	Texts   []string
	Map     map[string]string
	Numbers map[string]int32
	Inner   *inner
	Inners  []inner
}

type inner struct {
	Text  *string
	Arn   *string `kms:"name=arn"`
	Deeps []deep
}

type deep struct{ Texts []string }

// decoded decodes a form into a structure.
func decoded[T any](raw string) (*T, error) {
	var f form
	if err := f.parse(raw, maxParameters); err != nil {
		return nil, err
	}
	in := new(T)
	return in, f.decode(kmsapi.OutputSchema[T](), in)
}

func TestDecode(t *testing.T) {
	for _, tc := range []struct {
		name, form string
		want       everything
	}{
		{"nothing", "", everything{}},
		{"the protocol's own", "Action=Do&Version=1&X-Amz-Date=x", everything{}},
		{"scalars", "Text=a%26b+c%2B%C3%A9&Number=-7&Flag=true&When=2026-11-23T12%3A36%3A00.5Z&Blob=aGk%3D",
			everything{Text: new("a&b c+é"), Number: new(int32(-7)), Flag: new(true), When: new(testTime.Add(500 * time.Millisecond)), Blob: []byte("hi")}},
		{"empty is not absent", "Text=&Blob=&Texts=&Map=&Inner=&Inners=",
			everything{Text: new(""), Blob: []byte{}, Texts: []string{}, Map: map[string]string{}, Inner: new(inner), Inners: []inner{}}},
		{"without an equal sign", "Text&&Texts&", everything{Text: new(""), Texts: []string{}}},
		{"a time elsewhere", "When=2026-11-23T13%3A36%3A00%2B01%3A00", everything{When: &testTime}},
		{"ends of numbers", "Number=2147483647", everything{Number: new(int32(2147483647))}},
		{"false", "Flag=false", everything{Flag: new(false)}},
		{"a list in any order", "Texts.member.2=b&Texts.member.10=j&Texts.member.1=a&Texts.member.3=c&Texts.member.4=d&Texts.member.9=i&Texts.member.5=e&Texts.member.8=h&Texts.member.6=f&Texts.member.7=g",
			everything{Texts: strings.Split("abcdefghij", "")}},
		{"encoded names", "%54exts%2Emember%2E1=a", everything{Texts: []string{"a"}}},
		{"a map", "Map.entry.2.value=w&Map.entry.1.key=a.b&Map.entry.1.value=v&Map.entry.2.key=", everything{Map: map[string]string{"a.b": "v", "": "w"}}},
		{"nested", "Inner.arn=x&Inners.member.2.Text=t&Inners.member.1.Deeps.member.1.Texts.member.1=u&Inners.member.1.Deeps.member.2=&Inners.member.3=",
			everything{Inner: &inner{Arn: new("x")}, Inners: []inner{{Deeps: []deep{{[]string{"u"}}, {}}}, {Text: new("t")}, {}}}},
		{"unknown members", "Other=1&Other.member.1.x..=2&Inner.Other=3&Text=t&.=4", everything{Text: new("t"), Inner: new(inner)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := decoded[everything](tc.form)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestMalformed: what two readers could understand differently is refused, and so are values
// of another type.
func TestMalformed(t *testing.T) {
	const noList, noMap = "Texts is a list: its items are Texts.member.1 and so on, without gaps.", "Map is a map: its entries are"
	for name, tc := range map[string]struct{ form, want string }{
		"twice":                    {"Text=a&Text=a", "A parameter of the request occurs twice."},
		"twice, encoded":           {"Text=a&T%65xt=b", "A parameter of the request occurs twice."},
		"unknown, twice":           {"Other=a&Text=&Other=a", "A parameter of the request occurs twice."},
		"an action twice":          {"Action=a&Text=&Action=b", "A parameter of the request occurs twice."},
		"a broken escape":          {"Text=%4", "A percent sign in a form is followed by two hexadecimal digits."},
		"a broken name":            {"Te%zzxt=4", "A percent sign in a form is followed by two hexadecimal digits."},
		"not UTF-8":                {"Text=%ff", "The parameters of a request are UTF-8 text."},
		"a name that is not UTF-8": {"%ff=1", "The parameters of a request are UTF-8 text."},
		"a long name":              {strings.Repeat("a", 257) + "=1", "The name of a parameter has more than 256 bytes."},
		"many":                     {strings.Repeat("&", 8192), "The request has more than 8192 parameters."},
		"a number":                 {"Number=1e3", "The value of Number is not of its type."},
		"no number":                {"Number=", "The value of Number is not of its type."},
		"a large number":           {"Number=2147483648", "The value of Number is not of its type."},
		"a long number":            {"Number=" + strings.Repeat("0", 17), "The value of Number is not of its type."},
		"a flag":                   {"Flag=True", "The value of Flag is not of its type."},
		"a time":                   {"When=1700000000", "The value of When is not of its type."},
		"a time without a zone":    {"When=2026-11-23T12:36:00", "The value of When is not of its type."},
		"a late time":              {"When=9999-12-31T23:59:59-01:00", "The value of When is not of its type."},
		"base64":                   {"Blob=aGk", "The value of Blob is not of its type."},
		"base64 in lines":          {"Blob=aG%0Ak%3D", "The value of Blob is not of its type."},
		"a text's member":          {"Text.x=1", "Text has a single value."},
		"a text and its member":    {"Text=a&Text.x=1", "Text has a single value."},
		"a list's value":           {"Texts=a", "Texts is nested and has no value of its own."},
		"a list and its item":      {"Texts=&Texts.member.1=a", "Texts is nested and has no value of its own."},
		"a list without member":    {"Texts.1=a", noList},
		"a list with two words":    {"Texts.member.1=a&Texts.entry.1=b", noList},
		"a list that ends early":   {"Texts.member=a", noList},
		"no number of an item":     {"Texts.member.=a", noList},
		"from zero":                {"Texts.member.0=a", noList},
		"a gap":                    {"Texts.member.1=a&Texts.member.3=b", noList},
		"far away":                 {"Texts.member.2147483647=a", noList},
		"a leading zero":           {"Texts.member.01=a", noList},
		"a leading zero twice":     {"Texts.member.1=a&Texts.member.01=a", noList},
		"a sign":                   {"Texts.member.%2B1=a", noList},
		"an item's member":         {"Texts.member.1.x=a", "Texts has a single value."},
		"an entry without value":   {"Map.entry.1.key=a", noMap},
		"an entry without key":     {"Map.entry.1.value=a", noMap},
		"an entry with more":       {"Map.entry.1.key=a&Map.entry.1.value=a&Map.entry.1.x=a", noMap},
		"a key twice":              {"Map.entry.1.key=a&Map.entry.1.value=a&Map.entry.2.key=a&Map.entry.2.value=b", noMap},
		"a structure's value":      {"Inner=a", "Inner is nested and has no value of its own."},
		"an item's value":          {"Inners.member.1=a", "Inners is nested and has no value of its own."},
		"in an item":               {"Inners.member.1.Deeps.member.2.Texts.member.1=a", "Deeps is a list: its items are Deeps.member.1 and so on, without gaps."},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := decoded[everything](tc.form)
			f, ok := errors.AsType[*fault](err)
			if !ok || f.code != "MalformedInput" || !strings.HasPrefix(f.message, tc.want) {
				t.Errorf("got %v, want %s", err, tc.want)
			}
		})
	}
}

// narrow has a member that restricts a request.
type narrow struct {
	Text   *string
	Limits *inner `kms:"narrows"`
}

// TestUnknownMembers: unknown members are refused next to a member that restricts and inside
// of it. Elsewhere only misspelt names of members are.
func TestUnknownMembers(t *testing.T) {
	for form, want := range map[string]string{
		"Action=a&Version=b&X-Amz-Date=c&Text=t": "",
		"Action.member.1=a":                      "", // of no operation either
		"Other=1":                                `Unknown member "Other".`,
		"Other.member.1.x=1":                     `Unknown member "Other".`,
		"text=1":                                 `Unknown member "text". Did you mean Text?`,
		"Limits.Action=a":                        `Unknown member "Action" in Limits.`,
		"Limits.Deeps.member.1.X=1":              `Unknown member "X" in Deeps.`,
	} {
		_, err := decoded[narrow](form)
		e, ok := errors.AsType[*kmsapi.Error](err)
		if want == "" && err != nil || want != "" && (!ok || e.Code != kmsapi.ErrValidation.Code || !strings.HasPrefix(e.Message, want)) {
			t.Errorf("%s: got %v, want %s", form, err, want)
		}
	}
	if _, err := decoded[everything]("Number=1&texts.member.1=a"); err == nil {
		t.Error("a misspelt name is ignored")
	}
}

// TestParseUnsigned bounds the form of a request without a signature.
func TestParseUnsigned(t *testing.T) {
	var f form
	if err := f.parse(strings.Repeat("&", maxUnsignedParameters-1), maxUnsignedParameters); err != nil {
		t.Error(err)
	}
	if f.parse(strings.Repeat("&", maxUnsignedParameters), maxUnsignedParameters) == nil {
		t.Error("a form with too many parameters is parsed")
	}
}

// row returns the row of an operation.
func row(t testing.TB, name string) *keyengine.Operation {
	t.Helper()
	for _, op := range operations() {
		if op.Name == name {
			return op
		}
	}
	t.Fatalf("there is no %s", name)
	return nil
}

func TestEncode(t *testing.T) {
	const meta = "<ResponseMetadata><RequestId>an-id</RequestId></ResponseMetadata>"
	user := iamapi.User{UserName: new("<o'&\"\r\n\t\x00\x1b\u0085>"), CreateDate: new(testTime.Add(999 * time.Millisecond).In(time.FixedZone("", 3600)))}
	for name, tc := range map[string]struct {
		op   string
		out  any
		want string
	}{
		"no output":                   {"DeleteUser", nil, ""},
		"an output without members":   {"UpdateRole", new(iamapi.UpdateRoleOutput), "<UpdateRoleResult></UpdateRoleResult>"},
		"a nil output":                {"UpdateRole", (*iamapi.UpdateRoleOutput)(nil), "<UpdateRoleResult></UpdateRoleResult>"},
		"nothing in a list":           {"ListUsers", &iamapi.ListUsersOutput{IsTruncated: new(false)}, "<ListUsersResult><Users/><IsTruncated>false</IsTruncated></ListUsersResult>"},
		"an empty list":               {"ListUsers", &iamapi.ListUsersOutput{Users: []iamapi.User{}}, "<ListUsersResult><Users/></ListUsersResult>"},
		"an inner list that is empty": {"GetUser", &iamapi.GetUserOutput{User: &iamapi.User{Tags: []iamapi.Tag{}}}, "<GetUserResult><User><Tags/></User></GetUserResult>"},
		"an inner list that is absent": {"ListUsers", &iamapi.ListUsersOutput{Users: []iamapi.User{{Path: new("/")}, {}}},
			"<ListUsersResult><Users><member><Path>/</Path></member><member></member></Users></ListUsersResult>"},
		"escapes, and a time": {"CreateUser", &iamapi.CreateUserOutput{User: &user},
			"<CreateUserResult><User><UserName>&lt;o&apos;&amp;&quot;&#xD;&#xA;&#x9;\uFFFD\uFFFD\u0085&gt;</UserName><CreateDate>2026-11-23T12:36:00Z</CreateDate></User></CreateUserResult>"},
		"not UTF-8": {"ListUserPolicies", &iamapi.ListUserPoliciesOutput{PolicyNames: []string{"a\xffb", "\uFFFE", "\uFFFD"}},
			"<ListUserPoliciesResult><PolicyNames><member>a\uFFFDb</member><member>\uFFFD</member><member>\uFFFD</member></PolicyNames></ListUserPoliciesResult>"},
		"a map of numbers": {"GetAccountSummary", &iamapi.GetAccountSummaryOutput{SummaryMap: map[string]int32{"Users": 7, "Groups": -1}},
			"<GetAccountSummaryResult><SummaryMap><entry><key>Groups</key><value>-1</value></entry><entry><key>Users</key><value>7</value></entry></SummaryMap></GetAccountSummaryResult>"},
		"a map": {"SimulateCustomPolicy", &iamapi.SimulateCustomPolicyOutput{EvaluationResults: []iamapi.EvaluationResult{{EvalDecisionDetails: map[string]string{"b<": "allowed", "a": "x&"}}}},
			"<SimulateCustomPolicyResult><EvaluationResults><member><EvalDecisionDetails><entry><key>a</key><value>x&amp;</value></entry>" +
				"<entry><key>b&lt;</key><value>allowed</value></entry></EvalDecisionDetails></member></EvaluationResults></SimulateCustomPolicyResult>"},
		"a document": {"GetRolePolicy", &iamapi.GetRolePolicyOutput{RoleName: new("a b"), PolicyDocument: new("{\"A\": [\"*~-._é+<\"]}\n")},
			"<GetRolePolicyResult><RoleName>a b</RoleName><PolicyDocument>%7B%22A%22%3A%20%5B%22%2A~-._%C3%A9%2B%3C%22%5D%7D%0A</PolicyDocument></GetRolePolicyResult>"},
		"a blob": {"ListVirtualMFADevices", &iamapi.ListVirtualMFADevicesOutput{VirtualMFADevices: []iamapi.VirtualMFADevice{{QRCodePNG: []byte("hi"), Base32StringSeed: []byte{}}}},
			"<ListVirtualMFADevicesResult><VirtualMFADevices><member><Base32StringSeed/><QRCodePNG>aGk=</QRCodePNG></member></VirtualMFADevices></ListVirtualMFADevicesResult>"},
	} {
		t.Run(name, func(t *testing.T) {
			small := make([]byte, 0, 8)
			b, err := appendAnswer(small, iamService, row(t, tc.op), tc.out, "an-id")
			want := "<" + tc.op + `Response xmlns="https://iam.amazonaws.com/doc/2010-05-08/">` + tc.want + meta + "</" + tc.op + "Response>"
			if err != nil || string(b) != want {
				t.Errorf("%v\ngot  %s\nwant %s", err, b, want)
			}
			if string(small[:8]) != strings.Repeat("\x00", 8) {
				t.Errorf("%q is left in a buffer", small[:8])
			}
		})
	}
	if _, err := appendAnswer(nil, iamService, row(t, "GetUser"), new(iamapi.GetRoleOutput), ""); err == nil {
		t.Error("the output of another operation is encoded")
	}
}

// TestForgery: no value in an answer makes an element.
func TestForgery(t *testing.T) {
	hostile := "</UserName></User><User><UserName>root]]><!--\x00<?x?>&#x41;"
	b, err := appendAnswer(nil, iamService, row(t, "GetUser"), &iamapi.GetUserOutput{User: &iamapi.User{UserName: &hostile}}, "id")
	if err != nil {
		t.Fatal(err)
	}
	var answer struct {
		Result []struct {
			User []struct{ UserName []string }
		} `xml:"GetUserResult"`
	}
	if err := xml.Unmarshal(b, &answer); err != nil {
		t.Fatal(err)
	}
	want := strings.Replace(hostile, "\x00", "\uFFFD", 1)
	if len(answer.Result) != 1 || len(answer.Result[0].User) != 1 || len(answer.Result[0].User[0].UserName) != 1 || answer.Result[0].User[0].UserName[0] != want {
		t.Errorf("got %+v from %s", answer, b)
	}
}

// TestDocuments: the members that are encoded are those that are policy documents in AWS's
// model, which SDKs decode.
func TestDocuments(t *testing.T) {
	type reference struct{ Shape string }
	var model struct {
		Operations map[string]struct{ Output *reference }
		Shapes     map[string]struct {
			Members map[string]reference
			Member  reference
		}
	}
	b, err := os.ReadFile("../../integration/awsmodel/iam-2010-05-08.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &model); err != nil {
		t.Fatal(err)
	}
	found := make(map[string]bool)
	var walk func(shape string)
	walk = func(shape string) {
		s := model.Shapes[shape]
		for name, ref := range s.Members {
			if is := ref.Shape == "policyDocumentType"; is != documents[name] {
				t.Errorf("%s.%s is a document: %v", shape, name, is)
			} else if is {
				found[name] = true
			}
			walk(ref.Shape)
		}
		if s.Member.Shape != "" {
			walk(s.Member.Shape)
		}
	}
	for _, op := range model.Operations {
		if op.Output != nil {
			walk(op.Output.Shape)
		}
	}
	if !reflect.DeepEqual(found, documents) {
		t.Errorf("found %v", found)
	}
}

// TestHostileForms: whatever a form of the largest size has in it, it is decoded or refused
// with work in proportion to its size.
func TestHostileForms(t *testing.T) {
	fits := func(part func(i int) string) string {
		var b strings.Builder
		for i := 0; ; i++ {
			p := part(i)
			if b.Len()+len(p) > maxBody || i == maxParameters-1 {
				return b.String()
			}
			b.WriteString(p)
		}
	}
	for name, raw := range map[string]string{
		"separators":          strings.Repeat("&", maxBody),
		"names":               fits(func(i int) string { return "n" + strconv.Itoa(i) + "&" }),
		"long names":          fits(func(i int) string { return strings.Repeat("n", 100) + strconv.Itoa(i) + "&" }),
		"deep names":          fits(func(i int) string { return strings.Repeat("a.", 60) + strconv.Itoa(i) + "&" }),
		"dots":                fits(func(i int) string { return "Tags.member.1" + strings.Repeat(".", 60) + strconv.Itoa(i) + "&" }),
		"items":               fits(func(i int) string { return "Tags.member." + strconv.Itoa(i+1) + ".Key=k&" }),
		"items from the end":  fits(func(i int) string { return "Tags.member." + strconv.Itoa(maxParameters-i) + ".Key=k&" }),
		"items far apart":     fits(func(i int) string { return "Tags.member." + strconv.Itoa(i*250_000) + ".Key=k&" }),
		"one item far away":   "Tags.member.2147483647.Key=k",
		"one item, long":      "Tags.member." + strings.Repeat("9", 200) + ".Key=k",
		"an escaped value":    "Path=" + strings.Repeat("%41", maxBody/3),
		"a value of plus":     "Path=" + strings.Repeat("+", maxBody-5),
		"one name many times": fits(func(int) string { return "Path=/&" }),
		"one name":            strings.Repeat("n", maxBody),
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			began := time.Now()
			runtime.ReadMemStats(&before)
			var f form
			err := f.parse(raw, maxParameters)
			if err == nil {
				err = f.decode(row(t, "CreateUser").Input(), new(iamapi.CreateUserInput))
			}
			runtime.ReadMemStats(&after)
			took, allocated := time.Since(began), after.TotalAlloc-before.TotalAlloc
			t.Logf("%d bytes: %v, %d KiB, %v", len(raw), took, allocated>>10, err)
			if took > 2*time.Second || allocated > 16<<20 {
				t.Errorf("took %v and %d bytes", took, allocated)
			}
		})
	}
}

// FuzzQuery: no form causes a panic, and the order of its parameters does not matter.
func FuzzQuery(f *testing.F) {
	f.Add("UserName=a&Tags.member.1.Key=k&Tags.member.1.Value=v&Tags.member.2.Key=l", uint64(1))
	f.Add("PolicyArns.member.1.arn=a&PolicyArns.member.2=&Tags=", uint64(2))
	f.Add("ContextEntries.member.1.ContextKeyValues.member.1=x&ContextEntries.member.1.ContextKeyValues.member.2=%zz", uint64(3))
	f.Add("Texts.member.10=a&Map.entry.1.key=k&Map.entry.1.value=&Number=1&Inner.Deeps.member.1.Texts=", uint64(4))
	f.Add("..=&.=&Tags.=&Tags..member=1", uint64(5))
	ops := operations()
	f.Fuzz(func(t *testing.T, raw string, seed uint64) {
		rng := rand.New(rand.NewPCG(seed, 0))
		parts := strings.Split(raw, "&")
		rng.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
		check := func(one func(raw string) (any, error)) {
			in, err := one(raw)
			again, err2 := one(strings.Join(parts, "&"))
			if (err == nil) != (err2 == nil) || err == nil && !cmp.Equal(in, again) {
				t.Errorf("%q: got %v %v, and in another order %v %v", raw, in, err, again, err2)
			}
		}
		check(func(raw string) (any, error) { return decoded[everything](raw) })
		op := ops[seed%uint64(len(ops))]
		check(func(raw string) (any, error) {
			var f form
			if err := f.parse(raw, maxParameters); err != nil {
				return nil, err
			}
			in := op.NewInput()
			return in, f.decode(op.Input(), in)
		})
	})
}
