package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

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

// inCondition puts an operator into the Condition of such a statement.
func inCondition(block string) string { return inStatement(`"Condition":{` + block + `}`) }

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
		{"principal unique id of a group", statementWith("Principal", `{"AWS":"AGPACKCEVSQ6C2EXAMPLE"}`), ErrInvalidPrincipal, 1, "Principal.AWS", ""},
		{"principal unique id in lower case", statementWith("Principal", `{"AWS":"AIDAckcevsq6c2example"}`), ErrInvalidPrincipal, 1, "Principal.AWS", ""},
		{"principal session of a user", statementWith("Principal", `{"AWS":"AIDACKCEVSQ6C2EXAMPLE:one"}`), ErrInvalidPrincipal, 1, "Principal.AWS", ""},
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

		// NotPrincipal, NotAction, NotResource
		{"NotPrincipal in an Allow", `{"Statement":{"Effect":"Allow","NotPrincipal":{"AWS":"111122223333"},"Action":"kms:*","Resource":"*"}}`, ErrMalformed, 0, "NotPrincipal", "only a Deny"},
		{"NotPrincipal everybody", `{"Statement":{"Effect":"Deny","NotPrincipal":{"AWS":["111122223333","*"]},"Action":"kms:*","Resource":"*"}}`, ErrMalformed, 0, "NotPrincipal", "nobody"},
		{"NotPrincipal too", inStatement(`"NotPrincipal":{"AWS":"111122223333"}`), ErrMalformed, 1, "NotPrincipal", "too"},
		{"NotAction too", inStatement(`"NotAction":"kms:Encrypt"`), ErrMalformed, 1, "NotAction", "too"},
		{"NotResource too", inStatement(`"NotResource":"*"`), ErrMalformed, 1, "NotResource", "too"},
		{"NotAction empty", `{"Statement":{"Effect":"Deny","Principal":"*","NotAction":[],"Resource":"*"}}`, ErrMalformed, 0, "NotAction", "at least one"},

		// Principals
		{"Service wildcard", statementWith("Principal", `{"Service":"*"}`), ErrInvalidPrincipal, 1, "Principal.Service", `"*"`},
		{"Service ARN", statementWith("Principal", `{"Service":"arn:aws:iam::111122223333:root"}`), ErrInvalidPrincipal, 1, "Principal.Service", "not the name"},
		{"Service pattern", statementWith("Principal", `{"Service":"*.amazonaws.com"}`), ErrInvalidPrincipal, 1, "Principal.Service", "not the name"},
		{"Federated name", statementWith("Principal", `{"Federated":"cognito-identity.amazonaws.com"}`), ErrInvalidPrincipal, 1, "Principal.Federated", "invalid ARN"},
		{"Federated wildcard", statementWith("Principal", `{"Federated":"arn:aws:iam::111122223333:oidc-provider/*"}`), ErrInvalidPrincipal, 1, "Principal.Federated", "provider"},
		{"CanonicalUser", statementWith("Principal", `{"CanonicalUser":"79a59d"}`), ErrMalformed, 1, "Principal.CanonicalUser", "S3"},

		// Variables
		{"variable not closed", statementWith("Resource", `"arn:aws:kms:*:*:key/${aws:username"`), ErrMalformed, 1, "Resource", "closing"},
		{"variable empty", statementWith("Resource", `"arn:aws:kms:*:*:key/${}"`), ErrMalformed, 1, "Resource", "service:name"},
		{"variable without service", statementWith("Resource", `"arn:aws:kms:*:*:key/${username}"`), ErrMalformed, 1, "Resource", "service:name"},
		{"variable, default not quoted", statementWith("Resource", `"arn:aws:kms:*:*:key/${aws:username, x}"`), ErrMalformed, 1, "Resource", "default"},
		{"variable, default not closed", statementWith("Resource", `"arn:aws:kms:*:*:key/${aws:username, 'x}"`), ErrMalformed, 1, "Resource", "default"},
		{"variable, default with a variable", statementWith("Resource", `"arn:aws:kms:*:*:key/${aws:username, '${aws:userid}'}"`), ErrMalformed, 1, "Resource", "default"},
		{"variables, too many", statementWith("Resource", `"arn:aws:kms:*:*:key/`+strings.Repeat("${aws:username}", maxVariables+1)+`"`), ErrMalformed, 1, "Resource", "more than 16"},
		{"variable, Version last", `{"Statement":{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"arn:aws:kms:*:*:key/${x}"},"Version":"2012-10-17"}`, ErrMalformed, 0, "Resource", "service:name"},

		{"question marks, too many", statementWith("Resource", `["arn:*`+strings.Repeat("?", maxFloating)+`*","arn:*?${aws:username}"]`), ErrMalformed, 1, "Resource", "question marks"},

		// Condition
		{"Condition null", inStatement(`"Condition":null`), ErrMalformed, 1, "Condition", "object"},
		{"Condition list", inStatement(`"Condition":[]`), ErrMalformed, 1, "Condition", "object"},
		{"operator unknown", inCondition(`"StringEqual":{"aws:username":"x"}`), ErrMalformed, 1, "Condition", `"StringEqual"`},
		{"operator's case", inCondition(`"stringEquals":{"aws:username":"x"}`), ErrMalformed, 1, "Condition", `"stringEquals"`},
		{"operator with space", inCondition(`"StringEquals ":{"aws:username":"x"}`), ErrMalformed, 1, "Condition", `"StringEquals "`},
		{"operator empty", inCondition(`"":{"aws:username":"x"}`), ErrMalformed, 1, "Condition", "unknown operator"},
		{"prefix unknown", inCondition(`"ForAllValue:StringEquals":{"aws:username":"x"}`), ErrMalformed, 1, "Condition", "unknown operator"},
		{"prefix twice", inCondition(`"ForAnyValue:ForAnyValue:StringEquals":{"aws:username":"x"}`), ErrMalformed, 1, "Condition", "unknown operator"},
		{"prefix alone", inCondition(`"ForAnyValue:":{"aws:username":"x"}`), ErrMalformed, 1, "Condition", "unknown operator"},
		{"suffix twice", inCondition(`"StringEqualsIfExistsIfExists":{"aws:username":"x"}`), ErrMalformed, 1, "Condition", "unknown operator"},
		{"Null with suffix", inCondition(`"NullIfExists":{"aws:username":"true"}`), ErrMalformed, 1, "Condition", "Null"},
		{"Null with prefix", inCondition(`"ForAnyValue:Null":{"aws:username":"true"}`), ErrMalformed, 1, "Condition", "Null"},
		{"operator null", inCondition(`"StringEquals":null`), ErrMalformed, 1, "Condition.StringEquals", "object"},
		{"operator twice", inCondition(`"StringEquals":{"aws:username":"x"},"StringEquals":{"aws:userid":"x"}`), ErrMalformed, none, "", "twice"},
		{"key twice", inCondition(`"StringEquals":{"aws:username":"x","AWS:UserName":"y"}`), ErrMalformed, 1, "Condition.StringEquals", "twice"},
		{"key without service", inCondition(`"StringEquals":{"username":"x"}`), ErrMalformed, 1, "Condition.StringEquals", "service:name"},
		{"key without name", inCondition(`"StringEquals":{"aws:":"x"}`), ErrMalformed, 1, "Condition.StringEquals", "service:name"},
		{"key with variable", inCondition(`"StringEquals":{"aws:ResourceTag/${aws:username}":"x"}`), ErrMalformed, 1, "Condition.StringEquals", "characters"},
		{"key with line feed", inCondition(`"StringEquals":{"aws:ResourceTag/a\n":"x"}`), ErrMalformed, 1, "Condition.StringEquals", "characters"},
		{"key with space in the service", inCondition(`"StringEquals":{"aws :username":"x"}`), ErrMalformed, 1, "Condition.StringEquals", "prefix"},
		{"values none", inCondition(`"StringEquals":{"aws:username":[]}`), ErrMalformed, 1, "Condition.StringEquals", "at least one"},
		{"value null", inCondition(`"StringEquals":{"aws:username":null}`), ErrMalformed, 1, "Condition.StringEquals", "strings"},
		{"value list", inCondition(`"StringEquals":{"aws:username":[["x"]]}`), ErrMalformed, 1, "Condition.StringEquals", "strings"},
		{"value object", inCondition(`"StringEquals":{"aws:username":{}}`), ErrMalformed, 1, "Condition.StringEquals", "strings"},
		{"string with bad variable", inCondition(`"StringEquals":{"aws:username":"${x}"}`), ErrMalformed, 1, "Condition.StringEquals", "variable"},
		{"number not one", inCondition(`"NumericEquals":{"aws:x":"1e3"}`), ErrMalformed, 1, "Condition.NumericEquals", "decimal"},
		{"number with exponent", inCondition(`"NumericEquals":{"aws:x":1e3}`), ErrMalformed, 1, "Condition.NumericEquals", "decimal"},
		{"number with a variable", inCondition(`"NumericEquals":{"aws:x":"${aws:EpochTime}"}`), ErrMalformed, 1, "Condition.NumericEquals", "decimal"},
		{"number boolean", inCondition(`"NumericEquals":{"aws:x":true}`), ErrMalformed, 1, "Condition.NumericEquals", "decimal"},
		{"number of the date", inCondition(`"NumericLessThan":{"aws:CurrentTime":1764374400}`), ErrMalformed, 1, "Condition.NumericLessThan", "Date"},
		{"number beyond time", inCondition(`"NumericLessThan":{"aws:EpochTime":253402300800}`), ErrMalformed, 1, "Condition.NumericLessThan", "10000"},
		{"date without zone", inCondition(`"DateLessThan":{"aws:CurrentTime":"2026-01-01T00:00:00"}`), ErrMalformed, 1, "Condition.DateLessThan", "date"},
		{"date of no month", inCondition(`"DateLessThan":{"aws:CurrentTime":"2026-13-01"}`), ErrMalformed, 1, "Condition.DateLessThan", "date"},
		{"date without hyphens", inCondition(`"DateLessThan":{"aws:CurrentTime":"20260101"}`), ErrMalformed, 1, "Condition.DateLessThan", "date"},
		{"date lone year", inCondition(`"DateLessThan":{"aws:CurrentTime":2026}`), ErrMalformed, 1, "Condition.DateLessThan", "date"},
		{"date in milliseconds", inCondition(`"DateLessThan":{"aws:CurrentTime":1764374400000}`), ErrMalformed, 1, "Condition.DateLessThan", "date"},
		{"date with a comma", inCondition(`"DateLessThan":{"aws:CurrentTime":"2026-01-01T00:00:00,5Z"}`), ErrMalformed, 1, "Condition.DateLessThan", "date"},
		{"bool word", inCondition(`"Bool":{"aws:SecureTransport":"yes"}`), ErrMalformed, 1, "Condition.Bool", "true or false"},
		{"bool number", inCondition(`"Bool":{"aws:SecureTransport":1}`), ErrMalformed, 1, "Condition.Bool", "true or false"},
		{"bool empty", inCondition(`"Bool":{"aws:SecureTransport":""}`), ErrMalformed, 1, "Condition.Bool", "true or false"},
		{"null word", inCondition(`"Null":{"aws:username":"null"}`), ErrMalformed, 1, "Condition.Null", "true or false"},
		{"binary", inCondition(`"BinaryEquals":{"aws:x":"QQ"}`), ErrMalformed, 1, "Condition.BinaryEquals", "base64"},
		{"binary, bits left", inCondition(`"BinaryEquals":{"aws:x":"QR=="}`), ErrMalformed, 1, "Condition.BinaryEquals", "base64"},
		{"address", inCondition(`"IpAddress":{"aws:SourceIp":"10.0.0"}`), ErrMalformed, 1, "Condition.IpAddress", "CIDR"},
		{"address with zeros", inCondition(`"IpAddress":{"aws:SourceIp":"010.0.0.1"}`), ErrMalformed, 1, "Condition.IpAddress", "CIDR"},
		{"address with zone", inCondition(`"IpAddress":{"aws:SourceIp":"fe80::1%eth0"}`), ErrMalformed, 1, "Condition.IpAddress", "CIDR"},
		{"range too long", inCondition(`"IpAddress":{"aws:SourceIp":"10.0.0.0/33"}`), ErrMalformed, 1, "Condition.IpAddress", "CIDR"},
		{"range of a list", inCondition(`"IpAddress":{"aws:SourceIp":"10.0.0.0/8,11.0.0.0/8"}`), ErrMalformed, 1, "Condition.IpAddress", "CIDR"},
		{"ARN star", inCondition(`"ArnLike":{"aws:SourceArn":"*"}`), ErrMalformed, 1, "Condition.ArnLike", "ARN"},
		{"ARN too short", inCondition(`"ArnLike":{"aws:SourceArn":"arn:aws:sns:*"}`), ErrMalformed, 1, "Condition.ArnLike", "ARN"},
		{"ARN without resource", inCondition(`"ArnLike":{"aws:SourceArn":"arn:aws:sns:::"}`), ErrMalformed, 1, "Condition.ArnLike", "ARN"},
		{"ARN of a star", inCondition(`"ArnLike":{"aws:SourceArn":"${*}"}`), ErrMalformed, 1, "Condition.ArnLike", "ARN"},
		{"ARN not one", inCondition(`"ArnLike":{"aws:SourceArn":"a:b:c:d:e:f"}`), ErrMalformed, 1, "Condition.ArnLike", "ARN"},
		{"ForAllValues of a single value", inCondition(`"ForAllValues:StringEquals":{"kms:EncryptionContext:a":"x"}`), ErrMalformed, 1, "Condition.ForAllValues:StringEquals", "OverlyPermissive"},
		{"ForAllValues of a tag", inCondition(`"ForAllValues:StringLike":{"AWS:RequestTag/a":"x"}`), ErrMalformed, 1, "Condition.ForAllValues:StringLike", "OverlyPermissive"},

		{"too long", `{"Id":"` + strings.Repeat("x", MaxKeyPolicySize) + `"}`, ErrTooLong, none, "", "32768"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, err := Parse(KeyPolicy, []byte(tt.doc))
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
		"question marks":        statementWith("Resource", `["arn:*`+strings.Repeat("?", maxFloating)+`*","arn:aws:*:`+strings.Repeat("?", 300)+`"]`),
		"dollar":                statementWith("Resource", `"arn:aws:kms:*:*:key/$"`),
		"variable":              statementWith("Resource", `"arn:aws:kms:*:*:${aws:PrincipalTag/a b, 'any'}:key/${*}${$}"`),
		"variable in old":       strings.Replace(statementWith("Resource", `"arn:aws:kms:*:*:key/${"`), "2012", "2008", 1),
		"Condition empty":       inStatement(`"Condition":{}`),
		"operator empty":        inCondition(`"StringEquals":{}`),
		"value types":           inCondition(`"StringEquals":{"aws:x":["a",true,false,1,1.5e3]},"Bool":{"aws:x":[true,"False"]},"NumericEquals":{"aws:x":[1,-2.50,"3"]}`),
		"dates":                 inCondition(`"DateEquals":{"aws:CurrentTime":["2026-01-01T00:00:00Z","2026-01-01T00:00:00.5+01:00","2026-01-01T00:00Z","2026-01-01","2026-01",1764374400,"1764374400"]}`),
		"addresses":             inCondition(`"IpAddress":{"aws:SourceIp":["10.0.0.1","10.0.0.1/8","::/0","2001:DB8::/32","::ffff:10.0.0.0/104","::ffff:0:0/90","::1"]}`),
		"ARNs":                  inCondition(`"ArnLike":{"aws:SourceArn":["arn:*:*:*:*:*","arn:aws:sns:::${aws:username, 'a:b'}:x","${aws:PrincipalArn}","arn:aws:sns:${aws:RequestedRegion}:1?:a:b"]}`),
		"Null":                  inCondition(`"Null":{"aws:x":[true,"FALSE"]}`),
		"encryption context":    inCondition(`"StringEquals":{"kms:EncryptionContext:Département: 7":"x","token.actions.example.com/id/1:sub":"y"}`),
		"NotAction":             `{"Statement":{"Effect":"Deny","NotPrincipal":{"AWS":"111122223333","Service":"a.b.c"},"NotAction":"kms:*","NotResource":"*"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Parse(KeyPolicy, []byte(doc)); err != nil {
				t.Errorf("Parse: %v", err)
			}
		})
	}
}

// TestParseIsBounded parses documents of the greatest length that are as
// expensive as they can be.
func TestParseIsBounded(t *testing.T) {
	fill := func(before, item, after string) string {
		n := (MaxPolicySize - len(before) - len(after) - 10) / (len(item) + 1)
		return before + strings.TrimSuffix(strings.Repeat(item+",", n), ",") + after
	}
	const statement = `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"*","Resource":"*","Condition":`
	members := make([]string, MaxPolicySize/16)
	for i := range members {
		members[i] = fmt.Sprintf(`"a:%d":1`, i)
	}
	for name, doc := range map[string]string{
		"escapes":    statement + `{"StringLike":{"aws:x":"` + strings.Repeat("${*}", MaxPolicySize/4-100) + `"}}}}`,
		"variables":  fill(statement+`{"StringLike":{"aws:x":[`, `"`+strings.Repeat("${a:b}", maxVariables)+`"`, `]}}}}`),
		"ARNs":       fill(statement+`{"ArnLike":{"aws:x":[`, `"arn:*:*:*:*:*"`, `]}}}}`),
		"stars":      statement + `{"StringLike":{"aws:x":"` + strings.Repeat("a*", MaxPolicySize/2-200) + `"}}}}`,
		"members":    statement + `{"StringLike":{` + strings.Join(members, ",") + `}}}}`,
		"statements": fill(`{"Statement":[`, `{"Effect":"Deny","Action":"*","Resource":"*"}`, `]}`),
		"numbers":    fill(`{"Statement":[`, `1`, `]}`),
		"lists":      fill(`{"Statement":[`, `[[[[]]]]`, `]}`),
	} {
		best := time.Hour
		for range 2 {
			start := time.Now()
			_, err := Parse(IdentityPolicy, []byte(doc))
			if best = min(best, time.Since(start)); (err != nil) != (name == "numbers" || name == "lists") {
				t.Errorf("%s: %v", name, err)
			}
		}
		t.Logf("%s: %d bytes, %v", name, len(doc), best)
		if best > 2*time.Second {
			t.Errorf("%s took %v", name, best)
		}
	}
}

func TestClientMessage(t *testing.T) {
	_, err := Parse(KeyPolicy, []byte(statementWith("Principal", `{"AWS":"nobody"}`)))
	var se *SyntaxError
	if !errors.As(err, &se) {
		t.Fatalf("got %v, want a *SyntaxError", err)
	}
	if got := se.ClientMessage(); got != "Policy contains a statement with one or more invalid principals." {
		t.Errorf("ClientMessage() = %q", got)
	}
	for key, want := range map[string]string{
		"kms:EncryptionContext:a": "OverlyPermissiveCondition: Using the ForAllValues set operator with a single-valued condition key matches requests without the specified encryption context or with an unspecified encryption context. To fix, remove ForAllValues.",
		"aws:RequestTag/a":        "OverlyPermissiveCondition: Using the ForAllValues set operator with a single-valued condition key matches requests without the specified tag or with an unspecified tag. To fix, remove ForAllValues.",
	} {
		_, err := Parse(KeyPolicy, []byte(inCondition(`"ForAllValues:StringEquals":{"`+key+`":"x"}`)))
		if !errors.As(err, &se) || se.ClientMessage() != want {
			t.Errorf("%s: got %v, want the message %q", key, err, want)
		}
	}
	_, err = Parse(KeyPolicy, []byte(`{"Id":7}`))
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
	d, err := Parse(KeyPolicy, doc)
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

// FuzzParse checks each document that Parse accepts, as one of each kind, with a
// second JSON parser: it has no unknown element, and is within the limits. Then
// it is evaluated.
func FuzzParse(f *testing.F) {
	for _, doc := range corpusDocuments(f) {
		f.Add(uint8(doc.kind), []byte(doc.text))
	}
	f.Add(uint8(KeyPolicy), []byte(DefaultKeyPolicy("aws", "111122223333")))
	f.Add(uint8(KeyPolicy), []byte(inStatement(`"Condition":{"StringEquals":{"kms:ViaService":["x"]}}`)))
	f.Add(uint8(KeyPolicy), []byte(statementWith("Resource", `"arn:aws:kms:*:*:key/${aws:username}"`)))
	f.Add(uint8(IdentityPolicy), []byte(`{"\u0053tatement":{"NotAction":[]}}`))
	known := map[string]bool{
		"Sid": true, "Effect": true, "Principal": true, "NotPrincipal": true, "Action": true, "NotAction": true,
		"Resource": true, "NotResource": true, "Condition": true,
	}
	f.Fuzz(func(t *testing.T, kind uint8, doc []byte) {
		k := Kind(kind % 4)
		d, err := Parse(k, doc)
		if err != nil {
			var se *SyntaxError
			if d != nil || !errors.As(err, &se) || len(err.Error()) > 1000 {
				t.Fatalf("got %v and error %v", d, err)
			}
			return
		}
		if len(doc) > MaxPolicySize || k == KeyPolicy && len(doc) > MaxKeyPolicySize {
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
			named := s["Principal"] != nil || s["NotPrincipal"] != nil
			if named != k.hasPrincipals() || s["Effect"] != "Allow" && s["Effect"] != "Deny" {
				t.Fatalf("took statement %d: %v", i, s)
			}
		}
		for _, p := range d.Principals() {
			again, err := parseNamed(p.String())
			if err != nil || again != p {
				t.Fatalf("principal %+v reads back as %+v, %v", p, again, err)
			}
		}
		if same := RenamePrincipals(string(doc), nil); same != string(doc) {
			t.Fatalf("with no names to replace, the document became %s", same)
		}
		names := make(map[string]string)
		for _, p := range d.Principals() {
			names[p.String()] = "AIDAAAAAAAAAAAAAAAA9"
		}
		renamed := RenamePrincipals(string(doc), names)
		if other, err := Parse(k, []byte(renamed)); err != nil && len(renamed) <= len(doc) || err == nil && len(names) > 0 && (len(other.principals) != 1 || other.principals[0].ID != "AIDAAAAAAAAAAAAAAAA9") {
			t.Fatalf("with other names, the document became %s, %v", renamed, err)
		}
		policies := Policies{Resource: d}
		if !k.hasPrincipals() {
			policies = Policies{Identity: []*Document{d}, Boundary: d, Session: []*Document{d}}
		}
		for _, who := range []string{"arn:aws:iam::111122223333:root", "arn:aws:sts::111122223333:assumed-role/app/s1"} {
			req := Request{mustPrincipal(t, who), "kms:Encrypt", testKey, allContext{}}
			decision, _ := Trace(req, policies)
			if again := Evaluate(req, policies); again != decision {
				t.Fatalf("Trace decides %s, Evaluate %s", show(decision), show(again))
			}
		}
	})
}

// allContext has a value for every key.
type allContext struct{}

func (allContext) Values(key string) []string {
	if len(key)%3 == 0 {
		return []string{key, "é*", "2026-01-01"}
	}
	return []string{"arn:aws:kms:us-east-1:111122223333:key/*"}
}
func (allContext) Now() time.Time           { return time.Unix(1764374400, 5) }
func (allContext) Holds(from, to time.Time) {}
