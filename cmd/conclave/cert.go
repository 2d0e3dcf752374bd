package main

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cluster"
)

const (
	day          = 24 * time.Hour
	caValidity   = 10 * 365 * day
	certValidity = 365 * day
	// renewWithin is how long before its end a certificate is worth a warning.
	renewWithin = 30 * day

	caFile      = "ca.pem"
	caKeyFile   = "ca-key.pem"
	gossipFile  = "gossip.key"
	operatorPEM = "operator"
)

func (a *app) certCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cert",
		Short: "Make the cluster's certificates",
		Long: `Cert makes a certificate authority for the cluster and issues the certificates
of nodes and operators: NAME.pem and NAME-key.pem, mode 0600.

Whoever has ca-key.pem can be any node or operator. Once the certificates are
made, keep it somewhere else.`,
	}
	cmd.AddCommand(a.certBootstrapCommand(), a.certIssueCommand())
	return cmd
}

func (a *app) certBootstrapCommand() *cobra.Command {
	var p certPlan
	cmd := &cobra.Command{
		Use:   "bootstrap --dir DIR --nodes ID,…",
		Short: "Make what a new cluster needs: a CA, a certificate for each node, one for an operator, the gossip key",
		Long: `Bootstrap makes what a new cluster needs in one directory: ca.pem and ca-key.pem,
a certificate for each node, one for the operator, and gossip.key. What is there
already stays as it is, so it can be run again, and for more nodes.`,
		Example: `  conclave cert bootstrap --dir tls --nodes node-1,node-2,node-3 --dns kms.example.com --ip 127.0.0.1`,
		RunE: func(*cobra.Command, []string) error {
			if p.dir == "" || len(p.nodes) == 0 {
				return usagef("--dir and --nodes are needed")
			}
			made, err := p.bootstrap()
			for _, name := range made {
				a.note("made %s", filepath.Join(p.dir, name))
			}
			if err != nil {
				return err
			}
			for _, name := range append([]string{caFile, operatorPEM + ".pem"}, pemFiles(p.nodes)...) {
				end, err := expiry(filepath.Join(p.dir, name))
				if err != nil {
					return err
				}
				if time.Until(end) < renewWithin {
					a.note("%s ends on %s; `conclave cert issue … --force` renews it", filepath.Join(p.dir, name), end.Format(time.DateOnly))
				}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&p.dir, "dir", "", "where to put them; made if it is not there")
	f.StringSliceVar(&p.nodes, "nodes", nil, "ids of the nodes")
	f.StringVar(&p.operator, "operator", "operator", "name of the operator")
	f.StringSliceVar(&p.dns, "dns", nil, "host names of all nodes, besides their ids")
	f.IPSliceVar(&p.ips, "ip", nil, "IP addresses of all nodes")
	return cmd
}

func (a *app) certIssueCommand() *cobra.Command {
	var p certPlan
	var force bool
	cmd := &cobra.Command{
		Use:       "issue node|operator NAME --dir DIR",
		Short:     "Issue one certificate with the CA in DIR",
		Args:      cobra.ExactArgs(2),
		ValidArgs: []string{"node", "operator"},
		Example: `  conclave cert issue operator alice --dir tls
  conclave cert issue node node-1 --dir tls --ip 10.0.0.1 --force   # renew; then SIGHUP the server`,
		RunE: func(_ *cobra.Command, args []string) error {
			kind := cluster.Kind(args[0])
			if kind != cluster.KindNode && kind != cluster.KindOperator {
				return usagef("%q is not node or operator", args[0])
			}
			if p.dir == "" {
				return usagef("--dir is needed: the directory with ca.pem and ca-key.pem")
			}
			ca, err := p.loadCA()
			if err != nil {
				return err
			}
			if ca == nil {
				return fmt.Errorf("there is no %s in %s; `conclave cert bootstrap` makes one", caFile, p.dir)
			}
			name := args[1]
			there, err := p.pairExists(name)
			if err != nil {
				return err
			}
			if there && !force {
				return fmt.Errorf("%s.pem is there already; --force replaces it", filepath.Join(p.dir, name))
			}
			if err := p.issue(ca, kind, name, name); err != nil {
				return err
			}
			a.note("made %s.pem and %s-key.pem in %s", name, name, p.dir)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&p.dir, "dir", "", "directory with ca.pem and ca-key.pem")
	f.StringSliceVar(&p.dns, "dns", nil, "further host names")
	f.IPSliceVar(&p.ips, "ip", nil, "IP addresses")
	f.BoolVar(&force, "force", false, "replace a certificate that is there")
	return cmd
}

// certPlan is which certificates to have in a directory.
type certPlan struct {
	dir      string
	nodes    []string
	operator string
	dns      []string
	ips      []net.IP
}

// bootstrap makes what is missing and says what it made.
func (p *certPlan) bootstrap() (made []string, err error) {
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return nil, err
	}
	var ca *cluster.CA
	complete, err := p.complete()
	if err != nil {
		return nil, err
	}
	if !complete {
		// Only now: the CA's key may be kept elsewhere.
		if ca, err = p.loadCA(); err != nil {
			return nil, err
		}
		if ca == nil {
			if ca, err = p.newCA(); err != nil {
				return nil, fmt.Errorf("making the CA: %w", err)
			}
			made = append(made, caFile, caKeyFile)
		}
	}
	want := func(kind cluster.Kind, name, file string) error {
		there, err := p.pairExists(file)
		if err != nil || there {
			return err
		}
		if err := p.issue(ca, kind, name, file); err != nil {
			return err
		}
		made = append(made, file+".pem", file+"-key.pem")
		return nil
	}
	for _, id := range p.nodes {
		if err := want(cluster.KindNode, id, id); err != nil {
			return made, err
		}
	}
	if err := want(cluster.KindOperator, p.operator, operatorPEM); err != nil {
		return made, err
	}
	key := filepath.Join(p.dir, gossipFile)
	there, err := exists(key)
	if err != nil || there {
		return made, err
	}
	secret := make([]byte, 32)
	rand.Read(secret)
	if err := writeFile(key, []byte(base64.StdEncoding.EncodeToString(secret)+"\n")); err != nil {
		return made, err
	}
	return append(made, gossipFile), nil
}

// loadCA reads the CA; nil when there is none yet.
func (p *certPlan) loadCA() (*cluster.CA, error) {
	cert, err := os.ReadFile(filepath.Join(p.dir, caFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	key, err := os.ReadFile(filepath.Join(p.dir, caKeyFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s has %s but not %s, which is needed to issue certificates: bring it back for the time", p.dir, caFile, caKeyFile)
	}
	if err != nil {
		return nil, err
	}
	return cluster.LoadCA(cert, key)
}

// complete reports whether bootstrap has nothing to issue.
func (p *certPlan) complete() (bool, error) {
	if there, err := exists(filepath.Join(p.dir, caFile)); err != nil || !there {
		return false, err
	}
	for _, file := range append([]string{operatorPEM}, p.nodes...) {
		if there, err := p.pairExists(file); err != nil || !there {
			return false, err
		}
	}
	return true, nil
}

// newCA writes the key first: a certificate without a key would stop the next
// attempt.
func (p *certPlan) newCA() (*cluster.CA, error) {
	ca, err := cluster.NewCA("conclave cluster CA", caValidity)
	if err != nil {
		return nil, err
	}
	key, err := ca.KeyPEM()
	if err != nil {
		return nil, err
	}
	if err := writeFile(filepath.Join(p.dir, caKeyFile), key); err != nil {
		return nil, err
	}
	return ca, writeFile(filepath.Join(p.dir, caFile), ca.CertPEM())
}

func (p *certPlan) pairExists(file string) (bool, error) {
	for _, name := range []string{file + ".pem", file + "-key.pem"} {
		if there, err := exists(filepath.Join(p.dir, name)); err != nil || !there {
			return false, err
		}
	}
	return true, nil
}

func (p *certPlan) issue(ca *cluster.CA, kind cluster.Kind, name, file string) error {
	r := cluster.IssueRequest{Kind: kind, Name: name, Validity: certValidity}
	if kind == cluster.KindNode {
		r.DNS = append([]string{name}, p.dns...)
		r.IPs = p.ips
	}
	cert, key, err := ca.Issue(r)
	if err != nil {
		return fmt.Errorf("issuing the certificate of %s %s: %w", kind, name, err)
	}
	if err := writeFile(filepath.Join(p.dir, file+"-key.pem"), key); err != nil {
		return err
	}
	return writeFile(filepath.Join(p.dir, file+".pem"), cert)
}

func pemFiles(names []string) []string {
	files := make([]string, len(names))
	for i, n := range names {
		files[i] = n + ".pem"
	}
	return files
}

// expiry is when the certificate in a PEM file ends.
func expiry(file string) (time.Time, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return time.Time{}, err
	}
	b, _ := pem.Decode(raw)
	if b == nil {
		return time.Time{}, fmt.Errorf("%s has no certificate", file)
	}
	cert, err := x509.ParseCertificate(b.Bytes)
	if err != nil {
		return time.Time{}, fmt.Errorf("%s: %w", file, err)
	}
	return cert.NotAfter, nil
}
