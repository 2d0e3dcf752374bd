// Package client calls Conclave's gRPC API.
//
// A client proves who it is with an access key, with a client certificate, or
// with both. With an access key it opens a session when the first call needs
// one, renews it before it expires, and opens another when a server says that it
// is no longer good; the secret itself is never sent, and is gone from memory
// once Dial has derived from it what proves it. A call that may have had an
// effect is never repeated.
package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/conclavekms/conclave/transport/kmspb"
)

// Secret is bytes that print as [redacted].
type Secret []byte

const redacted = "[redacted]"

func (Secret) String() string             { return redacted }
func (Secret) GoString() string           { return redacted }
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }
func (Secret) LogValue() slog.Value       { return slog.StringValue(redacted) }

// MarshalText keeps a secret out of what is encoded with it.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Config says where to and as whom.
type Config struct {
	// Address is host:port, or anything that gRPC resolves; or host:port of several
	// nodes separated by commas, of which the first that answers is used.
	Address string

	// TLS is used as it is, if set. Otherwise it is made of the files: CAFile has
	// the certificates that servers' are issued by (the system's, if empty),
	// CertFile and KeyFile the client's own, if any. ServerName is what the
	// server's certificate must be for, if that is not the address's host.
	TLS                       *tls.Config
	CAFile, CertFile, KeyFile string
	ServerName                string
	// VerifyConnection, if set, is asked as well, as that of tls.Config; only with the
	// files.
	VerifyConnection func(tls.ConnectionState) error
	// Plaintext does without TLS: for development, on loopback.
	Plaintext bool

	// AccessKeyID and SecretAccessKey may be left out by who has a certificate.
	// Dial wipes SecretAccessKey, whether it succeeds or not.
	AccessKeyID     string
	SecretAccessKey Secret

	// SessionCache is a directory in which the session is kept for the next program
	// that is the same caller of the same servers; "" keeps none. The file in it is
	// encrypted with a key that SecretAccessKey gives.
	SessionCache string

	// Region that calls are for, "" for the cluster's own.
	Region    string
	UserAgent string
}

// window is what a server may send before it is read: enough for an audit log to
// come quickly from far away. One that grows by measurement would send a ping
// beside nearly every call, to grow to four times as much.
const window = 4 << 20

// Client is safe for concurrent use.
type Client struct {
	conn    *grpc.ClientConn
	session *session
	region  string
	stop    func() bool
}

// Dial makes a client, which connects when it is first used, and reports all that
// is wrong with cfg. The client is closed when ctx ends, if not before.
func Dial(ctx context.Context, cfg Config) (*Client, error) {
	defer clear(cfg.SecretAccessKey)
	creds, err := cfg.transport()
	faults := []error{err}
	if cfg.Address == "" {
		faults = append(faults, errors.New("no address given"))
	}
	if (cfg.AccessKeyID == "") != (len(cfg.SecretAccessKey) == 0) {
		faults = append(faults, errors.New("access key id and secret go together"))
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	to, opts, err := target(cfg.Address)
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient(to, append(opts,
		grpc.WithTransportCredentials(creds),
		grpc.WithUserAgent(cfg.UserAgent),
		// Nothing that a DNS server says changes how calls are made.
		grpc.WithDisableServiceConfig(),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: time.Minute, Timeout: 20 * time.Second}),
		grpc.WithStaticStreamWindowSize(window),
		grpc.WithStaticConnWindowSize(window),
	)...)
	if err != nil {
		return nil, fmt.Errorf("address %q: %w", cfg.Address, err)
	}
	c := &Client{conn: conn, region: cfg.Region}
	if cfg.AccessKeyID != "" {
		c.session = newSession(kmspb.NewSessionClient(conn), cfg.AccessKeyID, cfg.SecretAccessKey)
		if binding, err := cfg.binding(); err == nil && cfg.TLS == nil {
			c.session.cache = newSessionCache(cfg.SessionCache, binding, cfg.AccessKeyID, c.session.key)
		}
	}
	c.stop = context.AfterFunc(ctx, func() { _ = c.close() })
	return c, nil
}

// transport is how connections are secured.
func (cfg *Config) transport() (credentials.TransportCredentials, error) {
	files := cfg.CAFile != "" || cfg.CertFile != "" || cfg.KeyFile != "" || cfg.ServerName != "" || cfg.VerifyConnection != nil
	if cfg.Plaintext {
		if files || cfg.TLS != nil {
			return nil, errors.New("TLS settings make no sense without TLS")
		}
		return insecure.NewCredentials(), nil
	}
	if cfg.TLS != nil {
		if files {
			return nil, errors.New("give either TLS or files")
		}
		return credentials.NewTLS(cfg.TLS), nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: cfg.ServerName, VerifyConnection: cfg.VerifyConnection}
	if cfg.CAFile != "" {
		pool, err := readCA(cfg.CAFile)
		if err != nil {
			return nil, err
		}
		t.RootCAs = pool
	}
	if cfg.CertFile != "" || cfg.KeyFile != "" {
		cert, err := readPair(cfg.CertFile, cfg.KeyFile)
		if err != nil {
			return nil, err
		}
		t.Certificates = []tls.Certificate{cert}
	}
	return credentials.NewTLS(t), nil
}

// Close ends the connection and forgets the session.
func (c *Client) Close() error {
	c.stop()
	return c.close()
}

func (c *Client) close() error {
	if c.session != nil {
		c.session.forget()
	}
	return c.conn.Close()
}

// KMS has the operations on keys.
func (c *Client) KMS() kmspb.KMSClient { return kmspb.NewKMSClient(c.authenticated()) }

// Calls makes calls by their names, such as /conclave.v1.KMS/CreateKey, in the
// client's session.
func (c *Client) Calls() grpc.ClientConnInterface { return c.authenticated() }

// Audit reads the audit log.
func (c *Client) Audit() kmspb.AuditClient { return kmspb.NewAuditClient(c.authenticated()) }

// Credentials are the account root's.
func (c *Client) Credentials() kmspb.CredentialsClient {
	return kmspb.NewCredentialsClient(c.authenticated())
}

// Operator is for operators, who have a certificate; the access key is of no use
// there, and no session is opened.
func (c *Client) Operator() kmspb.OperatorClient { return kmspb.NewOperatorClient(c.conn) }

// Cluster is for operators.
func (c *Client) Cluster() kmspb.ClusterClient { return kmspb.NewClusterClient(c.conn) }

// Conn is the connection itself: for the health service, without session.
func (c *Client) Conn() grpc.ClientConnInterface { return c.conn }

func (c *Client) authenticated() grpc.ClientConnInterface {
	return &authenticated{conn: c.conn, session: c.session, region: c.region}
}
