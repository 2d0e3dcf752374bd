package packaging

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// TestChartRelease: the chart installs the release that this source is of.
func TestChartRelease(t *testing.T) {
	t.Parallel()
	var chart struct {
		Version    string
		AppVersion string `yaml:"appVersion"`
	}
	if err := yaml.Unmarshal([]byte(read(t, "helm/conclave/Chart.yaml")), &chart); err != nil {
		t.Fatal(err)
	}
	if r := release(t); chart.Version != r || chart.AppVersion != r {
		t.Errorf("the chart is version %s of %s, and this is release %s", chart.Version, chart.AppVersion, r)
	}
}

const kubernetesPage = "../docs/operate/kubernetes.md"

// TestKubernetesPage runs the commands of the page. There is no Kubernetes here: kubectl and
// helm are scripts that note how they are called and look whether the files that they are
// given exist, and of conclave what asks a server is only asked whether it understands the
// command. What kubectl was given is then what the chart needs.
func TestKubernetesPage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(root, "packaging"), filepath.Join(dir, "packaging")); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, script := range map[string]string{
		"kubectl":  `for a in "$@"; do case $a in --from-file=*) test -f "${a#--from-file=}"; echo "$a" >> files;; esac; done; echo "kubectl $*" >> calls`,
		"helm":     `case $1 in install|upgrade) test -f "$3/Chart.yaml";; esac; echo "helm $*" >> calls`,
		"conclave": `case $1 in operator|cluster) exec "$CONCLAVE" "$@" --help;; *) exec "$CONCLAVE" "$@";; esac`,
	} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\nset -eu\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	commands := 0
	for _, m := range regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllStringSubmatch(read(t, kubernetesPage), -1) {
		for line := range strings.Lines(m[1]) {
			cmd := exec.CommandContext(t.Context(), "sh", "-eu", "-c", line)
			cmd.Dir = dir
			cmd.Env = []string{"PATH=" + bin + ":" + os.Getenv("PATH"), "HOME=" + dir, "CONCLAVE=" + binary(t)}
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s%v\n%s", line, err, out)
			}
			commands++
		}
	}
	if commands < 8 {
		t.Errorf("the page has only %d commands", commands)
	}
	// What TestChartPromises in helm/check finds in the volume of the chart.
	want := []string{"ca.pem", "conclave-0-key.pem", "conclave-0.pem", "conclave-1-key.pem", "conclave-1.pem", "conclave-2-key.pem", "conclave-2.pem", "gossip.key"}
	files, err := os.ReadFile(filepath.Join(dir, "files"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range strings.Fields(string(files)) {
		got = append(got, filepath.Base(f))
	}
	// The second secret of the page is for five nodes.
	want = append(want, "conclave-3-key.pem", "conclave-3.pem", "conclave-4-key.pem", "conclave-4.pem")
	want = append(want, want[:8]...)
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("the page's secret has %v, and the chart needs %v", got, want)
	}
	calls, err := os.ReadFile(filepath.Join(dir, "calls"))
	if err != nil || !strings.Contains(string(calls), "helm install conclave packaging/helm/conclave --namespace kms --set tls.secretName=conclave-tls") {
		t.Errorf("the page does not install the chart: %s, %v", calls, err)
	}
}
