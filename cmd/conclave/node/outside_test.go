package node

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/conclavekms/conclave/integration/xksproxy"
)

func TestOutsideCAs(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	unset := &Config{}
	if k, err := unset.keyStores(); err != nil || k.Roots != nil || k.AllowPrivateEndpoints || k.Timeout != 0 {
		t.Errorf("unset: %+v, %v", k, err)
	}
	if w, err := unset.webIdentities(); err != nil || w.Roots != nil || w.AllowPrivate {
		t.Errorf("unset: %+v, %v", w, err)
	}
	ca := write("ca.pem", xksproxy.Start(t).CA())
	set := &Config{XKSCA: ca, XKSAllowPrivateEndpoints: true, WebIdentityCA: ca, WebIdentityAllowPrivate: true}
	if k, err := set.keyStores(); err != nil || k.Roots == nil || !k.AllowPrivateEndpoints {
		t.Errorf("set: %+v, %v", k, err)
	}
	if w, err := set.webIdentities(); err != nil || w.Roots == nil || !w.AllowPrivate {
		t.Errorf("set: %+v, %v", w, err)
	}
	// A file without a certificate must not mean the system's CAs.
	for _, name := range []string{write("empty", nil), write("text", []byte("x")), filepath.Join(dir, "none")} {
		if _, err := (&Config{XKSCA: name}).keyStores(); err == nil {
			t.Errorf("%s is taken for CAs of external key stores", name)
		}
		if _, err := (&Config{WebIdentityCA: name}).webIdentities(); err == nil {
			t.Errorf("%s is taken for CAs of identity providers", name)
		}
	}
}
