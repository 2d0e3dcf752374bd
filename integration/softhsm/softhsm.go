// Package softhsm makes tokens of SoftHSM 2, a PKCS #11 module in software, for
// tests.
package softhsm

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/conclavekms/conclave/integration/optional"
)

// modules are where distributions put the library.
var modules = []string{
	"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so", "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
	"/usr/lib64/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so", "/usr/local/lib/softhsm/libsofthsm2.so", "/opt/homebrew/lib/softhsm/libsofthsm2.so",
}

// Token is a token that the test may use.
type Token struct {
	Module string // path of the library
	Label  string
	PIN    string
}

// The library reads its configuration once in a process, so all tokens of one are in
// one directory.
var (
	once   sync.Once
	dir    string
	number int
	failed error
	mu     sync.Mutex
)

// NewToken makes a token. Without SoftHSM the test is skipped.
func NewToken(t testing.TB) Token {
	t.Helper()
	util := optional.Program(t, "softhsm2-util") // of Debian's package softhsm2
	token := Token{PIN: "a user's PIN 1234"}
	for _, m := range modules {
		if _, err := os.Stat(m); err == nil {
			token.Module = m
		}
	}
	if token.Module == "" {
		optional.Skip(t, "libsofthsm2.so is in none of its usual places")
	}
	once.Do(prepare)
	if failed != nil {
		t.Fatal(failed)
	}
	mu.Lock()
	defer mu.Unlock()
	number++
	token.Label = fmt.Sprintf("conclave test %d", number)
	cmd := exec.Command(util, "--init-token", "--free", "--label", token.Label, "--pin", token.PIN, "--so-pin", "an officer's PIN")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("softhsm2-util: %v\n%s", err, out)
	}
	return token
}

// prepare has this process, and those that it starts, keep tokens in a directory of
// their own. It outlives the test that made it first; the system clears it.
func prepare() {
	if dir, failed = os.MkdirTemp("", "conclave-softhsm-"); failed != nil {
		return
	}
	conf := filepath.Join(dir, "softhsm2.conf")
	if failed = os.WriteFile(conf, []byte("directories.tokendir = "+dir+"\nobjectstore.backend = file\nlog.level = ERROR\n"), 0o600); failed == nil {
		failed = os.Setenv("SOFTHSM2_CONF", conf)
	}
}
