package backups

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestCompareSurvivors(t *testing.T) {
	t.Parallel()
	voters := []string{"a", "b", "c", "d", "e"}
	of := func(node string, term, index uint64, hash string) report {
		return report{Format: reportFormat, Node: node, Cluster: "x", LastTerm: term, LastIndex: index, Index: index, StateHash: hash, Voters: voters}
	}
	elsewhere, restored := of("b", 1, 1, ""), of("b", 1, 1, "")
	elsewhere.Cluster, restored.Lineage = "y", "z"
	fewer := of("a", 5, 10, "h")
	fewer.Voters = []string{"a", "b", "c"}
	for name, c := range map[string]struct {
		own    report
		others []report
		lost   []string
		fault  string
	}{
		"alone":                     {of("a", 5, 10, "h"), nil, []string{"b", "c", "d", "e"}, ""},
		"behind":                    {of("a", 5, 10, "h"), []report{of("b", 5, 9, "g")}, []string{"c", "d", "e"}, ""},
		"longer log of an old term": {of("a", 5, 10, "h"), []report{of("b", 4, 99, "g")}, []string{"c", "d", "e"}, ""},
		"the same":                  {of("a", 5, 10, "h"), []report{of("b", 5, 10, "h")}, []string{"c", "d", "e"}, ""},
		"not a voter":               {of("a", 5, 10, "h"), []report{of("f", 5, 10, "h"), of("b", 5, 10, "h")}, []string{"c", "d", "e"}, ""},
		"newer term":                {of("a", 5, 10, "h"), []report{of("b", 6, 2, "g")}, nil, "log of b is more advanced"},
		"longer":                    {of("a", 5, 10, "h"), []report{of("b", 5, 11, "g")}, nil, "log of b is more advanced"},
		"different states":          {of("a", 5, 10, "h"), []report{of("b", 5, 10, "g")}, nil, "different states"},
		"another cluster":           {of("a", 5, 10, "h"), []report{elsewhere}, nil, "different clusters"},
		"another lineage":           {of("a", 5, 10, "h"), []report{restored}, nil, "different clusters"},
		"twice":                     {of("a", 5, 10, "h"), []report{of("a", 5, 10, "h")}, nil, "two reports of a"},
		"majority":                  {of("a", 5, 10, "h"), []report{of("b", 5, 9, "g"), of("c", 5, 8, "f")}, []string{"d", "e"}, ""},
		"majority of three":         {fewer, []report{of("b", 5, 9, "g")}, []string{"c"}, ""},
	} {
		l, err := compare(c.own, c.others)
		if err == nil && l.majority() != strings.HasPrefix(name, "majority") {
			t.Errorf("%s: majority is %v", name, l.majority())
		}
		switch {
		case c.fault == "" && (err != nil || !slices.Equal(l.lost, c.lost)):
			t.Errorf("%s: lost are %v: %v", name, l.lost, err)
		case c.fault != "" && (err == nil || !strings.Contains(err.Error(), c.fault)):
			t.Errorf("%s: %v, want %q", name, err, c.fault)
		}
	}
}

func TestReadReport(t *testing.T) {
	t.Parallel()
	for name, content := range map[string]string{
		"not JSON": "node-1", "newer": `{"format":2,"node":"a","cluster":"x"}`, "no node": `{"format":1,"cluster":"x"}`, "long": strings.Repeat(" ", maxReport+1),
	} {
		file := filepath.Join(t.TempDir(), "r")
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if r, err := readReport(file); err == nil {
			t.Errorf("%s: accepted as %+v", name, r)
		}
	}
}
