// Package bundle writes what somebody who looks into a problem needs of a node into one
// archive, without secrets.
//
// What is written is chosen by lists of what may be, never of what may not: a value is known
// to be harmless by its form, or it is left out. So a secret that turns up where none should
// be, such as in a log or in a flag that names a file, is not passed on.
package bundle

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// removed stands for a value that is not known to be harmless.
const removed = "[-]"

// Filter lets through text that is known to be harmless.
type Filter struct {
	// words are names that are let through besides ordinary words, such as those of nodes
	// and of operations.
	words map[string]bool
}

// NewFilter returns a filter that also lets through the given names.
func NewFilter(names ...string) *Filter {
	f := &Filter{words: make(map[string]bool)}
	f.Allow(names...)
	return f
}

// Allow lets more names through.
func (f *Filter) Allow(names ...string) {
	for _, n := range names {
		f.words[n] = true
	}
}

// forms are the texts that are let through: words as they stand in sentences, numbers with
// units, times, the names of errors, and the frames of our own functions. None has room for a
// key: of a random text in base64, one letter in two is upper case, and one character in six
// a digit.
var forms = []*regexp.Regexp{
	regexp.MustCompile(`^[A-Za-z]?[a-z]{0,15}(?:['’-][a-z]{1,10})?$`),
	regexp.MustCompile(`^[A-Z]{1,8}$`),
	regexp.MustCompile(`^[+-]?[0-9]{1,19}(?:\.[0-9]{1,9})?(?:%|[KMGT]?i?B|s|ns|µs|us|ms|m|h)?$`),
	regexp.MustCompile(`^[0-9]{1,2}(?:\.[0-9]{1,12})?e[+-][0-9]{1,3}$`),
	regexp.MustCompile(`^(?:[0-9]{1,9}(?:\.[0-9]{1,9})?(?:h|ms|m|s)){1,3}$`),
	regexp.MustCompile(`^[0-9]{4}-[0-9]{2}-[0-9]{2}(?:T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:Z|[+-][0-9]{2}:[0-9]{2}))?$`),
	regexp.MustCompile(`^(?:[A-Z][a-z]{1,14}){1,5}(?:Exception|Error|Fault)$`),
	regexp.MustCompile(`^(?:\+Inf|NaN)$`),
}

// plain returns a text without the punctuation around it.
func plain(s string) string { return strings.Trim(s, "()[]{}<>\"'`,.;:!?") }

// harmless reports whether a text without spaces may be let through.
func (f *Filter) harmless(s string) bool {
	if IsAddress(strings.Trim(s, "()\"'`,.;:")) {
		return true
	}
	s = plain(s)
	if s == "" || f.words[s] {
		return true
	}
	return slices.ContainsFunc(forms, func(r *regexp.Regexp) bool { return r.MatchString(s) })
}

// IsAddress reports whether a text is an IP address, with or without a port. One with a zone
// is not, as a zone can be any text.
func IsAddress(s string) bool {
	a, err := netip.ParseAddr(s)
	if err != nil {
		var p netip.AddrPort
		p, err = netip.ParseAddrPort(s)
		a = p.Addr()
	}
	return err == nil && a.Zone() == ""
}

var (
	// logKey is a key in a line of the log.
	logKey = regexp.MustCompile(`^([a-z][a-z_]{0,23})=(.*)$`)
	// telling are marks of what is secret as a whole: such a line is left out, since what
	// follows the mark could be in harmless pieces.
	telling = []string{"conclave-share", "PRIVATE KEY", "SECRET", "secret", "AKIA", "ASIA", "token"}
)

// Line returns a line of a log with all that is not known to be harmless taken out.
func (f *Filter) Line(line string) string {
	for _, mark := range telling {
		if strings.Contains(line, mark) {
			return removed
		}
	}
	if !utf8.ValidString(line) {
		return removed
	}
	var fields map[string]any
	if strings.HasPrefix(line, "{") && json.Unmarshal([]byte(line), &fields) == nil {
		return f.fields(fields)
	}
	words := strings.Fields(line)
	for i, w := range words {
		if m := logKey.FindStringSubmatch(w); m != nil {
			if !f.harmless(m[2]) {
				words[i] = m[1] + "=" + removed
			}
		} else if !f.harmless(w) {
			words[i] = removed
		}
	}
	return strings.Join(words, " ")
}

