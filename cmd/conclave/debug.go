package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/bundle"
	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

func debugCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "debug",
		Short: "Collect what helps to find the cause of a problem",
		Long:  `Debug has the commands for looking into a problem.`,
	}
	cmd.AddCommand(bundleCommand(a))
	return cmd
}

// debugBundle are the flags of debug bundle.
type debugBundle struct {
	app   *cli.App
	env   envFile
	ops   string
	pprof string
	log   string
	lines int
}

func bundleCommand(a *cli.App) *cobra.Command {
	b := &debugBundle{app: a}
	cmd := &cobra.Command{
		Use:   "bundle FILE",
		Short: "Write the state of a node, without secrets, to an archive",
		Long: `Bundle writes a tar.gz with the version, the settings in the server's environment (see
--env-file), its metrics and health on this machine, the profile of its goroutines if
it serves profiles (--pprof-address), the end of its log if --log names it, and the
status of the nodes that --address names and the members of their cluster, as far as
your certificate permits. What cannot be had is named in missing.txt and on standard
error.

Only what is known to be harmless by its form gets into the bundle: settings that are
no paths, numbers, times, addresses, names of nodes and ordinary words. Everything else
is replaced by [-]. Look into it nevertheless before you pass it on.`,
		Example: `  conclave debug bundle conclave-debug.tar.gz
  journalctl -u conclave -o cat | conclave debug bundle conclave-debug-2.tar.gz --log -`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return b.run(cmd.Context(), args[0]) },
	}
	a.ClientFlags(cmd)
	b.env.addFlag(cmd.Flags())
	f := cmd.Flags()
	f.StringVar(&b.ops, "ops", "", "address of metrics and health (default from the server's environment, or 127.0.0.1:7604)")
	f.StringVar(&b.pprof, "pprof", "", "address of profiles (default from the server's environment)")
	f.StringVar(&b.log, "log", "", "file with the server's log; - for standard input")
	f.IntVar(&b.lines, "log-lines", 2000, "how many of its last lines to take")
	return cmd
}

// source bounds the time that one source of the bundle may take.
const source = 15 * time.Second

func (b *debugBundle) run(ctx context.Context, name string) error {
	if b.lines < 1 || b.lines > 100_000 {
		return cli.Usagef("--log-lines must be from 1 to 100000")
	}
	getenv, err := b.env.getenv()
	if err != nil {
		return err
	}
	remote, err := b.app.Remote.Config()
	if err != nil {
		return err
	}
	clear(remote.SecretAccessKey)
	remote.AccessKeyID, remote.SecretAccessKey, remote.SessionToken = "", nil, "" // operators do not use them
	filter := bundle.NewFilter(cli.Version, runtime.Version())
	for _, op := range keyengine.Operations() {
		filter.Allow(op.Name)
	}
	var missing []string
	err = files.WriteFrom(name, func(w io.Writer) error {
		now := time.Now().UTC()
		out := bundle.NewArchive(w, "conclave-debug-"+now.Format("20060102-150405"), now)
		steps := []func() error{
			func() error { return b.version(out, now) },
			func() error { return b.config(out, filter, getenv) },
			func() error { return b.nodes(ctx, out, filter, remote) },
			func() error { return b.server(ctx, out, filter, getenv) },
			func() error { return b.logs(out, filter) },
			func() error { return out.Close(filter) },
		}
		for _, step := range steps {
			if err := step(); err != nil {
				return err
			}
		}
		missing = out.Missing()
		return nil
	})
	if err != nil {
		return err
	}
	for _, m := range missing {
		b.app.Note("conclave: not in the bundle: %s", cli.Printable(m))
	}
	_, err = fmt.Fprintf(b.app.Stdout, "bundle  %s\n", name)
	return err
}

func (b *debugBundle) version(out *bundle.Archive, now time.Time) error {
	return out.AddJSON("version.json", map[string]any{
		"version": cli.Version, "go": runtime.Version(), "system": runtime.GOOS + "/" + runtime.GOARCH, "cpus": runtime.NumCPU(), "time": now,
	})
}

func (b *debugBundle) config(out *bundle.Archive, f *bundle.Filter, getenv func(string) string) error {
	shown, names := harmlessSettings(getenv)
	f.Allow(names...)
	return out.AddJSON("config.json", shown)
}

