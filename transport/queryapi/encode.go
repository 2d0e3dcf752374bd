package queryapi

import (
	"encoding/base64"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport"
)

// timeFormat is that of times in answers. IAM and STS have no fractions of seconds; the
// time at which a session ends is thus never shown later than it is.
const timeFormat = "2006-01-02T15:04:05Z"

// documents are the members of answers that are policy documents, which AWS encodes as RFC
// 3986 says for the parts of a URL.
var documents = map[string]bool{"PolicyDocument": true, "AssumeRolePolicyDocument": true, "Document": true}

// appendAnswer appends the XML of an answer. An answer of an operation without output has
// only the request's id.
//
// If b has to grow, the old buffer is overwritten.
func appendAnswer(b []byte, s *service, op *keyengine.Operation, out any, id string) ([]byte, error) {
	b = appendWords(b, "<", op.Name, `Response xmlns="`, s.namespace, `">`)
	if op.HasOutput() {
		v, err := op.Output().Of(out)
		if err != nil {
			return nil, err
		}
		b = appendWords(b, "<", op.Name, "Result>")
		if v.IsValid() {
			b = appendStructure(b, op.Output(), v, true)
		}
		b = appendWords(b, "</", op.Name, "Result>")
	}
	return appendWords(b, "<ResponseMetadata><RequestId>", id, "</RequestId></ResponseMetadata></", op.Name, "Response>"), nil
}

// appendStructure appends the members of a structure. Those that are nil are left out, but
// for lists and maps of the answer itself, which AWS always has in it.
func appendStructure(b []byte, s *kmsapi.Schema, v reflect.Value, outermost bool) []byte {
	for i := range s.Members {
		m, f := &s.Members[i], v.Field(i)
		if kind := f.Kind(); f.IsNil() && !(outermost && (kind == reflect.Slice && m.Kind != kmsapi.KindBlob || kind == reflect.Map)) {
			continue
		}
		if size := f.Kind(); size != reflect.Pointer && f.Len() == 0 {
			b = appendWords(b, "<", m.Name, "/>")
			continue
		}
		b = appendWords(b, "<", m.Name, ">")
		b = appendMember(b, m, f)
		b = appendWords(b, "</", m.Name, ">")
	}
	return b
}

func appendMember(b []byte, m *kmsapi.Member, v reflect.Value) []byte {
	switch m.Kind {
	case kmsapi.KindText:
		if documents[m.Name] {
			return appendEncoded(b, v.Elem().String())
		}
		return appendText(b, v.Elem().String())
	case kmsapi.KindNumber:
		return strconv.AppendInt(transport.Grow(b, maxNumber), v.Elem().Int(), 10)
	case kmsapi.KindFlag:
		return appendWords(b, strconv.FormatBool(v.Elem().Bool()))
	case kmsapi.KindTime:
		return v.Interface().(*time.Time).UTC().AppendFormat(transport.Grow(b, len(timeFormat)), timeFormat)
	case kmsapi.KindBlob:
		b = transport.Grow(b, base64.StdEncoding.EncodedLen(v.Len()))
		return base64.StdEncoding.AppendEncode(b, v.Bytes())
	case kmsapi.KindTextList:
		for _, s := range v.Interface().([]string) {
			b = appendText(appendWords(b, "<member>"), s)
			b = appendWords(b, "</member>")
		}
	case kmsapi.KindTextMap:
		pairs := v.Interface().(map[string]string)
		for _, k := range slices.Sorted(maps.Keys(pairs)) {
			b = appendEntry(b, k, pairs[k])
		}
	case kmsapi.KindNumberMap:
		pairs := v.Interface().(map[string]int32)
		for _, k := range slices.Sorted(maps.Keys(pairs)) {
			b = appendEntry(b, k, strconv.Itoa(int(pairs[k])))
		}
	case kmsapi.KindStructure:
		return appendStructure(b, m.Inner, v.Elem(), false)
	case kmsapi.KindStructureList:
		for i := range v.Len() {
			b = appendStructure(appendWords(b, "<member>"), m.Inner, v.Index(i), false)
			b = appendWords(b, "</member>")
		}
	}
	return b
}

func appendEntry(b []byte, key, value string) []byte {
	b = appendText(appendWords(b, "<entry><key>"), key)
	b = appendText(appendWords(b, "</key><value>"), value)
	return appendWords(b, "</value></entry>")
}

// appendWords appends texts that have nothing to escape in them.
func appendWords(b []byte, words ...string) []byte {
	for _, s := range words {
		b = append(transport.Grow(b, len(s)), s...)
	}
	return b
}

// appendText appends character data. Line ends and tabs are escaped too, as parsers change
// them otherwise, and what XML cannot have, even escaped, becomes U+FFFD.
func appendText(b []byte, s string) []byte {
	done := 0
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if escape := escapeOf(r, n); escape != "" {
			b = appendWords(b, s[done:i], escape)
			done = i + n
		}
		i += n
	}
	return appendWords(b, s[done:])
}

func escapeOf(r rune, size int) string {
	switch {
	case r == '<':
		return "&lt;"
	case r == '>':
		return "&gt;"
	case r == '&':
		return "&amp;"
	case r == '"':
		return "&quot;"
	case r == '\'':
		return "&apos;"
	case r == '\t':
		return "&#x9;"
	case r == '\n':
		return "&#xA;"
	case r == '\r':
		return "&#xD;"
	case r < 0x20 || r == utf8.RuneError && size == 1 || r == 0xfffe || r == 0xffff:
		return "\uFFFD"
	}
	return ""
}

// appendEncoded appends a text with every byte but RFC 3986's unreserved characters
// encoded.
func appendEncoded(b []byte, s string) []byte {
	const hexDigits = "0123456789ABCDEF"
	b = transport.Grow(b, 3*len(s))
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.', c == '~':
			b = append(b, c)
		default:
			b = append(b, '%', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return b
}
