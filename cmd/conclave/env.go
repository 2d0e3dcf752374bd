package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
	"github.com/conclavekms/conclave/cmd/conclave/internal/health"
	"github.com/conclavekms/conclave/cmd/conclave/internal/localcluster"
)

func envCommand(a *cli.App) *cobra.Command {
	var dir, user string
	var pid int
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "env",
		Short: "Print shell lines that point AWS tools to the development server",
		Long: `Env prints shell lines for eval: the endpoint, region and credentials of the running
development server, for AWS tools and for this one. It prints on standard error
which server that is. If several are running, choose one with --data or --pid.

The server has three users besides root: admin, app, who may use the key with the
alias alias/app, and auditor, who may read the audit log. With second-account, the
access key is that of the root user of a second account.`,
		Example: `  eval "$(conclave env)"
  eval "$(conclave env --wait 10s)"     # right after starting one
  eval "$(conclave env --user app)"     # as a user with a policy on one key`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			info, err := findDev(cmd.Context(), dir, pid, wait)
			if err != nil {
				return err
			}
			a.Note("conclave: the development server is %s", info)
			if info, err = info.as(user); err != nil {
				return err
			}
			_, err = a.Stdout.Write([]byte(info.shell()))
			return err
		},
	}
	cmd.Flags().StringVar(&user, "user", "root", "whose access key to print: root, admin, app, auditor or second-account")
	cmd.Flags().StringVar(&dir, "data", "", "the server's --data directory, if there are several servers")
	cmd.Flags().IntVar(&pid, "pid", 0, "the server's process id, if there are several servers")
	cmd.MarkFlagsMutuallyExclusive("data", "pid")
	cmd.Flags().DurationVar(&wait, "wait", 0, "wait until the server is ready, for at most this long")
	return cmd
}

func (i *devInfo) String() string {
	return fmt.Sprintf("process %d at %s, data in %s", i.PID, i.AWS, i.Data)
}

var errNoDev = errors.New("no development server is running; `conclave dev` starts one")

// findDev finds a running development server, waiting for it for at most wait.
func findDev(ctx context.Context, dir string, pid int, wait time.Duration) (*devInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, max(wait, 2*time.Second))
	defer cancel()
	var info *devInfo
	var last error
	err := localcluster.Poll(ctx, func() (bool, error) {
		if dir != "" {
			info, last = devIn(dir)
		} else {
			info, last = theDev(pid)
		}
		if last == nil {
			if last = info.ready(ctx); last != nil {
				last = fmt.Errorf("the development server, %s, is not ready: %w", info, last)
			}
		}
		_, decided := errors.AsType[*cli.CodedError](last)
		if wait == 0 || decided {
			return true, last
		}
		return last == nil, nil
	})
	switch {
	case err == nil:
		return info, nil
	case last != nil:
		return nil, last // more informative than a timeout
	}
	return nil, err
}

// devIn returns the development server with that data directory.
func devIn(dir string) (*devInfo, error) {
	err := files.OwnDir(dir)
	if err == nil {
		var info *devInfo
		if info, err = readDevInfo(filepath.Join(dir, devInfoFile)); err == nil && info.runs() {
			return info, nil
		}
	}
	if err == nil || errors.Is(err, os.ErrNotExist) {
		return nil, errNoDev
	}
	return nil, err
}

// theDev returns the only development server of this user, or the one with a
// process id.
func theDev(pid int) (*devInfo, error) {
	all, err := announced()
	if err != nil {
		return nil, err
	}
	if pid != 0 {
		all = slices.DeleteFunc(all, func(i *devInfo) bool { return i.PID != pid })
	}
	switch len(all) {
	case 0:
		return nil, errNoDev
	case 1:
		return all[0], nil
	}
	var b strings.Builder
	for _, i := range all {
		fmt.Fprintf(&b, "\n  %s", i)
	}
	return nil, cli.Usagef("%d development servers are running; choose one with --data or --pid:%s", len(all), &b)
}

// ready checks that the server serves. A server that was killed leaves its file
// behind.
func (i *devInfo) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if i.Ops == "" {
		return nil // there is no health port
	}
	state, code, err := health.State(ctx, i.Ops, "/readyz")
	if err != nil {
		return err
	}
	if code != http.StatusOK {
		return errors.New(state)
	}
	return nil
}

// shell returns lines for eval in a POSIX shell.
func (i *devInfo) shell() string {
	scheme := "http://"
	if i.TLS {
		scheme = "https://"
	}
	vars := [][2]string{
		// The SDK for Go uses none but the variables of single services for roles.
		{"AWS_ENDPOINT_URL_KMS", scheme + i.AWS},
		{"AWS_ENDPOINT_URL_IAM", scheme + i.AWS},
		{"AWS_ENDPOINT_URL_STS", scheme + i.AWS},
		{"AWS_ENDPOINT_URL_CLOUDTRAIL", scheme + i.AWS},
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
		fmt.Fprintf(&b, "export %s=%s\n", v[0], cli.Quote(v[1]))
	}
	// These variables of other credentials would be used together with or
	// instead of ours.
	b.WriteString("unset AWS_SESSION_TOKEN CONCLAVE_ACCESS_KEY_ID CONCLAVE_SECRET_ACCESS_KEY CONCLAVE_SESSION_TOKEN\n")
	return b.String()
}
