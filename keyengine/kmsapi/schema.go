package kmsapi

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// A Schema describes the members of one structure of the API. It is compiled once, from the
// structure's type and its tags, and does not change afterwards.
type Schema struct {
	Type reflect.Type // the structure
	// Members has one member for each field of the structure, with the same index.
	Members []Member
	// Closed means that a request with an unknown member must be refused, because the
	// member could restrict the request: a known member of this structure narrows, or the
	// structure is inside one that does. See Member.Narrows.
	Closed bool

	byName  map[string]int
	similar map[string]string // names by the form that Similar compares
	blobs   []int             // indexes of members that are or contain blobs
}

// A Member is one field of a structure.
type Member struct {
	Name  string // as in requests and answers: KeyId. The rule name overrides that of the field.
	Label string // as in AWS's messages and CloudTrail: keyId
	Kind  Kind

	Required bool
	Length   Bounds
	Range    Bounds
	Total    int      // bytes of all keys and values of a map together; 0 if not limited
	Enum     *Enum    // permitted values of a text, or nil
	Pattern  *Pattern // pattern of a text, or nil
	Each     *Member  // constraints on the items of a list of text, or nil

	// Secret is set for plaintext, keys and credentials. Their values never appear in
	// messages or records, and not even their absence does in messages. The bytes of secret
	// blobs are overwritten after they have been used or sent.
	Secret bool

	// Narrows is set for a member that restricts what the request does or shows, such as
	// constraints, filters, DryRun or Recipient. Next to it and inside it, a newer version
	// may have more members of this kind, so unknown members are refused there. Elsewhere
	// they are ignored, as in AWS.
	Narrows bool

	Audited bool    // audit records contain it
	Default string  // value in records if the member is absent, or ""
	Inner   *Schema // schema of a structure, or of the structures in a list
}

// Kind is the type of a member's value.
type Kind uint8

// The kinds of members. Comments have the Go types of their fields.
const (
	KindText          Kind = iota // *string
	KindNumber                    // *int32
	KindFlag                      // *bool
	KindBlob                      // []byte
	KindTextList                  // []string
	KindTextMap                   // map[string]string
	KindNumberMap                 // map[string]int32, in outputs only
	KindTime                      // *time.Time
	KindStructure                 // a pointer to a structure
	KindStructureList             // a slice of structures
)

// Bounds are inclusive. Set is false if there are none, and Max is math.MaxInt if there is
// only a lower one.
type Bounds struct {
	Set      bool
	Min, Max int
}

// InputSchema compiles the schema of an input. It panics if a tag is wrong, which happens
// when the table of operations is initialised.
func InputSchema[In any]() *Schema { return compile(reflect.TypeFor[In](), place{input: true}) }

// OutputSchema compiles the schema of an output. The operation determines which members are
// recorded, and under which names, as CloudTrail does for each operation.
func OutputSchema[Out any]() *Schema { return compile(reflect.TypeFor[Out](), place{}) }

// place says where a structure occurs.
type place struct {
	input   bool // false: in an output
	narrows bool // inside a member that narrows
	depth   int
}

// maxDepth limits nested structures, to detect a type that contains itself.
const maxDepth = 8

func compile(t reflect.Type, at place) *Schema {
	if t.Kind() != reflect.Struct || at.depth > maxDepth {
		panic(fmt.Sprintf("kmsapi: there is no schema of %v", t))
	}
	s := &Schema{Type: t, Closed: at.narrows, byName: make(map[string]int, t.NumField()), similar: make(map[string]string, t.NumField())}
	for i := range t.NumField() {
		m := newMember(t, t.Field(i), at)
		s.Closed = s.Closed || m.Narrows
		if m.Kind == KindBlob || m.Inner != nil && len(m.Inner.blobs) > 0 {
			s.blobs = append(s.blobs, i)
		}
		s.byName[m.Name], s.similar[plain(m.Name)] = i, m.Name
		s.Members = append(s.Members, m)
	}
	return s
}

func newMember(t reflect.Type, f reflect.StructField, at place) Member {
	m := Member{Name: f.Name, Label: lowerCamel(f.Name)}
	bad := func(what string) { panic(fmt.Sprintf("kmsapi: %v.%s: %s", t, f.Name, what)) }
	if !f.IsExported() {
		bad("is not exported")
	}
	rules := rulesOf(f)
	m.apply(rules, bad)
	switch ft := f.Type; {
	case ft == reflect.TypeFor[*string]():
		m.Kind = KindText
	case ft == reflect.TypeFor[*int32]():
		m.Kind = KindNumber
	case ft == reflect.TypeFor[*bool]():
		m.Kind = KindFlag
	case ft == reflect.TypeFor[*time.Time]():
		m.Kind = KindTime
	case ft == reflect.TypeFor[[]byte]():
		m.Kind = KindBlob
	case ft == reflect.TypeFor[[]string]():
		m.Kind = KindTextList
	case ft == reflect.TypeFor[map[string]string]():
		m.Kind = KindTextMap
	case ft == reflect.TypeFor[map[string]int32]() && !at.input:
		m.Kind = KindNumberMap
	case ft.Kind() == reflect.Pointer && ft.Elem().Kind() == reflect.Struct:
		m.Kind = KindStructure
	case ft.Kind() == reflect.Slice && ft.Elem().Kind() == reflect.Struct:
		m.Kind = KindStructureList
	default:
		bad(fmt.Sprintf("has type %v, which is not a type of member", ft))
	}
	if m.Kind == KindStructure || m.Kind == KindStructureList {
		m.Inner = compile(f.Type.Elem(), place{at.input, at.narrows || m.Narrows, at.depth + 1})
	}
	said := func(a, b string) bool { return slices.Contains(rules, a) != slices.Contains(rules, b) }
	switch {
	case m.Kind == KindBlob && !said("secret", "public"):
		bad("is a blob that says neither secret nor public, or both")
	case m.Kind != KindBlob && slices.Contains(rules, "public"):
		bad("says public, which only blobs do")
	case m.Secret && m.Audited:
		bad("is secret and says log")
	case m.Default != "" && !m.canBe(m.Default):
		bad("has a default that is not one of its values")
	case at.input && !said("log", "nolog"):
		bad("says neither log nor nolog, or both")
	case at.input && m.Inner != nil && !at.narrows && !said("narrows", "open"):
		bad("says neither narrows nor open, or both")
	}
	return m
}

