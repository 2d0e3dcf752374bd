package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// devKitchen is a kitchen with a development server, whose administrator runs the commands.
func devKitchen(t *testing.T) *kitchen {
	t.Helper()
	k := newKitchen(t)
	data := filepath.Join(k.dir, "data")
	k.background("conclave dev --data " + data)
	for line := range strings.SplitSeq(k.must("conclave env --wait 60s 2>/dev/null"), "\n") {
		if kv, ok := strings.CutPrefix(line, "export "); ok {
			k.env = append(k.env, strings.Trim(kv, "'"))
		}
	}
	k.env = append(k.env, "DATA="+data)
	return k
}

// TestReportPage carries out what docs/report.md shows, and looks at what the reports say.
func TestReportPage(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a server")
	}
	t.Parallel()
	k := devKitchen(t)
	k.must(`conclave key create --alias payments
K=$(conclave key create --quiet --spec RSA_2048 --usage ENCRYPT_DECRYPT --description '<script>alert(1)</script>')
conclave key schedule-deletion "$K" --days 7
echo '{"Version": "2012-10-17", "Statement": [{"Sid": "Broad", "Effect": "Allow", "Action": "kms:Decrypt", "Resource": "*"}]}' > broad.json
conclave iam policy create broad broad.json
mkdir -p copy
for i in $(seq 600); do [ ! -e "$DATA/node/groups/0/audit/checkpoint" ] || break; sleep 0.1; done # it is signed soon
cp -r "$DATA/node/groups/0/audit" copy/ && conclave audit public-key > audit.pub && cp copy/audit/checkpoint checkpoint-of-monday`)
	lines := "export HOME\n"
	for _, c := range commandsOf(t, "../../docs/report.md") {
		if strings.Contains(c, "--fail-on critical") {
			c = "! " + c // a key is about to be deleted
		}
		lines += c + "\n"
	}
	out := k.must(lines)
	for _, want := range []string{"statement 0, Sid Broad", "key-pending-deletion"} {
		if !strings.Contains(out, want) {
			t.Errorf("the findings have no %q:\n%s", want, out)
		}
	}
	var got struct {
		Checks []struct {
			ID, Status string
			Findings   []struct {
				Resource, Evidence string
				Record             *uint64 `json:"audit_record"`
				Statement          *int
				Sid                string
			}
		}
		Inventory []struct{ Spec string }
		Evidence  []struct{ ID, Text string }
	}
	raw, err := os.ReadFile(filepath.Join(k.dir, "report.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	status := make(map[string]string)
	for _, c := range got.Checks {
		status[c.ID] = c.Status
		if c.ID == "key-pending-deletion" {
			if len(c.Findings) != 1 || c.Findings[0].Record == nil {
				t.Fatalf("the findings are %+v", c.Findings)
			}
			line := k.must("conclave audit export --from " + jsonNumber(*c.Findings[0].Record) + " --to " + jsonNumber(*c.Findings[0].Record+1))
			if !strings.Contains(line, `"eventName":"ScheduleKeyDeletion"`) {
				t.Errorf("the finding names the record %s", line)
			}
		}
	}
	for id, want := range map[string]string{
		"key-pending-deletion": "failed", "key-rotation": "failed", "key-policy-public": "passed", "managed-policy-decrypts-all": "failed", "inline-policy-decrypts-all": "passed",
		"audit-readable": "passed", "audit-verified": "not checked",
	} {
		if status[id] != want {
			t.Errorf("%s: %q, want %q", id, status[id], want)
		}
	}
	page, err := os.ReadFile(filepath.Join(k.dir, "report.html"))
	if err != nil {
		t.Fatal(err)
	}
	if s := string(page); strings.Contains(s, "<script") || !strings.Contains(s, "&lt;script&gt;") && !strings.Contains(s, `\u003cscript`) {
		t.Error("the page does not escape the description of a key")
	}
	if bom, err := os.ReadFile(filepath.Join(k.dir, "keys.cdx.json")); err != nil || !json.Valid(bom) || strings.Count(string(bom), `"related-crypto-material"`) < 2 {
		t.Errorf("the inventory is %s, %v", bom, err)
	}

	// A verification that fails is a critical finding.
	k.must(`f=$(ls copy/audit/segments/* | head -1); printf 'x' | dd of="$f" bs=1 seek=40 conv=notrunc 2>/dev/null`)
	if out := k.must(`conclave report --audit-dir copy/audit --audit-key audit.pub`); !strings.Contains(out, "segments/") {
		t.Errorf("a log that was tampered with is not reported:\n%s", out)
	}

	// Somebody who may list keys only has a report in which nothing of keys passes.
	k.must(`echo '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "kms:ListKeys", "Resource": "*"}]}' > lists.json
conclave iam user create mallory --secret-file mallory.env
conclave iam user put-policy mallory lists lists.json`)
	out = k.must(`set -a; . ./mallory.env; set +a
! conclave report --fail-on critical
conclave report`)
	if strings.Contains(out, "passed") || !strings.Contains(out, "unreadable") {
		t.Errorf("who may read nothing is told:\n%s", out)
	}
}

func jsonNumber(n uint64) string {
	raw, _ := json.Marshal(n)
	return string(raw)
}