// nodes adds what the nodes that the operator named say.
func (b *debugBundle) nodes(ctx context.Context, out *bundle.Archive, f *bundle.Filter, cfg client.Config) error {
	addrs, err := client.Addresses(cfg.Address)
	if err != nil {
		return cli.Usage(err)
	}
	var list []*bundle.Status
	var members []*kmspb.Member
	var upgrade *kmspb.UpgradeStatusResponse
	for _, addr := range addrs {
		ctx, cancel := context.WithTimeout(ctx, source)
		at := cfg
		at.Address = addr
		st, err := func() (*bundle.Status, error) {
			c, err := client.Dial(ctx, at)
			if err != nil {
				return nil, err
			}
			defer c.Close()
			r, err := c.Operator().Status(ctx, &kmspb.StatusRequest{})
			if err != nil {
				return nil, err
			}
			if m, err := c.Cluster().Members(ctx, &kmspb.MembersRequest{}); err == nil && members == nil {
				members = m.GetMembers()
				for _, one := range members {
					f.Allow(one.GetNodeId())
				}
				// A node that cannot be asked for its release is no reason to leave out the rest.
				upgrade, _ = c.Cluster().UpgradeStatus(ctx, &kmspb.UpgradeStatusRequest{})
			}
			return f.NodeStatus(r), nil
		}()
		cancel()
		if err != nil {
			text := err.Error()
			if e, ok := client.FromError(err); ok {
				text = strings.TrimSpace(e.Type + " " + e.Message)
			}
			st = &bundle.Status{Error: f.Words(text)}
			out.Miss("status of "+addr, text)
		}
		if isAddress(addr) {
			st.Address = addr
		}
		list = append(list, st)
	}
	if err := out.AddJSON("status.json", list); err != nil {
		return err
	}
	if members == nil {
		out.Miss("members.json", "no node told its members; it needs an operator's certificate (--cert and --key-file)")
		return nil
	}
	return out.AddJSON("members.json", f.Members(members, upgrade))
}

// server adds what the server on this machine serves over plain HTTP.
func (b *debugBundle) server(ctx context.Context, out *bundle.Archive, f *bundle.Filter, getenv func(string) string) error {
	ops, profiles := b.ops, b.pprof
	if ops == "" {
		ops = opsAddress(getenv)
	}
	if profiles == "" {
		profiles = getenv(envName("pprof-address"))
	}
	if err := out.Add("health.json", func(w io.Writer) error {
		state, err := healthState(ctx, ops)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w, "{\"state\": %q}\n", f.Words(state))
		return err
	}); err != nil {
		return err
	}
	if err := out.Add("metrics.txt", func(w io.Writer) error {
		return get(ctx, "http://"+ops+"/metrics", func(r io.Reader) error { return f.Metrics(w, r) })
	}); err != nil {
		return err
	}
	if profiles == "" {
		out.Miss("goroutines.txt", "the server serves no profiles; --pprof-address makes it do so")
		return nil
	}
	return out.Add("goroutines.txt", func(w io.Writer) error {
		return get(ctx, "http://"+profiles+"/debug/pprof/goroutine?debug=1", func(r io.Reader) error { return f.Goroutines(w, r) })
	})
}

// maxAnswer bounds what is read of a server.
const maxAnswer = 32 << 20

func get(ctx context.Context, url string, use func(io.Reader) error) error {
	ctx, cancel := context.WithTimeout(ctx, source)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	// A proxy from the environment must not be used.
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the server answers with status %d", resp.StatusCode)
	}
	return use(io.LimitReader(resp.Body, maxAnswer))
}

// maxLog bounds how much of the end of a log is read.
const maxLog = 16 << 20

func (b *debugBundle) logs(out *bundle.Archive, f *bundle.Filter) error {
	if b.log == "" {
		out.Miss("log.txt", "no log was named; --log names it")
		return nil
	}
	return out.Add("log.txt", func(w io.Writer) error {
		if b.log == "-" {
			return f.Log(w, b.app.Stdin, b.lines)
		}
		file, err := os.Open(b.log)
		if err != nil {
			return err
		}
		defer file.Close()
		st, err := file.Stat()
		if err != nil {
			return err
		}
		if !st.Mode().IsRegular() {
			return errors.New("it is not a file")
		}
		if st.Size() > maxLog {
			if _, err := file.Seek(-maxLog, io.SeekEnd); err != nil {
				return err
			}
		}
		return f.Log(w, file, b.lines)
	})
}