// rulesOf returns the rules in the tag of a field.
func rulesOf(f reflect.StructField) []string {
	tag := f.Tag.Get("kms")
	if tag == "" {
		return nil
	}
	return strings.Split(tag, ",")
}

// apply sets the member's constraints from rules and reports wrong rules to bad.
func (m *Member) apply(rules []string, bad func(string)) {
	for _, rule := range rules {
		wrong := func() { bad("has a wrong rule " + strconv.Quote(rule)) }
		name, arg, _ := strings.Cut(rule, "=")
		target := m
		if rest, ok := strings.CutPrefix(name, "each."); ok {
			if m.Each == nil {
				m.Each = &Member{Kind: KindText}
			}
			name, target = rest, m.Each
		}
		switch name {
		case "required":
			m.Required = true
		case "name":
			if arg == "" {
				wrong()
			}
			m.Name = arg
		case "secret":
			m.Secret = true
		case "narrows":
			m.Narrows = true
		case "log":
			m.Audited = true
		case "nolog", "open", "public": // explicit opposites, without effect
		case "default":
			m.Default = arg
		case "len":
			target.Length = parseBounds(arg, wrong)
		case "range":
			target.Range = parseBounds(arg, wrong)
		case "total":
			n, err := strconv.Atoi(arg)
			if err != nil {
				wrong()
			}
			m.Total = n
		case "enum":
			if target.Enum = enums[arg]; target.Enum == nil {
				wrong()
			}
		case "pattern":
			if target.Pattern = patterns[arg]; target.Pattern == nil {
				wrong()
			}
		default:
			wrong()
		}
	}
}

// canBe reports whether text is a valid default for the member.
func (m *Member) canBe(text string) bool {
	switch m.Kind {
	case KindText:
		return text != ""
	case KindNumber:
		_, err := strconv.ParseInt(text, 10, 32)
		return err == nil
	case KindFlag:
		return text == "true" || text == "false"
	}
	return false
}

func parseBounds(s string, wrong func()) Bounds {
	from, to, ok := strings.Cut(s, "..")
	b := Bounds{Set: true, Max: math.MaxInt}
	var err1, err2 error
	b.Min, err1 = strconv.Atoi(from)
	if to != "" {
		b.Max, err2 = strconv.Atoi(to)
	}
	if !ok || err1 != nil || err2 != nil || b.Min > b.Max {
		wrong()
	}
	return b
}

// Index returns the index of a member by its name.
func (s *Schema) Index(name []byte) (int, bool) {
	i, ok := s.byName[string(name)]
	return i, ok
}

// Similar returns the name of a member that differs from name only by case, hyphens and
// underscores, or "" if there is none. Such a name is probably a mistake.
func (s *Schema) Similar(name string) string { return s.similar[plain(name)] }

// plain returns the form of a name that Similar compares.
func plain(s string) string { return strings.ToLower(separators.Replace(s)) }

var separators = strings.NewReplacer("_", "", "-", "")

// Of returns the structure that v points to, which must have the schema's type, or the zero
// Value if v is a nil pointer.
func (s *Schema) Of(v any) (reflect.Value, error) {
	p := reflect.ValueOf(v)
	if p.Kind() != reflect.Pointer || p.Type().Elem() != s.Type {
		return reflect.Value{}, fmt.Errorf("kmsapi: %T is not a pointer to %v", v, s.Type)
	}
	return p.Elem(), nil
}

// Wipe overwrites the secret blobs of an answer that has been sent. They belong to the
// caller alone, whereas other blobs, such as public keys, may be shared with the state.
func (s *Schema) Wipe(v any) { s.wipe(v, false) }

// WipeAll overwrites all blobs of a request, which belong to it alone.
func (s *Schema) WipeAll(v any) { s.wipe(v, true) }

func (s *Schema) wipe(v any, all bool) {
	if p, err := s.Of(v); err == nil && p.IsValid() {
		s.wipeStructure(p, all)
	}
}

func (s *Schema) wipeStructure(v reflect.Value, all bool) {
	for _, i := range s.blobs {
		m, f := &s.Members[i], v.Field(i)
		switch m.Kind {
		case KindBlob:
			if all || m.Secret {
				clear(f.Bytes())
			}
		case KindStructure:
			if !f.IsNil() {
				m.Inner.wipeStructure(f.Elem(), all)
			}
		case KindStructureList:
			for j := range f.Len() {
				m.Inner.wipeStructure(f.Index(j), all)
			}
		}
	}
}

// lowerCamel returns a member's name as in AWS's messages: AWSAccountId becomes
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
