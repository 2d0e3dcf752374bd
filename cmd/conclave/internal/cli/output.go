package cli

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Format returns the output format that the user wants: table, json, yaml or one of a.Formats.
func (a *App) Format() (string, error) {
	f := First(a.Output, "CONCLAVE_OUTPUT")
	if f == "" {
		return "table", nil
	}
	formats := append([]string{"table", "json", "yaml"}, a.Formats...)
	if !slices.Contains(formats, f) {
		return "", Usagef("output %q is not one of %s and %s", f, strings.Join(formats[:len(formats)-1], ", "), formats[len(formats)-1])
	}
	return f, nil
}

// Print writes v, a protobuf message or a value that encodes to JSON, in the
// requested format. table writes it for people, with cells separated by tabs.
func (a *App) Print(v any, table func(w io.Writer)) error {
	format, err := a.Format()
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if format == "table" {
		tw := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
		table(tw)
		if err := tw.Flush(); err != nil {
			return err
		}
	} else {
		raw, err := encodeJSON(v)
		if err != nil {
			return err
		}
		if format == "yaml" {
			raw, err = JSONToYAML(raw)
			if err != nil {
				return err
			}
			out.Write(raw)
		} else {
			if err := json.Indent(&out, raw, "", "  "); err != nil {
				return err
			}
			out.WriteByte('\n')
		}
	}
	_, err = io.WriteString(a.Stdout, Visible(out.String()))
	return err
}

// encodeJSON keeps the order of members. Messages have their protobuf names,
// numbers are numbers, bytes are base64, and timestamps RFC 3339.
func encodeJSON(v any) ([]byte, error) {
	m, ok := v.(proto.Message)
	if !ok {
		return json.Marshal(v)
	}
	var b bytes.Buffer
	if err := writeMessage(&b, m.ProtoReflect()); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func writeMessage(b *bytes.Buffer, m protoreflect.Message) error {
	if t, ok := m.Interface().(*timestamppb.Timestamp); ok {
		return writeValue(b, t.AsTime().Format(time.RFC3339Nano))
	}
	b.WriteByte('{')
	fields := m.Descriptor().Fields()
	sep := ""
	for i := range fields.Len() {
		f := fields.Get(i)
		// Members that have presence and are absent are left out. Lists are
		// always written, so that scripts can iterate over them.
		if f.HasPresence() && !m.Has(f) || f.IsMap() && !m.Has(f) {
			continue
		}
		fmt.Fprintf(b, "%s%q:", sep, f.Name())
		sep = ","
		v := m.Get(f)
		switch {
		case f.IsMap():
			entries := map[string]any{}
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				entries[k.String()] = v.Interface()
				return true
			})
			if err := writeValue(b, entries); err != nil {
				return err
			}
		case f.IsList():
			b.WriteByte('[')
			for j := range v.List().Len() {
				if j > 0 {
					b.WriteByte(',')
				}
				if err := writeField(b, f, v.List().Get(j)); err != nil {
					return err
				}
			}
			b.WriteByte(']')
		default:
			if err := writeField(b, f, v); err != nil {
				return err
			}
		}
	}
	b.WriteByte('}')
	return nil
}

func writeField(b *bytes.Buffer, f protoreflect.FieldDescriptor, v protoreflect.Value) error {
	switch f.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return writeMessage(b, v.Message())
	case protoreflect.BytesKind:
		return writeValue(b, base64.StdEncoding.EncodeToString(v.Bytes()))
	case protoreflect.EnumKind:
		return writeValue(b, int32(v.Enum()))
	default:
		return writeValue(b, v.Interface())
	}
}

func writeValue(b *bytes.Buffer, v any) error {
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	b.Truncate(b.Len() - 1) // the newline
	return nil
}

// JSONToYAML relies on the fact that JSON is YAML, and changes only the style.
func JSONToYAML(raw []byte) ([]byte, error) {
	var doc yaml.Node
	// YAML allows some characters only as escapes.
	if err := yaml.Unmarshal([]byte(Visible(string(raw))), &doc); err != nil {
		return nil, err
	}
	plain(&doc)
	return yaml.Marshal(&doc)
}

func plain(n *yaml.Node) {
	n.Style = 0
	if strings.ContainsFunc(n.Value, unseen) {
		n.Style = yaml.DoubleQuotedStyle // where escapes are understood
	}
	for _, c := range n.Content {
		plain(c)
	}
}

// Line writes one row of a table. Cells contain text from servers and their
// users, so control characters are escaped.
func Line(w io.Writer, cells ...any) {
	for i, c := range cells {
		if i > 0 {
			io.WriteString(w, "\t")
		}
		io.WriteString(w, Printable(fmt.Sprint(c)))
	}
	io.WriteString(w, "\n")
}

// When formats a time; "" if there is none.
func When(t *timestamppb.Timestamp) string {
	if t == nil {
		return "-"
	}
	return t.AsTime().Format(time.RFC3339)
}

// OrDash returns s, or a dash for an empty cell of a table.
func OrDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// Indent indents all lines of s by two spaces.
func Indent(s string) string { return "  " + strings.ReplaceAll(s, "\n", "\n  ") }
