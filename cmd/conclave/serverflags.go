package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/keyengine/alert"
	"github.com/conclavekms/conclave/keyengine/traceexport"

	"github.com/spf13/pflag"

	"github.com/conclavekms/conclave/cluster/diskspace"
	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/node"
)

// setting is a field of node.Config that has a flag and an environment
// variable.
type setting struct {
	flag, usage string
	isBool      bool
	set         func(c *node.Config, value string) error
}

func text(field func(*node.Config) *string) func(*node.Config, string) error {
	return func(c *node.Config, v string) error {
		*field(c) = v
		return nil
	}
}

func truth(field func(*node.Config) *bool) func(*node.Config, string) error {
	return func(c *node.Config, v string) (err error) {
		if *field(c), err = strconv.ParseBool(v); err != nil {
			return fmt.Errorf("%q is neither true nor false", v)
		}
		return nil
	}
}

func traceTLS(field func(*traceexport.TLS) *string) func(*node.Config, string) error {
	return func(c *node.Config, v string) error {
		if c.TraceTo.TLS == nil {
			c.TraceTo.TLS = new(traceexport.TLS)
		}
		*field(c.TraceTo.TLS) = v
		return nil
	}
}

var serverSettings = []setting{
	{flag: "node-id", usage: "permanent name of this node, as in its certificate", set: text(func(c *node.Config) *string { return &c.NodeID })},
	{flag: "data", usage: "directory for everything that the node stores", set: text(func(c *node.Config) *string { return &c.Data })},
	{flag: "return-key", usage: "file with the key by which a node that restarts proves to its peers that it is the one that they knew (default return.key in DATA)", set: text(func(c *node.Config) *string { return &c.ReturnKey })},
	{flag: "seals", usage: "keys outside of the cluster that unseal this node when it starts: awskms:KEY?region=REGION&endpoint=URL&ca=FILE, pkcs11:MODULE?token=LABEL&key=LABEL&pin=FILE&create=true, tpm:DEVICE?pcrs=7+11 or file:PATH,… (default none)", set: func(c *node.Config, v string) error {
		c.Seals = strings.Split(v, ",")
		return nil
	}},
	{flag: "audit-sinks", usage: "JSON file that configures who receives the audit log: files, syslog servers, webhooks, OpenTelemetry collectors (default nobody); the same on all nodes", set: text(func(c *node.Config) *string { return &c.AuditSinks })},
	{flag: "witnesses", usage: "JSON file that configures who cosigns the checkpoints of the audit log: URLs and keys of C2SP tlog-witness (default nobody); the same on all nodes", set: text(func(c *node.Config) *string { return &c.Witnesses })},
	{flag: "aws-listen", usage: "address of the AWS API (default LISTEN:7600)", set: text(func(c *node.Config) *string { return &c.AWSListen })},
	{flag: "grpc-listen", usage: "address of the gRPC API (default LISTEN:7601)", set: text(func(c *node.Config) *string { return &c.GRPCListen })},
	{flag: "peer-listen", usage: "address for the other nodes (default LISTEN:7602)", set: text(func(c *node.Config) *string { return &c.PeerListen })},
	{flag: "gossip-listen", usage: "address of the address book, or none (default LISTEN:7603 when there are peers)", set: text(func(c *node.Config) *string { return &c.GossipListen })},
	{flag: "ops-listen", usage: "address of metrics and health, plain HTTP, or none (default LISTEN:7604)", set: text(func(c *node.Config) *string { return &c.OpsListen })},
	{flag: "pprof-address", usage: "loopback address for profiles of the process, such as 127.0.0.1:6060 (default none)", set: text(func(c *node.Config) *string { return &c.PprofAddress })},
	{flag: "aws-advertise", usage: "address at which others reach the AWS API, if it differs", set: text(func(c *node.Config) *string { return &c.AWSAdvertise })},
	{flag: "grpc-advertise", usage: "address at which others reach the gRPC API, if it differs", set: text(func(c *node.Config) *string { return &c.GRPCAdvertise })},
	{flag: "peer-advertise", usage: "address at which other nodes reach this one, if it differs", set: text(func(c *node.Config) *string { return &c.PeerAdvertise })},
	{flag: "gossip-advertise", usage: "address at which others reach the address book, if it differs", set: text(func(c *node.Config) *string { return &c.GossipAdvertise })},
	{flag: "peers", usage: "the first nodes, including this one, with their peer addresses: ID=HOST:PORT,…", set: func(c *node.Config, v string) (err error) {
		c.Peers, err = cli.ParsePeers(v)
		return err
	}},
	{flag: "join", usage: "members of a running cluster, by id, that this new node is to join: ID=HOST:PORT,…; instead of --peers, or besides: then nodes that are not among the peers join", set: func(c *node.Config, v string) (err error) {
		c.Join, err = cli.ParsePeers(v)
		return err
	}},
	{flag: "bootstrap-expect", usage: "how many first nodes bootstrap the cluster (default the number of peers)", set: func(c *node.Config, v string) (err error) {
		if c.BootstrapExpect, err = strconv.Atoi(v); err != nil {
			return fmt.Errorf("%q is not a number", v)
		}
		return nil
	}},
	{flag: "remove-dead-after", usage: "time after which the leader removes a node that never answered meanwhile, at least 1h (default never); the same on all nodes", set: positive(func(c *node.Config) *time.Duration { return &c.RemoveDeadAfter })},
	{flag: "gossip-key-file", usage: "file with 32 bytes in base64, the same on all nodes", set: text(func(c *node.Config) *string { return &c.GossipKeyFile })},
	{flag: "tls-cert", usage: "PEM file of this node's certificate", set: text(func(c *node.Config) *string { return &c.TLSCert })},
	{flag: "tls-key", usage: "PEM file of its key", set: text(func(c *node.Config) *string { return &c.TLSKey })},
	{flag: "tls-ca", usage: "PEM file of the cluster's CA", set: text(func(c *node.Config) *string { return &c.TLSCA })},
	{flag: "crl", usage: "PEM file of the CA's certificate revocation list; SIGHUP reads it again (default: what operators deliver)", set: text(func(c *node.Config) *string { return &c.CRL })},
	{flag: "insecure", isBool: true, usage: "serve both APIs without TLS: one node, on loopback, for development", set: truth(func(c *node.Config) *bool { return &c.Insecure })},
	{flag: "allow-unlocked-memory", isBool: true, usage: "start even if memory cannot be locked; keys may then be swapped out", set: truth(func(c *node.Config) *bool { return &c.AllowUnlockedMemory })},
	{flag: "cors-origins", usage: "origins whose pages may use the AWS API from a browser: https://HOST,… (default none)", set: func(c *node.Config, v string) error {
		c.CORSOrigins = strings.Split(v, ",")
		return nil
	}},
	{flag: "publish-audit-log", isBool: true, usage: "publish the audit log's checkpoint and hashes at the AWS API's port, below /tlog/ (C2SP tlog-tiles); everybody there sees how many records there are", set: truth(func(c *node.Config) *bool { return &c.PublishAuditLog })},
	{flag: "trusted-proxies", usage: "addresses of proxies whose X-Forwarded-For says where requests come from: IP or CIDR,… (default none)", set: func(c *node.Config, v string) error {
		c.TrustedProxies = strings.Split(v, ",")
		return nil
	}},
	{flag: "attestation-roots", usage: "PEM file of the root certificates of enclaves, for requests with a Recipient (default: these are refused)", set: text(func(c *node.Config) *string { return &c.AttestationRoots })},
	{flag: "xks-allow-private-endpoints", isBool: true, usage: "allow external key stores at private addresses and at other ports than 443; the same on all nodes", set: truth(func(c *node.Config) *bool { return &c.XKSAllowPrivateEndpoints })},
	{flag: "xks-ca", usage: "PEM file of the CAs of external key stores (default the system's)", set: text(func(c *node.Config) *string { return &c.XKSCA })},
	{flag: "web-identity-allow-private", isBool: true, usage: "allow identity providers at private addresses, and without TLS on loopback; the same on all nodes", set: truth(func(c *node.Config) *bool { return &c.WebIdentityAllowPrivate })},
	{flag: "web-identity-ca", usage: "PEM file of the CAs of identity providers (default the system's)", set: text(func(c *node.Config) *string { return &c.WebIdentityCA })},
	{flag: "pkcs11-module", usage: "path of a PKCS #11 module, for key stores of type AWS_CLOUDHSM (binaries built with the tag pkcs11)", set: text(func(c *node.Config) *string { return &c.PKCS11Module })},
	{flag: "pkcs11-tokens", usage: "labels of the module's tokens by CloudHsmClusterId: cluster-ID=LABEL,…", set: func(c *node.Config, v string) (err error) {
		c.PKCS11Tokens, err = parseTokens(v)
		return err
	}},
	{flag: "quotas", usage: "resource quotas that differ from AWS's, such as keys=200000,aliases-per-key=100; the same on all nodes", set: func(c *node.Config, v string) error {
		return parseQuotas(&c.Quotas, v)
	}},
	{flag: "alerts", usage: "rules for alerts that are on, RULE,… or all: docs/operate/alerts.md lists them (default none); the same on all nodes", set: func(c *node.Config, v string) (err error) {
		c.Alerts, err = alert.ParseRules(v)
		return err
	}},
	{flag: "trace-otlp", usage: "collector of OpenTelemetry that gets traces of requests, such as https://HOST:4318/v1/traces (default none)", set: text(func(c *node.Config) *string { return &c.TraceTo.URL })},
	{flag: "trace-headers", usage: "file with headers for the collector of traces, such as one with a token: lines NAME: VALUE", set: text(func(c *node.Config) *string { return &c.TraceTo.HeadersFile })},
	{flag: "trace-tls-ca", usage: "PEM file of the CAs of the collector of traces (default the system's)", set: traceTLS(func(t *traceexport.TLS) *string { return &t.CA })},
	{flag: "trace-tls-cert", usage: "PEM file of the certificate that this node shows to the collector of traces (default none)", set: traceTLS(func(t *traceexport.TLS) *string { return &t.Cert })},
	{flag: "trace-tls-key", usage: "PEM file of its key", set: traceTLS(func(t *traceexport.TLS) *string { return &t.Key })},
	{flag: "trace-sample", usage: "share of requests that are traced, above 0 and at most 1 (default 0.1 with --trace-otlp)", set: func(c *node.Config, v string) (err error) {
		if c.TraceSample, err = strconv.ParseFloat(v, 64); err != nil || !(c.TraceSample > 0 && c.TraceSample <= 1) {
			return fmt.Errorf("%q is not a number above 0 and at most 1", v)
		}
		return nil
	}},
	{flag: "refusal-rate", usage: "refused requests per second that one principal may make here before it is throttled, and fifty times as many at once (default 10)", set: func(c *node.Config, v string) (err error) {
		if c.RefusalRate, err = strconv.ParseFloat(v, 64); err != nil || !(c.RefusalRate >= 0.1 && c.RefusalRate <= 1e6) {
			return fmt.Errorf("%q is not a number from 0.1 to 1000000", v)
		}
		return nil
	}},
	{flag: "audit-archive", usage: "where full segments of the audit log are copied to: a directory that all nodes share, or s3://BUCKET/PREFIX?region=…&endpoint=…&lock-mode=…&lock-for=… (default nowhere); the same on all nodes", set: text(func(c *node.Config) *string { return &c.AuditArchive })},
	{flag: "audit-retention", usage: "age from which nodes remove records that are in the archive, such as 2160h (default never); the same on all nodes", set: positive(func(c *node.Config) *time.Duration { return &c.AuditRetention })},
	{flag: "snapshot-schedule", usage: "time between the backups that the leader makes by itself, such as 6h (default none); the same on all nodes", set: positive(func(c *node.Config) *time.Duration { return &c.Snapshots.Every })},
	{flag: "snapshot-store", usage: "where they are: a directory that exists, or s3://BUCKET/PREFIX?region=…&endpoint=…", set: text(func(c *node.Config) *string { return &c.SnapshotStore })},
	{flag: "snapshot-keep", usage: "how many of them there are at most (default 30, or any number with --snapshot-keep-for)", set: func(c *node.Config, v string) (err error) {
		if c.Snapshots.Keep, err = strconv.Atoi(v); err != nil || c.Snapshots.Keep < 1 {
			return fmt.Errorf("%q is not a number of backups", v)
		}
		return nil
	}},
	{flag: "snapshot-keep-for", usage: "how old they become, such as 720h; the newest one is always kept (default any age)", set: positive(func(c *node.Config) *time.Duration { return &c.Snapshots.KeepFor })},
	{flag: "snapshot-without-audit", isBool: true, usage: "leave the audit log out of them", set: truth(func(c *node.Config) *bool { return &c.Snapshots.WithoutAudit })},
	{flag: "disk-low", usage: "free space on the disk below which the node warns: a share, a size, or the smaller of both (default 15%,8GiB)", set: mark(func(c *node.Config) *diskspace.Mark { return &c.Space.Low })},
	{flag: "disk-scarce", usage: "free space below which new keys and other growth are refused (default 8%,2GiB)", set: mark(func(c *node.Config) *diskspace.Mark { return &c.Space.Scarce })},
	{flag: "disk-yield", usage: "free space below which another node should lead (default 4%,512MiB)", set: mark(func(c *node.Config) *diskspace.Mark { return &c.Space.Yield })},
	{flag: "disk-full", usage: "free space below which the node stores and answers nothing (default 2%,128MiB)", set: mark(func(c *node.Config) *diskspace.Mark { return &c.Space.Full })},
	{flag: "heartbeat-timeout", usage: "time without a message from the leader after which another is elected; use 3 to 5 times the default between sites (default 500ms)", set: positive(func(c *node.Config) *time.Duration { return &c.Timeouts.Heartbeat })},
	{flag: "shutdown-timeout", usage: "how long a graceful stop may take (default 10s)", set: positive(func(c *node.Config) *time.Duration { return &c.ShutdownTimeout })},
	{flag: "log-level", usage: "debug, info, warn or error (default info)", set: func(c *node.Config, v string) error {
		return c.LogLevel.UnmarshalText([]byte(v))
	}},
	{flag: "log-json", isBool: true, usage: "log in JSON", set: truth(func(c *node.Config) *bool { return &c.LogJSON })},
}

