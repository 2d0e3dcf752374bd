package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/conclavekms/conclave/transport/kmspb"
)

// TestQuote has a real shell read what quote wrote.
func TestQuote(t *testing.T) {
	for _, s := range []string{"", "plain", "/jBEM+SQ/gJ=", "a b", "$(touch x)", "`x`", `"`, "'", "a'b''c", "\n", "a\\", "~", "*", "é", ";", "#x"} {
		out, err := exec.Command("sh", "-c", "x="+quote(s)+`; printf %s "$x"`).Output()
		if err != nil || string(out) != s {
			t.Errorf("%q is quoted %s, which a shell reads as %q, %v", s, quote(s), out, err)
		}
	}
}

func TestPrint(t *testing.T) {
	msg := &kmspb.StatusResponse{
		Seal: &kmspb.SealState{Initialised: true, Sealed: true, Threshold: 3, Account: "000000000000"}, NodeId: "true",
		ClusterTime: timestamppb.New(time.Unix(0, 5e8)), Raft: &kmspb.RaftStatus{LastIndex: 1 << 63},
	}
	for _, c := range []struct {
		format string
		v      any
		want   []string
		not    []string
	}{
		{"json", msg, []string{`"sealed": true`, `"account": "000000000000"`, `"last_index": 9223372036854775808`, `"cluster_time": "1970-01-01T00:00:00.5Z"`, `"nodes": []`}, []string{`"audit"`}},
		{"yaml", msg, []string{"    sealed: true\n", "    account: \"000000000000\"\n", "last_index: 9223372036854775808\n", "node_id: \"true\"\n", "nodes: []\n"}, []string{"{", "audit"}},
		{"table", msg, []string{"state  sealed, 0 of 3\n"}, nil},
		{"json", &kmspb.EncryptResponse{CiphertextBlob: []byte{0xfb, 0xff}, KeyId: proto.String("<&\x1b")}, []string{`"ciphertext_blob": "+/8="`, `"key_id": "<&\u001b"`}, []string{"encryption_algorithm"}},
		{"json", &kmspb.EncryptRequest{EncryptionContext: map[string]string{"b": "2", "a": "1"}}, []string{"\"a\": \"1\",\n"}, nil},
	} {
		var out bytes.Buffer
		a := &app{stdout: &out, output: c.format}
		if err := a.print(c.v, func(w io.Writer) { line(w, "state", sealText(msg.GetSeal())) }); err != nil {
			t.Fatal(err)
		}
		for _, want := range c.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s has no %q:\n%s", c.format, want, &out)
			}
		}
		for _, not := range c.not {
			if strings.Contains(out.String(), not) {
				t.Errorf("%s has %q:\n%s", c.format, not, &out)
			}
		}
	}
}

// TestTablesAreSafe: what users wrote into descriptions must not drive the
// terminal of others.
func TestTablesAreSafe(t *testing.T) {
	var out bytes.Buffer
	line(&out, "a\x1b[31m", "b\nc", "d\u202ee", "é", 7)
	if got, want := out.String(), "a\\u001b[31m\tb\\u000ac\td\\u202ee\té\t7\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestExplain(t *testing.T) {
	detailed := func(typ, msg string) error {
		st, err := status.New(codes.Unavailable, msg).WithDetails(&kmspb.ErrorDetail{Type: typ, Message: msg, RequestId: "id-1"})
		if err != nil {
			t.Fatal(err)
		}
		return st.Err()
	}
	for _, c := range []struct {
		err  error
		code int
		want []string
	}{
		{detailed("ServiceUnavailable", "This node is sealed. Send"), exitSealed, []string{"doing: ServiceUnavailable: This node is sealed", "(request id-1)", "`conclave operator unseal`"}},
		{detailed("ServiceUnavailable", "no leader"), exitError, []string{"no leader"}},
		{detailed("UnrecognizedClientException", "x"), exitError, []string{"AWS_ACCESS_KEY_ID"}},
		{detailed("InvalidCiphertextException", ""), exitError, []string{"doing: InvalidCiphertextException (request id-1)"}},
		{status.Error(codes.Unavailable, "connection refused"), exitError, []string{"is a server running at addr?"}},
		{status.Error(codes.Unavailable, "tls: unknown certificate authority"), exitError, []string{"--ca"}},
		{status.Error(codes.DeadlineExceeded, "late"), exitError, []string{"--timeout"}},
		{usagef("wrong"), exitUsage, []string{"wrong"}},
		{errors.New("disk full"), exitError, []string{"doing: disk full"}},
	} {
		var out bytes.Buffer
		a := &app{stderr: &out}
		if got := a.report(explain("doing", "addr", c.err)); got != c.code {
			t.Errorf("%v: exit code %d, want %d", c.err, got, c.code)
		}
		for _, want := range c.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%v: %q does not say %q", c.err, &out, want)
			}
		}
	}
	if explain("doing", "addr", nil) != nil {
		t.Error("no error became one")
	}
}

