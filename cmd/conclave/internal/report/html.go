package report

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"html/template"
	"io"
	"time"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
)

//go:embed report.css
var css string

//go:embed report.html
var page string

// shown is text for people in HTML. The template escapes what HTML interprets; characters that
// nobody sees, or that change the direction of text, are escaped here.
func shown(v any) string {
	switch v := v.(type) {
	case string:
		return cli.Printable(v)
	case Severity:
		return v.String()
	case Status:
		return string(v)
	default:
		return ""
	}
}

var pageTemplate = template.Must(template.New("report").Funcs(template.FuncMap{
	"shown":  shown,
	"lines":  cli.Visible,
	"style":  func() template.CSS { return template.CSS(css) },
	"policy": contentPolicy,
	"moment": func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
}).Parse(page))

// contentPolicy is the page's content security policy: nothing is loaded and nothing runs, and
// only the page's own style applies.
func contentPolicy() string {
	sum := sha256.Sum256([]byte(css))
	return "default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// A source is one requirement, with the checks for it.
type source struct {
	Name   string
	Checks []*Result
}

// bySource returns the checks by the requirements that they are for.
func (r *Report) bySource() (list []source) {
	all := make(map[string][]*Result)
	for _, res := range r.Results {
		for _, s := range res.Sources {
			all[s] = append(all[s], res)
		}
	}
	for _, name := range sorted(all) {
		list = append(list, source{name, all[name]})
	}
	return list
}

// writeHTML writes the report as one page without anything from elsewhere.
func (r *Report) writeHTML(w io.Writer) error {
	counts := make(map[Status]int)
	for _, res := range r.Results {
		counts[res.Status]++
	}
	return pageTemplate.Execute(w, map[string]any{
		"R": r, "Sources": r.bySource(), "Passed": counts[Passed], "Failed": counts[Failed], "Open": counts[NotChecked] + counts[Unreadable],
	})
}