// clusterID is the form of the ids of CloudHSM clusters in AWS.
var clusterID = regexp.MustCompile(`^cluster-[2-7a-zA-Z]{11,16}$`)

// parseTokens parses ID=LABEL,… into labels of PKCS #11 tokens.
func parseTokens(s string) (map[string]string, error) {
	tokens := make(map[string]string)
	for part := range strings.SplitSeq(s, ",") {
		id, label, ok := strings.Cut(part, "=")
		switch {
		case !ok || label == "" || !clusterID.MatchString(id):
			return nil, fmt.Errorf("%q is not cluster-ID=LABEL, with an id of 11 to 16 letters and digits 2 to 7", part)
		case tokens[id] != "":
			return nil, fmt.Errorf("%q is given twice", id)
		}
		tokens[id] = label
	}
	return tokens, nil
}

// parseQuotas parses NAME=NUMBER,… into quotas.
func parseQuotas(q *keyengine.Quotas, s string) error {
	for part := range strings.SplitSeq(s, ",") {
		name, number, _ := strings.Cut(part, "=")
		n, err := strconv.Atoi(number)
		if err != nil {
			return fmt.Errorf("%q is not NAME=NUMBER", part)
		}
		if err := q.Set(name, n); err != nil {
			return err
		}
	}
	return nil
}