func TestOwnDir(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := ownDir(dir); err != nil {
		t.Error(err)
	}
	if err := os.Symlink(dir, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "file")
	if err := writeFile(file, []byte("x")); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{filepath.Join(dir, "link"), file, filepath.Join(dir, "none")} {
		if ownDir(bad) == nil {
			t.Errorf("%s is taken for a directory of one's own", bad)
		}
	}
	for _, mode := range []os.FileMode{0o750, 0o701, 0o777} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		if ownDir(dir) == nil {
			t.Errorf("mode %04o is taken", mode)
		}
	}
	if os.Getuid() == 0 { // only root can give a directory away
		other := t.TempDir()
		if err := errors.Join(os.Chmod(other, 0o700), os.Chown(other, 12345, -1)); err != nil {
			t.Fatal(err)
		}
		if ownDir(other) == nil {
			t.Error("another user's directory is taken")
		}
	}
}

func TestWriteFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	for _, content := range []string{"first", "second"} {
		if err := writeFile(name, []byte(content)); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(name)
		fi, serr := os.Stat(name)
		if err != nil || serr != nil || string(got) != content || fi.Mode().Perm() != 0o600 {
			t.Errorf("got %q, mode %v, %v, %v", got, fi.Mode(), err, serr)
		}
	}
	if err := os.Mkdir(name+"d", 0o700); err != nil {
		t.Fatal(err)
	}
	if writeFile(name+"d", nil) == nil {
		t.Error("a directory was replaced by a file")
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(name), ".*-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestOpsAddress(t *testing.T) {
	for _, c := range [][3]string{
		{"", "", "127.0.0.1:7604"},
		{"", "0.0.0.0", "127.0.0.1:7604"},
		{"", "::", "[::1]:7604"},
		{"", "10.0.0.1", "10.0.0.1:7604"},
		{":99", "10.0.0.1", "127.0.0.1:99"},
		{"[::1]:99", "", "[::1]:99"},
	} {
		env := map[string]string{"CONCLAVE_OPS_LISTEN": c[0], "CONCLAVE_LISTEN": c[1]}
		if got := opsAddress(func(k string) string { return env[k] }); got != c[2] {
			t.Errorf("with %v: %s, want %s", env, got, c[2])
		}
	}
}

// TestCeremonyDirIsMadeFirst: a directory that cannot take the shares stops init
// before there are any.
func TestCeremonyDirIsMadeFirst(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ceremony")
	d, err := newCeremonyDir(dir, 2)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newCeremonyDir(dir, 2); err == nil {
		t.Error("files of another ceremony would be overwritten")
	}
	res := &kmspb.InitResponse{Shares: []string{"s1", "s2"}, AccessKeyId: "AKIA", SecretAccessKey: "it's"}
	if err := d.fill(res); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"share-1.txt": "s1\n", "share-2.txt": "s2\n", "root.env": "AWS_ACCESS_KEY_ID=AKIA\nAWS_SECRET_ACCESS_KEY='it'\\''s'\n",
	} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, want)
		}
	}
	unused, err := newCeremonyDir(filepath.Join(dir, "unused"), 3)
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
		{"one cannot be reached", [3]string{"", "", "Unreachable"}, []string{"n2 failed: why", "the others did; repeat it when that is mended"}},
	} {
		var nodes []*kmspb.NodeStatus
		for i, e := range c.errs {
			nodes = append(nodes, node("n"+string(rune('0'+i)), e))
		}
		a := &app{stdout: io.Discard}
		err := a.printNodes(&kmspb.SubmitShareResponse{Nodes: nodes}, nodes, "failed")
		got := ""
		if err != nil {
			got = err.Error()
		}
		if want := strings.Join(c.fail, "\n"); got != want {
			t.Errorf("%s: got %q, want %q", c.name, got, want)
		}
	}
}
