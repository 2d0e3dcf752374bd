// Package node assembles a server: Raft, the audit log, the engine and the
// faces. main and all tests start servers through it, so tests run what users
// run.
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
	"github.com/conclavekms/conclave/cmd/conclave/internal/depot"
	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/keyengine/auditarchive"
	"github.com/conclavekms/conclave/keyengine/auditsink"
	"github.com/conclavekms/conclave/keyengine/auditwitness"
	"github.com/conclavekms/conclave/keyengine/backup/scheduled"
	"github.com/conclavekms/conclave/keyengine/traceexport"
	"github.com/conclavekms/conclave/transport"
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

// Config is the configuration of a server. Its comments are the manual for the
// flags and environment variables that set it.
type Config struct {
	// NodeID is the permanent name of the node. It is in the node's
	// certificate, in the Raft configuration and in the audit records that the
	// node makes.
	NodeID string
	// Data is the directory for everything that the node stores. It is created
	// with mode 0700. A directory belongs to one node.
	Data string

	// ReturnKey is the file with the key by which the node, after a restart, proves to its
	// peers that it is the one that they knew; "" for return.key in Data. In memory
	// (/run), it survives a restart of the service but not one of the machine; on another
	// disk, a copy of Data alone does not have it.
	ReturnKey string

	// RemoveDeadAfter is how long a member does not answer before the leader removes it; 0 for
	// never. It should be the same on all nodes.
	RemoveDeadAfter time.Duration
	// AuditSinks is the name of a file that configures who receives the audit log, see
	// auditsink.Load; none by default.
	AuditSinks string
	// Witnesses is the name of a file that configures who cosigns the checkpoints of the audit
	// log, see auditwitness.Load; nobody by default.
	Witnesses string
	// AuditArchive is the directory or the s3://BUCKET/PREFIX that full segments of the audit
	// log are copied to; none by default. AuditRetention is the age from which a node removes
	// what is there; 0 for never.
	AuditArchive   string
	AuditRetention time.Duration
	// Seals are keys outside of the cluster that unseal the node when it starts, once the
	// custodians have unsealed a node that is configured with them, in the form that
	// seal.Parse reads.
	Seals []string

	// Addresses to listen on, host:port. Port 0 means any free port.
	AWSListen    string // the AWS API
	GRPCListen   string // the gRPC API
	PeerListen   string // Raft and other calls between nodes
	GossipListen string // the address book; "" for none
	OpsListen    string // metrics and health, plain HTTP; "" for none
	// PprofAddress is where profiles of the process are served, for those who look into a
	// problem; "" for none. It is a loopback address, as everybody who reaches it may ask.
	PprofAddress string

	// Addresses at which others reach the node, if they differ.
	AWSAdvertise    string
	GRPCAdvertise   string
	PeerAdvertise   string
	GossipAdvertise string

	// Peers are the first nodes of the cluster, including this one, with their
	// peer addresses.
	Peers map[string]string
	// BootstrapExpect is how many first nodes bootstrap the cluster together,
	// which is the number of Peers.
	BootstrapExpect int
	// Join are members of a running cluster, with their peer addresses, which this node is
	// to join: it bootstraps none, and waits until an operator adds it. There are no Peers
	// then.
	Join map[string]string
	// GossipKeyFile has a secret of at least 32 bytes, the same on all nodes.
	GossipKeyFile string

	// TLSCert, TLSKey and TLSCA are PEM files: this node's certificate with the
	// URI SAN conclave://node/<NodeID>, its key, and the cluster's CA.
	TLSCert, TLSKey, TLSCA string
	// CRL is a PEM file with certificate revocation lists of the cluster's CA; "" for
	// only those that operators deliver, which the node keeps in Data. Reload reads
	// it again. A list is ignored if the node has a newer one.
	CRL string
	// Insecure serves the AWS and gRPC APIs without TLS. It is for development and
	// requires a cluster of one node that listens only on loopback.
	Insecure bool
	// Identity replaces the TLS files, for a node that makes its own identity in
	// memory.
	Identity *Identity

	// AllowUnlockedMemory lets the node start even if it may not lock memory.
	// Keys could then be written to swap.
	AllowUnlockedMemory bool

	// CORSOrigins are the origins (https://HOST, or http on localhost) whose pages may
	// use the AWS API from a browser; none by default. Each is trusted with the
	// credentials that its users give it: any script in such a page can do everything
	// that they allow. There are no wildcards.
	CORSOrigins []string

	// PublishAuditLog serves the audit log's checkpoint and tree at the port of the AWS API, below
	// /tlog/, to everybody. They show how many records there are, and nothing of them.
	PublishAuditLog bool

	// TrustedProxies are the IP addresses, or ranges in CIDR notation, of the proxies in
	// front of the APIs. Where a request comes from (aws:SourceIp in policies, the audit
	// log) is then what they say in X-Forwarded-For; the header is ignored from everybody
	// else. Proxies must append to the header, and no other client may have such an
	// address. It should be the same on all nodes.
	TrustedProxies []string

	// AttestationRoots is a PEM file with the root certificates of enclaves that may
	// request answers that only they can decrypt (AWS Nitro Enclaves: Recipient). If
	// it is "", such requests are refused. It should be the same on all nodes, as
	// the node that receives a request decides.
	AttestationRoots string
	// XKSAllowPrivateEndpoints allows external key stores at private addresses and at
	// ports other than 443, which AWS does not allow. Anybody who may create custom
	// key stores can then make the nodes send requests into their network. It must be
	// the same on all nodes.
	XKSAllowPrivateEndpoints bool
	// XKSCA is a PEM file with the CAs of external key stores' certificates; "" for
	// the system's.
	XKSCA string
	// WebIdentityAllowPrivate allows identity providers of IAM (OpenID Connect) at
	// addresses that are not public, such as that of a Kubernetes API server, and without
	// TLS on loopback. Anybody who may create identity providers can then make the nodes
	// send requests into their network. It must be the same on all nodes.
	WebIdentityAllowPrivate bool
	// WebIdentityCA is a PEM file with the CAs of identity providers' certificates; "" for
	// the system's.
	WebIdentityCA string
	// PKCS11Module is the path of a PKCS #11 module, for custom key stores of type
	// AWS_CLOUDHSM, and PKCS11Tokens the labels of its tokens by CloudHsmClusterId.
	// They need a binary that was built with the tag pkcs11.
	PKCS11Module string
	PKCS11Tokens map[string]string

	// Snapshots says when this node makes backups while it leads, and how long they are
	// kept; none by default. SnapshotStore is the directory or the s3://BUCKET/PREFIX where
	// they are. Both should be the same on all nodes.
	Snapshots     scheduled.Policy
	SnapshotStore string

	// Quotas are resource quotas; zero ones are AWS's. They must be the same on
	// all nodes.
	Quotas keyengine.Quotas
	// Alerts are the names of the rules for alerts that are on; see package alert in keyengine.
	// They must be the same on all nodes.
	Alerts []string
	// TraceTo is the collector of OpenTelemetry that gets traces of requests, and TraceSample the
	// share of requests that are traced, at most 1; 0 for 0.1. If TraceTo.URL is "", none are.
	TraceTo     traceexport.Collector
	TraceSample float64
	// RefusalRate is the number of refusals per second that one principal may cause at this
	// node before it is throttled; the default is 10.
	RefusalRate float64

	// Seeds allows keys with known material, for development. It requires a
	// cluster of one node that is insecure or has its own Identity.
	Seeds bool

	// Space says below how much free space on the disk of Data the node warns,
	// refuses new keys, gives up leadership, and stops storing anything. Zero marks
	// stand for 15 % or 8 GiB, 8 % or 2 GiB, 4 % or 512 MiB, and 2 % or 128 MiB,
	// whichever is less.
	Space diskspace.Marks

	// Timeouts are those of the cluster; zero ones fit a local network.
	Timeouts cluster.Timeouts

	// ShutdownTimeout bounds a graceful stop; 0 for ten seconds.
	ShutdownTimeout time.Duration

	// LogLevel and LogJSON configure the log on LogOutput (default: standard
	// error).
	LogLevel  slog.Level
	LogJSON   bool
	LogOutput io.Writer

	// Release is the version of the binary.
	Release string

	// Test has settings for tests only.
	Test Hooks
}

