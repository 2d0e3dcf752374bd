package policy

import (
	"slices"

	"github.com/go-json-experiment/json/jsontext"
)

// Format lays a document out as the consoles of AWS do: four spaces for each
// level, each member and each item of a list on its own line, and a line feed
// at the end. It changes nothing but white space, so order and escapes stay as
// they are. The document has to be JSON as Parse accepts it, of at most
// MaxPolicySize bytes, but it need not be a policy. The error is a
// *SyntaxError.
func Format(doc []byte) ([]byte, error) {
	if err := checkSize(doc, MaxPolicySize); err != nil {
		return nil, err
	}
	if _, err := readJSON(doc); err != nil {
		return nil, err
	}
	v := jsontext.Value(slices.Clone(doc))
	if err := v.Indent(jsontext.WithIndent("    "), jsontext.PreserveRawStrings(true)); err != nil {
		return nil, jsonError(err)
	}
	return append(v, '\n'), nil
}
