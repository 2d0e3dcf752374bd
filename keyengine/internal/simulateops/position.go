package simulateops

import (
	"encoding/json"
	"strings"

	"github.com/conclavekms/conclave/keyengine/iamapi"
)

// span is where a statement is in the text of a policy: the offsets of its first byte and of
// that after its last.
type span struct{ begin, end int }

// spans returns where the statements of a policy that policy.Parse accepts are.
func spans(text string) []span {
	d := json.NewDecoder(strings.NewReader(text))
	if _, err := d.Token(); err != nil { // the opening brace
		return nil
	}
	for d.More() {
		key, err := d.Token()
		var value json.RawMessage
		if err != nil || d.Decode(&value) != nil {
			return nil
		}
		if key != "Statement" {
			continue
		}
		begin := int(d.InputOffset()) - len(value)
		if value[0] != '[' { // a single statement needs no list
			return []span{{begin, begin + len(value)}}
		}
		var all []span
		list := json.NewDecoder(strings.NewReader(string(value)))
		if _, err := list.Token(); err != nil {
			return nil
		}
		for list.More() {
			var statement json.RawMessage
			if list.Decode(&statement) != nil {
				return nil
			}
			end := begin + int(list.InputOffset())
			all = append(all, span{end - len(statement), end})
		}
		return all
	}
	return nil
}

// position returns the line and the column of an offset, which begin at 1.
func position(text string, at int) *iamapi.Position {
	before := text[:at]
	line := int32(strings.Count(before, "\n")) + 1
	column := int32(len([]rune(before[strings.LastIndexByte(before, '\n')+1:]))) + 1
	return &iamapi.Position{Line: &line, Column: &column}
}
