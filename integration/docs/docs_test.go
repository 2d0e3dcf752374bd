package docs

import (
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/google/go-cmp/cmp"

	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/integration/optional"
	"github.com/conclavekms/conclave/keyengine"
)

var update = flag.Bool("update", false, "write the README's support table and docs/compatibility.md anew")

// page reads a file of the repository.
func page(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../..", filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// pages are the documents for users.
func pages(t *testing.T) []string {
	t.Helper()
	docs, err := filepath.Glob(filepath.Join("../..", "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"README.md"}
	for _, name := range docs {
		names = append(names, "docs/"+filepath.Base(name))
	}
	return names
}

// allPages are the documents for users and those for who works on the code.
func allPages(t *testing.T) []string {
	t.Helper()
	names := append(pages(t), "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
	for _, pattern := range []string{"docs/adr/*.md", "docs/operate/*.md", "*/DESIGN.md"} {
		found, err := filepath.Glob(filepath.Join("../..", filepath.FromSlash(pattern)))
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: %d pages, %v", pattern, len(found), err)
		}
		for _, name := range found {
			rel, err := filepath.Rel("../..", name)
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, filepath.ToSlash(rel))
		}
	}
	return names
}

// sources are the paths of the files in the tree.
func sources(t *testing.T) (paths []string) {
	t.Helper()
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == ".git" || d.Name() == "node_modules" || d.Name() == "bin") {
			return fs.SkipDir
		}
		rel, err := filepath.Rel("../..", path)
		paths = append(paths, filepath.ToSlash(rel))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// walk is a part of a page whose commands a test carries out as they stand.
type walk struct {
	page, heading string
	test          string
}

var walks = []walk{
	{"README.md", "## Try it", "TestDocsFirstSteps"},
	{"docs/cli.md", "## First steps", "TestDocsFirstSteps"},
	{"docs/cli.md", "## Commands", "TestExamples"}, // and those for operators TestOperatorExamples
	{"README.md", composeHeading, "TestCompose"},
	{"docs/access.md", "## Users, groups and roles", "TestAccessPage"},
	{"docs/access.md", "## People", "TestAccessPage"},
	{"docs/access.md", "## Workloads in Kubernetes", "TestAccessPage"},
	{"docs/access.md", "## CI systems", "TestAccessPage"},
	{"docs/access.md", "## Other accounts", "TestAccessPage"},
	{"docs/access.md", "## Certificates and SPIFFE", "TestCertificatesPage"},
	{"docs/access.md", "## Take access away", "TestAccessPage"},
	{"docs/access.md", "## Who can use a key", "TestAccessPage"},
	{"docs/access.md", "## Least privilege from use", "TestAccessPage"},
	{"docs/access.md", "## Why was it denied?", "TestAccessPage"},
	{"docs/audit-reading.md", "## Who may read", "TestRunbooks"},
	{"docs/audit-reading.md", "## Search", "TestRunbooks"},
	{"docs/audit-reading.md", "## Follow", "TestRunbooks"},
	{"docs/audit-reading.md", "## Look events up as in CloudTrail", "TestRunbooks"},
	{"docs/audit-reading.md", "## Export", "TestRunbooks"},
	{"docs/usage.md", "## Who uses what", "TestUsagePage"},
	{"docs/usage.md", "## The bill", "TestUsagePage"},
	{"docs/report.md", "## Make a report", "TestReportPage"},
	{"docs/clients.md", "## sops", "TestSops"},
	{"docs/clients.md", "## cosign", "TestCosign"},
}

// ranBy says which test runs a command that no walk has, or what runs it. A command
// that begins with one of these is taken for it.
var ranBy = []struct{ command, test string }{
	{"make ", "TestMakeTargets"}, // looks whether it is there; .ci/run runs most of them
	{"conclave cert ", "TestScripts"},
	{"conclave server --node-id ", "TestScripts"},
	{"export CONCLAVE_", "TestScripts"},
	{"conclave operator init --shares 5 --threshold 3", "TestScripts"},
	{"conclave operator init --regions ", "TestScripts"},
	{"conclave operator unseal", "TestScripts"},
	{"set -a; . ceremony/root.env; set +a", "TestScripts"},
	{"conclave audit ", "TestScripts"},
	{"conclave audit verify ", "TestAuditVerify"},
	{"conclave datakey ", "TestScripts"},
	{"conclave encrypt ", "TestScripts"},
	{"conclave decrypt ", "TestScripts"},
	{"conclave dev", "TestScripts"},
	{`eval "$(conclave env`, "TestScripts"},
	{"conclave key create", "TestScripts"},
	{"KEY=$(conclave key create --quiet)", "TestScripts"},
}

// TestDocsCommands holds every command that the documents show against the tests:
// each is carried out by one, and what it says to conclave is understood.
func TestDocsCommands(t *testing.T) {
	t.Parallel()
	binary, err := harness.Binary()
	if err != nil {
		t.Fatal(err)
	}
	tests := testNames(t)
	for _, r := range ranBy {
		if !tests[r.test] {
			t.Errorf("%s, which runs %q, is no test", r.test, r.command)
		}
	}
	walked := make(map[string]bool)
	for _, w := range walks {
		commands := shellCommands(section(page(t, w.page), w.heading))
		if len(commands) == 0 {
			t.Errorf("%s has no commands under %q", w.page, w.heading)
		}
		if !tests[w.test] {
			t.Errorf("%s, which walks through %s, is no test", w.test, w.page)
		}
		for _, c := range commands {
			walked[w.page+c] = true
		}
	}
	total := 0
	for _, name := range pages(t) {
		for _, c := range shellCommands(page(t, name)) {
			total++
			known := walked[name+c] || slices.ContainsFunc(ranBy, func(r struct{ command, test string }) bool { return strings.HasPrefix(c, r.command) })
			if !known {
				t.Errorf("%s shows %q, which no test runs: run it in one, and name that in ranBy", name, c)
			}
			understood(t, binary, name, c)
		}
	}
	if total < 10 {
		t.Errorf("the documents show %d commands: are they read as they should be?", total)
	}
}

// runbookTests are the tests that run all commands of a runbook, if it has no script for
// TestRunbooks.
var runbookTests = map[string]string{
	"backup":     "TestBackupDrill",
	"clock-skew": "TestOperatorExamples",
	"disk-full":  "TestOperatorExamples",
	"kubernetes": "TestKubernetesPage",
	"membership": "TestMembershipRunbook",
	"monitoring": "TestOperatorExamples",
	"rekey":      "TestOperatorExamples",
	"unseal":     "TestOperatorExamples",
	"upgrade":    "TestOperatorExamples",
}

// TestRunbookPages checks that the commands of each runbook are run by a test and understood,
// and that the list of the runbooks has it.
func TestRunbookPages(t *testing.T) {
	t.Parallel()
	binary, err := harness.Binary()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("../../docs/operate/*.md")
	if err != nil || len(files) < 2 {
		t.Fatalf("there are no runbooks: %v", err)
	}
	const list = "docs/operate/README.md"
	listed, tests, used := page(t, list), testNames(t), 0
	for _, file := range files {
		base := filepath.Base(file)
		name := strings.TrimSuffix(base, ".md")
		if base == filepath.Base(list) {
			continue
		}
		if !strings.Contains(listed, "]("+base+")") {
			t.Errorf("%s does not have %s", list, base)
		}
		_, err := os.Stat("../../cmd/conclave/testdata/runbooks/" + name + ".txtar")
		switch test := runbookTests[name]; {
		case test != "" && err == nil:
			t.Errorf("%s has a script, and is said to be run by %s", base, test)
		case test != "":
			used++
			if !tests[test] {
				t.Errorf("%s, which runs the commands of %s, is no test", test, base)
			}
		case err != nil:
			t.Errorf("no test runs the commands of %s: give it a script in cmd/conclave/testdata/runbooks", base)
		}
		for _, c := range shellCommands(page(t, "docs/operate/"+base)) {
			understood(t, binary, base, c)
		}
	}
	if used != len(runbookTests) {
		t.Errorf("%d of the %d runbooks that have tests of their own are there", used, len(runbookTests))
	}
}

var simpleCommand = regexp.MustCompile(`(?:^|[|;(] *)(?:bin/)?(conclave|docker-compose run --rm cli)((?: +(?:"[^"]*"|'[^']*'|[^ |;()<>"']+))+)`)

// understood checks that conclave knows the subcommand and the flags that a line
// gives it.
func understood(t *testing.T, binary, name, line string) {
	t.Helper()
	for _, m := range simpleCommand.FindAllStringSubmatch(line, -1) {
		var args []string
		for _, a := range strings.Fields(m[2]) {
			a = strings.Trim(a, `"'`)
			if strings.HasPrefix(a, "$") {
				a = "1" // some flags take a number
			}
			if a != "…" {
				args = append(args, a)
			}
		}
		cmd := exec.CommandContext(t.Context(), binary, append(args, "--help")...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s shows %q: %v\n%s", name, line, err, out)
		} else if path := "conclave " + args[0]; !strings.Contains(string(out), path) {
			t.Errorf("%s shows %q: the help is not that of %s", name, line, path)
		}
	}
}

// testNames are the tests of the repository.
func testNames(t *testing.T) map[string]bool {
	t.Helper()
	names := make(map[string]bool)
	decl := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w+)\(`)
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "bin" || strings.HasPrefix(d.Name(), ".") && d.Name() != "..") {
			return fs.SkipDir
		}
		if strings.HasSuffix(path, "_test.go") {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for _, m := range decl.FindAllSubmatch(b, -1) {
				names[string(m[1])] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// TestDocsNames checks that what the documents name is there: tests, files that
// links lead to.
func TestDocsNames(t *testing.T) {
	tests, files := testNames(t), sources(t)
	link := regexp.MustCompile(`\]\(([^)#:]+)(?:#[^)]*)?\)`)
	for _, name := range allPages(t) {
		text := page(t, name)
		for _, test := range regexp.MustCompile("`((?:Test|Fuzz|Benchmark)[A-Z]\\w*)`").FindAllStringSubmatch(text, -1) {
			if !tests[test[1]] {
				t.Errorf("%s names the test %s, which there is not", name, test[1])
			}
		}
		for _, file := range regexp.MustCompile("`([a-z0-9_./-]+\\.(?:go|proto|md))`").FindAllStringSubmatch(text, -1) {
			if !slices.ContainsFunc(files, func(path string) bool { return path == file[1] || strings.HasSuffix(path, "/"+file[1]) }) {
				t.Errorf("%s names the file %s, which there is not", name, file[1])
			}
		}
		for _, to := range link.FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join("../..", filepath.Dir(filepath.FromSlash(name)), filepath.FromSlash(to[1]))); err != nil {
				t.Errorf("%s has a link to %s: %v", name, to[1], err)
			}
		}
	}
}

// TestMakeTargets checks that what the documents tell users to make can be made,
// and that `make run` starts what they are told of.
func TestMakeTargets(t *testing.T) {
	t.Parallel()
	optional.Program(t, "make")
	dry := func(target string) string {
		cmd := exec.CommandContext(t.Context(), "make", "--dry-run", "--no-print-directory", "-C", "../..", target)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("make %s: %v\n%s", target, err, out)
		}
		return string(out)
	}
	seen := make(map[string]bool)
	for _, name := range pages(t) {
		for _, m := range regexp.MustCompile("(?:`|(?m:^))make ([a-z-]+)").FindAllStringSubmatch(page(t, name), -1) {
			if !seen[m[1]] {
				seen[m[1]] = true
				dry(m[1])
			}
		}
	}
	for target, recipe := range map[string]string{"run": "bin/conclave dev", "demo": "bin/conclave demo", "test": "go test "} {
		if !seen[target] {
			t.Errorf("no document names make %s", target)
		}
		if out := dry(target); !strings.Contains(out, recipe) {
			t.Errorf("make %s does not run %q:\n%s", target, recipe, out)
		}
	}
}

