// Package node puts one server together: Raft, the audit log, the engine and the
// faces. main and every test start servers through it, so what is tested is what
// users start.
package node

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/conclavekms/conclave/cluster"
	"github.com/conclavekms/conclave/cluster/diskspace"
	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/transport/awsapi"
	"github.com/conclavekms/conclave/transport/client"
)

// Default ports.
const (
	DefaultAWSPort    = 7600
	DefaultGRPCPort   = 7601
	DefaultPeerPort   = 7602
	DefaultGossipPort = 7603
	DefaultOpsPort    = 7604
)

// Config is what a server is told. Its comments are the manual of the flags and
// environment variables that set it.
type Config struct {
	// NodeID names the node for ever: it stands in its certificate, in the Raft
	// configuration and in the audit records that it originates.
	NodeID string
	// Data is the directory for everything that the node keeps. It is made with
	// mode 0700. A directory belongs to one node.
	Data string

	// Addresses to listen on, host:port; port 0 takes any free one.
	AWSListen    string // the AWS API
	GRPCListen   string // the gRPC API
	PeerListen   string // Raft and what nodes say to each other
	GossipListen string // the address book; "" goes without
	OpsListen    string // metrics and health, plain HTTP; "" goes without

	// Addresses that others reach the node under, where they differ.
	AWSAdvertise    string
	GRPCAdvertise   string
	PeerAdvertise   string
	GossipAdvertise string

	// Peers are all first nodes of the cluster with their peer addresses, this one
	// included.
	Peers map[string]string
	// BootstrapExpect is how many first nodes form the cluster together: all of
	// Peers.
	BootstrapExpect int
	// GossipKeyFile holds at least 32 bytes of secret, the same on all nodes.
	GossipKeyFile string

	// TLSCert, TLSKey and TLSCA are PEM files: this node's certificate with the
	// URI SAN conclave://node/<NodeID>, its key, and the cluster's CA.
	TLSCert, TLSKey, TLSCA string
	// CRL is a PEM file with certificate revocation lists of the cluster's CA; "" for
	// none but those that operators deliver, which the node keeps in Data. It is read
	// again by Reload, and ignored where the node has a newer list.
	CRL string
	// Insecure serves the AWS and gRPC APIs without TLS. Loopback only, and only a
	// one-node cluster: for development.
	Insecure bool
	// Identity, instead of the TLS files, for a node that makes its own in memory.
	Identity *Identity

	// AllowUnlockedMemory lets the node start where it may not lock memory: keys
	// could then be written to swap.
	AllowUnlockedMemory bool

	// CORSOrigins are the origins (https://HOST, or http on localhost) whose pages
	// browsers may let use the AWS API; none by default. Each is trusted with the
	// credentials that its users give it: whatever runs in such a page can do all that
	// they allow. They are named whole; there are no wildcards.
	CORSOrigins []string

	// AttestationRoots is a PEM file with the root certificates of the enclaves that
	// may ask for answers which only they can open (AWS Nitro Enclaves: Recipient);
	// "" refuses such requests. It should be the same on all nodes: whichever is
	// asked decides.
	AttestationRoots string
	// XKSAllowPrivateEndpoints lets external key stores be at private addresses and
	// at ports other than 443, which AWS does not have. Whoever may create custom key
	// stores can then have the nodes send requests into their network. The same on
	// all nodes.
	XKSAllowPrivateEndpoints bool
	// XKSCA is a PEM file of the authorities that external key stores' certificates
	// are from; "" for the system's.
	XKSCA string
	// PKCS11Module is the path of a PKCS #11 module, for custom key stores of type
	// AWS_CLOUDHSM, and PKCS11Tokens the labels of its tokens by CloudHsmClusterId.
	// They need a binary that was built with the tag pkcs11.
	PKCS11Module string
	PKCS11Tokens map[string]string

	// Quotas are resource quotas; zero ones are AWS's. The same on all nodes.
	Quotas keyengine.Quotas

	// Seeds lets keys with known material be planted: for development, on the one
	// node of an insecure cluster or of one with its own Identity.
	Seeds bool

	// Space says at how little room on the disk of Data the node warns, refuses new
	// keys, leaves the leadership to others and stops to store anything. Zero marks
	// are 15 % or 8 GiB, 8 % or 2 GiB, 4 % or 512 MiB, 2 % or 128 MiB, whichever is
	// less.
	Space diskspace.Marks

	// Timeouts of the cluster; zero ones fit a local network.
	Timeouts cluster.Timeouts

	// ShutdownTimeout bounds a graceful stop; 0 for ten seconds.
	ShutdownTimeout time.Duration

	// LogLevel and LogJSON shape the log on LogOutput (default: standard error).
	LogLevel  slog.Level
	LogJSON   bool
	LogOutput io.Writer

	// Release is the version of the binary.
	Release string

	// Test replaces what only tests replace.
	Test Hooks
}

