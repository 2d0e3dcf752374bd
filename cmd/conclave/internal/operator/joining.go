package operator

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"

	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/cmd/conclave/internal/certs"
	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
	"github.com/conclavekms/conclave/keyengine/jointoken"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

func joinTokenCommand(a *cli.App) *cobra.Command {
	var address string
	var life time.Duration
	var dns []string
	var ips []net.IP
	cmd := &cobra.Command{
		Use:   "join-token ID --peer-address HOST:PORT",
		Short: "Make a token with which a new machine joins as a node",
		Long: `Join-token makes a token and prints it. Whoever has it can join the cluster as that node,
at that address, once ("conclave cluster join --token-file"), so hand it over like a
password. The node is a member without a vote then, and still sealed: the token opens no
key. It names the cluster's CA, by which the machine recognises the cluster.

The certificate will be for the id, the host of the address, and the names that --dns and
--ip give. The cluster must have a CA ("conclave cluster ca import").`,
		Example: `  conclave cluster join-token node-6 --peer-address 10.0.0.6:7602 > node-6.token`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if address == "" {
				return cli.Usagef("--peer-address is required")
			}
			if life < time.Minute || life > 24*time.Hour {
				return cli.Usagef("--ttl %s is not between 1m and 24h", life)
			}
			names := dns
			for _, ip := range ips {
				names = append(names, ip.String())
			}
			return a.With(cmd.Context(), "making a join token", func(ctx context.Context, c *cli.Connection) error {
				res, err := c.Cluster().CreateJoinToken(ctx, &kmspb.CreateJoinTokenRequest{
					NodeId: args[0], PeerAddress: address, Names: names, TtlSeconds: uint32(life / time.Second),
				})
				if err != nil {
					return err
				}
				a.Note("the token is good once, until %s", res.GetExpires().AsTime().Local().Format(time.RFC3339))
				_, err = fmt.Fprintln(a.Stdout, cli.Printable(res.GetToken()))
				return err
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&address, "peer-address", "", "address at which the other nodes reach the new one")
	f.DurationVar(&life, "ttl", time.Hour, "how long the token is valid, from 1m to 24h")
	f.StringSliceVar(&dns, "dns", nil, "further host names for the node's certificate")
	f.IPSliceVar(&ips, "ip", nil, "IP addresses for the node's certificate")
	return cmd
}

// joiner joins the cluster with a token, from the machine of the new node.
type joiner struct {
	a        *cli.App
	dir      string
	text     string
	token    *jointoken.Token
	patience time.Duration // how long the leader is looked for
}

// newJoiner reads a token.
func newJoiner(a *cli.App, file, dir string) (*joiner, error) {
	if dir == "" {
		return nil, cli.Usagef("--dir is required: the directory for the node's certificate and key")
	}
	raw, err := a.ReadInput(file, jointoken.MaxText+2)
	if err != nil {
		return nil, fmt.Errorf("reading the join token: %w", err)
	}
	j := &joiner{a: a, dir: dir, text: strings.TrimSpace(string(raw)), patience: leaderPatience}
	if j.token, _, _, err = jointoken.Parse(j.text); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	// It becomes the name of files.
	if err := pki.CheckNodeID(j.token.Node); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return j, nil
}

// run has a certificate made for a key that does not leave this machine, and writes what the
// server needs.
func (j *joiner) run(ctx context.Context) error {
	if err := os.MkdirAll(j.dir, 0o700); err != nil {
		return err
	}
	for _, name := range []string{j.token.Node + ".pem", certs.CAFile, certs.GossipFile} {
		if there, err := files.Exists(j.path(name)); err != nil || there {
			return errors.Join(err, fmt.Errorf("%s exists already; give a directory without it", j.path(name)))
		}
	}
	key, keyPEM, err := j.key()
	if err != nil {
		return err
	}
	defer clear(keyPEM)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: j.token.Node}}, key)
	if err != nil {
		return err
	}
	res, err := j.ask(ctx, csr)
	if err != nil {
		return err
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: res.GetCertificate()})
	id, err := pki.NewIdentity(cert, keyPEM, res.GetCas())
	if err == nil && id.NodeID() != j.token.Node {
		err = fmt.Errorf("it is of node %s", id.NodeID())
	}
	if err != nil {
		return fmt.Errorf("the certificate that the cluster made: %w", err)
	}
	if err := files.WritePublic(j.path(certs.CAFile), res.GetCas()); err != nil {
		return err
	}
	if gossip := res.GetGossipKey(); len(gossip) > 0 {
		if err := files.Write(j.path(certs.GossipFile), append(gossip, '\n')); err != nil {
			return err
		}
	}
	if err := files.Write(j.path(j.token.Node+".pem"), cert); err != nil {
		return err
	}
	j.a.Note("%s is a member without a vote; start it with these flags, --data and --listen, have it unsealed, and run `conclave cluster promote %s`", j.token.Node, j.token.Node)
	_, err = fmt.Fprintln(j.a.Stdout, cli.Printable(strings.Join(j.flags(res), " ")))
	return err
}

