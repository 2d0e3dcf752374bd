package keyengine

import (
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/conclavekms/conclave/auditlog/auditpb"
)

// The inputs in api.go say in their tags what holds for each member whatever the
// key, and whether it may stand in an audit record. Comma-separated:
//
//	required            must be there
//	len=1..2048         length: characters of text, bytes of a blob, items of a list or map
//	range=1..1000       bounds of a number
//	enum=KeySpec        one of enums["KeySpec"]
//	pattern=alias       matches patterns["alias"]
//	total=8192          bytes of all keys and values of a map together
//	each.len, each.enum the same for the items of a list of text
//	sensitive           the value never stands in a message; blobs are always so
//	log, nolog          whether records show it; each member says one of the two
//	default=X           what a record shows when the member is absent
//
// A plan is the compiled form, one for each type.
type plan struct {
	members []member
}

type member struct {
	index int
	name  string // as AWS's messages and CloudTrail write it: lower camel case
	kind  memberKind

	required  bool
	sensitive bool
	length    bounds
	value     bounds
	total     int
	enum      *enum
	pattern   *pattern
	each      *member // constraints of the items of a list of text

	log      bool
	fallback *auditpb.Field // default
	inner    *plan          // of a nested structure, or of the structures of a list
}

type memberKind uint8

const (
	textMember memberKind = iota
	numberMember
	flagMember
	blobMember
	textListMember
	textMapMember
	timeMember
	structMember
	structListMember
)

// bounds are inclusive; set says whether there are any.
type bounds struct {
	set      bool
	min, max int
}

type enum struct {
	values []string
	text   string // as a message lists them
}

func newEnum(values ...string) *enum {
	return &enum{values: values, text: "[" + strings.Join(values, ", ") + "]"}
}

// pattern is a regular expression by its AWS text, and the function that decides
// it without one.
type pattern struct {
	text  string
	match func(string) bool
}

// planFor compiles the plan of an input. A wrong tag is a fault of this package,
// found when the table of operations is made.
func planFor[In any]() *plan { return compile(reflect.TypeFor[In]()) }

func compile(t reflect.Type) *plan {
	p := &plan{}
	for i := range t.NumField() {
		f := t.Field(i)
		m := member{index: i, name: lowerCamel(f.Name)}
		switch ft := f.Type; {
		case ft == reflect.TypeFor[*string]():
			m.kind = textMember
		case ft == reflect.TypeFor[*int32]():
			m.kind = numberMember
		case ft == reflect.TypeFor[*bool]():
			m.kind = flagMember
		case ft == reflect.TypeFor[*time.Time]():
			m.kind = timeMember
		case ft == reflect.TypeFor[[]byte]():
			m.kind, m.sensitive = blobMember, true
		case ft == reflect.TypeFor[[]string]():
			m.kind = textListMember
		case ft == reflect.TypeFor[map[string]string]():
			m.kind = textMapMember
		case ft.Kind() == reflect.Pointer && ft.Elem().Kind() == reflect.Struct:
			m.kind, m.inner = structMember, compile(ft.Elem())
		case ft.Kind() == reflect.Slice && ft.Elem().Kind() == reflect.Struct:
			m.kind, m.inner = structListMember, compile(ft.Elem())
		default:
			panic(fmt.Sprintf("keyengine: %v.%s has type %v, which no plan knows", t, f.Name, ft))
		}
		m.parse(t, f)
		p.members = append(p.members, m)
	}
	return p
}

func (m *member) parse(t reflect.Type, f reflect.StructField) {
	bad := func(rule string) {
		panic(fmt.Sprintf("keyengine: %v.%s has a wrong rule %q", t, f.Name, rule))
	}
	said := 0
	for rule := range strings.SplitSeq(f.Tag.Get("kms"), ",") {
		name, arg, _ := strings.Cut(rule, "=")
		target := m
		if rest, ok := strings.CutPrefix(name, "each."); ok {
			if m.each == nil {
				m.each = &member{kind: textMember}
			}
			name, target = rest, m.each
		}
		switch name {
		case "required":
			m.required = true
		case "sensitive":
			m.sensitive = true
		case "log":
			m.log = true
			said++
		case "nolog":
			said++
		case "default":
			if m.fallback = m.fallbackField(arg); m.fallback == nil {
				bad(rule)
			}
		case "len":
			target.length = parseBounds(arg, bad)
		case "range":
			target.value = parseBounds(arg, bad)
		case "total":
			n, err := strconv.Atoi(arg)
			if err != nil {
				bad(rule)
			}
			m.total = n
		case "enum":
			if target.enum = enums[arg]; target.enum == nil {
				bad(rule)
			}
		case "pattern":
			if target.pattern = patterns[arg]; target.pattern == nil {
				bad(rule)
			}
		default:
			bad(rule)
		}
	}
	if said != 1 {
		bad("neither log nor nolog")
	}
}