// Identity is a node's TLS identity in PEM.
type Identity struct{ Cert, Key, CA []byte }

var (
	errMissing = errors.New("is not set")
)

// Validate reports every fault at once.
func (c *Config) Validate() error {
	var faults []error
	fault := func(what string, err error) {
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", what, err))
		}
	}
	if err := pki.CheckNodeID(c.NodeID); err != nil {
		faults = append(faults, err)
	}
	if c.Data == "" {
		fault("data directory", errMissing)
	}
	for what, addr := range map[string]string{"AWS API": c.AWSListen, "gRPC API": c.GRPCListen, "peer": c.PeerListen} {
		fault(what+" listen address", hostPort(addr))
	}
	for what, addr := range map[string]string{
		"gossip listen": c.GossipListen, "metrics and health listen": c.OpsListen, "AWS API advertise": c.AWSAdvertise,
		"gRPC API advertise": c.GRPCAdvertise, "peer advertise": c.PeerAdvertise, "gossip advertise": c.GossipAdvertise,
	} {
		if addr != "" {
			fault(what+" address", hostPort(addr))
		}
	}
	if _, ok := c.Peers[c.NodeID]; !ok && len(c.Peers) > 0 {
		fault("peers", fmt.Errorf("%q, this node, is not among them", c.NodeID))
	}
	for id, addr := range c.Peers {
		fault("peers", pki.CheckNodeID(id))
		fault("peer "+id, hostPort(addr))
	}
	if c.BootstrapExpect < 1 || len(c.Peers) > 0 && c.BootstrapExpect != len(c.Peers) || len(c.Peers) == 0 && c.BootstrapExpect != 1 {
		fault("bootstrap-expect", fmt.Errorf("%d, but %d peers are named; it is the number of first nodes", c.BootstrapExpect, len(c.Peers)))
	}
	if c.Identity == nil {
		for what, file := range map[string]string{"TLS certificate": c.TLSCert, "TLS key": c.TLSKey, "TLS CA": c.TLSCA} {
			if file == "" {
				fault(what, errMissing)
			} else if _, err := os.Stat(file); err != nil {
				fault(what, err)
			}
		}
	}
	if c.CRL != "" {
		_, err := os.Stat(c.CRL)
		fault("certificate revocation list", err)
	}
	if c.XKSCA != "" {
		_, err := os.Stat(c.XKSCA)
		fault("CA of external key stores", err)
	}
	if c.GossipListen != "" && c.BootstrapExpect > 1 {
		if c.GossipKeyFile == "" {
			fault("gossip key file", errMissing)
		} else if _, err := os.Stat(c.GossipKeyFile); err != nil {
			fault("gossip key file", err)
		}
	}
	for _, o := range c.CORSOrigins {
		fault("CORS origins", awsapi.CheckOrigin(o))
	}
	if c.AttestationRoots != "" {
		_, err := c.attestationRoots()
		fault("attestation roots", err)
	}
	if c.Seeds && c.Identity == nil {
		fault("seeds", errors.New("keys with known material are for development only"))
	}
	fault("room on the disk", c.Space.Validate())
	if c.Insecure {
		if c.BootstrapExpect != 1 {
			fault("insecure", errors.New("only for a one-node cluster"))
		}
		for _, addr := range []string{c.AWSListen, c.GRPCListen, c.PeerListen, c.OpsListen} {
			if addr != "" && !client.Loopback(addr) {
				fault("insecure", fmt.Errorf("%s is not a loopback address", addr))
			}
		}
	}
	slices.SortFunc(faults, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(faults...)
}

// attestationRoots reads the root certificates of enclaves; nil when there are none.
func (c *Config) attestationRoots() (*x509.CertPool, error) {
	if c.AttestationRoots == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(c.AttestationRoots)
	if err != nil {
		return nil, err
	}
	roots, err := keyengine.ParseAttestationRoots(pem)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.AttestationRoots, err)
	}
	return roots, nil
}

func hostPort(addr string) error {
	if addr == "" {
		return errMissing
	}
	_, _, err := net.SplitHostPort(addr)
	return err
}
