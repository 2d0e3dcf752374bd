package operator

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// TestCeremonyDirIsMadeFirst: a directory in which shares cannot be written
// stops init before there are any.
func TestCeremonyDirIsMadeFirst(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ceremony")
	d, err := newSecretFiles(dir, []string{"share-1.txt", "share-2.txt", "root.env"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newSecretFiles(dir, []string{"share-1.txt", "share-2.txt", "root.env"}); err == nil {
		t.Error("files of another ceremony would be overwritten")
	}
	res := &initOutput{Shares: []string{"s1", "s2"}, AccessKeyID: "AKIA", SecretAccessKey: "it's"}
	if err := d.fill(res.contents()); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"share-1.txt": "s1\n", "share-2.txt": "s2\n", "root.env": "AWS_ACCESS_KEY_ID=AKIA\nAWS_SECRET_ACCESS_KEY='it'\\''s'\n",
	} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, want)
		}
	}
	unused, err := newSecretFiles(filepath.Join(dir, "unused"), []string{"a", "b"})
	if err != nil {
		t.Fatal(err)
	}
	if err := unused.discard(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "unused")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestNodeOutcomes: which nodes' answers make an operator's command fail.
func TestNodeOutcomes(t *testing.T) {
	node := func(id, errType string) *kmspb.NodeStatus {
		n := &kmspb.NodeStatus{NodeId: id, Seal: &kmspb.SealState{}}
		if errType != "" {
			n.Error = &kmspb.ErrorDetail{Type: errType, Message: "why"}
		}
		return n
	}
	for _, c := range []struct {
		name string
		errs [3]string
		fail []string
	}{
		{"all", [3]string{}, nil},
		{"one open already", [3]string{"", "AlreadyUnsealedException", ""}, nil},
		{"all open already", [3]string{"AlreadyUnsealedException", "AlreadyUnsealedException", "AlreadyUnsealedException"}, nil},
		{"two had it before", [3]string{"InvalidShareException", "InvalidShareException", ""}, nil},
		{"a wrong share", [3]string{"InvalidShareException", "InvalidShareException", "InvalidShareException"}, []string{"n0 failed: why", "n1 failed: why", "n2 failed: why"}},
		{"one cannot be reached", [3]string{"", "", "Unreachable"}, []string{"n2 failed: why", "the others did; repeat the command when that is fixed"}},
	} {
		var nodes []*kmspb.NodeStatus
		for i, e := range c.errs {
			nodes = append(nodes, node("n"+string(rune('0'+i)), e))
		}
		a := &cli.App{Stdout: io.Discard}
		err := printNodes(a, &kmspb.NodeReport{Nodes: nodes}, "failed")
		got := ""
		if err != nil {
			got = err.Error()
		}
		if want := strings.Join(c.fail, "\n"); got != want {
			t.Errorf("%s: got %q, want %q", c.name, got, want)
		}
	}
}
