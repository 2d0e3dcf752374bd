package custodian

import (
	"crypto/fips140"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestFIPS: where the FIPS module is enforced, only HPKE is used, and a key of another kind is
// refused before its library is called.
func TestFIPS(t *testing.T) {
	if !fips140.Enforced() {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestFIPS$", "-test.v", "-test.timeout=1m")
		cmd.Env = append(os.Environ(), "GODEBUG=fips140=only")
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "enforced here") {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	t.Log("enforced here")
	p, err := Generate()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := p.Decrypt([]byte(encrypted(t, []byte(p.Public()), HPKE))); err != nil || string(got) != share {
		t.Errorf("got %q, %v", got, err)
	}
	for _, other := range []string{"age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p", "age1pq1xyz", "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nxjME"} {
		if _, err := Parse([]byte(other), now()); !errors.Is(err, ErrKey) || !strings.Contains(err.Error(), "FIPS mode") {
			t.Errorf("%s: %v", other, err)
		}
	}
}