// Identity is a node's TLS identity in PEM.
type Identity struct{ Cert, Key, CA []byte }

var (
	errMissing = errors.New("is not set")
)

// named returns the nodes that are known before the cluster says who its members are: the
// first ones, or those that this node is to join.
func (c *Config) named() map[string]string {
	if len(c.Join) > 0 {
		return c.Join
	}
	return c.Peers
}

// Validate returns an error that lists everything that is wrong.
func (c *Config) Validate() error {
	var faults []error
	problem := func(what string, err error) {
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", what, err))
		}
	}
	if err := pki.CheckNodeID(c.NodeID); err != nil {
		faults = append(faults, err)
	}
	if c.Data == "" {
		problem("data directory", errMissing)
	}
	for what, addr := range map[string]string{"AWS API": c.AWSListen, "gRPC API": c.GRPCListen, "peer": c.PeerListen} {
		problem(what+" listen address", hostPort(addr))
	}
	for what, addr := range map[string]string{
		"gossip listen": c.GossipListen, "metrics and health listen": c.OpsListen, "AWS API advertise": c.AWSAdvertise,
		"gRPC API advertise": c.GRPCAdvertise, "peer advertise": c.PeerAdvertise, "gossip advertise": c.GossipAdvertise,
	} {
		if addr != "" {
			problem(what+" address", hostPort(addr))
		}
	}
	if c.PprofAddress != "" {
		if err := hostPort(c.PprofAddress); err != nil {
			problem("pprof address", err)
		} else if !client.Loopback(c.PprofAddress) {
			problem("pprof address", fmt.Errorf("%s is not a loopback address", c.PprofAddress))
		}
	}
	if _, ok := c.Peers[c.NodeID]; !ok && len(c.Peers) > 0 {
		problem("peers", fmt.Errorf("%q, this node, is not among them", c.NodeID))
	}
	for what, nodes := range map[string]map[string]string{"peer": c.Peers, "join": c.Join} {
		for id, addr := range nodes {
			problem(what, pki.CheckNodeID(id))
			problem(what+" "+id, hostPort(addr))
		}
	}
	if len(c.Join) > 0 {
		if _, ok := c.Join[c.NodeID]; ok {
			problem("join", fmt.Errorf("%q, this node, is among them", c.NodeID))
		}
		if len(c.Peers) > 0 || c.BootstrapExpect != 0 || c.Insecure {
			problem("join", errors.New("it excludes peers and bootstrap-expect, which are for the first nodes of a cluster, and insecure"))
		}
	} else if c.BootstrapExpect < 1 || len(c.Peers) > 0 && c.BootstrapExpect != len(c.Peers) || len(c.Peers) == 0 && c.BootstrapExpect != 1 {
		problem("bootstrap-expect", fmt.Errorf("%d, but there are %d peers; it is the number of first nodes", c.BootstrapExpect, len(c.Peers)))
	}
	if c.Identity == nil {
		for what, file := range map[string]string{"TLS certificate": c.TLSCert, "TLS key": c.TLSKey, "TLS CA": c.TLSCA} {
			if file == "" {
				problem(what, errMissing)
			} else if _, err := os.Stat(file); err != nil {
				problem(what, err)
			}
		}
	}
	if c.CRL != "" {
		_, err := os.Stat(c.CRL)
		problem("certificate revocation list", err)
	}
	if c.XKSCA != "" {
		_, err := os.Stat(c.XKSCA)
		problem("CA of external key stores", err)
	}
	if c.WebIdentityCA != "" {
		_, err := os.Stat(c.WebIdentityCA)
		problem("CA of identity providers", err)
	}
	if c.GossipListen != "" && c.BootstrapExpect != 1 {
		if c.GossipKeyFile == "" {
			problem("gossip key file", errMissing)
		} else if _, err := os.Stat(c.GossipKeyFile); err != nil {
			problem("gossip key file", err)
		}
	}
	for _, o := range c.CORSOrigins {
		problem("CORS origins", awsapi.CheckOrigin(o))
	}
	_, err := transport.ParseProxies(c.TrustedProxies)
	problem("trusted proxies", err)
	if c.AuditSinks != "" {
		_, err := c.sinks()
		problem("audit sinks", err)
	}
	problem("traces", c.checkTraces())
	if c.Witnesses != "" {
		_, err := c.witnesses()
		problem("witnesses", err)
	}
	if c.AuditArchive != "" {
		_, err := c.archive()
		problem("audit archive", err)
	}
	if c.AuditRetention != 0 && c.AuditArchive == "" {
		problem("audit retention", errors.New("records are kept unless there is an audit archive"))
	}
	if c.AttestationRoots != "" {
		_, err := c.attestationRoots()
		problem("attestation roots", err)
	}
	if (c.Snapshots != scheduled.Policy{}) || c.SnapshotStore != "" {
		problem("scheduled snapshots", c.Snapshots.Validate())
		_, err := depot.Parse(c.SnapshotStore)
		problem("snapshot store", err)
	}
	if c.Seeds && c.Identity == nil {
		problem("seeds", errors.New("keys with known material are for development only"))
	}
	if c.RemoveDeadAfter != 0 && c.RemoveDeadAfter < minDead {
		problem("remove dead nodes", fmt.Errorf("%v is less than %v", c.RemoveDeadAfter, minDead))
	}
	problem("free space on the disk", c.Space.Validate())
	if c.Insecure {
		if c.BootstrapExpect != 1 {
			problem("insecure", errors.New("only for a one-node cluster"))
		}
		for _, addr := range []string{c.AWSListen, c.GRPCListen, c.PeerListen, c.OpsListen} {
			if addr != "" && !client.Loopback(addr) {
				problem("insecure", fmt.Errorf("%s is not a loopback address", addr))
			}
		}
	}
	slices.SortFunc(faults, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(faults...)
}

// sinks reads who receives the audit log; nil for nobody.
func (c *Config) sinks() ([]auditsink.Sink, error) {
	if c.AuditSinks == "" {
		return nil, nil
	}
	return auditsink.Load(c.AuditSinks)
}

// witnesses reads who cosigns the checkpoints of the audit log; nil for nobody.
func (c *Config) witnesses() (*auditwitness.Configuration, error) {
	if c.Witnesses == "" {
		return nil, nil
	}
	return auditwitness.Load(c.Witnesses)
}

// archive returns where the audit log is archived.
func (c *Config) archive() (p auditarchive.Policy, err error) {
	if c.AuditArchive == "" {
		return p, nil
	}
	p.Retention = c.AuditRetention
	p.Store, err = depot.Parse(c.AuditArchive)
	return p, err
}

// attestationRoots reads the root certificates of enclaves; nil if there are none.
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
