package main

import (
	"fmt"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/cmd/conclave/internal/certs"
	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
)

const (
	day         = 24 * time.Hour
	maxValidity = 20 * 365 * day
	// renewWithin is how long before its expiry a certificate causes a warning.
	renewWithin = 30 * day
)

func certCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cert",
		Short: "Make the cluster's certificates",
		Long: `Cert makes a certificate authority for the cluster and issues the certificates of
nodes and operators: NAME.pem and NAME-key.pem, mode 0600. ca.pem, which clients
need, can be read by everybody. The log and a metric warn when a node's certificate
is about to expire. Certificates that fell into the wrong hands are to be revoked.
Anybody who has ca-key.pem can act as any node or operator. Once the certificates
are made, keep it somewhere else.`,
	}
	cmd.AddCommand(certBootstrapCommand(a), certIssueCommand(a), certRevokeCommand(a), certCRLCommand(a))
	return cmd
}

func certBootstrapCommand(a *cli.App) *cobra.Command {
	var p certs.Plan
	cmd := &cobra.Command{
		Use:   "bootstrap --dir DIR --nodes ID,…",
		Short: "Make the files of a new cluster: a CA, certificates for each node and an operator, the gossip key",
		Long: `Bootstrap makes the files of a new cluster in one directory: ca.pem and ca-key.pem,
a certificate for each node, one for the operator, and gossip.key. Files that exist
are not changed, so it can be run again, also for more nodes.

With --split, each node and the operator also get a directory of their own, below
that one, with only the files that they need. The keys of the CA and of the others
stay in --dir, which no machine of the cluster needs.`,
		Example: `  conclave cert bootstrap --dir tls --nodes node-1,node-2,node-3 --dns kms.example.com --ip 127.0.0.1
  conclave cert bootstrap --dir ca --split tls --nodes node-1,node-2,node-3   # tls/node-1, …, tls/operator`,
		RunE: func(*cobra.Command, []string) error {
			if p.Dir == "" || len(p.Nodes) == 0 {
				return cli.Usagef("--dir and --nodes are required")
			}
			made, err := p.Bootstrap()
			for _, name := range made {
				a.Note("made %s", filepath.Join(p.Dir, name))
			}
			if err != nil {
				return err
			}
			if p.Split != "" {
				if err := p.HandOut(); err != nil {
					return err
				}
			}
			for _, name := range append([]string{certs.CAFile, certs.OperatorFile + ".pem"}, pemFiles(p.Nodes)...) {
				end, err := expiry(filepath.Join(p.Dir, name))
				if err != nil {
					return err
				}
				if time.Until(end) < renewWithin {
					a.Note("%s ends on %s; `conclave cert issue … --force` renews it", filepath.Join(p.Dir, name), end.Format(time.DateOnly))
				}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&p.Dir, "dir", "", "directory for the files, created if necessary")
	f.StringVar(&p.Split, "split", "", "directory below which each node, and the operator, gets a directory with only its own files")
	f.StringSliceVar(&p.Nodes, "nodes", nil, "ids of the nodes")
	f.StringVar(&p.Operator, "operator", "operator", "name of the operator")
	f.StringSliceVar(&p.DNS, "dns", nil, "host names of all nodes, besides their ids")
	f.IPSliceVar(&p.IPs, "ip", nil, "IP addresses of all nodes")
	f.Var((*lifetime)(&p.Validity), "validity", "how long certificates are valid, such as 90d or 2160h (default 365d)")
	f.Var((*lifetime)(&p.CALife), "ca-validity", "how long the CA's certificate is valid (default 3650d)")
	return cmd
}

func certIssueCommand(a *cli.App) *cobra.Command {
	var p certs.Plan
	var force bool
	cmd := &cobra.Command{
		Use:   "issue node|operator|workload NAME --dir DIR",
		Short: "Issue one certificate with the CA in DIR",
		Long: `Issue issues a certificate with the CA in DIR. A workload is named by its SPIFFE ID, and
its files by the last part of that; "conclave iam certificate map" says which user or
role it is.`,
		Args:      cobra.ExactArgs(2),
		ValidArgs: []string{"node", "operator", "workload"},
		Example: `  conclave cert issue operator alice --dir tls
  conclave cert issue workload spiffe://example.org/ns/shop/sa/web --dir tls   # tls/web.pem
  conclave cert issue node node-1 --dir tls --ip 10.0.0.1 --force   # renew; then SIGHUP the server`,
		RunE: func(_ *cobra.Command, args []string) error {
			kind := pki.Kind(args[0])
			if kind != pki.KindNode && kind != pki.KindOperator && kind != pki.KindWorkload {
				return cli.Usagef("%q is neither node, operator nor workload", args[0])
			}
			if p.Dir == "" {
				return cli.Usagef("--dir is required: the directory with ca.pem and ca-key.pem")
			}
			ca, err := p.LoadCA()
			if err != nil {
				return err
			}
			if ca == nil {
				return fmt.Errorf("there is no %s in %s; `conclave cert bootstrap` makes one", certs.CAFile, p.Dir)
			}
			name := args[1]
			if kind == pki.KindWorkload {
				name = path.Base(name)
			}
			if name+".pem" == certs.CAFile || strings.HasSuffix(name, "-key") {
				return cli.Usagef("%s.pem in %s is another file's name", name, p.Dir)
			}
			there, err := p.PairExists(name)
			if err != nil {
				return err
			}
			if there && !force {
				return fmt.Errorf("%s.pem exists already; --force replaces it", filepath.Join(p.Dir, name))
			}
			if err := p.Issue(ca, kind, args[1], name); err != nil {
				return err
			}
			a.Note("made %s.pem and %s-key.pem in %s", name, name, p.Dir)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&p.Dir, "dir", "", "directory with ca.pem and ca-key.pem")
	f.StringSliceVar(&p.DNS, "dns", nil, "further host names")
	f.IPSliceVar(&p.IPs, "ip", nil, "IP addresses")
	f.Var((*lifetime)(&p.Validity), "validity", "how long the certificate is valid, such as 90d or 2160h (default 365d)")
	f.BoolVar(&force, "force", false, "replace an existing certificate")
	return cmd
}

// lifetime is a flag for how long a certificate is valid: a duration, or days.
type lifetime time.Duration

func (l *lifetime) String() string {
	if *l == 0 {
		return ""
	}
	return time.Duration(*l).String()
}

func (l *lifetime) Type() string { return "duration" }

func (l *lifetime) Set(s string) error {
	d, err := time.ParseDuration(s)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		var n int
		if n, err = strconv.Atoi(days); err == nil {
			d = time.Duration(min(n, 1<<16)) * day // no overflow; too long is refused below
		}
	}
	if err != nil {
		return fmt.Errorf("%q is not a duration such as 90d or 2160h", s)
	}
	if d < time.Hour || d > maxValidity {
		return fmt.Errorf("%s is not between 1h and %dd", s, maxValidity/day)
	}
	*l = lifetime(d)
	return nil
}

func pemFiles(names []string) []string {
	files := make([]string, len(names))
	for i, n := range names {
		files[i] = n + ".pem"
	}
	return files
}

// expiry returns when the certificate in a PEM file expires.
func expiry(file string) (time.Time, error) {
	cert, err := certs.Read(file)
	if err != nil {
		return time.Time{}, err
	}
	return cert.NotAfter, nil
}
