// Package scantest provides what the tests of raftscan, and of nodes that use it, share.
package scantest

import (
	"io"
	"strings"
)

// repeated returns an endless stream: head, and then b over and over.
func repeated(head string, b string) io.Reader {
	return io.MultiReader(strings.NewReader(head), &endless{b: b})
}

type endless struct {
	b  string
	at int
}

// Read implements io.Reader.
func (e *endless) Read(p []byte) (int, error) {
	for n := 0; n < len(p); {
		k := copy(p[n:], e.b[e.at:])
		n, e.at = n+k, (e.at+k)%len(e.b)
	}
	return len(p), nil
}

// Floods are endless requests, and requests that announce far more than they contain.
var Floods = map[string]func() io.Reader{
	"entries of nothing": func() io.Reader { return repeated("\x00\x81\xa7Entries\xdd\xff\xff\xff\xff", "\xc0") },
	"empty entries":      func() io.Reader { return repeated("\x00\x81\xa7Entries\xdd\xff\xff\xff\xff", "\x80") },
	"few entries of many": func() io.Reader {
		return repeated("\x00\x81\xa7Entries\xdd\x00\x00\x0f\xff", "\x81\xa4Data\xc5\xff\xff"+strings.Repeat("x", 0xffff))
	},
	"a blob":             func() io.Reader { return repeated("\x00\x81\xa2ID\xc6\xff\xff\xff\xff", "x") },
	"a blob as an array": func() io.Reader { return repeated("\x00\x81\xa2ID\xdd\xff\xff\xff\xff", "\x01") },
	"a text":             func() io.Reader { return repeated("\x01\x81\xa2ID\xdb\xff\xff\xff\xff", "x") },
	"an extension":       func() io.Reader { return repeated("\x01\x81\xa2ID\xc9\xff\xff\xff\xff", "x") },
	"a name":             func() io.Reader { return repeated("\x01\x81\xdb\xff\xff\xff\xff", "x") },
	"fields":             func() io.Reader { return repeated("\x04\xdf\xff\xff\xff\xff", "\xa1a\xc0") },
	"the same field": func() io.Reader {
		return repeated("\x00\xde\xff\xff", "\xa2ID\xc5\xff\xff"+strings.Repeat("x", 0xffff))
	},
	"depth":                    func() io.Reader { return repeated("\x00\x81\xa1a", "\x91") },
	"depth of maps":            func() io.Reader { return repeated("\x00", "\x81\xa1a") },
	"no map":                   func() io.Reader { return repeated("\x00", "\xdd\xff\xff\xff\xff") },
	"no kind of value":         func() io.Reader { return repeated("\x00\x81\xa1a", "\xc1") },
	"a snapshot of size -1":    func() io.Reader { return repeated("\x02\x81\xa4Size\xff", "\x80") },
	"a snapshot of size -1, 8": func() io.Reader { return repeated("\x02\x81\xa4Size\xd3\xff\xff\xff\xff\xff\xff\xff\xff", "\x80") },
	"a snapshot of a fraction": func() io.Reader { return repeated("\x02\x81\xa4Size\xcb\x7f\xff\xff\xff\xff\xff\xff\xff", "\x80") },
	"a size that is too large": func() io.Reader { return repeated("\x02\x81\xa4Size\xcf\xff\xff\xff\xff\xff\xff\xff\xff", "\x80") },
	"a size without a name":    func() io.Reader { return repeated("\x02\x81\xc4\x04Size\x01", "\x80") },
	"after a snapshot": func() io.Reader {
		return repeated("\x02\x81\xa4Size\x01x", "\x00\x81\xa7Entries\xdd\xff\xff\xff\xff\x80")
	},
}
