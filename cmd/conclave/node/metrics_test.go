package node

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/conclavekms/conclave/cluster/pki"
)

var update = flag.Bool("update", false, "add metrics that docs/metrics.md lacks, with their help texts, and drop those that are gone")

const metricsPage = "../../../docs/metrics.md"

var (
	descForm = regexp.MustCompile(`fqName: "(conclave_[^"]+)", help: "((?:[^"\\]|\\.)*)", (?:unit: "[^"]*", )?constLabels: \{(.*)\}, variableLabels: \{(.*)\}`)
	rowForm  = regexp.MustCompile("(?m)^\\| `(conclave_[a-z_]+)` \\| (.*?) \\| (.+) \\|$")
	label    = regexp.MustCompile(`([a-z_]+)="`)
)

// registered returns the metrics of a node, with their labels and help texts,
// including those without a value yet.
func registered(t *testing.T) map[string][2]string {
	t.Helper()
	ca, err := pki.NewCA("test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.Issue(pki.IssueRequest{Kind: pki.KindNode, Name: "dev", Validity: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	n, err := Start(t.Context(), Config{
		NodeID: "dev", Data: t.TempDir(), BootstrapExpect: 1, Insecure: true,
		AWSListen: "127.0.0.1:0", GRPCListen: "127.0.0.1:0", PeerListen: "127.0.0.1:0", OpsListen: "127.0.0.1:0",
		Identity: &Identity{Cert: cert, Key: key, CA: ca.CertPEM()}, AllowUnlockedMemory: true, LogOutput: t.Output(), Release: "test",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	descs := make(chan *prometheus.Desc, 1024)
	n.registry.Describe(descs)
	close(descs)
	all := make(map[string][2]string)
	for d := range descs {
		m := descForm.FindStringSubmatch(d.String())
		if m == nil {
			continue // of Go's runtime and the process
		}
		var names []string
		for _, l := range label.FindAllStringSubmatch(m[3], -1) {
			names = append(names, "`"+l[1]+"`")
		}
		for l := range strings.SplitSeq(m[4], ",") {
			if l = strings.Trim(l, " {}"); l != "" {
				names = append(names, "`"+strings.TrimPrefix(l, "c(")+"`")
			}
		}
		slices.Sort(names)
		all[m[1]] = [2]string{strings.Join(slices.Compact(names), ", "), m[2]}
	}
	return all
}

// TestMetricsAreDocumented compares docs/metrics.md with the metrics that a
// node registers.
func TestMetricsAreDocumented(t *testing.T) {
	raw, err := os.ReadFile(metricsPage)
	if err != nil {
		t.Fatal(err)
	}
	want := registered(t)
	documented := make(map[string]bool)
	page := rowForm.ReplaceAllStringFunc(string(raw), func(row string) string {
		m := rowForm.FindStringSubmatch(row)
		name := m[1]
		if documented[name] {
			t.Errorf("%s is there twice", name)
		}
		documented[name] = true
		w, ok := want[name]
		switch {
		case !ok && *update:
			return ""
		case !ok:
			t.Errorf("no node has %s", name)
		case m[2] != w[0] && *update:
			return fmt.Sprintf("| `%s` | %s | %s |", name, w[0], m[3])
		case m[2] != w[0]:
			t.Errorf("%s has labels %q, the page says %q", name, w[0], m[2])
		}
		return row
	})
	for _, name := range slices.Sorted(maps.Keys(want)) {
		switch {
		case documented[name]:
		case *update:
			page = strings.TrimRight(page, "\n") + fmt.Sprintf("\n| `%s` | %s | %s |\n", name, want[name][0], want[name][1])
		default:
			t.Errorf("docs/metrics.md lacks %s (%s); -update adds it", name, want[name][1])
		}
	}
	if *update {
		if err := os.WriteFile(metricsPage, []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
