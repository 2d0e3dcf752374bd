package packaging

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.yaml.in/yaml/v3"
)

// known are the metrics that a node has, by docs/metrics.md and the libraries that it uses.
func known(t *testing.T) map[string]bool {
	t.Helper()
	names := make(map[string]bool)
	for _, m := range regexp.MustCompile("(?m)^\\| `(conclave_[a-z_]+)` \\|").FindAllStringSubmatch(read(t, "../docs/metrics.md"), -1) {
		names[m[1]] = true
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		names[m.GetName()] = true
	}
	if len(names) < 60 {
		t.Fatalf("only %d metrics are known", len(names))
	}
	return names
}

var metricName = regexp.MustCompile(`\b(?:conclave|go|process)_[a-z_]+\b`)

// checkExpression reports metrics that no node has.
func checkExpression(t *testing.T, where, expr string, names map[string]bool) {
	t.Helper()
	found := metricName.FindAllString(expr, -1)
	if len(found) == 0 && !strings.Contains(expr, "up{") {
		t.Errorf("%s asks for no metric: %s", where, expr)
	}
	for _, m := range found {
		base := m
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			base = strings.TrimSuffix(base, suffix)
		}
		if !names[m] && !names[base] {
			t.Errorf("%s asks for %s, which no node has", where, m)
		}
	}
	if o, c := strings.Count(expr, "("), strings.Count(expr, ")"); o != c {
		t.Errorf("%s: %d parentheses are opened and %d closed: %s", where, o, c, expr)
	}
}

// decode decodes YAML and refuses members that v does not have.
func decode(t *testing.T, name string, v any) {
	t.Helper()
	d := yaml.NewDecoder(strings.NewReader(read(t, name)))
	d.KnownFields(true)
	if err := d.Decode(v); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if err := d.Decode(new(any)); !errors.Is(err, io.EOF) {
		t.Errorf("%s has more than one document: %v", name, err)
	}
}

// rules is a file of rules for Prometheus.
type rules struct {
	Groups []struct {
		Name  string
		Rules []struct {
			Alert, Expr, For    string
			Labels, Annotations map[string]string
		}
	}
}

// heading turns the heading of a page into its anchor.
func heading(s string) string {
	return strings.ReplaceAll(regexp.MustCompile(`[^a-z0-9 -]`).ReplaceAllString(strings.ToLower(s), ""), " ", "-")
}

