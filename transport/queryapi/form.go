package queryapi

import (
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	// maxParameters is the number of parameters in a form. The largest request that
	// anybody needs is a simulation, with some hundred actions and values.
	maxParameters = 8192
	// maxUnsignedParameters is the same for a request without a signature.
	maxUnsignedParameters = 64
	// maxName is the length of the longest parameter's name. The longest that has a
	// meaning has about 60 bytes.
	maxName = 256
)

// parameter is a parameter of a form, decoded. Its name is a path of segments, separated by
// dots: the names of members, and the numbers of items, as in Tags.member.1.Key.
type parameter struct{ name, value string }

// form is a form, in the order of compareNames. Parameters with the same first segments are
// thus next to each other, in whatever order they were sent, and the form takes no memory
// beyond what was sent. A tree or a list by item number would.
type form []parameter

// parse parses a form with at most so many parameters. A parameter may not occur twice, as
// two readers could choose differently.
func (f *form) parse(raw string, most int) error {
	*f = (*f)[:0]
	if strings.Count(raw, "&") >= most {
		return malformed("The request has more than %d parameters.", most)
	}
	for part := range strings.SplitSeq(raw, "&") {
		if part == "" {
			continue
		}
		name, value, _ := strings.Cut(part, "=")
		name, err1 := url.QueryUnescape(name)
		value, err2 := url.QueryUnescape(value)
		switch {
		case err1 != nil || err2 != nil:
			return malformed("A percent sign in a form is followed by two hexadecimal digits.")
		case len(name) > maxName:
			return malformed("The name of a parameter has more than %d bytes.", maxName)
		case !utf8.ValidString(name) || !utf8.ValidString(value):
			return malformed("The parameters of a request are UTF-8 text.")
		}
		*f = append(*f, parameter{name, value})
	}
	slices.SortFunc(*f, func(a, b parameter) int { return compareNames(a.name, b.name) })
	for i := 1; i < len(*f); i++ {
		if (*f)[i-1].name == (*f)[i].name {
			return malformed("A parameter of the request occurs twice.")
		}
	}
	return nil
}

// value returns the value of the parameter with that name.
func (f form) value(name string) (string, bool) {
	i, ok := slices.BinarySearchFunc(f, name, func(p parameter, name string) int { return compareNames(p.name, name) })
	if !ok {
		return "", false
	}
	return f[i].value, true
}

// compareNames orders names by their segments, and numbers by their value. A name comes
// before those that continue it.
func compareNames(a, b string) int {
	for {
		sa, ra, moreA := strings.Cut(a, ".")
		sb, rb, moreB := strings.Cut(b, ".")
		if c := compareSegments(sa, sb); c != 0 {
			return c
		}
		switch {
		case moreA && moreB:
			a, b = ra, rb
		case moreA:
			return 1
		case moreB:
			return -1
		default:
			return 0
		}
	}
}

func compareSegments(a, b string) int {
	if len(a) != len(b) && isNumber(a) && isNumber(b) {
		return len(a) - len(b) // none that is accepted has leading zeros
	}
	return strings.Compare(a, b)
}

func isNumber(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

// next splits off the parameters whose names have the same segment at the given byte, which
// ends before end.
func (f form) next(at int) (segment string, end int, group, rest form) {
	name := f[0].name
	if i := strings.IndexByte(name[at:], '.'); i >= 0 {
		end = at + i
	} else {
		end = len(name)
	}
	n := 1
	for n < len(f) && strings.HasPrefix(f[n].name, name[:end]) && (len(f[n].name) == end || f[n].name[end] == '.') {
		n++
	}
	return name[at:end], end, f[:n], f[n:]
}

// ends reports whether a parameter of the group has a name that ends at the given byte. It
// is the first one then.
func (f form) ends(at int) bool { return len(f[0].name) == at }
