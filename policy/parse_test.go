package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const goodStatement = `{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*"}`

// inStatement puts members into a statement that is complete without them.
func inStatement(members string) string {
	return `{"Version":"2012-10-17","Statement":[` + goodStatement +
		`,{"Effect":"Deny","Principal":"*","Action":"kms:*","Resource":"*",` + members + `}]}`
}

// statementWith replaces one element of a statement that is complete.
func statementWith(element, value string) string {
	parts := map[string]string{"Effect": `"Allow"`, "Principal": `"*"`, "Action": `"kms:*"`, "Resource": `"*"`}
	parts[element] = value
	if value == "" {
		delete(parts, element)
	}
	var members []string
	for _, name := range []string{"Effect", "Principal", "Action", "Resource"} {
		if v, ok := parts[name]; ok {
			members = append(members, `"`+name+`":`+v)
		}
	}
	return `{"Version":"2012-10-17","Statement":[` + goodStatement + `,{` + strings.Join(members, ",") + `}]}`
}

func TestParseRefuses(t *testing.T) {
	const none = NoStatement
	tests := []struct {
		name      string
		doc       string
		err       error
		statement int
		element   string
		detail    string // part of it
	}{
		// JSON
		{"empty", ``, ErrMalformed, none, "", "empty"},
		{"blank", " \r\n\t", ErrMalformed, none, "", "empty"},
		{"not JSON", `allow all`, ErrMalformed, none, "", "not JSON"},
		{"cut off", `{"Statement":[` + goodStatement, ErrMalformed, none, "", "not JSON"},
		{"trailing comma", `{"Statement":[` + goodStatement + `,]}`, ErrMalformed, none, "", "not JSON"},
		{"comment", `{"Statement":[` + goodStatement + `]/**/}`, ErrMalformed, none, "", "not JSON"},
		{"second value", `{"Statement":` + goodStatement + `}{}`, ErrMalformed, none, "", "after the end"},
		{"trailing garbage", `{"Statement":` + goodStatement + `}x`, ErrMalformed, none, "", "not JSON"},
		{"duplicate member", `{"Statement":` + goodStatement + `,"Statement":` + goodStatement + `}`, ErrMalformed, none, "", `"Statement" appears twice`},
		{"duplicate member, escaped", inStatement(`"\u0045ffect":"Allow"`), ErrMalformed, none, "", `"Effect" appears twice`},
		{"invalid UTF-8", "{\"Id\":\"\xe9\"}", ErrMalformed, none, "", "byte 7"},
		{"NUL", "{\"Id\":\"\x00\"}", ErrMalformed, none, "", "byte 7"},
		{"form feed", "{\f}", ErrMalformed, none, "", "byte 1"},
		{"U+0100", `{"Id":"Ā"}`, ErrMalformed, none, "", "byte 7"},
		{"byte order mark", "\ufeff{}", ErrMalformed, none, "", "byte 0"},
		{"escaped NUL", inStatement(`"Sid":"a\u0000"`), ErrMalformed, none, "", "U+0000"},
		{"escaped Kelvin sign", statementWith("Action", `"\u212Ams:Encrypt"`), ErrMalformed, none, "", "U+212A"},
		{"escaped in a name", `{"\u0130d":"x"}`, ErrMalformed, none, "", "U+0130"},
		{"half a surrogate", `{"Id":"\ud800"}`, ErrMalformed, none, "", "not JSON"},
		{"deep", `{"Statement":` + strings.Repeat("[", 9000) + strings.Repeat("]", 9000) + `}`, ErrMalformed, none, "", "levels"},
		{"deep, cut off", strings.Repeat(`{"a":`, 5000), ErrMalformed, none, "", "levels"},

		// The document
		{"null", `null`, ErrMalformed, none, "", "not a JSON object"},
		{"list", `[` + goodStatement + `]`, ErrMalformed, none, "", "not a JSON object"},
		{"string", `"*"`, ErrMalformed, none, "", "not a JSON object"},
		{"no Statement", `{"Version":"2012-10-17"}`, ErrMalformed, none, "Statement", "at least one"},
		{"empty Statement", `{"Statement":[]}`, ErrMalformed, none, "Statement", "at least one"},
		{"Statement null", `{"Statement":null}`, ErrMalformed, none, "Statement", "neither"},
		{"Statement string", `{"Statement":"*"}`, ErrMalformed, none, "Statement", "neither"},
		{"Statement of lists", `{"Statement":[[]]}`, ErrMalformed, 0, "", "not an object"},
		{"Version unknown", `{"Version":"2012-10-18","Statement":` + goodStatement + `}`, ErrMalformed, none, "Version", "2012-10-17"},
		{"Version number", `{"Version":2012,"Statement":` + goodStatement + `}`, ErrMalformed, none, "Version", "2012-10-17"},
		{"Version null", `{"Version":null,"Statement":` + goodStatement + `}`, ErrMalformed, none, "Version", "2012-10-17"},
		{"Id number", `{"Id":1,"Statement":` + goodStatement + `}`, ErrMalformed, none, "Id", "string"},
		{"unknown element", `{"Statements":[]}`, ErrMalformed, none, "", `"Statements"`},
		{"element's case", `{"statement":` + goodStatement + `}`, ErrMalformed, none, "", `"statement"`},

		// Statements
		{"unknown in statement", inStatement(`"Conditions":{}`), ErrMalformed, 1, "", `"Conditions"`},
		{"case in statement", inStatement(`"condition":{}`), ErrMalformed, 1, "", `"condition"`},
		{"Sid number", inStatement(`"Sid":1`), ErrMalformed, 1, "Sid", "string"},
		{"Effect missing", statementWith("Effect", ""), ErrMalformed, 1, "Effect", "missing"},
		{"Effect lower case", statementWith("Effect", `"allow"`), ErrMalformed, 1, "Effect", "Allow"},
		{"Effect null", statementWith("Effect", `null`), ErrMalformed, 1, "Effect", "Allow"},
		{"Effect list", statementWith("Effect", `["Deny"]`), ErrMalformed, 1, "Effect", "Allow"},
		{"Effect with space", statementWith("Effect", `"Deny "`), ErrMalformed, 1, "Effect", "Deny"},
		{"empty statement", `{"Statement":{}}`, ErrMalformed, 0, "Effect", "missing"},

		{"Principal missing", statementWith("Principal", ""), ErrMalformed, 1, "Principal", "missing"},
		{"Principal null", statementWith("Principal", `null`), ErrMalformed, 1, "Principal", "want"},
		{"Principal empty", statementWith("Principal", `{}`), ErrMalformed, 1, "Principal", "want"},
		{"Principal list", statementWith("Principal", `["*"]`), ErrMalformed, 1, "Principal", "want"},
		{"Principal bare ARN", statementWith("Principal", `"arn:aws:iam::111122223333:root"`), ErrMalformed, 1, "Principal", "neither"},
		{"Principal of unknown kind", statementWith("Principal", `{"aws":"*"}`), ErrMalformed, 1, "Principal", `"aws"`},
		{"Principal AWS empty", statementWith("Principal", `{"AWS":[]}`), ErrMalformed, 1, "Principal.AWS", "at least one"},
		{"Principal AWS object", statementWith("Principal", `{"AWS":{}}`), ErrMalformed, 1, "Principal.AWS", "string"},
		{"Principal AWS mixed", statementWith("Principal", `{"AWS":["*",1]}`), ErrMalformed, 1, "Principal.AWS", "other than strings"},
		{"principal empty", statementWith("Principal", `{"AWS":""}`), ErrInvalidPrincipal, 1, "Principal.AWS", ""},
		{"principal wildcard", statementWith("Principal", `{"AWS":"arn:aws:iam::111122223333:user/*"}`), ErrInvalidPrincipal, 1, "Principal.AWS", "user/*"},
		{"principal wildcard account", statementWith("Principal", `{"AWS":"arn:aws:iam::*:root"}`), ErrInvalidPrincipal, 1, "Principal.AWS", "12 digits"},
		{"principal two stars", statementWith("Principal", `{"AWS":"**"}`), ErrInvalidPrincipal, 1, "Principal.AWS", ""},
		{"principal group", statementWith("Principal", `{"AWS":"arn:aws:iam::111122223333:group/g"}`), ErrInvalidPrincipal, 1, "Principal.AWS", "group"},
		{"principal unique id", statementWith("Principal", `{"AWS":"AIDACKCEVSQ6C2EXAMPLE"}`), ErrInvalidPrincipal, 1, "Principal.AWS", ""},
		{"principal after good ones", statementWith("Principal", `{"AWS":["111122223333","1111222233334"]}`), ErrInvalidPrincipal, 1, "Principal.AWS", "1111222233334"},

		{"Action null", statementWith("Action", `null`), ErrMalformed, 1, "Action", "string"},
		{"Action empty list", statementWith("Action", `[]`), ErrMalformed, 1, "Action", "at least one"},
		{"Action empty", statementWith("Action", `""`), ErrMalformed, 1, "Action", "kms:"},
		{"Action nested", statementWith("Action", `[["kms:*"]]`), ErrMalformed, 1, "Action", "other than strings"},
		{"Action without service", statementWith("Action", `"Encrypt"`), ErrMalformed, 1, "Action", `"Encrypt"`},
		{"Action without name", statementWith("Action", `"kms:"`), ErrMalformed, 1, "Action", `"kms:"`},
		{"Action without service name", statementWith("Action", `":Encrypt"`), ErrMalformed, 1, "Action", `":Encrypt"`},
		{"Action two colons", statementWith("Action", `"kms:kms:Encrypt"`), ErrMalformed, 1, "Action", "neither"},
		{"Action with space", statementWith("Action", `["kms:Encrypt","kms:Decrypt "]`), ErrMalformed, 1, "Action", `"kms:Decrypt "`},
		{"Action with variable", statementWith("Action", `"kms:${aws:username}"`), ErrMalformed, 1, "Action", "neither"},
		{"Action no-break space", statementWith("Action", `"kms:Decrypt\u00a0"`), ErrMalformed, 1, "Action", "neither"},

		{"Resource null", statementWith("Resource", `null`), ErrMalformed, 1, "Resource", "string"},
		{"Resource empty list", statementWith("Resource", `[]`), ErrMalformed, 1, "Resource", "at least one"},
		{"Resource empty", statementWith("Resource", `""`), ErrMalformed, 1, "Resource", "neither"},
		{"Resource key id", statementWith("Resource", `"1234abcd-12ab-34cd-56ef-1234567890ab"`), ErrMalformed, 1, "Resource", "neither"},
		{"Resource short ARN", statementWith("Resource", `"arn:aws:kms:us-east-1:111122223333"`), ErrMalformed, 1, "Resource", "neither"},
		{"Resource with space", statementWith("Resource", `"`+testKey+` "`), ErrMalformed, 1, "Resource", "neither"},
		{"Resource upper case", statementWith("Resource", `"ARN:aws:kms:us-east-1:111122223333:key/*"`), ErrMalformed, 1, "Resource", "neither"},

		// Elements of IAM that we do not evaluate
		{"Condition", inStatement(`"Condition":{"Bool":{"aws:SecureTransport":["false"]}}`), ErrUnsupported, 1, "Condition", ""},
		{"Condition empty", inStatement(`"Condition":{}`), ErrUnsupported, 1, "Condition", ""},
		{"Condition null", inStatement(`"Condition":null`), ErrUnsupported, 1, "Condition", ""},
		{"Condition, escaped", inStatement(`"\u0043ondition":{}`), ErrUnsupported, 1, "Condition", ""},
		{"Condition before other faults", `{"Statement":{"Effect":"x","Condition":{}}}`, ErrUnsupported, 0, "Condition", ""},
		{"NotPrincipal", `{"Statement":{"Effect":"Deny","NotPrincipal":{"AWS":"111122223333"},"Action":"kms:*","Resource":"*"}}`, ErrUnsupported, 0, "NotPrincipal", ""},
		{"NotAction", inStatement(`"NotAction":"kms:Encrypt"`), ErrUnsupported, 1, "NotAction", ""},
		{"NotResource", inStatement(`"NotResource":"*"`), ErrUnsupported, 1, "NotResource", ""},
		{"Service", statementWith("Principal", `{"AWS":"*","Service":"s3.amazonaws.com"}`), ErrUnsupported, 1, "Principal.Service", ""},
		{"Federated", statementWith("Principal", `{"Federated":"cognito-identity.amazonaws.com"}`), ErrUnsupported, 1, "Principal.Federated", ""},
		{"CanonicalUser", statementWith("Principal", `{"CanonicalUser":"79a59d"}`), ErrUnsupported, 1, "Principal.CanonicalUser", ""},
		{"variable", statementWith("Resource", `"arn:aws:kms:*:*:key/${aws:username}"`), ErrUnsupported, 1, "Resource", "variables"},
		{"variable, Version last", `{"Statement":{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"arn:aws:kms:*:*:key/${*}"},"Version":"2012-10-17"}`, ErrUnsupported, 0, "Resource", "variables"},

		{"too long", `{"Id":"` + strings.Repeat("x", MaxKeyPolicySize) + `"}`, ErrTooLong, none, "", "32768"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, err := Parse([]byte(tt.doc))
			if d != nil {
				t.Fatal("Parse took the document")
			}
			var se *SyntaxError
			if !errors.As(err, &se) || !errors.Is(err, tt.err) {
				t.Fatalf("got error %v, want a *SyntaxError that is %v", err, tt.err)
			}
			if se.Statement != tt.statement || se.Element != tt.element || !strings.Contains(se.Detail, tt.detail) {
				t.Errorf("got statement %d, element %q, detail %q; want %d, %q, and in the detail %q",
					se.Statement, se.Element, se.Detail, tt.statement, tt.element, tt.detail)
			}
			if n := len(err.Error()); n > 400 {
				t.Errorf("message of %d bytes: %v", n, err)
			}
			if strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' }) {
				t.Errorf("control character in the message %q", err.Error())
			}
		})
	}
}

