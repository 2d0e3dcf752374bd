package transport

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// declaredCodes returns the codes of all Error values that a package's source
// declares, so that none can be added without a row.
func declaredCodes(t *testing.T, dir string) map[kmsapi.Code]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no source in %s: %v", dir, err)
	}
	found := make(map[kmsapi.Code]string)
	fset := token.NewFileSet()
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			lit, ok := n.(*ast.CompositeLit)
			if !ok {
				return true
			}
			id, _ := lit.Type.(*ast.Ident)
			sel, _ := lit.Type.(*ast.SelectorExpr)
			if (id == nil || id.Name != "Error") && (sel == nil || sel.Sel.Name != "Error") {
				return true
			}
			for _, e := range lit.Elts {
				kv, ok := e.(*ast.KeyValueExpr)
				if !ok {
					continue
				}
				if k, ok := kv.Key.(*ast.Ident); !ok || k.Name != "Code" {
					continue
				}
				if v, ok := kv.Value.(*ast.BasicLit); ok && v.Kind == token.STRING {
					s, err := strconv.Unquote(v.Value)
					if err != nil {
						t.Fatal(err)
					}
					found[kmsapi.Code(s)] = fset.Position(v.Pos()).String()
				}
			}
			return true
		})
	}
	return found
}

func TestEveryCodeHasARow(t *testing.T) {
	all := declaredCodes(t, "../keyengine/kmsapi")
	if len(all) < 25 {
		t.Fatalf("found only %d codes in kmsapi", len(all))
	}
	for _, dir := range []string{"../keyengine", "../keyengine/ceremony", "../keyengine/iamapi", "../keyengine/trailapi", "."} {
		for code, at := range declaredCodes(t, dir) {
			all[code] = at
		}
	}
	for code, at := range all {
		if _, ok := table[code]; !ok {
			t.Errorf("%s: %s has no row in the table", at, code)
		}
	}
	for code := range table {
		if _, ok := all[code]; !ok {
			t.Errorf("row for %s, which nothing declares", code)
		}
		if a := Lookup(&kmsapi.Error{Code: code}); a.Message == "" {
			t.Errorf("%s says nothing", code)
		}
	}
}

func TestLookup(t *testing.T) {
	said := func(e *kmsapi.Error, message string) error {
		return fmt.Errorf("while testing: %w", &kmsapi.Error{Code: e.Code, Message: message})
	}
	for _, tc := range []struct {
		name string
		err  error
		want Answer
	}{
		{"wrapped", said(kmsapi.ErrNotFound, "Key 'x' does not exist"),
			Answer{Type: "NotFoundException", Message: "Key 'x' does not exist", HTTP: 400, GRPC: codes.NotFound}},
		{"no message", kmsapi.ErrInvalidMac,
			Answer{Type: "KMSInvalidMacException", Message: "The MAC does not verify.", HTTP: 400, GRPC: codes.InvalidArgument}},
		{"sealed", said(kmsapi.ErrUnavailable, "sealed"),
			Answer{Type: "ServiceUnavailable", Message: "sealed", HTTP: 503, GRPC: codes.Unavailable}},
		{"throttled", said(kmsapi.ErrThrottling, "slow"),
			Answer{Type: "ThrottlingException", Message: "slow", HTTP: 400, GRPC: codes.ResourceExhausted}},
		{"too large", said(ErrTooLarge, "big"),
			Answer{Type: "RequestEntityTooLargeException", Message: "big", HTTP: 413, GRPC: codes.ResourceExhausted}},
		{"internal says nothing", said(kmsapi.ErrInternal, "bolt: page 7 is torn"),
			Answer{Type: "KMSInternalException", Message: internalMessage, HTTP: 500, GRPC: codes.Internal, Internal: true}},
		{"foreign", errors.New("dial 10.0.0.7: refused"),
			Answer{Type: "KMSInternalException", Message: internalMessage, HTTP: 500, GRPC: codes.Internal, Internal: true}},
		{"code without a row", &kmsapi.Error{Code: "Invented", Message: "secret"},
			Answer{Type: "KMSInternalException", Message: internalMessage, HTTP: 500, GRPC: codes.Internal, Internal: true}},
		{"no leader", fmt.Errorf("x: %w", fsm.ErrNoLeader),
			Answer{Type: "ServiceUnavailable", Message: "The cluster has no leader that this node can reach. Try again.", HTTP: 503, GRPC: codes.Unavailable}},
		{"unknown outcome", fsm.ErrOutcomeUnknown,
			Answer{Type: "ServiceUnavailable", Message: "The cluster did not say in time what became of the request. It may have taken effect.", HTTP: 503, GRPC: codes.Unavailable}},
		{"overloaded", fsm.ErrOverloaded,
			Answer{Type: "ThrottlingException", Message: "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls.", HTTP: 400, GRPC: codes.ResourceExhausted}},
		{"deadline", context.DeadlineExceeded,
			Answer{Type: "ServiceUnavailable", Message: "The request was not answered in time.", HTTP: 503, GRPC: codes.Unavailable}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := Lookup(tc.err); got != tc.want {
				t.Errorf("got  %+v\nwant %+v", got, tc.want)
			}
		})
	}
}
