package policy

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// maxVariables is how many variables one value may contain. With the limit on
// the length of a variable's value it bounds what an expansion takes.
const maxVariables = 16

// maxFloating is how many '?' between two stars a document may have. Finding a
// place for a piece without '?' takes time linear in the text, but with '?' it
// takes, for each of them, as many steps as the text is long.
const maxFloating = 256

// A pattern is a text of a Resource or a Condition that may have wildcards and
// variables. Without variables it is compiled when the document is parsed, and
// otherwise for each comparison.
type pattern struct {
	glob  glob
	parts []part // empty without variables
}

// A part of a pattern with variables is a piece of text or a variable.
type part struct {
	text       string // with marked wildcards; of a variable, its default
	key, name  string // the variable's condition key, as written and in lower case; empty for a text
	hasDefault bool
}

// floating returns the number of '?' in a pattern that are between two stars,
// or could be.
func (p *pattern) floating() int {
	n := 0
	for i := range p.glob.mid {
		n += strings.Count(p.glob.mid[i].text, string([]byte{anyOne}))
	}
	for i := range p.parts {
		if p.parts[i].name == "" {
			n += strings.Count(p.parts[i].text, string([]byte{anyOne}))
		}
	}
	return n
}

// parsePattern compiles a text. If wild is unset, '*' and '?' stand for
// themselves. If variables is unset, as in the older version of the language,
// so does "${".
func parsePattern(s string, wild, variables bool) (pattern, error) {
	mark := func(text string) string {
		if wild {
			return markWildcards(text)
		}
		return text
	}
	if !variables || !strings.Contains(s, "${") {
		return pattern{glob: newGlob(mark(s), false)}, nil
	}
	var parts []part
	var text strings.Builder // since the last variable
	n := 0
	for rest := s; ; {
		before, after, found := strings.Cut(rest, "${")
		text.WriteString(mark(before))
		if !found {
			break
		}
		v, length, err := parseVariable(after)
		if err != nil {
			return pattern{}, fmt.Errorf("variable in %s: %w", quoted(s), err)
		}
		rest = after[length:]
		if v.key == "" {
			text.WriteString(v.text)
			continue
		}
		if n++; n > maxVariables {
			return pattern{}, fmt.Errorf("more than %d variables in one value", maxVariables)
		}
		if text.Len() > 0 {
			parts = append(parts, part{text: text.String()})
			text.Reset()
		}
		parts = append(parts, v)
	}
	if n == 0 { // only ${*} and the like
		return pattern{glob: newGlob(text.String(), false)}, nil
	}
	if text.Len() > 0 {
		parts = append(parts, part{text: text.String()})
	}
	return pattern{parts: parts}, nil
}

// parseVariable parses what follows "${", and returns its length with the
// closing brace. ${*}, ${?} and ${$} are texts.
func parseVariable(s string) (v part, length int, err error) {
	end := strings.IndexAny(s, "},")
	if end < 0 {
		return part{}, 0, fmt.Errorf("no closing brace")
	}
	key := s[:end]
	if s[end] == '}' {
		switch key {
		case "*", "?", "$":
			return part{text: key}, end + 1, nil
		}
		if err := checkKey(key); err != nil {
			return part{}, 0, err
		}
		return part{key: key, name: lowerASCII(key)}, end + 1, nil
	}
	if err := checkKey(key); err != nil {
		return part{}, 0, err
	}
	rest, ok := strings.CutPrefix(strings.TrimLeft(s[end+1:], " "), "'")
	text, rest, closed := strings.Cut(rest, "'")
	after, braced := strings.CutPrefix(strings.TrimLeft(rest, " "), "}")
	if !ok || !closed || !braced {
		return part{}, 0, fmt.Errorf("want ${key} or ${key, 'default'}")
	}
	if strings.Contains(text, "${") {
		return part{}, 0, fmt.Errorf("a default cannot contain a variable")
	}
	return part{text: text, key: key, name: lowerASCII(key), hasDefault: true}, len(s) - len(after), nil
}

// checkKey checks the name of a condition key: "service:name", where the name
// can be that of a tag or of a member of an encryption context.
func checkKey(key string) error {
	service, name, ok := strings.Cut(key, ":")
	switch {
	case !ok || service == "" || name == "":
		return fmt.Errorf("%s is not of the form service:name", quoted(key))
	case !only(service, isKeyPrefix):
		return fmt.Errorf("%s has a prefix that no condition key has", quoted(key))
	case strings.ContainsAny(name, "\t\r\n") || strings.Contains(name, "${"):
		return fmt.Errorf("%s has characters that no condition key has", quoted(key))
	}
	return nil
}

// isKeyPrefix reports whether c may occur in a condition key before the first
// colon: the name of a service, or the host and path of an identity provider.
func isKeyPrefix(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._/~", c) >= 0
}

// expand fills in the variables of a pattern that has some. It is false if one
// of them has no value, or more than one, or a value that is not UTF-8, which
// could pass for a wildcard. A default counts only for a key that is absent.
func (e *evaluation) expand(parts []part) (string, bool) {
	var b strings.Builder
	for i := range parts {
		p := &parts[i]
		if p.name == "" {
			b.WriteString(p.text)
			continue
		}
		switch values := e.values(p.name, p.key); {
		case len(values) == 1 && utf8.ValidString(values[0]):
			b.WriteString(values[0])
		case len(values) == 0 && p.hasDefault:
			b.WriteString(p.text)
		default:
			return "", false
		}
	}
	return b.String(), true
}

// matchText reports whether the pattern matches a text. It is unknown if a
// variable has no value.
func (e *evaluation) matchText(p *pattern, text string) truth {
	if len(p.parts) == 0 {
		return truthOf(p.glob.match(text))
	}
	expanded, ok := e.expand(p.parts)
	if !ok {
		return unknown
	}
	g := newGlob(expanded, false)
	return truthOf(g.match(text))
}