func TestParseTakes(t *testing.T) {
	for name, doc := range map[string]string{
		"2008":                  `{"Version":"2008-10-17","Statement":` + goodStatement + `}`,
		"no version":            `{"Statement":[` + goodStatement + `]}`,
		"Id and Sid":            `{"Id":"é any text","Statement":[` + strings.Replace(goodStatement, "{", `{"Sid":"spaces are fine",`, 1) + `]}`,
		"same Sid twice":        strings.Replace(inStatement(`"Sid":"a"`), "{\"Effect\"", "{\"Sid\":\"a\",\"Effect\"", 1),
		"no Action":             statementWith("Action", ""),
		"no Resource":           statementWith("Resource", ""),
		"everything escaped":    `{"\u0053tatement":{"Effect":"\u0041llow","Principal":"\u002a","Action":"kms\u003a*","Resource":"*"}}`,
		"white space":           "\t\r\n {\n\"Statement\"\r:\t" + goodStatement + "}\n",
		"surrogates not needed": `{"Id":"\u00ff","Statement":` + goodStatement + `}`,
		"just long enough":      `{"Statement":` + goodStatement + `}` + strings.Repeat(" ", MaxKeyPolicySize-len(goodStatement)-14),
		"dollar":                statementWith("Resource", `"arn:aws:kms:*:*:key/$"`),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Parse([]byte(doc)); err != nil {
				t.Errorf("Parse: %v", err)
			}
		})
	}
}

