package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cluster"
	"github.com/conclavekms/conclave/cmd/conclave/node"
	"github.com/conclavekms/conclave/keyengine"
)

const devNode = "dev"

// devServer is one node that opens itself: for development.
type devServer struct {
	app             *app
	dir             string // everything lies here
	tls             bool
	account, region string
	regions         []string // all, the default one first; none for region alone
	level           string
	roots           string // of enclaves
	listen          node.Addresses

	accountGiven, regionGiven bool
	secrets                   *devSecrets
}

func (a *app) devCommand() *cobra.Command {
	d := &devServer{app: a}
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Start a one-node server for development",
		Long: `Dev starts a server for development: one node, on loopback, initialised and
unsealed. It prints the shell lines that point AWS tools and this one at it;
"conclave env" prints them again.

Without --data everything is gone when it stops. With --data DIR, keys and
credentials survive, and everything needed to open this server lies in DIR.`,
		Example: `  conclave dev
  eval "$(conclave env --wait 10s)"; aws kms create-key     # in another shell`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d.accountGiven = cmd.Flags().Changed("account")
			d.regionGiven = cmd.Flags().Changed("region") || len(d.regions) > 0
			if len(d.regions) > 0 {
				d.region = d.regions[0]
			}
			return d.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&d.dir, "data", "", "directory that keeps keys and credentials (default a temporary one)")
	f.BoolVar(&d.tls, "tls", false, "serve with TLS")
	f.StringVar(&d.account, "account", "000000000000", "account id in ARNs")
	f.StringVar(&d.region, "region", "us-east-1", "region in ARNs; requests may be signed for any")
	f.StringSliceVar(&d.regions, "regions", nil, "all regions that it serves, instead of --region; requests for others go to the first")
	cmd.MarkFlagsMutuallyExclusive("region", "regions")
	f.StringVar(&d.listen.AWS, "aws-listen", "127.0.0.1:7600", "address of the AWS API; :0 takes any free port")
	f.StringVar(&d.listen.GRPC, "grpc-listen", "127.0.0.1:7601", "address of the gRPC API")
	f.StringVar(&d.listen.Peer, "peer-listen", "127.0.0.1:7602", "address for other nodes")
	f.StringVar(&d.listen.Gossip, "gossip-listen", none, "address of the address book, such as 127.0.0.1:7603; one node needs none")
	f.StringVar(&d.listen.Ops, "ops-listen", "127.0.0.1:7604", "address of metrics and health")
	f.StringVar(&d.roots, "attestation-roots", "", "PEM file of the root certificates of enclaves, for requests with a Recipient (default refuse these)")
	f.StringVar(&d.level, "log-level", "warn", "debug, info, warn or error")
	return cmd
}

