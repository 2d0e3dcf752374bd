package cli

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
)

// profile is a profile in the files of AWS's tools.
type profile struct {
	accessKeyID, secretAccessKey string
	sessionToken                 string // of temporary credentials, or ""
	region                       string
}

// maxProfileFile is larger than such files are.
const maxProfileFile = 1 << 20

// readProfile reads a profile of ~/.aws/credentials and ~/.aws/config, or of the
// files that AWS_SHARED_CREDENTIALS_FILE and AWS_CONFIG_FILE name. It returns
// fs.ErrNotExist if neither has the profile. Only access keys and temporary
// credentials in the files are used: how AWS's tools get credentials by a role, a process or
// single sign-on is theirs to know.
func readProfile(name string, getenv func(string) string) (*profile, error) {
	settings := make(map[string]string)
	found := false
	for _, f := range []struct {
		env, file string
		section   string
	}{
		{"AWS_CONFIG_FILE", "config", "profile " + name},
		{"AWS_SHARED_CREDENTIALS_FILE", "credentials", name}, // wins, as it does with AWS's tools
	} {
		file := getenv(f.env)
		if file == "" {
			home := getenv("HOME")
			if home == "" {
				continue
			}
			file = filepath.Join(home, ".aws", f.file)
		}
		raw, err := readAWSFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("profile %s: %w", name, err)
		}
		section := f.section
		if name == "default" && f.file == "config" {
			section = "default"
		}
		there, err := readSection(raw, section, settings)
		clear(raw)
		if err != nil {
			return nil, fmt.Errorf("profile %s: %s: %w", name, file, err)
		}
		found = found || there
	}
	if !found {
		return nil, fmt.Errorf("profile %s is neither in ~/.aws/credentials nor in ~/.aws/config: %w", name, fs.ErrNotExist)
	}
	p := &profile{accessKeyID: settings["aws_access_key_id"], secretAccessKey: settings["aws_secret_access_key"], sessionToken: settings["aws_session_token"], region: settings["region"]}
	if p.accessKeyID != "" && p.secretAccessKey != "" {
		return p, nil
	}
	for _, how := range []string{"role_arn", "credential_process", "sso_session", "sso_start_url", "web_identity_token_file", "credential_source"} {
		if settings[how] != "" {
			return nil, fmt.Errorf("profile %s gets its credentials by %s, which is not supported; give it an access key, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", name, how)
		}
	}
	if p.accessKeyID != "" || p.secretAccessKey != "" {
		return nil, fmt.Errorf("profile %s has only one of aws_access_key_id and aws_secret_access_key", name)
	}
	return p, nil
}

func readAWSFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return files.ReadLimited(f, name, maxProfileFile)
}

// readSection adds a section's settings to settings, and reports whether the
// section exists. Indented lines belong to nested settings, none of which matter
// here.
func readSection(raw []byte, want string, settings map[string]string) (found bool, err error) {
	in := false
	lines := bufio.NewScanner(bytes.NewReader(raw))
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		trimmed := strings.TrimSpace(line)
		switch {
		case trimmed == "" || trimmed[0] == '#' || trimmed[0] == ';':
		case line[0] == '[':
			name, _, ok := strings.Cut(trimmed[1:], "]")
			if !ok {
				return false, fmt.Errorf("line %d: the name of the section does not end with ]", n)
			}
			in = strings.Join(strings.Fields(name), " ") == want
			found = found || in
		case !in || line[0] == ' ' || line[0] == '\t':
		default:
			k, v, ok := strings.Cut(trimmed, "=")
			if !ok {
				return false, fmt.Errorf("line %d is not NAME = VALUE", n) // the line may contain a secret, so it is not shown
			}
			v, _, _ = strings.Cut(v, " #")
			settings[strings.ToLower(strings.TrimSpace(k))] = strings.TrimSpace(v)
		}
	}
	return found, lines.Err()
}
