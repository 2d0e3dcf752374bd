package integration

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/conclavekms/conclave"

// imports is the map of docs/design.md: which packages of ours a package may
// import. A trailing /... covers the tree below.
var imports = []struct {
	pkg     string
	allowed []string
}{
	{"cmd/conclave/node", []string{"cluster/...", "transport/...", "keyengine", "fsm/...", "auditlog", "policy"}},
	{"cmd/conclave", []string{"cmd/conclave/node", "cluster", "transport/...", "keyengine", "auditlog/...", "policy"}},
	{"transport/client", []string{"transport/kmspb"}},
	{"transport/kmspb", nil},
	{"transport", []string{"transport/...", "keyengine", "fsm", "cluster"}},
	{"keyengine/internal/xks", []string{"keyengine/internal/sigv4"}},
	{"keyengine/internal", nil},
	{"keyengine", []string{"policy", "auditlog/...", "fsm/...", "keyengine/internal/..."}},
	{"cluster", []string{"cluster/clusterpb", "fsm/...", "auditlog"}},
	{"fsm", []string{"fsm/fsmpb", "auditlog"}},
	{"policy", nil},
	{"auditlog", []string{"auditlog/auditpb"}},
}

// generatedMayImport adds what one .proto needs of another's.
var generatedMayImport = map[string][]string{"cluster/clusterpb": {"fsm/fsmpb"}}

// impure are the standard packages that would let apply depend on something
// other than the state and the entry.
var impure = []string{"time", "math/rand", "math/rand/v2", "crypto/rand", "os", "net", "net/http", "context"}

func TestImports(t *testing.T) {
	root := ".."
	seen := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin") {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") {
			return nil
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, src, parser.ImportsOnly)
		if err != nil {
			return err
		}
		dir, _ := filepath.Rel(root, filepath.Dir(path))
		pkg := filepath.ToSlash(dir)
		test := strings.HasSuffix(path, "_test.go")
		for _, spec := range f.Imports {
			imp, _ := strconv.Unquote(spec.Path.Value)
			if pkg == "fsm" && !test && slices.Contains(impure, imp) {
				t.Errorf("%s imports %s: apply must be a pure function", path, imp)
			}
			ours, ok := strings.CutPrefix(imp, module+"/")
			if !ok || test && pkg != "policy" && pkg != "auditlog" {
				continue // tests may reach further, but for the packages that import nothing
			}
			seen++
			if !mayImport(pkg, ours) {
				t.Errorf("%s: %s may not import %s", path, pkg, ours)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen == 0 {
		t.Fatal("no import of ours was seen: the test looks in the wrong place")
	}
}

func mayImport(pkg, imp string) bool {
	if under(imp, pkg) || strings.HasPrefix(pkg, "integration") || slices.Contains(generatedMayImport[pkg], imp) {
		return true
	}
	for _, rule := range imports {
		if !under(pkg, rule.pkg) {
			continue
		}
		for _, a := range rule.allowed {
			if tree, ok := strings.CutSuffix(a, "/..."); ok && under(imp, tree) || a == imp {
				return true
			}
		}
		return false // the first rule that fits decides
	}
	return false
}

// under reports whether pkg is tree or below it.
func under(pkg, tree string) bool {
	return pkg == tree || strings.HasPrefix(pkg, tree+"/")
}

func TestNoVaguePackageNames(t *testing.T) {
	for _, name := range []string{"util", "utils", "common", "types", "pkg", "helpers", "misc"} {
		for _, pattern := range []string{"../" + name, "../*/" + name, "../*/*/" + name, "../*/*/*/" + name} {
			if found, _ := filepath.Glob(pattern); len(found) > 0 {
				t.Errorf("%v: name the package for what it provides", found)
			}
		}
	}
}
