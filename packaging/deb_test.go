package packaging

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/integration/optional"
)

// buildDeb builds the package, with the given program in it, and returns its path. The program
// under test writes its pages.
func buildDeb(t *testing.T, dir, program string) string {
	t.Helper()
	optional.Program(t, "dpkg-deb")
	cmd := exec.CommandContext(t.Context(), "deb/build", release(t), runtime.GOARCH, program, binary(t), dir)
	var failed bytes.Buffer
	cmd.Stderr = &failed
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, &failed)
	}
	return strings.TrimSpace(string(out))
}

// binary is the path of the program under test.
func binary(t *testing.T) string {
	t.Helper()
	path, err := harness.Binary()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// release is the release that this source is of.
func release(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(read(t, "../VERSION"))
}

// TestDebContents: the package has what it should, and is built the same twice. A short file
// stands for the program in it.
func TestDebContents(t *testing.T) {
	if testing.Short() {
		t.Skip("builds packages")
	}
	t.Parallel()
	deb := buildDeb(t, t.TempDir(), "../VERSION")
	list, err := exec.CommandContext(t.Context(), "dpkg-deb", "--contents", deb).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"./usr/bin/conclave", "./usr/lib/systemd/system/conclave.service", "./etc/conclave/conclave.env",
		"./usr/share/man/man1/conclave.1.gz", "./usr/share/man/man1/conclave-operator-init.1.gz",
		"./usr/share/bash-completion/completions/conclave", "./usr/share/zsh/vendor-completions/_conclave", "./usr/share/fish/vendor_completions.d/conclave.fish",
		"./usr/share/doc/conclave/copyright", "./usr/share/doc/conclave/changelog.gz",
	} {
		if !strings.Contains(string(list), " "+want+"\n") {
			t.Errorf("the package lacks %s", want)
		}
	}
	for line := range strings.Lines(string(list)) {
		if !strings.Contains(line, " root/root ") || line[5] == 'w' || line[8] == 'w' {
			t.Errorf("owned by others, or others may write: %s", line)
		}
	}
	conffiles, err := exec.CommandContext(t.Context(), "dpkg-deb", "--info", deb, "conffiles").Output()
	if err != nil || !strings.Contains(string(conffiles), "/etc/conclave/conclave.env\n") {
		t.Errorf("conffiles: %q, %v", conffiles, err)
	}
	first, err := os.ReadFile(deb)
	if err != nil {
		t.Fatal(err)
	}
	second, err := os.ReadFile(buildDeb(t, t.TempDir(), "../VERSION"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, second) {
		t.Error("two packages of the same program differ")
	}
}

// TestDebInstalls installs, upgrades, removes and purges the package. It does so in a root
// that is thrown away: what is written lies above this machine's own, or above the one that
// CONCLAVE_DEB_ROOT names, which `make deb-check` makes by debootstrap.
func TestDebInstalls(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and installs a package")
	}
	t.Parallel()
	if os.Geteuid() != 0 {
		optional.Skip(t, "only root can install a package in a root of its own")
	}
	for _, program := range []string{"dpkg", "unshare", "mount", "chroot", "setpriv"} {
		optional.Program(t, program)
	}
	lower := os.Getenv("CONCLAVE_DEB_ROOT")
	if lower == "" {
		lower = "/"
	}
	dir := t.TempDir()
	for _, sub := range []string{"upper", "root"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	deb := buildDeb(t, dir, binary(t))
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	// The mounts are those of one process, and end with it. A tmpfs is below them, as a file
	// system on which temporary files are may itself be such a layer, which cannot be one again.
	mounts := `set -e
mount -t tmpfs tmpfs "$DIR/upper" && mkdir "$DIR/upper/u" "$DIR/upper/w" && chmod 0755 "$DIR/upper/u"
mount -t overlay overlay -o "lowerdir=$LOWER,upperdir=$DIR/upper/u,workdir=$DIR/upper/w" "$DIR/root" || exit 77
mount --bind /dev "$DIR/root/dev"
mount -t proc proc "$DIR/root/proc"
mount -t tmpfs tmpfs "$DIR/root/tmp"
cp "$DEB" "$DIR/root/conclave.deb"
cp testdata/installed.sh "$DIR/root/installed.sh"
exec chroot "$DIR/root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive VERSION="$VERSION" sh /installed.sh`
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--propagation", "private", "sh", "-c", mounts)
	cmd.Env = append(os.Environ(), "DIR="+dir, "LOWER="+lower, "DEB="+deb, "VERSION="+release(t))
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState != nil && cmd.ProcessState.ExitCode() == 77 {
		optional.Skip(t, "this machine cannot lay a directory over another:\n%s", out)
	}
	if err != nil || !strings.Contains(string(out), "the package did all that it should") {
		t.Fatalf("%v\n%s", err, out)
	}
}
