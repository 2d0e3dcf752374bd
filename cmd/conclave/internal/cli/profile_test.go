package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestProfiles(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	if err := os.Mkdir(filepath.Join(home, ".aws"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"credentials": `# keys
[default]
aws_access_key_id = AKIADEFAULT
aws_secret_access_key=secret/with+signs=

[ work ]
aws_access_key_id=AKIAWORK
aws_secret_access_key=worksecret   # as AWS's tools read it
[temporary]
aws_access_key_id=ASIA
aws_secret_access_key=x
aws_session_token=y
[half]
aws_access_key_id=AKIAHALF
`,
		"config": `[default]
region = eu-west-1
s3 =
  addressing_style = path
[profile work]
region=us-east-2
aws_access_key_id=AKIAELSEWHERE
[profile role]
role_arn = arn:aws:iam::000000000000:role/x
source_profile = work
[profile region-only]
region = sa-east-1
[profile broken]
no equals sign
`,
	} {
		if err := os.WriteFile(filepath.Join(home, ".aws", name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	getenv := func(k string) string { return map[string]string{"HOME": home}[k] }
	for _, c := range []struct {
		name string
		want profile
		err  string
	}{
		{"default", profile{"AKIADEFAULT", "secret/with+signs=", "", "eu-west-1"}, ""},
		{"work", profile{"AKIAWORK", "worksecret", "", "us-east-2"}, ""},
		{"region-only", profile{"", "", "", "sa-east-1"}, ""},
		{"temporary", profile{"ASIA", "x", "y", ""}, ""},
		{"half", profile{}, "only one of"},
		{"role", profile{}, "by role_arn, which is not supported"},
		{"broken", profile{}, "line 14 is not NAME = VALUE"},
		{"nobody", profile{}, "is neither in"},
	} {
		p, err := readProfile(c.name, getenv)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: got %v, want %q", c.name, err, c.err)
			}
			continue
		}
		if err != nil || *p != c.want {
			t.Errorf("%s: got %+v, %v, want %+v", c.name, p, err, c.want)
		}
	}
	elsewhere := filepath.Join(home, "other")
	if err := os.WriteFile(elsewhere, []byte("[default]\naws_access_key_id=AKIAOTHER\naws_secret_access_key=s\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := readProfile("default", func(k string) string {
		return map[string]string{"AWS_SHARED_CREDENTIALS_FILE": elsewhere, "AWS_CONFIG_FILE": "none"}[k]
	})
	if err != nil || p.accessKeyID != "AKIAOTHER" {
		t.Errorf("got %+v, %v", p, err)
	}
}

// TestCredentialOrder: a named profile takes precedence over the environment,
// and the environment over the default profile, which is used only if there is
// no certificate.
func TestCredentialOrder(t *testing.T) {
	home := t.TempDir()
	file := filepath.Join(home, "credentials")
	if err := os.WriteFile(file, []byte("[default]\naws_access_key_id=AKIADEFAULT\naws_secret_access_key=d\n[work]\naws_access_key_id=AKIAWORK\naws_secret_access_key=w\nregion=us-east-2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		remote RemoteFlags
		env    map[string]string
		want   string
		region string
	}{
		{"default profile", RemoteFlags{}, nil, "AKIADEFAULT", ""},
		{"certificate", RemoteFlags{cert: "c", key: "k"}, nil, "", ""},
		{"environment", RemoteFlags{}, map[string]string{"AWS_ACCESS_KEY_ID": "AKIAENV", "AWS_SECRET_ACCESS_KEY": "e"}, "AKIAENV", ""},
		{"AWS_PROFILE", RemoteFlags{}, map[string]string{"AWS_PROFILE": "work"}, "AKIAWORK", "us-east-2"},
		{"AWS_PROFILE beside keys", RemoteFlags{}, map[string]string{"AWS_PROFILE": "work", "AWS_ACCESS_KEY_ID": "AKIAENV", "AWS_SECRET_ACCESS_KEY": "e"}, "AKIAENV", ""},
		{"--profile beside keys", RemoteFlags{profile: "work"}, map[string]string{"AWS_ACCESS_KEY_ID": "AKIAENV", "AWS_SECRET_ACCESS_KEY": "e"}, "AKIAWORK", "us-east-2"},
		{"--region", RemoteFlags{profile: "work", region: "eu-west-1"}, nil, "AKIAWORK", "eu-west-1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, name := range []string{"AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "CONCLAVE_ACCESS_KEY_ID", "CONCLAVE_SECRET_ACCESS_KEY", "CONCLAVE_ADDRESS", "CONCLAVE_REGION", "CONCLAVE_CERT", "CONCLAVE_KEY", "CONCLAVE_CA"} {
				t.Setenv(name, c.env[name])
			}
			t.Setenv("AWS_SHARED_CREDENTIALS_FILE", file)
			t.Setenv("AWS_CONFIG_FILE", filepath.Join(home, "none"))
			cfg, err := c.remote.Config()
			if err != nil || cfg.AccessKeyID != c.want || cfg.Region != c.region || (len(cfg.SecretAccessKey) > 0) != (c.want != "") {
				t.Errorf("got %q in %q, %v, want %q in %q", cfg.AccessKeyID, cfg.Region, err, c.want, c.region)
			}
		})
	}
}
