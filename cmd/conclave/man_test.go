package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
)

// TestManPages: each command has a page, and what is in its help is in the page as text and
// not as requests to roff.
func TestManPages(t *testing.T) {
	dir := t.TempDir()
	root := rootCommand(new(cli.App))
	if err := manPages(root, dir); err != nil {
		t.Fatal(err)
	}
	request := regexp.MustCompile(`^\.(TH|SH|PP|TP|B|BR|nh|ad|nf|fi)[ \n]`)
	want := 1
	eachCommand(root, func(c *cobra.Command) {
		want++
		page, err := os.ReadFile(filepath.Join(dir, strings.ReplaceAll(c.CommandPath(), " ", "-")+".1"))
		if err != nil {
			t.Error(err)
			return
		}
		for line := range strings.Lines(string(page)) {
			if (line[0] == '.' || line[0] == '\'') && !request.MatchString(line) {
				t.Errorf("%s: %q is a request to roff", c.CommandPath(), line)
			}
		}
		if !strings.Contains(string(page), roff(c.Short)) {
			t.Errorf("%s: the page does not say what it is for", c.CommandPath())
		}
	})
	pages, err := filepath.Glob(filepath.Join(dir, "*.1"))
	if err != nil || len(pages) != want {
		t.Errorf("%d pages for %d commands, %v", len(pages), want, err)
	}
	if got := roff(".x\\y -z\n'q"); got != "\\&.x\\ey \\-z\n\\&'q" {
		t.Errorf("roff: %q", got)
	}
}
