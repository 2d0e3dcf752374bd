package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestUsagePage carries out what docs/usage.md and the help show, and checks that counts survive a
// restart and are made anew when their file is gone.
func TestUsagePage(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a server")
	}
	t.Parallel()
	k := newKitchen(t)
	data := filepath.Join(k.dir, "data")
	outer := k.env
	start := func() (stop func()) {
		t.Helper()
		k.env = outer
		stop = k.background("conclave dev --data " + data)
		for line := range strings.SplitSeq(k.must("conclave env --wait 60s 2>/dev/null"), "\n") {
			if kv, ok := strings.CutPrefix(line, "export "); ok {
				k.env = append(k.env[:len(k.env):len(k.env)], strings.Trim(kv, "'"))
			}
		}
		return stop
	}
	stop := start()
	k.must(`conclave key create --alias payments
conclave key create --alias other
echo plain > plain
for i in 1 2 3; do conclave encrypt --key payments plain > cipher; done
conclave reencrypt --key other cipher > again
conclave iam user create mallory --secret-file mallory.env
(set -a; . ./mallory.env; ! conclave encrypt --key payments plain)`)
	key := strings.TrimSpace(k.must(`conclave key describe payments -o json | sed -n 's/.*"arn": "\(arn[^"]*\)".*/\1/p' | head -1`))

	type line struct {
		By               struct{ Principal, Key, Operation string }
		Requests, Errors uint64
	}
	// counted waits until the node has counted what was done, and returns one count.
	counted := func(operation, of, by string, want line) {
		t.Helper()
		var got []line
		var out string
		for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
			var err error
			if out, err = k.sh("conclave usage -o json 2>/dev/null"); err != nil {
				continue // it has not begun to count
			}
			got = nil
			if err := json.Unmarshal([]byte(out), &got); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			for _, l := range got {
				if l.By.Operation == operation && l.By.Key == of && strings.HasSuffix(l.By.Principal, by) && l.Requests == want.Requests && l.Errors == want.Errors {
					return
				}
			}
		}
		t.Fatalf("%s by %s is never counted as %+v:\n%s", operation, by, want, out)
	}
	counted("Encrypt", key, ":root", line{Requests: 3})
	counted("ReEncryptFrom", key, ":root", line{Requests: 1})
	counted("Encrypt", key, ":user/mallory", line{Errors: 1})

	// The page, with its table of prices.
	text, err := os.ReadFile("../../docs/usage.md")
	if err != nil {
		t.Fatal(err)
	}
	_, prices, _ := strings.Cut(string(text), "```json prices.json\n")
	prices, _, _ = strings.Cut(prices, "```")
	if shipped, err := os.ReadFile("internal/usage/prices.json"); err != nil || string(shipped) != prices {
		t.Errorf("docs/usage.md has other prices than this release: %v", err)
	}
	if err := os.WriteFile(filepath.Join(k.dir, "prices.json"), []byte(prices), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range commandsOf(t, "../../docs/usage.md") {
		k.must(c)
	}
	k.must(exampleOf(t, "usage"))
	k.must(exampleOf(t, "usage", "bill"))
	csv, err := os.ReadFile(filepath.Join(k.dir, "usage.csv"))
	if err != nil || !strings.HasPrefix(string(csv), "time,principal,requests,errors\n") {
		t.Errorf("the values are %s, %v", csv, err)
	}
	var bill struct {
		Keys  int
		Lines []struct {
			What     string
			Quantity float64
		}
	}
	if err := json.Unmarshal([]byte(k.must("conclave usage bill --month "+time.Now().UTC().Format("2006-01")+" -o json")), &bill); err != nil {
		t.Fatal(err)
	}
	if bill.Keys < 2 || len(bill.Lines) < 3 || bill.Lines[0].Quantity <= 0 {
		t.Errorf("the bill is %+v", bill)
	}
	if out, err := k.sh("set -a; . ./mallory.env; conclave usage"); err == nil || !strings.Contains(out, "conclave:ReadUsage") {
		t.Errorf("who has no permission is told %s", out)
	}

	// Another account sees its own principals only, and may not ask for others.
	k.must(`conclave account create 222233334444 staging --file staging.env
(set -a; . ./staging.env; conclave key create --alias theirs)`)
	var out string
	for deadline := time.Now().Add(30 * time.Second); !strings.Contains(out, "222233334444") && time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		out = k.must("set -a; . ./staging.env; conclave usage --by account,operation; conclave usage bill --month " + time.Now().UTC().Format("2006-01"))
	}
	if !strings.Contains(out, "222233334444  CreateKey") || strings.Contains(out, "000000000000") || strings.Contains(out, "ReEncrypt") {
		t.Errorf("the other account sees:\n%s", out)
	}
	if out, err := k.sh("set -a; . ./staging.env; conclave usage --account 000000000000"); err == nil || !strings.Contains(out, "AccessDenied") {
		t.Errorf("the other account asks for the first one, and is told:\n%s", out)
	}
	if out := k.must("conclave usage --by account"); !strings.Contains(out, "222233334444") || !strings.Contains(out, "000000000000") {
		t.Errorf("the account that administers the cluster sees:\n%s", out)
	}

	// After a restart, and without the file.
	file := filepath.Join(data, "node", "groups", "0", "usage.db")
	if raw, err := os.ReadFile(file); err != nil || strings.Contains(string(raw), "mallory") || strings.Contains(string(raw), "ReEncrypt") {
		t.Errorf("the file shows what it counts, or is not there: %v", err)
	}
	stop()
	stop = start()
	k.must("conclave encrypt --key payments plain > cipher")
	counted("Encrypt", key, ":root", line{Requests: 4})
	stop()
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	start()
	counted("Encrypt", key, ":root", line{Requests: 4})
	counted("Encrypt", key, ":user/mallory", line{Errors: 1})
}