func (d *devServer) run(ctx context.Context) (err error) {
	for _, l := range []struct {
		flag string
		addr *string
	}{
		{"aws-listen", &d.listen.AWS}, {"grpc-listen", &d.listen.GRPC}, {"peer-listen", &d.listen.Peer},
		{"gossip-listen", &d.listen.Gossip}, {"ops-listen", &d.listen.Ops},
	} {
		if *l.addr, err = devAddress(*l.addr); err != nil {
			return usagef("--%s: %v", l.flag, err)
		}
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(d.level)); err != nil {
		return usagef("--log-level: %v", err)
	}
	if err := harden(); err != nil {
		return err
	}
	temporary := d.dir == ""
	if temporary {
		if d.dir, err = os.MkdirTemp("", "conclave-dev-"); err != nil {
			return err
		}
		// Keys lie in it.
		defer func() { err = errors.Join(err, os.RemoveAll(d.dir)) }()
	} else {
		if d.dir, err = filepath.Abs(d.dir); err != nil {
			return err
		}
		if err := os.MkdirAll(d.dir, 0o700); err != nil {
			return err
		}
	}
	identity, err := d.prepare()
	if err != nil {
		return err
	}
	cfg := node.Config{
		NodeID: devNode, Data: filepath.Join(d.dir, "node"),
		AWSListen: d.listen.AWS, GRPCListen: d.listen.GRPC, PeerListen: d.listen.Peer,
		GossipListen: d.listen.Gossip, OpsListen: d.listen.Ops,
		BootstrapExpect: 1, Insecure: !d.tls, Identity: identity,
		AllowUnlockedMemory: true, // what a laptop or container allows
		AttestationRoots:    d.roots,
		ShutdownTimeout:     5 * time.Second,
		LogLevel:            level, LogOutput: d.app.stderr, Release: version,
	}
	// With nobody to wait for, an election need not take long.
	cfg.Timeouts = cluster.Timeouts{Heartbeat: 50 * time.Millisecond, Election: 50 * time.Millisecond, Lease: 25 * time.Millisecond, Hello: 50 * time.Millisecond}

	var announced *devAnnouncement
	defer func() {
		if announced != nil {
			err = errors.Join(err, announced.withdraw())
		}
	}()
	err = d.app.serve(ctx, &cfg, func(ctx context.Context, n *node.Node) error {
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		if err := d.open(ctx, n); err != nil {
			return err
		}
		if err := waitReady(ctx, n.Addresses().Ops); err != nil {
			return err
		}
		info := d.info(n.Addresses())
		if announced, err = announce(info, d.dir, temporary); err != nil {
			return err
		}
		return d.greet(info, temporary)
	})
	if inUse(err) {
		return fmt.Errorf("%w\nis another development server running? --aws-listen, --grpc-listen, --peer-listen and --ops-listen take other ports, :0 any free one", err)
	}
	return err
}

// devAddress takes host:port, and :port for loopback; nothing but loopback.
func devAddress(addr string) (string, error) {
	if addr == none {
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
	if !loopback(addr) {
		return "", fmt.Errorf("%s is not a loopback address; `conclave server` serves others", addr)
	}
	return addr, nil
}

func inUse(err error) bool {
	return err != nil && strings.Contains(err.Error(), "address already in use")
}

// prepare reads or makes what the server is opened with, and its certificates.
func (d *devServer) prepare() (*node.Identity, error) {
	if err := ownDir(d.dir); err != nil {
		return nil, err
	}
	s, err := loadDevSecrets(d.dir)
	if err != nil {
		return nil, err
	}
	if s == nil {
		ca, err := cluster.NewCA("conclave development CA", caValidity)
		if err != nil {
			return nil, err
		}
		key, err := ca.KeyPEM()
		if err != nil {
			return nil, err
		}
		s = &devSecrets{Account: d.account, Region: d.region, Regions: d.regions, CACert: string(ca.CertPEM()), CAKey: string(key)}
		if err := s.save(d.dir); err != nil {
			return nil, err
		}
	}
	if d.accountGiven && s.Account != d.account || d.regionGiven && !slices.Equal(s.allRegions(), d.allRegions()) {
		return nil, fmt.Errorf("%s is of account %s in %s, for ever; leave out --account, --region and --regions, or take another directory",
			d.dir, s.Account, strings.Join(s.allRegions(), ","))
	}
	d.secrets = s
	ca, err := cluster.LoadCA([]byte(s.CACert), []byte(s.CAKey))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(d.dir, devSecretsFile), err)
	}
	cert, key, err := ca.Issue(cluster.IssueRequest{
		Kind: cluster.KindNode, Name: devNode, DNS: []string{"localhost"},
		IPs: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}, Validity: certValidity,
	})
	if err != nil {
		return nil, err
	}
	if d.tls {
		// Clients read these.
		plan := certPlan{dir: d.dir}
		if err := plan.issue(ca, cluster.KindOperator, operatorPEM, operatorPEM); err != nil {
			return nil, err
		}
		if err := writeFile(filepath.Join(d.dir, caFile), ca.CertPEM()); err != nil {
			return nil, err
		}
	}
	return &node.Identity{Cert: cert, Key: key, CA: ca.CertPEM()}, nil
}

// allRegions are the regions asked for.
func (d *devServer) allRegions() []string {
	return (&devSecrets{Region: d.region, Regions: d.regions}).allRegions()
}