// fields returns a line of the log in JSON as one of the other format.
func (f *Filter) fields(fields map[string]any) string {
	var line []string
	for _, k := range slices.Sorted(maps.Keys(fields)) {
		if !logKey.MatchString(k + "=") {
			continue
		}
		words := strings.Fields(fmt.Sprint(fields[k]))
		for i, w := range words {
			if !f.harmless(w) {
				words[i] = removed
			}
		}
		line = append(line, k+"="+strings.Join(words, " "))
	}
	return strings.Join(line, " ")
}

// maxLine bounds a line of the log. Of a longer one the rest is left out, with the word that it
// begins in.
const maxLine = 8 << 10

// Log copies the last lines of a log, filtered.
func (f *Filter) Log(w io.Writer, r io.Reader, last int) error {
	lines := make([]string, 0, last)
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		if len(lines) == last {
			lines = lines[1:]
		}
		line := s.Bytes()
		if len(line) > maxLine {
			line = line[:bytes.LastIndexAny(line[:maxLine], " \t")+1]
		}
		lines = append(lines, string(line))
	}
	for _, l := range lines {
		if _, err := fmt.Fprintln(w, f.Line(l)); err != nil {
			return err
		}
	}
	return s.Err()
}

var (
	sample = regexp.MustCompile(`^((?:conclave|go|process)(?:_[a-z]{1,16}){1,8})(?:\{(.*)\})? ([^ ]+)$`)
	label  = regexp.MustCompile(`^([a-z_]{1,24})="((?:[^"\\]|\\.)*)",?`)
)

// Metrics copies metrics in the text format of Prometheus: the samples of metrics that
// Conclave, Go and the process have, without help texts.
func (f *Filter) Metrics(w io.Writer, r io.Reader) error {
	s := bufio.NewScanner(r)
	for s.Scan() {
		m := sample.FindStringSubmatch(s.Text())
		if m == nil || !f.harmless(m[3]) {
			continue
		}
		var labels []string
		for rest := m[2]; rest != ""; {
			l := label.FindStringSubmatch(rest)
			if l == nil {
				break
			}
			rest = rest[len(l[0]):]
			if !f.harmless(l[2]) && !slices.Contains([]string{"no leader", "disk full"}, l[2]) {
				l[2] = removed
			}
			labels = append(labels, fmt.Sprintf("%s=%q", l[1], l[2]))
		}
		name := m[1]
		if len(labels) > 0 {
			name += "{" + strings.Join(labels, ",") + "}"
		}
		if _, err := fmt.Fprintln(w, name, m[3]); err != nil {
			return err
		}
	}
	return s.Err()
}

// frames are the lines of a profile of goroutines: a total, a number of goroutines with the
// addresses of their frames, and each frame's function and line.
var frames = []*regexp.Regexp{
	regexp.MustCompile(`^goroutine profile: total [0-9]+$`),
	regexp.MustCompile(`^[0-9]+ @(?: 0x[0-9a-f]{1,16})*$`),
	regexp.MustCompile(`^#\t0x[0-9a-f]{1,16}\t[A-Za-z0-9_./()*\[\]{}·…-]{1,200}\+0x[0-9a-f]{1,8}\t+[A-Za-z0-9_./@+-]{1,300}\.(?:go|s):[0-9]{1,6}$`),
}

// Goroutines copies a profile of goroutines in the text format without arguments.
func (f *Filter) Goroutines(w io.Writer, r io.Reader) error {
	s := bufio.NewScanner(r)
	for s.Scan() {
		line := s.Text()
		if line != "" && !slices.ContainsFunc(frames, func(r *regexp.Regexp) bool { return r.MatchString(line) }) {
			continue
		}
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return s.Err()
}

// Words returns a text of a server with all that is not known to be harmless taken out.
func (f *Filter) Words(s string) string {
	var b bytes.Buffer
	_ = f.Log(&b, strings.NewReader(strings.ReplaceAll(s, "\n", " ")), 1) // neither fails
	return strings.TrimSpace(b.String())
}

var releaseForm = regexp.MustCompile(`^[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}(?:-[a-z]{1,5}(?:\.[0-9]{1,3})?)?(?:\+(?:[0-9a-f]{7,12}|unknown)(?:-dirty)?)?$`)

// version returns the version of a release, or nothing if it does not look like one.
func version(s string) string {
	if !releaseForm.MatchString(s) {
		return removed
	}
	return s
}
