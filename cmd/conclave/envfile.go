package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"

	"github.com/spf13/pflag"

	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
)

// envFile is the flag for a file of variables, as EnvironmentFile= in a unit of systemd names
// one: it lets a command see what the server sees.
type envFile struct{ name string }

func (e *envFile) addFlag(f *pflag.FlagSet) {
	f.StringVar(&e.name, "env-file", "", "file with the server's environment variables, such as /etc/conclave/conclave.env, instead of this environment")
}

// maxEnvFile bounds the file.
const maxEnvFile = 1 << 20

var envLine = regexp.MustCompile(`^([A-Za-z_][A-Za-z0-9_]*)=(.*)$`)

// getenv returns the variables of the file, or of this process if none is given.
func (e *envFile) getenv() (func(string) string, error) {
	if e.name == "" {
		return os.Getenv, nil
	}
	raw, err := files.Read(e.name, maxEnvFile)
	if err != nil {
		return nil, err
	}
	values := make(map[string]string)
	for i, line := range strings.Split(string(raw), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		m := envLine.FindStringSubmatch(line)
		if m == nil {
			return nil, fmt.Errorf("%s: line %d is not NAME=VALUE", e.name, i+1)
		}
		v := m[2]
		if n := len(v); n >= 2 && (v[0] == '"' || v[0] == '\'') && v[n-1] == v[0] {
			v = v[1 : n-1]
		}
		values[m[1]] = v
	}
	return func(name string) string { return values[name] }, nil
}
