package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// unpack returns the files of a bundle by their names within its directory.
func unpack(t *testing.T, name string) map[string]string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	gz, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]string)
	for r := tar.NewReader(gz); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		_, file, _ := strings.Cut(h.Name, "/")
		all[file] = string(b)
	}
}

// TestDebugBundleHasNoSecrets puts secrets into each place that a bundle is made from: every
// setting of the server, its log, its metrics and its profile.
func TestDebugBundleHasNoSecrets(t *testing.T) {
	dir := t.TempDir()
	secrets := []string{
		"conclave-share-1-aeqcibnk5yzyhyhhsd5fmw7mmqhbk3vvy2kz7zyxq6m4n5p2q7r3s4t5u6v7w2x3y4z5a6b7c2d3e4f5g6h7i2j3",
		"wJalrXUtnFEMI/K7MDENG+bPxRfiCYzzzzzzzzzz", "AKIAABCDEFGHIJKLMNOP",
		"MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg", "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
		"q7Zp0Vd3m1Tn8xKcYb2RfWgJhSs5LuAe9NoPiDtQvEk=",
	}
	hostile := strings.Join(secrets, "\n") + "\nconclave_x{node=\"" + secrets[1] + "\",outcome=\"" + secrets[5] + "\"} 1\n#\t0x1\t" + secrets[0] + "\n"
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/livez", "/healthz":
			fmt.Fprintf(w, `{"state": %q}`, secrets[0])
		default:
			fmt.Fprint(w, "go_goroutines 7\ngoroutine profile: total 7\n"+hostile)
		}
	}))
	defer srv.Close()
	addr := srv.Listener.Addr().String()
	var env, log strings.Builder
	for i, s := range serverSettings {
		fmt.Fprintf(&env, "%s=%s\n", envName(s.flag), secrets[i%len(secrets)])
	}
	for _, s := range secrets {
		fmt.Fprintf(&log, "%s\nlevel=INFO msg=%q err=%s\n{\"level\":\"INFO\",\"msg\":%q}\n", s, "a "+s, s, s)
	}
	for name, content := range map[string]string{"server.env": env.String(), "server.log": log.String()} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("AWS_SECRET_ACCESS_KEY", secrets[1])
	t.Setenv("AWS_ACCESS_KEY_ID", secrets[2])
	out := filepath.Join(dir, "bundle.tar.gz")
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), []string{
		"debug", "bundle", out, "--env-file", filepath.Join(dir, "server.env"), "--log", filepath.Join(dir, "server.log"),
		"--ops", addr, "--pprof", addr, "--address", "127.0.0.1:1", "--timeout", "1s",
	}, strings.NewReader(""), &stdout, &stderr)
	if code != 0 {
		t.Fatalf("exit code %d\n%s", code, &stderr)
	}
	all := unpack(t, out)
	for _, name := range []string{"version.json", "config.json", "status.json", "metrics.txt", "goroutines.txt", "health.json", "log.txt", "missing.txt"} {
		if all[name] == "" {
			t.Errorf("%s is not in the bundle", name)
		}
	}
	for name, text := range all {
		for _, s := range secrets {
			s = strings.TrimPrefix(s, "conclave-share-1-")
			for i := 0; i+10 <= len(s); i++ {
				if strings.Contains(text, s[i:i+10]) {
					t.Errorf("%s has a part of %q:\n%s", name, s, text)
					break
				}
			}
		}
	}
	if !strings.Contains(all["config.json"], `"tls-key": "set, not shown"`) || !strings.Contains(all["metrics.txt"], "go_goroutines 7") {
		t.Errorf("too little is left:\n%s\n%s", all["config.json"], all["metrics.txt"])
	}
	st, err := os.Stat(out)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the bundle has mode %v, %v", st.Mode(), err)
	}
}

// TestDebugBundleShowsSettings: a setting is shown if its value has the form that it should
// have.
func TestDebugBundleShowsSettings(t *testing.T) {
	env := map[string]string{
		"CONCLAVE_NODE_ID": "node-1", "CONCLAVE_PEERS": "node-1=10.0.0.1:7602,node-2=node-2.example.com:7602", "CONCLAVE_LISTEN": "::1",
		"CONCLAVE_AWS_LISTEN": "0.0.0.0:7600", "CONCLAVE_GOSSIP_LISTEN": "none", "CONCLAVE_INSECURE": "true", "CONCLAVE_LOG_LEVEL": "debug",
		"CONCLAVE_DISK_LOW": "10%,2GiB", "CONCLAVE_HEARTBEAT_TIMEOUT": "2s", "CONCLAVE_TRUSTED_PROXIES": "10.0.0.0/8,::1", "CONCLAVE_QUOTAS": "keys=5",
	}
	shown, nodes := harmlessSettings(func(k string) string { return env[k] })
	for k, v := range env {
		if flag := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(k, "CONCLAVE_"), "_", "-")); shown[flag] != v {
			t.Errorf("%s is shown as %q, want %q", flag, shown[flag], v)
		}
	}
	if len(shown) != len(env) || len(nodes) != 3 {
		t.Errorf("%v, %v", shown, nodes)
	}
	for _, wrong := range []string{"a b", "q7Zp0Vd3m1Tn8xKcYb2RfWgJhSs5LuAe9NoPiDtQvEk=", "::1%q7Zp0Vd3m1Tn8xKcYb2R", "a=b", strings.Repeat("a", 40)} {
		for _, s := range serverSettings {
			shown, _ := harmlessSettings(func(k string) string { return map[string]string{envName(s.flag): wrong}[k] })
			if shown[s.flag] != withheld {
				t.Errorf("--%s %s is shown", s.flag, wrong)
			}
		}
	}
}
