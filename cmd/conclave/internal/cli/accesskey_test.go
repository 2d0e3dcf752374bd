package cli

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDeliver(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	key := AccessKey{UserName: "alice", AccessKeyID: "AKIAX", SecretAccessKey: "s3cr/t+"}
	name := filepath.Join(dir, "key.env")
	f, err := NewSecretFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var out, notes bytes.Buffer
	a := &App{Stdout: &out, Stderr: &notes, Output: "json"}
	if err := a.Deliver(key, f); err != nil {
		t.Fatal(err)
	}
	f.Discard() // which leaves the key alone
	raw, err := os.ReadFile(name)
	if err != nil || string(raw) != "AWS_ACCESS_KEY_ID=AKIAX\nAWS_SECRET_ACCESS_KEY=s3cr/t+\n" {
		t.Errorf("the file has %q, %v", raw, err)
	}
	if fi, err := os.Stat(name); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the file has mode %v, %v", fi.Mode(), err)
	}
	if strings.Contains(out.String()+notes.String(), key.SecretAccessKey) || !strings.Contains(out.String(), "AKIAX") {
		t.Errorf("shown: %s%s", &out, &notes)
	}
	if _, err := NewSecretFile(name); !errors.Is(err, os.ErrExist) {
		t.Errorf("a file that exists: %v", err)
	}
	// Without a file, the secret is shown.
	out.Reset()
	if err := a.Deliver(key, nil); err != nil || !strings.Contains(out.String(), `"secret_access_key": "s3cr/t+"`) {
		t.Errorf("shown: %s, %v", &out, err)
	}
	// Nothing is left of a file that was not needed.
	other := filepath.Join(dir, "other.env")
	if f, err = NewSecretFile(other); err != nil {
		t.Fatal(err)
	}
	f.Discard()
	if _, err := os.Stat(other); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
	var none *SecretFile
	none.Discard()
}