// mark sets an amount of free space on the disk.
func mark(field func(*node.Config) *diskspace.Mark) func(*node.Config, string) error {
	return func(c *node.Config, v string) (err error) {
		*field(c), err = diskspace.ParseMark(v)
		return err
	}
}

// positive sets a duration that is greater than 0.
func positive(field func(*node.Config) *time.Duration) func(*node.Config, string) error {
	return func(c *node.Config, v string) error {
		d, err := time.ParseDuration(v)
		if err == nil && d <= 0 {
			err = fmt.Errorf("%s is not a positive duration", v)
		}
		*field(c) = d
		return err
	}
}

// envName returns the environment variable for a flag of the server.
func envName(flag string) string {
	return "CONCLAVE_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// serverValues are the values of the flags for settings.
type serverValues struct {
	settings []setting
	listen   *string
	values   []*string
}

func addServerFlags(f *pflag.FlagSet, settings []setting) *serverValues {
	f.SortFlags = false
	v := &serverValues{settings: settings, listen: f.String("listen", "", "host or IP address for all listen addresses that are not given (default 127.0.0.1)")}
	for _, s := range settings {
		v.values = append(v.values, f.String(s.flag, "", s.usage))
		if s.isBool {
			f.Lookup(s.flag).NoOptDefVal = "true"
		}
	}
	return v
}

// value returns the value of a flag or, if that is not given, of its
// environment variable.
func value(given, flag string, getenv func(string) string) string {
	if given != "" {
		return given
	}
	return getenv(envName(flag))
}

// apply sets the fields of a configuration from flags and environment.
func (v *serverValues) apply(c *node.Config, getenv func(string) string) (faults []error) {
	for i, s := range v.settings {
		if val := value(*v.values[i], s.flag, getenv); val != "" {
			if err := s.set(c, val); err != nil {
				faults = append(faults, fmt.Errorf("--%s (%s): %w", s.flag, envName(s.flag), err))
			}
		}
	}
	return faults
}

// addresses sets the listen addresses that are not given. gossip is the port of
// the address book; 0 for none.
func (v *serverValues) addresses(c *node.Config, gossip int, getenv func(string) string) {
	host := value(*v.listen, "listen", getenv)
	if host == "" {
		host = "127.0.0.1"
	}
	for _, l := range []struct {
		addr *string
		port int
	}{
		{&c.AWSListen, node.DefaultAWSPort}, {&c.GRPCListen, node.DefaultGRPCPort}, {&c.PeerListen, node.DefaultPeerPort},
		{&c.GossipListen, gossip}, {&c.OpsListen, node.DefaultOpsPort},
	} {
		switch {
		case *l.addr == cli.None:
			*l.addr = ""
		case *l.addr == "" && l.port != 0:
			*l.addr = net.JoinHostPort(strings.Trim(host, "[]"), strconv.Itoa(l.port))
		}
	}
}

// config returns the configuration from flags and environment. Its error lists
// everything that is wrong.
func (v *serverValues) config(getenv func(string) string) (*node.Config, error) {
	c, faults := v.parse(getenv)
	if err := errors.Join(append(faults, c.Validate())...); err != nil {
		return nil, cli.Usagef("the configuration is not valid; see conclave server --help:\n%s", cli.Indent(err.Error()))
	}
	return c, nil
}

// parse returns the configuration from flags and environment, and what cannot be
// understood in them.
func (v *serverValues) parse(getenv func(string) string) (*node.Config, []error) {
	c := &node.Config{LogLevel: slog.LevelInfo}
	faults := v.apply(c, getenv)
	if getenv(envName(seedFlag)) != "" {
		faults = append(faults, fmt.Errorf("%s: keys with known material are for `conclave dev` only; a server accepts none", envName(seedFlag)))
	}
	if len(c.Peers) > 0 && len(c.Join) > 0 { // the configuration of all nodes, first ones and others
		if _, first := c.Peers[c.NodeID]; first {
			c.Join = nil
		} else {
			c.Peers, c.BootstrapExpect = nil, 0
		}
	}
	gossip := node.DefaultGossipPort
	if len(c.Peers) < 2 && len(c.Join) == 0 {
		gossip = 0 // there are no other nodes
	}
	v.addresses(c, gossip, getenv)
	if c.BootstrapExpect == 0 && len(faults) == 0 && len(c.Join) == 0 {
		c.BootstrapExpect = max(1, len(c.Peers))
	}
	return c, faults
}
