package keymat

import (
	"fmt"
	"log/slog"
)

// redacted is embedded in types that hold secrets. Printing, logging and marshalling such a
// type gives only "[redacted]".
//
// It does not help for an unexported field of another package's struct: there fmt does not
// call methods but prints the fields, and for a verb that does not fit a pointer it even
// follows one pointer. Types with secrets are therefore used through pointers and keep the
// secret itself behind a second one, which fmt prints as an address.
type redacted struct{}

const redactedText = "[redacted]"

// String and the other methods return "[redacted]".
func (redacted) String() string                 { return redactedText }
func (redacted) GoString() string               { return redactedText }
func (redacted) Format(f fmt.State, _ rune)     { _, _ = f.Write([]byte(redactedText)) }
func (redacted) LogValue() slog.Value           { return slog.StringValue(redactedText) }
func (redacted) MarshalText() ([]byte, error)   { return []byte(redactedText), nil }
func (redacted) MarshalJSON() ([]byte, error)   { return []byte(`"` + redactedText + `"`), nil }
func (redacted) MarshalBinary() ([]byte, error) { return []byte(redactedText), nil }
