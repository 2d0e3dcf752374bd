package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func (a *app) envCommand() *cobra.Command {
	var dir string
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "env",
		Short: "Print the shell lines that point AWS tools at the development server",
		Long: `Env prints shell lines for eval: the endpoint, region and credentials of the
development server that was started last, for AWS tools and for this one.`,
		Example: `  eval "$(conclave env)"
  eval "$(conclave env --wait 10s)"     # right after starting one`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			info, err := findDev(cmd.Context(), dir, wait)
			if err != nil {
				return err
			}
			_, err = a.stdout.Write([]byte(info.shell()))
			return err
		},
	}
	cmd.Flags().StringVar(&dir, "data", "", "the server's --data directory, when there are several servers")
	cmd.Flags().DurationVar(&wait, "wait", 0, "wait until the server is ready, for at most this long")
	return cmd
}

// findDev finds a running development server, waiting for it if asked to.
func findDev(ctx context.Context, dir string, wait time.Duration) (*devInfo, error) {
	var err error
	if dir == "" {
		dir, err = devInfoDir()
	} else {
		err = ownDir(dir)
	}
	if err != nil && (wait == 0 || !errors.Is(err, os.ErrNotExist)) {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, max(wait, 2*time.Second))
	defer cancel()
	var info *devInfo
	var last error
	err = poll(ctx, func() (bool, error) {
		if info, last = readDevInfo(filepath.Join(dir, devInfoFile)); last == nil {
			last = info.ready(ctx)
		}
		if last == nil {
			// A directory that came while we waited is looked at too.
			return true, ownDir(dir)
		}
		if wait == 0 {
			return false, last
		}
		return false, nil
	})
	switch {
	case err == nil:
		return info, nil
	case errors.Is(last, os.ErrNotExist):
		return nil, errors.New("no development server is running; `conclave dev` starts one")
	case last != nil:
		return nil, fmt.Errorf("the development server is not ready: %w", last)
	}
	return nil, err
}

// ready asks whether the server serves. One that was killed left its file.
func (i *devInfo) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if i.Ops == "" {
		return nil // there is nobody to ask
	}
	state, code, err := getState(ctx, i.Ops, "/readyz")
	if err != nil {
		return err
	}
	if code != http.StatusOK {
		return errors.New(state)
	}
	return nil
}

// shell is for eval in a POSIX shell.
func (i *devInfo) shell() string {
	scheme := "http://"
	if i.TLS {
		scheme = "https://"
	}
	vars := [][2]string{
		{"AWS_ENDPOINT_URL_KMS", scheme + i.AWS},
		{"AWS_REGION", i.Region},
		{"AWS_DEFAULT_REGION", i.Region},
		{"AWS_ACCESS_KEY_ID", i.AccessKeyID},
		{"AWS_SECRET_ACCESS_KEY", i.SecretAccessKey},
		{"AWS_EC2_METADATA_DISABLED", "true"},
		{"CONCLAVE_ADDRESS", scheme + i.GRPC},
		{"CONCLAVE_REGION", i.Region},
	}
	if i.TLS {
		vars = append(vars, [2]string{"AWS_CA_BUNDLE", i.CA},
			[2]string{"CONCLAVE_CA", i.CA}, [2]string{"CONCLAVE_CERT", i.Cert}, [2]string{"CONCLAVE_KEY", i.Key})
	}
	var b strings.Builder
	for _, v := range vars {
		fmt.Fprintf(&b, "export %s=%s\n", v[0], quote(v[1]))
	}
	// What belongs to other credentials would be used beside or before these.
	b.WriteString("unset AWS_SESSION_TOKEN CONCLAVE_ACCESS_KEY_ID CONCLAVE_SECRET_ACCESS_KEY\n")
	return b.String()
}

// quote makes one word of s for a POSIX shell.
func quote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_./:@%+=,-", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