func TestClientMessage(t *testing.T) {
	_, err := Parse([]byte(statementWith("Principal", `{"AWS":"nobody"}`)))
	var se *SyntaxError
	if !errors.As(err, &se) {
		t.Fatalf("got %v, want a *SyntaxError", err)
	}
	if got := se.ClientMessage(); got != "Policy contains a statement with one or more invalid principals." {
		t.Errorf("ClientMessage() = %q", got)
	}
	_, err = Parse([]byte(inStatement(`"Condition":{}`)))
	if !errors.As(err, &se) {
		t.Fatalf("got %v, want a *SyntaxError", err)
	}
	if got, want := se.ClientMessage(), "policy element is not supported: Statement[1].Condition"; got != want {
		t.Errorf("ClientMessage() = %q, want %q", got, want)
	}
	_, err = Parse([]byte(`{"Id":7}`))
	if got, want := err.Error(), "malformed policy document: Id: not a string"; got != want {
		t.Errorf("Error() = %q, want %q", got, want)
	}
}

func TestQuotedCutsOnARune(t *testing.T) {
	got := quoted(strings.Repeat("x", 63) + "éé")
	if want := `"` + strings.Repeat("x", 63) + `"... (67 bytes)`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestParseKeepsNoReference changes the bytes after parsing.
func TestParseKeepsNoReference(t *testing.T) {
	doc := []byte(statementWith("Principal", `{"AWS":"arn:aws:iam::111122223333:user/alice"}`))
	d, err := Parse(doc)
	if err != nil {
		t.Fatal(err)
	}
	for i := range doc {
		doc[i] = 'x'
	}
	if got := d.Principals()[0].ARN; got != "arn:aws:iam::111122223333:user/alice" {
		t.Errorf("principal became %q", got)
	}
}

func TestPrincipals(t *testing.T) {
	d := mustParse(t, `{"Statement":[
		{"Effect":"Allow","Principal":{"AWS":["111122223333","*","arn:aws:iam::111122223333:user/a"]}},
		{"Effect":"Deny","Principal":"*"},
		{"Effect":"Deny","Principal":{"AWS":["arn:aws:iam::111122223333:user/a","arn:aws:iam::111122223333:root"]}}]}`)
	want := []Principal{
		{Account: "111122223333", Kind: KindRoot},
		{ARN: "arn:aws:iam::111122223333:user/a", Partition: "aws", Account: "111122223333", Kind: KindUser, Name: "a"},
		{ARN: "arn:aws:iam::111122223333:root", Partition: "aws", Account: "111122223333", Kind: KindRoot},
	}
	got := d.Principals()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	got[0] = Principal{}
	if diff := cmp.Diff(want, d.Principals()); diff != "" {
		t.Errorf("a caller's write reached the document (-want +got):\n%s", diff)
	}
}

func TestDefaultKeyPolicy(t *testing.T) {
	const want = `{
  "Version" : "2012-10-17",
  "Id" : "key-default-1",
  "Statement" : [ {
    "Sid" : "Enable IAM User Permissions",
    "Effect" : "Allow",
    "Principal" : {
      "AWS" : "arn:aws-cn:iam::111122223333:root"
    },
    "Action" : "kms:*",
    "Resource" : "*"
  } ]
}`
	got := DefaultKeyPolicy("aws-cn", "111122223333")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	wantNamed := []Principal{{ARN: "arn:aws-cn:iam::111122223333:root", Partition: "aws-cn", Account: "111122223333", Kind: KindRoot}}
	if diff := cmp.Diff(wantNamed, mustParse(t, got).Principals()); diff != "" {
		t.Errorf("principals (-want +got):\n%s", diff)
	}
}

// FuzzParse checks each document that Parse accepts with a second JSON parser:
// it has no element that is not evaluated, and is within the limits.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/decisions/*.json")
	if err != nil || len(files) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	for _, name := range files {
		raw, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		var file corpusFile
		if err := json.Unmarshal(raw, &file); err != nil {
			f.Fatal(err)
		}
		f.Add([]byte(file.Policy))
	}
	f.Add([]byte(DefaultKeyPolicy("aws", "111122223333")))
	f.Add([]byte(inStatement(`"Condition":{"StringEquals":{"kms:ViaService":["x"]}}`)))
	f.Add([]byte(statementWith("Resource", `"arn:aws:kms:*:*:key/${aws:username}"`)))
	f.Add([]byte(`{"\u0053tatement":{"NotAction":[]}}`))
	known := map[string]bool{"Sid": true, "Effect": true, "Principal": true, "Action": true, "Resource": true}
	f.Fuzz(func(t *testing.T, doc []byte) {
		d, err := Parse(doc)
		if err != nil {
			var se *SyntaxError
			if d != nil || !errors.As(err, &se) || len(err.Error()) > 1000 {
				t.Fatalf("got %v and error %v", d, err)
			}
			return
		}
		if len(doc) > MaxKeyPolicySize {
			t.Fatalf("took %d bytes", len(doc))
		}
		var outer struct{ Version, Id *string }
		var whole map[string]json.RawMessage
		if err := errors.Join(json.Unmarshal(doc, &outer), json.Unmarshal(doc, &whole)); err != nil {
			t.Fatalf("took what encoding/json does not: %v", err)
		}
		var statements []map[string]any
		if json.Unmarshal(whole["Statement"], &statements) != nil {
			statements = make([]map[string]any, 1)
			if err := json.Unmarshal(whole["Statement"], &statements[0]); err != nil {
				t.Fatal(err)
			}
		}
		if len(statements) != len(d.allows)+len(d.denies) {
			t.Fatalf("%d statements became %d and %d", len(statements), len(d.allows), len(d.denies))
		}
		for i, s := range statements {
			for name := range s {
				if !known[name] {
					t.Fatalf("took statement %d with %q", i, name)
				}
			}
			if s["Principal"] == nil || s["Effect"] != "Allow" && s["Effect"] != "Deny" {
				t.Fatalf("took statement %d: %v", i, s)
			}
			if r := fmt.Sprint(s["Resource"]); outer.Version != nil && *outer.Version == version2012 && strings.Contains(r, "${") {
				t.Fatalf("took a variable in %s", r)
			}
		}
		for _, p := range d.Principals() {
			again, err := ParsePrincipal(p.String())
			if err != nil || again != p {
				t.Fatalf("principal %+v reads back as %+v, %v", p, again, err)
			}
		}
		for _, who := range []string{"arn:aws:iam::111122223333:root", "arn:aws:sts::111122223333:assumed-role/app/s1"} {
			Evaluate(Request{mustPrincipal(t, who), "kms:Encrypt", testKey}, Policies{Key: d})
		}
	})
}
