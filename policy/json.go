package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// maxDepth is how deep objects and lists may be nested. The deepest in IAM is a
// list within an operator of a Condition, at depth 6.
const maxDepth = 8

// A node is one JSON value of a document.
type node struct {
	kind    jsontext.Kind
	text    string   // of a string, decoded; of a number, as written
	members []member // of an object, in the order of the document
	items   []node   // of a list
}

type member struct {
	name  string
	value node
}

// readJSON parses a document into a tree. jsontext checks that the text is
// UTF-8 and that no object has a name twice, even if one of them is written
// with escapes. We have to check the depth, the characters of strings, and that
// nothing follows the value. The tree takes at most about a hundred times the
// size of the document, which the caller has limited.
func readJSON(doc []byte) (node, error) {
	for i := 0; i < len(doc); {
		r, size := utf8.DecodeRune(doc[i:])
		if !allowedRune(r) {
			return node{}, malformed(NoStatement, "", fmt.Sprintf("byte %d: %s is outside of tab, line feed, carriage return and U+0020 to U+00FF", i, quoted(string(doc[i:i+size]))))
		}
		i += size
	}
	dec := jsontext.NewDecoder(bytes.NewReader(doc))
	root, err := readNode(dec)
	if err == nil {
		if _, err = dec.ReadToken(); err == nil {
			return node{}, malformed(NoStatement, "", fmt.Sprintf("byte %d: text after the end of the document", dec.InputOffset()))
		}
		if errors.Is(err, io.EOF) {
			return root, nil
		}
	}
	return node{}, jsonError(err)
}

// jsonError turns an error of the tokenizer into ours.
func jsonError(err error) error {
	var fault *SyntaxError
	if errors.As(err, &fault) {
		return fault
	}
	detail := "not JSON: " + err.Error()
	var syntactic *jsontext.SyntacticError
	switch {
	case errors.As(err, &syntactic) && errors.Is(err, jsontext.ErrDuplicateName):
		detail = fmt.Sprintf("byte %d: the member %s appears twice in one object", syntactic.ByteOffset, quoted(syntactic.JSONPointer.LastToken()))
	case errors.As(err, &syntactic):
		detail = fmt.Sprintf("not JSON at byte %d: %v", syntactic.ByteOffset, syntactic.Err)
	case errors.Is(err, io.EOF):
		detail = "not JSON: the document is empty"
	}
	return malformed(NoStatement, "", detail)
}

// readNode reads one value. It calls itself at most maxDepth times.
func readNode(dec *jsontext.Decoder) (node, error) {
	tok, err := dec.ReadToken()
	if err != nil {
		return node{}, err
	}
	n := node{kind: tok.Kind()}
	if n.kind == jsontext.KindString {
		n.text = tok.String()
		return n, checkString(dec, n.text)
	}
	if n.kind == jsontext.KindNumber {
		n.text = tok.String()
	}
	if n.kind != jsontext.KindBeginObject && n.kind != jsontext.KindBeginArray {
		return n, nil
	}
	if dec.StackDepth() > maxDepth {
		return node{}, malformed(NoStatement, "", fmt.Sprintf("byte %d: more than %d levels of objects and lists", dec.InputOffset(), maxDepth))
	}
	for {
		switch dec.PeekKind() {
		case jsontext.KindEndObject, jsontext.KindEndArray:
			_, err := dec.ReadToken()
			return n, err
		}
		var name string
		if n.kind == jsontext.KindBeginObject {
			tok, err := dec.ReadToken()
			if err != nil {
				return node{}, err
			}
			name = tok.String()
			if err := checkString(dec, name); err != nil {
				return node{}, err
			}
		}
		value, err := readNode(dec)
		if err != nil {
			return node{}, err
		}
		if n.kind == jsontext.KindBeginObject {
			n.members = append(n.members, member{name, value})
		} else {
			n.items = append(n.items, value)
		}
	}
}

// checkString checks that a string, after its escapes are decoded, has only
// characters that a document may contain: \u0000 in a Sid is no better than the
// character itself.
func checkString(dec *jsontext.Decoder, s string) error {
	if i := strings.IndexFunc(s, func(r rune) bool { return !allowedRune(r) }); i >= 0 {
		r, _ := utf8.DecodeRuneInString(s[i:])
		return malformed(NoStatement, "", fmt.Sprintf("before byte %d: the string contains %U, which is not allowed in a policy", dec.InputOffset(), r))
	}
	return nil
}

// allowedRune reports whether a policy may contain the character. An invalid
// byte arrives here as U+FFFD and is refused.
func allowedRune(r rune) bool {
	return r == '\t' || r == '\n' || r == '\r' || ' ' <= r && r <= 'ÿ'
}
