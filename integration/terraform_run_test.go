package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// terraform is a directory with a configuration of Terraform, whose AWS provider lies in a
// filesystem mirror.
type terraform struct {
	t   *testing.T
	dir string
	env []string
	// flags are given to all commands that plan or apply.
	flags []string
}

// newTerraform returns a directory without a configuration. The test is skipped if
// CONCLAVE_TERRAFORM_MIRROR does not name a mirror.
func newTerraform(t *testing.T) *terraform {
	t.Helper()
	mirror := os.Getenv("CONCLAVE_TERRAFORM_MIRROR")
	if mirror == "" {
		t.Skip("CONCLAVE_TERRAFORM_MIRROR does not say where Terraform's AWS provider is")
	}
	tf := &terraform{t: t, dir: t.TempDir()}
	tf.write("terraform.rc", fmt.Sprintf("provider_installation {\n  filesystem_mirror {\n    path = %q\n  }\n}\n", mirror))
	return tf
}

func (tf *terraform) write(name, text string) {
	tf.t.Helper()
	if err := os.WriteFile(filepath.Join(tf.dir, name), []byte(text), 0o600); err != nil {
		tf.t.Fatal(err)
	}
}

// run runs a command and returns what it prints and its exit code.
func (tf *terraform) run(args ...string) (string, int) {
	tf.t.Helper()
	ctx, cancel := context.WithTimeout(tf.t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "terraform", args...)
	cmd.Dir, cmd.WaitDelay = tf.dir, 5*time.Second
	cmd.Env = append(tf.env, "TF_CLI_CONFIG_FILE="+filepath.Join(tf.dir, "terraform.rc"), "TF_IN_AUTOMATION=1", "CHECKPOINT_DISABLE=1", "NO_COLOR=1")
	start := time.Now()
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil || ctx.Err() != nil {
		tf.t.Fatalf("terraform %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	tf.t.Logf("terraform %s took %v", args[0], time.Since(start).Round(100*time.Millisecond))
	return string(out), cmd.ProcessState.ExitCode()
}

// must runs a command, which has to succeed.
func (tf *terraform) must(args ...string) string {
	tf.t.Helper()
	out, code := tf.run(args...)
	if code != 0 {
		tf.t.Fatalf("terraform %s: exit code %d\n%s", strings.Join(args, " "), code, out)
	}
	return out
}

// apply applies the configuration. What was made must be what was asked for: nothing may be
// left to change.
func (tf *terraform) apply() {
	tf.t.Helper()
	tf.must(append([]string{"apply", "-auto-approve", "-input=false"}, tf.flags...)...)
	if out, code := tf.run(append([]string{"plan", "-detailed-exitcode", "-input=false"}, tf.flags...)...); code != 0 {
		tf.t.Errorf("a plan right after apply: exit code %d\n%s", code, out)
	}
}

func (tf *terraform) destroy() {
	tf.t.Helper()
	tf.must(append([]string{"destroy", "-auto-approve", "-input=false"}, tf.flags...)...)
}

// outputs returns the configuration's outputs, which are strings.
func (tf *terraform) outputs() map[string]string {
	tf.t.Helper()
	var list map[string]struct{ Value string }
	if err := json.Unmarshal([]byte(tf.must("output", "-json")), &list); err != nil {
		tf.t.Fatal(err)
	}
	values := make(map[string]string, len(list))
	for name, o := range list {
		values[name] = o.Value
	}
	return values
}
