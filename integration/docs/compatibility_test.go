package docs

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/cloudtrail"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/google/go-cmp/cmp"

	"github.com/conclavekms/conclave/integration/awsmodel"
	"github.com/conclavekms/conclave/keyengine"
)

// generated holds a page against what it has to be, or writes it with -update.
func generated(t *testing.T, name, want string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(filepath.Join("../..", filepath.FromSlash(name)), []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(want, page(t, name)); diff != "" {
		t.Errorf("%s is not what is served (-want +got); `go test ./integration/docs -run %s -update` writes it:\n%s", name, t.Name(), diff)
	}
}

// TestCompatibility writes docs/compatibility.md from AWS's model, the table that
// requests are served from, and the table of known differences; or holds it against
// them.
func TestCompatibility(t *testing.T) {
	m := awsmodel.Load(t)
	if diff := cmp.Diff(m.Names(), slices.Sorted(maps.Keys(compatRows))); diff != "" {
		t.Fatalf("the rows are not AWS's operations (-model +rows):\n%s", diff)
	}
	var specs []string
	for _, s := range compatSpecs {
		specs = append(specs, s.spec)
	}
	all := slices.Clone(m.Shapes["KeySpec"].Enum)
	slices.Sort(all)
	slices.Sort(specs)
	if diff := cmp.Diff(all, specs); diff != "" {
		t.Fatalf("the specs are not AWS's (-model +rows):\n%s", diff)
	}
	for name := range compatRows {
		for _, d := range compatRows[name].differences {
			if strings.Contains(d, "|") || !strings.HasSuffix(d, ".") {
				t.Errorf("%s: %q is no sentence for a table", name, d)
			}
		}
	}
	generated(t, "docs/compatibility.md", compatibility(m, identities()))
}

// identities is the part of the page about IAM and STS.
func identities() string {
	var args []any
	var own []string
	for _, s := range []struct {
		service keyengine.Service
		client  reflect.Type
	}{{keyengine.STS, reflect.TypeFor[*sts.Client]()}, {keyengine.IAM, reflect.TypeFor[*iam.Client]()}} {
		var names []string
		for _, op := range keyengine.OperationsOf(s.service) {
			if _, ok := s.client.MethodByName(op.Name); ok {
				names = append(names, op.Name)
			} else {
				own = append(own, op.Name)
			}
		}
		const others = 1 // Options is no operation
		args = append(args, len(names), s.client.NumMethod()-others, inLines(names, 5, ""))
	}
	return fmt.Sprintf(compatIdentities, append(args, strings.Join(own, ", "))...)
}

// trail is the part of the page about CloudTrail.
func trail() string {
	var names []string
	client := reflect.TypeFor[*cloudtrail.Client]()
	for _, op := range keyengine.OperationsOf(keyengine.CloudTrail) {
		names = append(names, op.Name)
	}
	const others = 1 // Options is no operation
	return fmt.Sprintf(compatTrail, strings.Join(names, ", "), len(names), client.NumMethod()-others)
}

// compatibility is the page, with a part about IAM and STS.
func compatibility(m *awsmodel.Model, identities string) string {
	served, of := len(keyengine.OperationsOf(keyengine.KMS)), len(m.Operations)
	var b strings.Builder
	b.WriteString("<!-- Written by `make generate` from AWS's service model and integration/docs/compatibility_table_test.go. -->\n\n")
	fmt.Fprintf(&b, compatIntro, served, of)
	for _, g := range groups {
		fmt.Fprintf(&b, "\n### %s\n\n| Operation | Implemented | Limits | Differences from AWS |\n| --- | --- | --- | --- |\n", g.name)
		for _, name := range g.operations {
			implemented, differences := "yes", strings.Join(compatRows[name].differences, " ")
			if keyengine.OperationNamed(keyengine.KMS, name) == nil {
				implemented, differences = "not yet", "UnknownOperationException."
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", name, implemented, orDash(limits(m, name)), orDash(differences))
		}
	}
	b.WriteString("\n## Key specs\n\n| KeySpec | KeyUsage | |\n| --- | --- | --- |\n")
	for _, s := range compatSpecs {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", s.spec, s.usages, s.notes)
	}
	b.WriteString(strings.Replace(compatRest, "%s", open(), 1))
	b.WriteString(identities)
	b.WriteString(trail())
	b.WriteString(compatSigning)
	b.WriteString(compatAnswers)
	return b.String()
}

func orDash(s string) string {
	if s == "" {
		return "–"
	}
	return s
}

// limits are those of an operation's members, by the model and by what is narrower
// here, and those that its row has.
func limits(m *awsmodel.Model, op string) string {
	var all []string
	memberLimits(m, m.Shapes[m.Operations[op].Input.Shape], "", &all)
	if l := compatRows[op].limits; l != "" {
		all = append(all, l)
	}
	return strings.Join(all, "; ")
}

// common are shapes whose limits the page states once.
var common = []string{"KeyIdType", "GrantTokenList", "MarkerType", "LimitType"}

func memberLimits(m *awsmodel.Model, s *awsmodel.Shape, prefix string, all *[]string) {
	for _, mm := range s.Members {
		shape := m.Shapes[mm.Shape]
		if slices.Contains(common, mm.Shape) {
			continue
		}
		name := "`" + prefix + mm.Name + "`"
		switch shape.Type {
		case "structure":
			memberLimits(m, shape, prefix+mm.Name+".", all)
		case "list":
			item := m.Shapes[shape.Member.Shape]
			if item.Type == "structure" {
				memberLimits(m, item, prefix+mm.Name+"[].", all)
			} else if item.Max != nil {
				*all = append(*all, strings.TrimSuffix(name, "`")+"[]` "+extent(item))
			}
		case "map":
			if most := awsmodel.Totals[shape.Name]; most != 0 {
				*all = append(*all, fmt.Sprintf("%s %d bytes in all", name, most))
			}
		default:
			if shape.Max != nil {
				*all = append(*all, name+" "+extent(shape))
			}
		}
	}
}

// extent is a shape's bounds in words.
func extent(s *awsmodel.Shape) string {
	unit := map[string]string{"string": " characters", "blob": " bytes", "integer": ""}[s.Type]
	if *s.Min == *s.Max {
		return fmt.Sprintf("%d%s", *s.Max, unit)
	}
	return fmt.Sprintf("%d–%d%s", *s.Min, *s.Max, unit)
}

// open are the operations in which no member narrows the request, in lines.
func open() string {
	var names []string
	for _, op := range keyengine.OperationsOf(keyengine.KMS) {
		narrows := false
		for _, m := range op.Input().Members {
			narrows = narrows || m.Narrows
		}
		if !narrows {
			names = append(names, op.Name)
		}
	}
	return inLines(names, 7, "  ")
}

// inLines lists names, so many a line.
func inLines(names []string, each int, indent string) string {
	var lines []string
	for few := range slices.Chunk(names, each) {
		lines = append(lines, indent+strings.Join(few, ", "))
	}
	return strings.Join(lines, ",\n")
}
