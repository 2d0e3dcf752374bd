package node

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/conclavekms/conclave/integration/xksproxy"
)

func TestKeyStores(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	c := &Config{}
	if k, err := c.keyStores(); err != nil || k.Roots != nil || k.AllowPrivateEndpoints || k.Timeout != 0 {
		t.Errorf("unset: %+v, %v", k, err)
	}
	c = &Config{XKSCA: write("ca.pem", xksproxy.Start(t).CA()), XKSAllowPrivateEndpoints: true}
	if k, err := c.keyStores(); err != nil || k.Roots == nil || !k.AllowPrivateEndpoints {
		t.Errorf("set: %+v, %v", k, err)
	}
	// A file without a certificate must not mean the system's CAs.
	for _, name := range []string{write("empty", nil), write("text", []byte("x")), filepath.Join(dir, "none")} {
		if _, err := (&Config{XKSCA: name}).keyStores(); err == nil {
			t.Errorf("%s is taken for CAs", name)
		}
	}
}