// TestDocsFirstSteps carries out what the documents tell a new user to type, by a
// shell, beside the development server that `make run` starts.
func TestDocsFirstSteps(t *testing.T) {
	t.Parallel()
	optional.Program(t, "aws")
	binary, err := harness.Binary()
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range walks {
		if w.test != "TestDocsFirstSteps" {
			continue
		}
		t.Run(w.page, func(t *testing.T) {
			t.Parallel()
			var script strings.Builder
			for _, c := range shellCommands(section(page(t, w.page), w.heading)) {
				if !strings.HasPrefix(c, "make ") { // the server is there already
					script.WriteString(c + "\n")
				}
			}
			out := newDevShell(t, binary).run(t, script.String())
			if !strings.Contains("\n"+out, "\nhello\n") {
				t.Errorf("what was encrypted is not shown decrypted:\n%s", out)
			}
			if strings.Contains(script.String(), "audit tail") && !strings.Contains(out, " Decrypt key/") {
				t.Errorf("the audit log does not show it:\n%s", out)
			}
		})
	}
}

// groups are the operations of AWS KMS as the README has them.
var groups = []struct {
	name       string
	operations []string
}{
	{"Keys", []string{"CreateKey", "DescribeKey", "ListKeys", "UpdateKeyDescription", "EnableKey", "DisableKey", "ScheduleKeyDeletion", "CancelKeyDeletion", "GetKeyLastUsage"}},
	{"Aliases", []string{"CreateAlias", "UpdateAlias", "DeleteAlias", "ListAliases"}},
	{"Tags", []string{"TagResource", "UntagResource", "ListResourceTags"}},
	{"Key policies", []string{"GetKeyPolicy", "PutKeyPolicy", "ListKeyPolicies"}},
	{"Encryption", []string{"Encrypt", "Decrypt", "ReEncrypt", "GenerateDataKey", "GenerateDataKeyWithoutPlaintext", "GenerateRandom", "GenerateDataKeyPair", "GenerateDataKeyPairWithoutPlaintext"}},
	{"Signatures, MACs, key agreement", []string{"Sign", "Verify", "GetPublicKey", "GenerateMac", "VerifyMac", "DeriveSharedSecret"}},
	{"Key encapsulation", []string{"Encapsulate", "Decapsulate"}},
	{"Grants", []string{"CreateGrant", "ListGrants", "ListRetirableGrants", "RetireGrant", "RevokeGrant"}},
	{"Rotation", []string{"EnableKeyRotation", "DisableKeyRotation", "GetKeyRotationStatus", "ListKeyRotations", "RotateKeyOnDemand"}},
	{"Imported material", []string{"GetParametersForImport", "ImportKeyMaterial", "DeleteImportedKeyMaterial"}},
	{"Multi-Region keys", []string{"ReplicateKey", "UpdatePrimaryRegion"}},
	{"Custom key stores", []string{"CreateCustomKeyStore", "ConnectCustomKeyStore", "DescribeCustomKeyStores", "UpdateCustomKeyStore", "DisconnectCustomKeyStore", "DeleteCustomKeyStore"}},
}

