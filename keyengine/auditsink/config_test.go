package auditsink

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestAuditSinksPage: the example of docs/operate/audit-sinks.md is a valid configuration, once
// the files that it names are there.
func TestAuditSinksPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/operate/audit-sinks.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(page), "```json\n")
	text, _, ok := strings.Cut(text, "```")
	if !ok {
		t.Fatal("the page has no example")
	}
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"siem-ca.pem":  string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		"hook.secret":  base64.StdEncoding.EncodeToString(make([]byte, 32)),
		"otel.headers": "Authorization: Bearer token\n",
	} {
		write(t, filepath.Join(dir, name), content)
	}
	text = strings.NewReplacer("/etc/conclave", dir, "/var/log/conclave", dir).Replace(text)
	file := filepath.Join(dir, "sinks.json")
	write(t, file, text)
	sinks, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(sinks) != 5 || sinks[0].File == nil || sinks[1].Syslog == nil || sinks[2].Webhook == nil || sinks[3].OTLP == nil ||
		len(sinks[4].Only) != 1 || sinks[4].Format != formatEventBridge {
		t.Errorf("the sinks are %+v", sinks)
	}
	for what, edit := range map[string][2]string{
		"an unknown member":       {`"maxBytes"`, `"maxbytes"`},
		"the same member twice":   {`"name": "siem"`, `"name": "siem", "name": "siem"`},
		"the same name twice":     {`"siem"`, `"hook"`},
		"a name with a space":     {`"siem"`, `"the siem"`},
		"a second receiver":       {`"from": "end"`, `"file": {"directory": "/"}`},
		"another beginning":       {`"end"`, `"middle"`},
		"a missing secret":        {"hook.secret", "other.secret"},
		"a CA without a CA":       {"siem-ca.pem", "hook.secret"},
		"headers without a colon": {"otel.headers", "hook.secret"},
		"a short file":            {"134217728", "10"},
		"something behind it":     {"\n]}", "\n]} x"},
		"an unknown class":        {`["alerts"]`, `["alarms"]`},
		"no event":                {`["alerts"]`, `[""]`},
		"the same class twice":    {`["alerts"]`, `["alerts", "alerts"]`},
		"an empty choice":         {`["alerts"]`, `[]`},
		"another format":          {`"eventbridge"`, `"cloudevents"`},
		"events for a collector":  {`"name": "collector"`, `"name": "collector", "format": "eventbridge"`},
	} {
		broken := strings.Replace(text, edit[0], edit[1], 1)
		if broken == text {
			t.Fatalf("%s: nothing to edit", what)
		}
		write(t, file, broken)
		if _, err := Load(file); err == nil {
			t.Errorf("%s is accepted", what)
		}
	}
}

func write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
