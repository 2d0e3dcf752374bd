package policy

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// A family says how the operators of a condition read values.
type family uint8

const (
	familyString family = iota
	familyFold          // a string, whose letters' case does not matter
	familyLike          // a string with wildcards
	familyNumeric
	familyDate
	familyBool
	familyBinary
	familyIP
	familyARN
	familyNull // no value at all
)

// A relation says how the value of the request relates to that of the document.
type relation uint8

const (
	equal relation = iota
	less
	lessOrEqual
	greater
	greaterOrEqual
)

// holds reports whether the relation holds, given how a value of the request
// compares with one of the document.
func (r relation) holds(order int) bool {
	switch r {
	case less:
		return order < 0
	case lessOrEqual:
		return order <= 0
	case greater:
		return order > 0
	case greaterOrEqual:
		return order >= 0
	default:
		return order == 0
	}
}

type operator struct {
	family   family
	relation relation
	negated  bool
}

// operators are the operators of IAM without their prefixes and suffixes.
var operators = map[string]operator{
	"StringEquals":              {family: familyString},
	"StringNotEquals":           {family: familyString, negated: true},
	"StringEqualsIgnoreCase":    {family: familyFold},
	"StringNotEqualsIgnoreCase": {family: familyFold, negated: true},
	"StringLike":                {family: familyLike},
	"StringNotLike":             {family: familyLike, negated: true},
	"NumericEquals":             {family: familyNumeric},
	"NumericNotEquals":          {family: familyNumeric, negated: true},
	"NumericLessThan":           {family: familyNumeric, relation: less},
	"NumericLessThanEquals":     {family: familyNumeric, relation: lessOrEqual},
	"NumericGreaterThan":        {family: familyNumeric, relation: greater},
	"NumericGreaterThanEquals":  {family: familyNumeric, relation: greaterOrEqual},
	"DateEquals":                {family: familyDate},
	"DateNotEquals":             {family: familyDate, negated: true},
	"DateLessThan":              {family: familyDate, relation: less},
	"DateLessThanEquals":        {family: familyDate, relation: lessOrEqual},
	"DateGreaterThan":           {family: familyDate, relation: greater},
	"DateGreaterThanEquals":     {family: familyDate, relation: greaterOrEqual},
	"Bool":                      {family: familyBool},
	"BinaryEquals":              {family: familyBinary},
	"IpAddress":                 {family: familyIP},
	"NotIpAddress":              {family: familyIP, negated: true},
	"ArnEquals":                 {family: familyARN},
	"ArnLike":                   {family: familyARN},
	"ArnNotEquals":              {family: familyARN, negated: true},
	"ArnNotLike":                {family: familyARN, negated: true},
	"Null":                      {family: familyNull},
}

// A quantifier says how many of a key's values have to satisfy an operator.
type quantifier uint8

const (
	single quantifier = iota // the key has one value
	anyValue
	allValues
)

// A clock says whether a condition key is the time of the request, and how it
// is written as text.
type clock uint8

const (
	noClock    clock = iota
	clockDate        // aws:CurrentTime
	clockEpoch       // aws:EpochTime
)

// clockOf returns the clock that a condition key, in lower case, stands for.
func clockOf(name string) clock {
	switch name {
	case "aws:currenttime":
		return clockDate
	case "aws:epochtime":
		return clockEpoch
	}
	return noClock
}

// A condition is one key of one operator of a Condition, with its values. Of
// the lists of values, the operator's family uses one.
type condition struct {
	operator
	quantifier quantifier
	ifExists   bool
	clock      clock
	text       string // the operator as written
	key, name  string // the key as written and in lower case
	patterns   []pattern
	arns       []arnPattern
	numbers    []decimal
	instants   []instant
	prefixes   []netip.Prefix
	binaries   []string
	bools      [2]bool // whether false and true are among the values
}

// An arnPattern matches the six parts of an ARN, each by itself. If the
// document does not have six parts without the values of variables, they are
// found when these are known, and whole is set.
type arnPattern struct {
	parts [6]pattern
	whole *pattern
}

// parseConditions parses a Condition: {"<operator>": {"<key>": <values>}}.
func parseConditions(p *statementParser, n *node) ([]condition, error) {
	if n.kind != jsontext.KindBeginObject {
		return nil, p.malformed("Condition", "not an object")
	}
	var list []condition
	for _, block := range n.members {
		c, err := parseOperator(p, block.name)
		if err != nil {
			return nil, err
		}
		element := "Condition." + c.text
		if block.value.kind != jsontext.KindBeginObject {
			return nil, p.malformed(element, "not an object")
		}
		names := make(map[string]bool, len(block.value.members))
		for _, m := range block.value.members {
			if err := checkKey(m.name); err != nil {
				return nil, p.malformed(element, err.Error())
			}
			c.key, c.name = m.name, lowerASCII(m.name)
			c.clock = clockOf(c.name)
			if names[c.name] {
				return nil, p.malformed(element, quoted(c.key)+" appears twice; the case of keys does not matter")
			}
			names[c.name] = true
			if p.kind == KeyPolicy && c.quantifier == allValues {
				switch {
				case strings.HasPrefix(c.name, "kms:encryptioncontext:"):
					return nil, &SyntaxError{ErrOverlyPermissive, p.index, element, overlyPermissive("encryption context")}
				case strings.HasPrefix(c.name, "aws:requesttag/"):
					return nil, &SyntaxError{ErrOverlyPermissive, p.index, element, overlyPermissive("tag")}
				}
			}
			one := c
			if err := one.parseValues(p, &m.value); err != nil {
				return nil, p.malformed(element, quoted(c.key)+": "+err.Error())
			}
			list = append(list, one)
		}
	}
	return list, nil
}