const (
	tableBegin = "<!-- support table begin -->\n"
	tableEnd   = "<!-- support table end -->\n"
)

// TestSupportTable holds the README's table of AWS's operations against the table
// that requests are served from. The operations are those of AWS's SDK.
func TestSupportTable(t *testing.T) {
	var all []string
	client := reflect.TypeFor[*kms.Client]()
	for i := range client.NumMethod() {
		if name := client.Method(i).Name; name != "Options" {
			all = append(all, name)
		}
	}
	var grouped []string
	for _, g := range groups {
		grouped = append(grouped, g.operations...)
	}
	slices.Sort(grouped)
	slices.Sort(all)
	if diff := cmp.Diff(all, grouped); diff != "" {
		t.Fatalf("the groups are not AWS's operations (-SDK +groups):\n%s", diff)
	}
	supported := 0
	var rows strings.Builder
	for _, g := range groups {
		var now, later []string
		for _, name := range g.operations {
			if keyengine.OperationNamed(keyengine.KMS, name) != nil {
				now = append(now, name)
			} else {
				later = append(later, name)
			}
		}
		supported += len(now)
		fmt.Fprintf(&rows, "| %s | %s | %s |\n", g.name, orNone(now), orNone(later))
	}
	if n := len(keyengine.OperationsOf(keyengine.KMS)); supported != n {
		t.Errorf("%d operations of AWS's are supported, but %d are served", supported, n)
	}
	want := fmt.Sprintf("| %d operations of AWS KMS | Supported: %d | Planned: %d |\n| --- | --- | --- |\n%s", len(all), supported, len(all)-supported, rows.String())

	readme := page(t, "README.md")
	before, rest, ok := strings.Cut(readme, tableBegin)
	_, after, ok2 := strings.Cut(rest, tableEnd)
	if !ok || !ok2 {
		t.Fatalf("README.md has lost the lines %q and %q", tableBegin, tableEnd)
	}
	generated(t, "README.md", before+tableBegin+want+tableEnd+after)
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "–"
	}
	return strings.Join(names, ", ")
}
