package policy

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// The unique ids of users and roles begin with these.
const (
	userPrefix = "AIDA"
	rolePrefix = "AROA"
)

// ParseUniqueID parses what stands for a user or a role in a policy or a grant
// whatever its name is, or once it no longer exists: its unique id ("AIDA…" or
// "AROA…"), or for a session of a role the role's unique id and the name of the
// session ("AROA…:name"). The principal has the text as its ARN, and neither
// partition nor account. Errors wrap ErrInvalidPrincipal.
func ParseUniqueID(s string) (Principal, error) {
	id, session, isSession := strings.Cut(s, ":")
	valid := 16 <= len(id) && len(id) <= 128 && only(id, func(c byte) bool { return 'A' <= c && c <= 'Z' || isDigit(c) })
	switch {
	case !valid || isSession && !isName(session, 2, 64):
	case strings.HasPrefix(id, userPrefix) && !isSession:
		return Principal{ARN: s, ID: id, Kind: KindUser}, nil
	case strings.HasPrefix(id, rolePrefix) && !isSession:
		return Principal{ARN: s, ID: id, Kind: KindRole}, nil
	case strings.HasPrefix(id, rolePrefix):
		return Principal{ARN: s, ID: id, Kind: KindAssumedRole}, nil
	}
	return Principal{}, fmt.Errorf("%w: %s is not the unique id of a user or a role", ErrInvalidPrincipal, quoted(s))
}

// HasID reports whether p is of a kind that has a unique id: a user, a role or a
// session of a role.
func (p *Principal) HasID() bool {
	return p.Kind == KindUser || p.Kind == KindRole || p.Kind == KindAssumedRole
}

// UniqueID returns p as ParseUniqueID takes it, or "" if p has no ID.
func (p *Principal) UniqueID() string {
	if p.ID != "" && p.Kind == KindAssumedRole {
		return p.ID + ":" + p.SessionName()
	}
	return p.ID
}

// SessionName returns the name of a session of a role, given by its ARN or by its
// unique id.
func (p *Principal) SessionName() string { return p.ARN[strings.LastIndexAny(p.ARN, "/:")+1:] }

// Bind returns the document with the unique ids of the users and roles that it
// names. ids has them by the names in the document, for a session that of its
// role. The names no longer matter then: a user that was deleted and made again
// under the same name is another one, and one that was renamed is the same.
// Bind fails if an id is missing. Unique ids in the place of names stay as they
// are.
func (d *Document) Bind(ids map[string]string) (*Document, error) {
	bound := *d
	var err error
	bind := func(list []Principal) []Principal {
		list = slices.Clone(list)
		for i := range list {
			p := &list[i]
			if !p.HasID() || p.ID != "" {
				continue
			}
			if p.ID = ids[p.ARN]; p.ID == "" && err == nil {
				err = fmt.Errorf("%w: %s has no unique id", ErrInvalidPrincipal, quoted(p.ARN))
			}
		}
		return list
	}
	bindAll := func(list []statement) []statement {
		list = slices.Clone(list)
		for i := range list {
			list[i].principals.named = bind(list[i].principals.named)
		}
		return list
	}
	bound.denies, bound.allows, bound.principals = bindAll(d.denies), bindAll(d.allows), bind(d.principals)
	if err != nil {
		return nil, err
	}
	return &bound, nil
}

// RenamePrincipals returns the text of a document with other names for the
// principals that it names as AWS. names has the new ones by the old ones, and
// the names that it does not have stay. Everything else stays as it is written,
// and so does a text that is not JSON.
func RenamePrincipals(doc string, names map[string]string) string {
	dec := jsontext.NewDecoder(strings.NewReader(doc))
	var out []byte
	copied := 0
	for {
		if dec.PeekKind() != jsontext.KindString {
			if _, err := dec.ReadToken(); err == io.EOF {
				return string(append(out, doc[copied:]...))
			} else if err != nil {
				return doc
			}
			continue
		}
		raw, err := dec.ReadValue()
		if err != nil {
			return doc
		}
		if isObjectName(dec) || !namesPrincipal(string(dec.StackPointer())) {
			continue
		}
		text, err := jsontext.AppendUnquote(nil, raw)
		if err != nil {
			return doc
		}
		if name, ok := names[string(text)]; ok {
			end := int(dec.InputOffset())
			out = append(out, doc[copied:end-len(raw)]...)
			if out, err = jsontext.AppendQuote(out, name); err != nil {
				return doc
			}
			copied = end
		}
	}
}

// isObjectName reports whether the string that was read last is the name of a
// member.
func isObjectName(dec *jsontext.Decoder) bool {
	kind, n := dec.StackIndex(dec.StackDepth())
	return kind == jsontext.KindBeginObject && n%2 == 1
}

// namesPrincipal reports whether a JSON pointer is that of a name in the AWS
// part of a Principal or NotPrincipal element: /Statement/0/Principal/AWS/0,
// without the numbers of what is no list.
func namesPrincipal(pointer string) bool {
	parts := strings.Split(pointer, "/")
	if len(parts) < 4 || parts[1] != "Statement" {
		return false
	}
	parts = parts[2:]
	isNumber := func(s string) bool { return s != "" && only(s, isDigit) }
	if isNumber(parts[0]) {
		parts = parts[1:]
	}
	return (len(parts) == 2 || len(parts) == 3 && isNumber(parts[2])) && (parts[0] == "Principal" || parts[0] == "NotPrincipal") && parts[1] == "AWS"
}
