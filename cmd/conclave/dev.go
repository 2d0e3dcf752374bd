package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cluster"
	"github.com/conclavekms/conclave/cmd/conclave/internal/certs"
	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/localcluster"
	"github.com/conclavekms/conclave/cmd/conclave/node"
	"github.com/conclavekms/conclave/transport/client"
)

// devServer is one node that unseals itself, for development.
type devServer struct {
	app *cli.App
	localcluster.Single
	seedFile string
	values   *serverValues
}

// devDecides are the settings of the server that dev makes itself, with the
// reason.
var devDecides = map[string]string{
	"node-id": "dev has one node", "peers": "dev has one node", "bootstrap-expect": "dev has one node", "gossip-key-file": "dev has one node",
	"tls-cert": "dev makes its own certificates", "tls-key": "dev makes its own certificates", "tls-ca": "dev makes its own certificates",
	"insecure":              "dev serves without TLS unless --tls is given",
	"allow-unlocked-memory": "dev starts even if memory cannot be locked",
	"data":                  "", // dev has its own flag
}

func devSettings() (settings []setting) {
	for _, s := range serverSettings {
		if _, decides := devDecides[s.flag]; !decides {
			settings = append(settings, s)
		}
	}
	return settings
}

// seedFlag is a flag of dev only. A server refuses the corresponding variable.
const seedFlag = "seed"

func devCommand(a *cli.App) *cobra.Command {
	d := &devServer{app: a}
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Start a one-node server for development",
		Long: `Dev starts a server for development: one node, on loopback, initialised and
unsealed. It prints shell lines that point AWS tools and this one to it; "conclave
env" prints them again.

It serves all of AWS's regions, each with keys of its own, unless --regions lists
others. The settings of "conclave server" that make sense for one node on loopback
work here too, as flags and as environment variables.

Without --data, everything is deleted when it stops. With --data DIR, keys and
credentials survive, and everything needed to unseal this server is in DIR.

--seed FILE creates keys with known ids, material and aliases, for tests, from YAML
or JSON:

  keys:
    - id: 1234abcd-12ab-34cd-56ef-1234567890ab
      description: card numbers
      material: MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=   # base64; random if left out
      aliases: [cards]
    - id: 2345bcde-12ab-34cd-56ef-1234567890ab
      region: eu-west-1
      spec: ECC_NIST_P256
      usage: SIGN_VERIFY
      material: |          # a private key: PKCS #8, in PEM or base64
        -----BEGIN PRIVATE KEY-----
        …

Ciphertexts of such keys can be decrypted by every server that was first started
with the same seeds. A key that exists already is not changed.`,
		Example: `  conclave dev
  conclave dev --data ~/.conclave-dev --regions eu-west-1,eu-central-1
  conclave dev --seed seeds.yaml`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f := cmd.Flags()
			d.AccountGiven, d.RegionGiven, d.RegionsGiven = f.Changed("account"), f.Changed("region"), len(d.Regions) > 0
			if d.RegionsGiven {
				d.Region = d.Regions[0]
			} else {
				d.Regions = awsRegions(d.Region)
			}
			return d.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&d.Dir, "data", "", "directory that keeps keys and credentials (CONCLAVE_DATA; default a temporary one)")
	f.BoolVar(&d.TLS, "tls", false, "serve with TLS")
	f.StringVar(&d.Account, "account", "000000000000", "account id in ARNs")
	f.StringVar(&d.Region, "region", "us-east-1", "default region, also for requests for regions that are not served")
	f.StringSliceVar(&d.Regions, "regions", nil, "all regions to serve, instead of AWS's; the first is the default")
	cmd.MarkFlagsMutuallyExclusive("region", "regions")
	f.StringVar(&d.seedFile, seedFlag, "", "file with keys to create (CONCLAVE_SEED)")
	d.values = addServerFlags(f, devSettings())
	return cmd
}

// config returns the configuration of the server, from flags and environment,
// with the settings that dev decides.
func (d *devServer) config(getenv func(string) string) (*node.Config, error) {
	for _, s := range serverSettings {
		if why := devDecides[s.flag]; why != "" && getenv(envName(s.flag)) != "" {
			d.app.Note("conclave: %s has no effect: %s", envName(s.flag), why)
		}
	}
	c := &node.Config{
		NodeID: localcluster.SingleNode, BootstrapExpect: 1, Insecure: !d.TLS,
		PublishAuditLog:     true,
		AllowUnlockedMemory: true, // laptops and containers often do not allow locking
		ShutdownTimeout:     5 * time.Second,
		LogLevel:            slog.LevelWarn, LogOutput: d.app.Stderr, Release: cli.Version,
		// With no other node to wait for, an election need not take long.
		Timeouts: cluster.Timeouts{Heartbeat: 50 * time.Millisecond, Election: 50 * time.Millisecond, Lease: 25 * time.Millisecond, Hello: 50 * time.Millisecond},
	}
	faults := d.values.apply(c, getenv)
	d.values.addresses(c, 0, getenv)
	for _, l := range []struct {
		flag string
		addr *string
	}{
		{"aws-listen", &c.AWSListen}, {"grpc-listen", &c.GRPCListen}, {"peer-listen", &c.PeerListen},
		{"gossip-listen", &c.GossipListen}, {"ops-listen", &c.OpsListen},
	} {
		var err error
		if *l.addr, err = devAddress(*l.addr); err != nil {
			faults = append(faults, fmt.Errorf("--%s (%s): %w", l.flag, envName(l.flag), err))
		}
	}
	if err := errors.Join(faults...); err != nil {
		return nil, cli.Usagef("the configuration is not valid; see conclave dev --help:\n%s", cli.Indent(err.Error()))
	}
	return c, nil
}