func parseBounds(s string, bad func(string)) bounds {
	from, to, ok := strings.Cut(s, "..")
	b := bounds{set: true}
	var err1, err2 error
	b.min, err1 = strconv.Atoi(from)
	b.max, err2 = strconv.Atoi(to)
	if !ok || err1 != nil || err2 != nil || b.min > b.max {
		bad(s)
	}
	return b
}

// lowerCamel writes a member's name as AWS's messages do: AWSAccountId becomes
// awsAccountId, KeyId becomes keyId.
func lowerCamel(s string) string {
	upper := 0
	for upper < len(s) && unicode.IsUpper(rune(s[upper])) {
		upper++
	}
	if upper > 1 && upper < len(s) {
		upper-- // the last capital begins the next word
	}
	return strings.ToLower(s[:upper]) + s[upper:]
}

// patterns are those of the service model, by the names that tags use.
var patterns = map[string]*pattern{
	"alias":      {`^[a-zA-Z0-9:/_-]+$`, allOf(wordByte, ":/-")},
	"policyName": {`[\w]+`, allOf(wordByte, "")},
	"policy": {`[\u0009\u000A\u000D\u0020-\u00FF]+`, func(s string) bool {
		for _, r := range s {
			if r > 0xff || r < 0x20 && r != '\t' && r != '\n' && r != '\r' {
				return false
			}
		}
		return s != ""
	}},
	"xksKeyId": {`^[a-zA-Z0-9-_.]+$`, allOf(wordByte, "-.")},
	"marker": {`[\u0020-\u00FF]*`, func(s string) bool {
		for _, r := range s {
			if r > 0xff || r < 0x20 {
				return false
			}
		}
		return true
	}},
	"principal":           {`^[\w+=,.@:/-]+$`, allOf(wordByte, "+=,.@:/-")},
	"grantName":           {`^[a-zA-Z0-9:/_-]+$`, allOf(wordByte, ":/-")},
	"materialId":          {`^[a-f0-9]+$`, allOf(hexByte, "")},
	"materialDescription": {`^[a-zA-Z0-9:/_\s.-]+$`, allOf(wordByte, ":/.- \t\n\r\f\v")},
	"account":             expression(`[0-9]{12}`),
	"region":              expression(`^([a-z]+-){2,3}\d+$`),
	"hsmCluster":          expression(`cluster-[2-7a-zA-Z]{11,16}`),
	"xksEndpoint":         {`^https://[a-zA-Z0-9.-]+$`, xksEndpoint},
	"xksPath":             expression(`^(/[a-zA-Z0-9\/_-]+/kms/xks/v\d{1,2})$|^(/kms/xks/v\d{1,2})$`),
	"xksAccessKeyId":      expression(`^[A-Z2-7]+$`),
	"xksSecret":           expression(`^[a-zA-Z0-9\/+=]+$`),
	"vpcService":          expression(`^(com|eu)\.amazonaws\.vpce\.([a-z]+-){2,3}\d+\.vpce-svc-[0-9a-z]+$`),
}

// expression is a pattern of an operation that is called so seldom that a
// regular expression may decide. AWS matches the whole text.
func expression(text string) *pattern {
	return &pattern{text, regexp.MustCompile(`^(?:` + text + `)$`).MatchString}
}

// xksEndpoint takes AWS's form and also a port: whether one may be given is an
// operator's setting, which is asked later.
func xksEndpoint(s string) bool {
	host, ok := strings.CutPrefix(s, "https://")
	return ok && allOf(wordByte, ".-:")(host) && !strings.Contains(host, "_")
}

func hexByte(c byte) bool   { return 'a' <= c && c <= 'f' || digitByte(c) }
func digitByte(c byte) bool { return '0' <= c && c <= '9' }

// allOf matches texts of one or more bytes that are in class or in more.
func allOf(class func(byte) bool, more string) func(string) bool {
	return func(s string) bool {
		for i := range len(s) {
			if !class(s[i]) && strings.IndexByte(more, s[i]) < 0 {
				return false
			}
		}
		return s != ""
	}
}

func wordByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_'
}

// length counts text as AWS does, in characters.
func length(s string) int { return utf8.RuneCountInString(s) }
