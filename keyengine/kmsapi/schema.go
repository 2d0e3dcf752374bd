package kmsapi

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// A Schema says what holds for the members of one structure of the API. It is compiled once
// from the structure's type and its tags, and is not changed afterwards.
type Schema struct {
	Type reflect.Type // the structure
	// Members are in the order of the structure's fields, one for each: the index of a
	// member is that of its field.
	Members []Member
	// Closed says that a request with a member that is not known here must be refused, as the
	// member could restrict the request: a known one of this structure, or one that the
	// structure stands in, narrows. See Member.Narrows.
	Closed bool

	byName  map[string]int
	similar map[string]string // names by what Similar ignores
	blobs   []int             // the members that are blobs, or hold some
}

// A Member is one field of a structure.
type Member struct {
	Name  string // as requests and answers have it: KeyId
	Label string // as AWS's messages and CloudTrail write it: keyId
	Kind  Kind

	Required bool
	Length   Bounds
	Range    Bounds
	Total    int      // bytes of all keys and values of a map together; 0 for no limit
	Enum     *Enum    // the values that a text may have; nil for any
	Pattern  *Pattern // that a text matches; nil for none
	Each     *Member  // constraints of the items of a list of text; nil for none

	// Secret values are plaintext, keys and credentials. They never stand in a message, not
	// even that there is none, nor in a record, and the bytes of those that are blobs are
	// overwritten once they have been used or sent.
	Secret bool

	// Narrows says that the member restricts what the request does or shows: constraints,
	// filters, DryRun, Recipient and the like. Beside such a member, and at every depth inside
	// of it, there may be more of its kind that this version does not know. So unknown members
	// are refused there. Elsewhere they are passed over as AWS does.
	Narrows bool

	Audited bool    // audit records show it
	Default string  // what a record shows when the member is absent; "" for nothing
	Inner   *Schema // of a structure, or of the structures of a list; else nil
}

// Kind is the type of a member's value.
type Kind uint8

// The kinds of members, with the Go types of their fields.
const (
	KindText          Kind = iota // *string
	KindNumber                    // *int32
	KindFlag                      // *bool
	KindBlob                      // []byte
	KindTextList                  // []string
	KindTextMap                   // map[string]string
	KindTime                      // *time.Time
	KindStructure                 // a pointer to a structure
	KindStructureList             // a slice of structures
)

// Bounds are inclusive. Set says whether there are any.
type Bounds struct {
	Set      bool
	Min, Max int
}

// InputSchema compiles the schema of an input. A wrong tag is a bug in the API's definition:
// it panics, which is found when the table of operations is made.
func InputSchema[In any]() *Schema { return compile(reflect.TypeFor[In](), place{input: true}) }

// OutputSchema compiles the schema of an output. Whether records show its members is the
// operation's to say, not the schema's: CloudTrail shows some, and some under other names.
func OutputSchema[Out any]() *Schema { return compile(reflect.TypeFor[Out](), place{}) }

// place is where a structure stands.
type place struct {
	input   bool // else in an output
	narrows bool // inside of a member that narrows
	depth   int
}

// maxDepth bounds structures in structures, so that a type that holds itself is found.
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
	case ft.Kind() == reflect.Pointer && ft.Elem().Kind() == reflect.Struct:
		m.Kind = KindStructure
	case ft.Kind() == reflect.Slice && ft.Elem().Kind() == reflect.Struct:
		m.Kind = KindStructureList
	default:
		bad(fmt.Sprintf("has type %v, which no kind of member has", ft))
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
		bad("has a default that is no value of it")
	case at.input && !said("log", "nolog"):
		bad("says neither log nor nolog, or both")
	case at.input && m.Inner != nil && !at.narrows && !said("narrows", "open"):
		bad("says neither narrows nor open, or both")
	}
	return m
}

// rulesOf are the rules in the tag of a field.
func rulesOf(f reflect.StructField) []string {
	tag := f.Tag.Get("kms")
	if tag == "" {
		return nil
	}
	return strings.Split(tag, ",")
}

// apply takes the rules over into the member; bad is told of those that are wrong.
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
		case "secret":
			m.Secret = true
		case "narrows":
			m.Narrows = true
		case "log":
			m.Audited = true
		case "nolog", "open", "public": // the opposites, which say that somebody decided
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

// canBe reports whether text is a value of the member, as a default is written.
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
	b := Bounds{Set: true}
	var err1, err2 error
	b.Min, err1 = strconv.Atoi(from)
	b.Max, err2 = strconv.Atoi(to)
	if !ok || err1 != nil || err2 != nil || b.Min > b.Max {
		wrong()
	}
	return b
}

// Index finds a member by its name.
func (s *Schema) Index(name []byte) (int, bool) {
	i, ok := s.byName[string(name)]
	return i, ok
}

// Similar returns the name of the member that somebody may have meant by name: one that differs
// only by case, hyphens and underscores. It is "" if there is none.
func (s *Schema) Similar(name string) string { return s.similar[plain(name)] }

// plain is what a member's name has in common with those that Similar takes for it.
func plain(s string) string { return strings.ToLower(separators.Replace(s)) }

var separators = strings.NewReplacer("_", "", "-", "")

// Of returns the structure that v points to, which must be one of the schema's type; the zero
// Value for a nil pointer to such.
func (s *Schema) Of(v any) (reflect.Value, error) {
	p := reflect.ValueOf(v)
	if p.Kind() != reflect.Pointer || p.Type().Elem() != s.Type {
		return reflect.Value{}, fmt.Errorf("kmsapi: %T is no pointer to %v", v, s.Type)
	}
	return p.Elem(), nil
}

// Wipe overwrites the secret blobs of an answer that has been sent. They are the caller's then,
// and nobody else's. Other blobs may be shared with the state of the cluster, as public keys are.
func (s *Schema) Wipe(v any) { s.wipe(v, false) }

// WipeAll overwrites all blobs of a request, which were read for it alone.
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