// TestAlerts: each alert asks for metrics that nodes have, says what to do in a place that is
// there. Those that somebody is woken for have unit tests.
func TestAlerts(t *testing.T) {
	t.Parallel()
	var file rules
	decode(t, "observability/alerts.yml", &file)
	names := known(t)
	alerts := make(map[string]bool)
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			if alerts[r.Alert] || !strings.HasPrefix(r.Alert, "Conclave") {
				t.Errorf("the alert %q has no name of its own", r.Alert)
			}
			alerts[r.Alert] = true
			checkExpression(t, r.Alert, r.Expr, names)
			if s := r.Labels["severity"]; s != "warning" && s != "critical" {
				t.Errorf("%s has the severity %q", r.Alert, s)
			}
			for _, a := range []string{"summary", "description", "runbook"} {
				if r.Annotations[a] == "" {
					t.Errorf("%s has no %s", r.Alert, a)
				}
			}
			page, anchor, _ := strings.Cut(r.Annotations["runbook"], "#")
			text, err := os.ReadFile(filepath.Join("..", filepath.FromSlash(page)))
			if err != nil {
				t.Errorf("%s: %v", r.Alert, err)
				continue
			}
			there := anchor == ""
			for _, h := range regexp.MustCompile(`(?m)^#+ (.+)$`).FindAllStringSubmatch(string(text), -1) {
				there = there || heading(h[1]) == anchor
			}
			if !there {
				t.Errorf("%s: %s has no heading %s", r.Alert, page, anchor)
			}
		}
	}
	if len(alerts) < 15 {
		t.Errorf("only %d alerts", len(alerts))
	}

	// The unit tests are run by promtool, which not every machine has; what they are about is
	// checked here.
	var tests struct {
		RuleFiles          []string `yaml:"rule_files"`
		EvaluationInterval string   `yaml:"evaluation_interval"`
		Tests              []struct {
			Name        string
			Interval    string
			InputSeries []struct{ Series, Values string } `yaml:"input_series"`
			Alerts      []struct {
				EvalTime  string `yaml:"eval_time"`
				Alertname string
				Expected  []struct {
					Labels      map[string]string `yaml:"exp_labels"`
					Annotations map[string]string `yaml:"exp_annotations"`
				} `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}
	decode(t, "observability/alerts_test.yml", &tests)
	raised := make(map[string]bool)
	for _, c := range tests.Tests {
		for _, s := range c.InputSeries {
			if !strings.HasPrefix(s.Series, "up{") {
				checkExpression(t, c.Name, s.Series, names)
			}
		}
		for _, a := range c.Alerts {
			if !alerts[a.Alertname] {
				t.Errorf("%s tests %s, which is no alert", c.Name, a.Alertname)
			}
			raised[a.Alertname] = raised[a.Alertname] || len(a.Expected) > 0
		}
	}
	if len(raised) < 12 {
		t.Errorf("only %d alerts have a test", len(raised))
	}
	for _, a := range []string{"ConclaveMajorityLost", "ConclaveNoLeader", "ConclaveDiskScarce", "ConclaveClockDisagrees", "ConclaveForgery", "ConclaveBreakGlass", "ConclaveCertificateExpires"} {
		if !raised[a] {
			t.Errorf("no test raises %s", a)
		}
	}
}

// TestBoard: the board asks for metrics that nodes have, and can be provisioned.
func TestBoard(t *testing.T) {
	t.Parallel()
	var board struct {
		UID    string `json:"uid"`
		Title  string `json:"title"`
		Panels []struct {
			ID                       int
			Type, Title, Description string
			GridPos                  struct{ H, W, X, Y int }
			Targets                  []struct{ Expr, RefID string }
		}
	}
	raw := read(t, "observability/grafana/dashboards/conclave.json")
	if err := json.NewDecoder(bytes.NewReader([]byte(raw))).Decode(&board); err != nil {
		t.Fatal(err)
	}
	names := known(t)
	ids := make(map[int]bool)
	charts := 0
	for _, p := range board.Panels {
		if ids[p.ID] || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("the panel %q has no place of its own: %+v", p.Title, p.GridPos)
		}
		ids[p.ID] = true
		if p.Type == "row" {
			continue
		}
		charts++
		if p.Description == "" || len(p.Targets) == 0 {
			t.Errorf("the panel %q shows or says nothing", p.Title)
		}
		for _, q := range p.Targets {
			checkExpression(t, p.Title, q.Expr, names)
		}
	}
	if board.UID == "" || charts < 12 {
		t.Errorf("%q has %d charts", board.UID, charts)
	}
}

// TestObservabilityProfile: what the profile of docker-compose.yml mounts is there, and
// Prometheus asks the nodes that it starts.
func TestObservabilityProfile(t *testing.T) {
	t.Parallel()
	var compose struct {
		Services map[string]struct {
			Image    string
			Profiles []string
			Volumes  []string
			Ports    []string
		}
	}
	if err := yaml.Unmarshal([]byte(read(t, "../docker-compose.yml")), &compose); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"prometheus", "grafana"} {
		s := compose.Services[name]
		if !slices.Equal(s.Profiles, []string{"observability"}) {
			t.Errorf("%s has the profiles %v", name, s.Profiles)
		}
		if _, tag, _ := strings.Cut(s.Image, ":"); !regexp.MustCompile(`^v?[0-9]+\.[0-9]+\.[0-9]+$`).MatchString(tag) {
			t.Errorf("%s is not of one version: %s", name, s.Image)
		}
		for _, p := range s.Ports {
			if !strings.HasPrefix(p, "127.0.0.1:") {
				t.Errorf("%s is reached from outside, at %s", name, p)
			}
		}
		for _, v := range s.Volumes {
			host, _, _ := strings.Cut(v, ":")
			if !strings.HasPrefix(host, "./") {
				continue
			}
			if _, err := os.Stat(filepath.Join("..", filepath.FromSlash(host))); err != nil {
				t.Errorf("%s mounts %s: %v", name, host, err)
			}
		}
	}
	if docker, err := exec.LookPath("docker-compose"); err == nil {
		out, err := exec.CommandContext(t.Context(), docker, "--file", "../docker-compose.yml", "--profile", "observability", "config", "--quiet").CombinedOutput()
		if err != nil {
			t.Errorf("docker-compose does not understand the file: %v\n%s", err, out)
		}
	}
	var config struct {
		Global        map[string]string
		RuleFiles     []string `yaml:"rule_files"`
		ScrapeConfigs []struct {
			JobName       string                       `yaml:"job_name"`
			StaticConfigs []struct{ Targets []string } `yaml:"static_configs"`
		} `yaml:"scrape_configs"`
	}
	decode(t, "observability/prometheus.yml", &config)
	for _, f := range config.RuleFiles {
		read(t, path.Join("observability", f))
	}
	var want, got []string
	for name := range compose.Services {
		if strings.HasPrefix(name, "node-") {
			want = append(want, name+":7604")
		}
	}
	for _, c := range config.ScrapeConfigs {
		for _, s := range c.StaticConfigs {
			got = append(got, s.Targets...)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("Prometheus asks %v, and the nodes are %v", got, want)
	}
}