// open makes the node initialised and unsealed.
func (d *devServer) open(ctx context.Context, n *node.Node) error {
	op := keyengine.Operator{Name: "root", SourceIP: "127.0.0.1"}
	if d.secrets.AccessKeyID == "" {
		return d.init(ctx, n, op)
	}
	// The state comes back from disk when the node has become the leader.
	err := poll(ctx, func() (bool, error) { return n.Engine().SealStatus().Initialised, nil })
	if err != nil {
		return fmt.Errorf("%s was initialised before, but its state does not come back: %w", d.dir, err)
	}
	for _, share := range d.secrets.Shares {
		if !n.Engine().Sealed() {
			break
		}
		if _, err := n.Engine().SubmitShare(ctx, op, share); err != nil {
			return fmt.Errorf("unsealing: %w", err)
		}
	}
	return nil
}

func (d *devServer) init(ctx context.Context, n *node.Node, op keyengine.Operator) error {
	var res *keyengine.InitResult
	err := poll(ctx, func() (bool, error) {
		var err error
		res, err = n.Engine().Init(ctx, op, keyengine.InitParams{
			Shares: 1, Threshold: 1, Account: d.secrets.Account, Regions: d.secrets.allRegions(), AnyRegion: true, KeepUnsealed: true,
		})
		// There is no leader in the first moments.
		if errors.Is(err, keyengine.ErrUnavailable) || errors.Is(err, keyengine.ErrNotReady) {
			return false, nil
		}
		return err == nil, err
	})
	if errors.Is(err, keyengine.ErrInitialised) {
		return fmt.Errorf("%s was initialised, but its share was not saved: an earlier start was cut short. Nothing can open it; remove it", d.dir)
	}
	if err != nil {
		return fmt.Errorf("initialising: %w", err)
	}
	d.secrets.AccessKeyID, d.secrets.SecretAccessKey = res.AccessKeyID, res.SecretAccessKey
	d.secrets.Shares, d.secrets.VerifierKey = res.Shares, res.VerifierKey
	return d.secrets.save(d.dir)
}

func (d *devServer) info(at node.Addresses) *devInfo {
	i := &devInfo{
		PID: os.Getpid(), TLS: d.tls, AWS: at.AWS, GRPC: at.GRPC, Ops: at.Ops, Region: d.secrets.Region,
		AccessKeyID: d.secrets.AccessKeyID, SecretAccessKey: d.secrets.SecretAccessKey,
	}
	if d.tls {
		i.CA = filepath.Join(d.dir, caFile)
		i.Cert, i.Key = filepath.Join(d.dir, operatorPEM+".pem"), filepath.Join(d.dir, operatorPEM+"-key.pem")
	}
	return i
}

// greet prints lines that a shell can read.
func (d *devServer) greet(info *devInfo, temporary bool) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# Conclave %s for development, on loopback. Ready.\n", version)
	if temporary {
		b.WriteString("# Keys and credentials are gone when it stops; --data DIR keeps them.\n")
	} else {
		fmt.Fprintf(&b, "# FOR DEVELOPMENT: everything needed to open this server lies in %s.\n", d.dir)
	}
	b.WriteString("\n")
	b.WriteString(info.shell())
	b.WriteString(`
# In another shell, eval "$(conclave env)" does the same. Then, for example:
#   aws kms create-key --description first
#   aws kms create-alias --alias-name alias/first --target-key-id KEY
#   echo hello | conclave encrypt --key alias/first | conclave decrypt
`)
	_, err := d.app.stdout.Write([]byte(b.String()))
	return err
}

// waitReady waits until the node with this health port serves.
func waitReady(ctx context.Context, ops string) error {
	if ops == "" {
		return nil
	}
	err := poll(ctx, func() (bool, error) {
		_, code, err := getState(ctx, ops, "/readyz")
		return err == nil && code == http.StatusOK, nil
	})
	if err != nil {
		return fmt.Errorf("the server does not become ready: %w", err)
	}
	return nil
}

// poll asks until done is true, it fails or ctx ends.
func poll(ctx context.Context, done func() (bool, error)) error {
	wait := 2 * time.Millisecond
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		wait = min(wait*3/2, 100*time.Millisecond)
	}
}