// parseOperator parses the name of an operator with its prefix and suffix.
func parseOperator(p *statementParser, text string) (c condition, err error) {
	c.text = text
	name := text
	if rest, ok := strings.CutPrefix(name, "ForAnyValue:"); ok {
		name, c.quantifier = rest, anyValue
	} else if rest, ok := strings.CutPrefix(name, "ForAllValues:"); ok {
		name, c.quantifier = rest, allValues
	}
	name, c.ifExists = strings.CutSuffix(name, "IfExists")
	op, ok := operators[name]
	if !ok {
		return condition{}, p.malformed("Condition", "unknown operator "+quoted(text))
	}
	if op.family == familyNull && (c.ifExists || c.quantifier != single) {
		return condition{}, p.malformed("Condition", "Null has neither a prefix nor a suffix")
	}
	c.operator = op
	return c, nil
}

// parseValues parses one value or a list of at least one.
func (c *condition) parseValues(p *statementParser, n *node) error {
	items := []node{*n}
	if n.kind == jsontext.KindBeginArray {
		items = n.items
	}
	if len(items) == 0 {
		return fmt.Errorf("want at least one value")
	}
	for i := range items {
		item := &items[i]
		text := item.text
		switch item.kind {
		case jsontext.KindString, jsontext.KindNumber:
		case jsontext.KindTrue:
			text = "true"
		case jsontext.KindFalse:
			text = "false"
		default:
			return fmt.Errorf("want strings, numbers or booleans")
		}
		if err := c.parseValue(p, text); err != nil {
			return err
		}
	}
	return nil
}

func (c *condition) parseValue(p *statementParser, text string) error {
	bad := func(what string) error { return fmt.Errorf("%s is not %s", quoted(text), what) }
	switch c.family {
	case familyString, familyFold, familyLike:
		v, err := p.pattern(text, c.family == familyLike)
		if err != nil {
			return err
		}
		c.patterns = append(c.patterns, v)
	case familyNumeric:
		d, ok := parseDecimal(text)
		if !ok {
			return bad("a decimal number")
		}
		if c.clock == noClock {
			c.numbers = append(c.numbers, d)
			return nil
		}
		if c.clock == clockDate {
			return fmt.Errorf("the key is a date, for the Date operators")
		}
		at, ok := instantOf(d)
		if !ok {
			return bad("a number of seconds before the year 10000")
		}
		c.instants = append(c.instants, at)
	case familyDate:
		at, ok := parseInstant(text)
		if !ok {
			return bad("a date in a form of ISO 8601, with its zone if it has a time, or a number of seconds since 1970")
		}
		c.instants = append(c.instants, at)
	case familyBool, familyNull:
		b, ok := parseBool(text)
		if !ok {
			return bad("true or false")
		}
		if b {
			c.bools[1] = true
		} else {
			c.bools[0] = true
		}
	case familyBinary:
		b, err := base64.StdEncoding.Strict().DecodeString(text)
		if err != nil || strings.ContainsAny(text, "\r\n") {
			return bad("base64")
		}
		c.binaries = append(c.binaries, string(b))
	case familyIP:
		prefix, ok := parsePrefix(text)
		if !ok {
			return bad("an IP address or a range in CIDR notation")
		}
		c.prefixes = append(c.prefixes, prefix)
	case familyARN:
		v, err := p.arnPattern(text)
		if err != nil {
			return err
		}
		c.arns = append(c.arns, v)
	}
	return nil
}

// arnPattern parses an ARN with wildcards and variables. The colons between the
// parts are those of the document: one in the value of a variable does not move
// a part.
func (p *statementParser) arnPattern(text string) (a arnPattern, err error) {
	var parts []string
	depth := false // in a variable
	start := 0
	for i := 0; i < len(text) && len(parts) < 5; i++ {
		switch {
		case p.variables && strings.HasPrefix(text[i:], "${"):
			depth = true
		case text[i] == '}':
			depth = false
		case text[i] == ':' && !depth:
			parts = append(parts, text[start:i])
			start = i + 1
		}
	}
	parts = append(parts, text[start:])
	if p.variables && len(parts) < 6 && strings.Contains(text, "${") {
		whole, err := p.pattern(text, true)
		if err != nil || len(whole.parts) > 0 {
			return arnPattern{whole: &whole}, err
		}
	}
	if len(parts) < 6 || parts[0] != "arn" || parts[5] == "" {
		return a, fmt.Errorf("%s is not an ARN, whose six parts may have wildcards", quoted(text))
	}
	for i, text := range parts {
		if a.parts[i], err = p.pattern(text, true); err != nil {
			return a, err
		}
	}
	return a, nil
}
