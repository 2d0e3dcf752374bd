package alert

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the table of docs/operate/alerts.md anew")

// TestPage: the runbook has the rules as they are.
func TestPage(t *testing.T) {
	const page = "../../docs/operate/alerts.md"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, r := range Rules {
		quiet := fmt.Sprintf("%d minutes", r.Quiet/time.Minute)
		switch {
		case r.Quiet >= day:
			quiet = days(r.Quiet)
		case r.Quiet > time.Hour:
			quiet = fmt.Sprintf("%d hours", r.Quiet/time.Hour)
		case r.Quiet == time.Hour:
			quiet = "an hour"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", r.Name, r.About, quiet)
	}
	table := regexp.MustCompile(`(?s)(\| --- \| --- \| --- \|\n).*?\n\n`)
	want := table.ReplaceAllString(string(text), "${1}"+b.String()+"\n")
	if want == string(text) {
		return
	}
	if !*update {
		t.Fatal("docs/operate/alerts.md does not have the rules as they are; go test ./keyengine/alert -run TestPage -update writes them")
	}
	if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}