func (j *joiner) path(name string) string { return filepath.Join(j.dir, name) }

// flags returns the flags of the new node's server.
func (j *joiner) flags(res *kmspb.JoinClusterResponse) []string {
	var peers []string
	for _, p := range res.GetPeers() {
		peers = append(peers, p.GetNodeId()+"="+p.GetPeerAddress())
	}
	flags := []string{
		"--node-id " + j.token.Node, "--join " + strings.Join(peers, ","), "--peer-advertise " + j.token.Address,
		"--tls-cert " + j.path(j.token.Node+".pem"), "--tls-key " + j.path(j.token.Node+"-key.pem"), "--tls-ca " + j.path(certs.CAFile),
	}
	if len(res.GetGossipKey()) > 0 {
		return append(flags, "--gossip-key-file "+j.path(certs.GossipFile))
	}
	return append(flags, "--gossip-listen none")
}

// key returns the node's key, which it makes unless an earlier attempt has: with the same key,
// an attempt can be repeated.
func (j *joiner) key() (*ecdsa.PrivateKey, []byte, error) {
	name := j.path(j.token.Node + "-key.pem")
	there, err := files.Exists(name)
	if err != nil {
		return nil, nil, err
	}
	if there {
		raw, err := files.Read(name, certs.MaxFile)
		if err != nil {
			return nil, nil, err
		}
		block, _ := pem.Decode(raw)
		if block == nil {
			return nil, nil, fmt.Errorf("%s has no key", name)
		}
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", name, err)
		}
		if k, ok := key.(*ecdsa.PrivateKey); ok {
			return k, raw, nil
		}
		return nil, nil, fmt.Errorf("%s has a key of another kind", name)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	defer clear(der)
	raw := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	return key, raw, files.Write(name, raw)
}

// ask asks the nodes that the user named, until one of them is the leader and answers.
func (j *joiner) ask(ctx context.Context, csr []byte) (*kmspb.JoinClusterResponse, error) {
	cfg, err := j.a.Remote.Config()
	if err != nil {
		return nil, err
	}
	clear(cfg.SecretAccessKey)
	addrs, err := client.Addresses(cfg.Address)
	if err != nil {
		return nil, cli.Usage(err)
	}
	if cfg.Plaintext {
		return nil, cli.Usagef("a node joins only over TLS")
	}
	doing := "joining as " + j.token.Node
	for limit := time.Now().Add(j.patience); ; {
		var errs []error
		for _, addr := range addrs {
			res, err := j.at(ctx, client.Config{Address: addr, UserAgent: cfg.UserAgent}, csr)
			if err == nil {
				return res, nil
			}
			f, ok := client.FromError(err)
			err = cli.Explain(doing, addr, err)
			if !ok || f.Code != codes.Unavailable && f.Code != codes.DeadlineExceeded {
				return nil, err // it will not get better
			}
			errs = append(errs, err)
		}
		if time.Now().After(limit) {
			return nil, errors.Join(distinct(errs)...)
		}
		select {
		case <-time.After(memberPause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// at asks one node. Until the node has proved that it is one of the cluster's, by a certificate
// of the CA that the token names, nothing is sent to it.
func (j *joiner) at(ctx context.Context, cfg client.Config, csr []byte) (*kmspb.JoinClusterResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, nodeTimeout(j.a))
	defer cancel()
	ca, err := client.JoinAuthority(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if sha256.Sum256(ca) != j.token.Authority {
		return nil, fmt.Errorf("%s does not have the CA that the token names: it is not a node of that cluster, or the CA was replaced since; nothing was sent to it", cfg.Address)
	}
	if cfg.TLS, err = pki.FaceOfAnyNode(ca); err != nil {
		return nil, err
	}
	c, err := client.Dial(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	res, err := c.Joining().JoinCluster(ctx, &kmspb.JoinClusterRequest{Token: j.text, Csr: csr})
	if err != nil {
		return nil, err
	}
	// What the file of CAs has is trusted from now on.
	if !bytes.Contains(res.GetCas(), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca})) {
		return nil, fmt.Errorf("%s answers with other CAs than the one that the token names", cfg.Address)
	}
	return res, nil
}