func (d *devServer) run(ctx context.Context) (err error) {
	cfg, err := d.config(os.Getenv)
	if err != nil {
		return err
	}
	seeds, err := readSeeds(cli.First(d.seedFile, envName(seedFlag)))
	if err != nil {
		return err
	}
	if err := harden(); err != nil {
		return err
	}
	d.Dir = cli.First(d.Dir, envName("data"))
	temporary := d.Dir == ""
	if temporary {
		if d.Dir, err = os.MkdirTemp("", "conclave-dev-"); err != nil {
			return err
		}
		// It contains keys.
		defer func() { err = errors.Join(err, os.RemoveAll(d.Dir)) }()
	} else {
		if d.Dir, err = filepath.Abs(d.Dir); err != nil {
			return err
		}
		if err := os.MkdirAll(d.Dir, 0o700); err != nil {
			return err
		}
	}
	identity, err := d.Prepare()
	if err != nil {
		return err
	}
	cfg.Data, cfg.Identity = filepath.Join(d.Dir, "node"), identity
	if cfg.Seeds = len(seeds) > 0; cfg.Seeds {
		// Ciphertexts name the cluster. A fixed id allows one seeded server to decrypt
		// those of another.
		d.ClusterID = seedCluster
	}

	var announced *devAnnouncement
	defer func() {
		if announced != nil {
			err = errors.Join(err, announced.withdraw())
		}
	}()
	err = serve(ctx, d.app, cfg, func(ctx context.Context, n *node.Node) error {
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		if err := d.Open(ctx, n); err != nil {
			return err
		}
		if err := plant(ctx, n, seeds); err != nil {
			return err
		}
		if err := localcluster.WaitReady(ctx, n.Addresses().Ops); err != nil {
			return err
		}
		info := d.info(n.Addresses())
		if info.Users, err = d.users(ctx, n.Addresses()); err != nil {
			return err
		}
		if announced, err = announce(info, d.Dir, temporary); err != nil {
			return err
		}
		return d.greet(info, temporary)
	})
	if inUse(err) {
		return fmt.Errorf("%w\nis another development server running? choose other ports with --aws-listen, --grpc-listen, --peer-listen and --ops-listen; :0 is any free one", err)
	}
	return err
}

// devAddress accepts host:port, or :port for loopback. The host must be a
// loopback address.
func devAddress(addr string) (string, error) {
	if addr == "" || addr == cli.None {
		return "", nil
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", err
	}
	if host == "" {
		host = "127.0.0.1"
	}
	addr = net.JoinHostPort(host, port)
	if !client.Loopback(addr) {
		return "", fmt.Errorf("%s is not a loopback address; use `conclave server` for others", addr)
	}
	return addr, nil
}

func inUse(err error) bool {
	return err != nil && strings.Contains(err.Error(), "address already in use")
}

func (d *devServer) info(at node.Addresses) *devInfo {
	i := &devInfo{
		PID: os.Getpid(), Data: d.Dir, TLS: d.TLS, AWS: at.AWS, GRPC: at.GRPC, Ops: at.Ops, Region: d.HomeRegion(),
		AccessKeyID: d.InitKeys().AccessKeyID, SecretAccessKey: d.InitKeys().SecretAccessKey,
	}
	if d.TLS {
		i.CA = filepath.Join(d.Dir, certs.CAFile)
		i.Cert, i.Key = filepath.Join(d.Dir, certs.OperatorFile+".pem"), filepath.Join(d.Dir, certs.OperatorFile+"-key.pem")
	}
	return i
}

// greet prints a greeting that a shell can evaluate.
func (d *devServer) greet(info *devInfo, temporary bool) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# Conclave %s for development, on loopback. Ready.\n", cli.Version)
	if temporary {
		b.WriteString("# Keys and credentials are deleted when it stops; --data DIR keeps them.\n")
	} else {
		fmt.Fprintf(&b, "# FOR DEVELOPMENT: everything needed to unseal this server is in %s.\n", d.Dir)
	}
	b.WriteString("\n")
	b.WriteString(info.shell())
	b.WriteString("\n# Besides root there are, for trying policies:\n")
	for _, u := range info.Users {
		fmt.Fprintf(&b, "#   %-15s %s\n#   %-15s AWS_ACCESS_KEY_ID=%s AWS_SECRET_ACCESS_KEY=%s\n", u.Name, u.About, "", u.AccessKeyID, cli.Quote(u.SecretAccessKey))
	}
	b.WriteString("# eval \"$(conclave env --user app)\" takes the access key of one of them.\n")
	b.WriteString(`
# In another shell, eval "$(conclave env)" does the same. Then, for example:
#   aws kms create-key --description first
#   aws kms create-alias --alias-name alias/first --target-key-id KEY
#   echo hello | conclave encrypt --key alias/first | conclave decrypt
`)
	_, err := d.app.Stdout.Write([]byte(b.String()))
	return err
}
