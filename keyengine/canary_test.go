package keyengine

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/keyengine/internal/auditsend"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// hostileTexts are what callers send to forge a record, to break the line that it is on, or to
// control the terminal of whoever reads it; and values of the greatest sizes.
var hostileTexts = []string{
	"", "\n{\"eventName\":\"Forged\"}\r\n", "\x1b[2J\x1b]0;title\x07\u009b31m", "\u202eevil\u2066\u200f\ufeff\u2028\u2029", "not \xff\xfe UTF-8\x00", `"}],"x":"`,
	strings.Repeat("0123456789abcdef", 4<<10),
}

// A canary puts marked values into an input, and knows which of them are secret.
type canary struct {
	hostile string
	marks   int
	secrets []string // that must be nowhere
}

// mark returns a value that occurs nowhere else.
func (c *canary) mark(m *kmsapi.Member) string {
	c.marks++
	s := fmt.Sprintf("canary-%05d-x", c.marks)
	if m.Secret || m.Kind == kmsapi.KindBlob {
		c.secrets = append(c.secrets, s)
	}
	return s
}

// set gives a member a value.
func (c *canary) set(m *kmsapi.Member, f reflect.Value) {
	switch m.Kind {
	case kmsapi.KindText:
		f.Set(reflect.New(f.Type().Elem()))
		f.Elem().SetString(c.mark(m) + c.hostile)
	case kmsapi.KindBlob:
		f.SetBytes([]byte(c.mark(m) + c.hostile))
	case kmsapi.KindTextList:
		f.Set(reflect.ValueOf([]string{c.mark(m) + c.hostile}).Convert(f.Type()))
	case kmsapi.KindTextMap:
		f.Set(reflect.ValueOf(map[string]string{c.mark(m) + c.hostile: c.hostile}).Convert(f.Type()))
	case kmsapi.KindStructure:
		f.Set(reflect.New(f.Type().Elem()))
		c.fill(m.Inner, f.Elem())
	case kmsapi.KindStructureList:
		f.Set(reflect.MakeSlice(f.Type(), 1, 1))
		c.fill(m.Inner, f.Index(0))
	case kmsapi.KindTime:
		f.Set(reflect.ValueOf(new(time.Unix(1, 0))))
	default:
		f.Set(reflect.New(f.Type().Elem()))
	}
}

func (c *canary) fill(s *kmsapi.Schema, v reflect.Value) {
	for i := range s.Members {
		c.set(&s.Members[i], v.Field(i))
	}
}

// TestCanaries sends marked and hostile values in each member of each operation, alone and
// together: no secret is in a record, an error or the node's log, and each record is one line
// of printable characters.
func TestCanaries(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.allowManyRefusals()
	var log bytes.Buffer
	c.engine.services.Log = slog.New(slog.NewTextHandler(&log, nil))
	c.engine.log = c.engine.services.Log
	requests := 0
	dir := t.TempDir()
	sink, err := (&auditsend.File{Directory: dir}).Open()
	if err != nil {
		t.Fatal(err)
	}
	var sent []auditsend.Record
	for _, op := range Operations() {
		members := op.Input().Members
		for _, hostile := range hostileTexts {
			for only := -1; only < len(members); only++ {
				in, marked := op.NewInput(), canary{hostile: hostile}
				if only < 0 {
					marked.fill(op.Input(), reflect.ValueOf(in).Elem())
				} else {
					marked.set(&members[only], reflect.ValueOf(in).Elem().Field(only))
				}
				from := c.Audit.Size()
				caller := c.caller(c.root)
				caller.UserAgent, caller.SourceArn = "agent"+hostile, ""
				_, err := c.engine.Do(t.Context(), caller, op, in)
				requests++
				text := fmt.Sprint(err) + log.String()
				for _, e := range c.Audit.Entries()[from:] {
					rec := enginetest.OpenRecord(t, c.engine.vault, e)
					line, err := auditlog.RenderJSON(e, rec)
					if err != nil {
						t.Fatalf("%s: %v", op.Name, err)
					}
					if i := bytes.IndexFunc(line, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }); i >= 0 {
						t.Errorf("%s: the record is not one printable line: %q", op.Name, line[max(0, i-20):min(len(line), i+20)])
					}
					text += string(line)
					if len(hostile) < 1<<10 { // the long ones only take time
						sent = append(sent, auditsend.Record{Index: uint64(len(sent)), Name: op.Name, Line: line})
					}
				}
				log.Reset()
				for _, s := range marked.secrets {
					for _, form := range []string{s, base64.StdEncoding.EncodeToString([]byte(s))[:len(s)/3*4], hex.EncodeToString([]byte(s))} {
						if strings.Contains(text, form) {
							t.Errorf("%s, member %d: a secret is in %.300q", op.Name, only, text)
						}
					}
				}
			}
		}
	}
	// A receiver of the log has as many lines, each of which is one record.
	if err := errors.Join(sink.Send(t.Context(), sent), sink.Close()); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	lines := 0
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			if lines >= len(sent) || line != string(sent[lines].Line)+"\n" {
				t.Fatalf("line %d of the file is %.200q, which is no record", lines, line)
			}
			lines++
		}
	}
	if lines != len(sent) || lines == 0 {
		t.Errorf("%d lines for %d records", lines, len(sent))
	}
	t.Logf("%d requests", requests)
}
