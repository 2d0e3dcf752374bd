package integration

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What a reader can hold: lines of a package without tests and generated code, and
// methods of a type.
const (
	maxLines   = 4000
	maxMethods = 40
)

// TestSizes measures packages and types, so that none grows past what a reader can hold.
// With -v it prints the lines of each package, and the methods of types that have many.
func TestSizes(t *testing.T) {
	sizes := make(map[string]int)
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (path != ".." && strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin" || d.Name() == "node_modules") {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, src, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		if ast.IsGenerated(f) {
			return nil
		}
		dir, err := filepath.Rel("..", filepath.Dir(path))
		if err != nil {
			return err
		}
		pkg := filepath.ToSlash(dir)
		sizes[pkg] += bytes.Count(src, []byte("\n"))
		for _, decl := range f.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv != nil {
				sizes[pkg+"."+receiver(fn)]++
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if sizes["fsm"] == 0 || sizes["cluster.Node"] == 0 {
		t.Fatal("nothing was measured: the test looks in the wrong place")
	}
	for _, name := range slices.Sorted(maps.Keys(sizes)) {
		size, limit, what := sizes[name], maxLines, "lines"
		if strings.Contains(filepath.Base(name), ".") {
			limit, what = maxMethods, "methods"
		}
		if what == "lines" || size > limit/2 {
			t.Logf("%5d %-7s %s", size, what, name)
		}
		if size > limit {
			t.Errorf("%s has %d %s, and may have %d", name, size, what, limit)
		}
	}
}

// receiver is the name of the type that a method belongs to.
func receiver(fn *ast.FuncDecl) string {
	t := fn.Recv.List[0].Type
	for {
		switch e := t.(type) {
		case *ast.StarExpr:
			t = e.X
		case *ast.IndexExpr:
			t = e.X
		case *ast.IndexListExpr:
			t = e.X
		case *ast.Ident:
			return e.Name
		default:
			return "?"
		}
	}
}
