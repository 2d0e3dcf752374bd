// Package client calls Conclave's gRPC API.
//
// A client authenticates with an access key or temporary credentials, with a client
// certificate, or with both. With an access key, it opens a session when the first call needs one,
// renews it before it expires, and opens another one when a server no longer
// accepts it. The secret itself is never sent, and Dial wipes it after deriving
// a key from it that proves it. A call that may have had an effect is never
// repeated.
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

	"github.com/conclavekms/conclave/transport/iampb"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// Secret is a byte slice that prints as [redacted].
type Secret []byte

const redacted = "[redacted]"

func (Secret) String() string             { return redacted }
func (Secret) GoString() string           { return redacted }
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }
func (Secret) LogValue() slog.Value       { return slog.StringValue(redacted) }

// MarshalText keeps a secret out of encodings of values that contain it.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Config says which servers to connect to, and as which caller.
type Config struct {
	// Address is host:port, or anything else that gRPC resolves, or a list of
	// host:port of several nodes, separated by commas, of which the first that
	// answers is used.
	Address string

	// TLS is used as it is, if set. Otherwise the TLS configuration is made from
	// the files: CAFile has the CA certificates for those of servers (the
	// system's, if empty), and CertFile and KeyFile have the client's own
	// certificate, if any. ServerName is the name that the server's certificate
	// must be for, if that is not the host of the address.
	TLS                       *tls.Config
	CAFile, CertFile, KeyFile string
	ServerName                string
	// VerifyConnection, if set, is that of tls.Config. It can be used only with the
	// files.
	VerifyConnection func(tls.ConnectionState) error
	// Plaintext connects without TLS, for development on loopback.
	Plaintext bool

	// AccessKeyID and SecretAccessKey may be left out if there is a
	// certificate. Dial wipes SecretAccessKey, whether it succeeds or not.
	AccessKeyID     string
	SecretAccessKey Secret
	// SessionToken is that of temporary credentials; "" for an access key.
	SessionToken string

	// SessionCache is a directory in which the session is kept for the next program
	// that connects to the same servers as the same caller; "" for none. The file
	// is encrypted with a key derived from SecretAccessKey.
	SessionCache string

	// Region is the Region that calls are for; "" for the cluster's own.
	Region    string
	UserAgent string
}

// window is how much a server may send before it is read: enough to read an
// audit log quickly from far away. A window that grows dynamically would send a
// ping with nearly every call, to become four times as large.
const window = 4 << 20

// Client is safe for concurrent use.
type Client struct {
	conn    *grpc.ClientConn
	session *session
	region  string
	stop    func() bool
}

// Dial returns a client, which connects when it is first used. Its error reports
// everything that is wrong with cfg. The client is closed at the latest when ctx
// ends.
func Dial(ctx context.Context, cfg Config) (*Client, error) {
	defer clear(cfg.SecretAccessKey)
	creds, err := cfg.transport()
	faults := []error{err}
	if cfg.Address == "" {
		faults = append(faults, errors.New("no address given"))
	}
	if (cfg.AccessKeyID == "") != (len(cfg.SecretAccessKey) == 0) {
		faults = append(faults, errors.New("an access key id and its secret must be given together"))
	}
	if cfg.SessionToken != "" && cfg.AccessKeyID == "" {
		faults = append(faults, errors.New("a session token needs the access key id and the secret that belong to it"))
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
		// A DNS server must not be able to change how calls are made.
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
		c.session.temporary = cfg.SessionToken
		if binding, err := cfg.binding(); err == nil && cfg.TLS == nil {
			c.session.cache = newSessionCache(cfg.SessionCache, binding, cfg.AccessKeyID, c.session.key)
		}
	}
	c.stop = context.AfterFunc(ctx, func() { _ = c.close() })
	return c, nil
}

// transport returns the credentials that secure connections.
func (cfg *Config) transport() (credentials.TransportCredentials, error) {
	files := cfg.CAFile != "" || cfg.CertFile != "" || cfg.KeyFile != "" || cfg.ServerName != "" || cfg.VerifyConnection != nil
	if cfg.Plaintext {
		if files || cfg.TLS != nil {
			return nil, errors.New("TLS settings cannot be used with Plaintext")
		}
		return insecure.NewCredentials(), nil
	}
	if cfg.TLS != nil {
		if files {
			return nil, errors.New("give either TLS or files, not both")
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

// KMS returns a client for the operations on keys.
func (c *Client) KMS() kmspb.KMSClient { return kmspb.NewKMSClient(c.authenticated()) }

// IAM returns a client for users, groups, roles and policies.
func (c *Client) IAM() iampb.IAMClient { return iampb.NewIAMClient(c.authenticated()) }

// STS returns a client for temporary credentials.
func (c *Client) STS() iampb.STSClient { return iampb.NewSTSClient(c.authenticated()) }

// Calls returns a connection for calls by name, such as
// /conclave.v1.KMS/CreateKey, in the client's session.
func (c *Client) Calls() grpc.ClientConnInterface { return c.authenticated() }

// Audit returns a client that reads the audit log.
func (c *Client) Audit() kmspb.AuditClient { return kmspb.NewAuditClient(c.authenticated()) }

// Usage returns a client for what was counted.
func (c *Client) Usage() kmspb.UsageClient { return kmspb.NewUsageClient(c.authenticated()) }

// Accounts returns a client for the accounts of the cluster.
func (c *Client) Accounts() kmspb.AccountsClient {
	return kmspb.NewAccountsClient(c.authenticated())
}

// CertificateMappings returns a client for whose client certificates are.
func (c *Client) CertificateMappings() kmspb.CertificateMappingsClient {
	return kmspb.NewCertificateMappingsClient(c.authenticated())
}

// Credentials returns a client for the credentials of the account's root user.
func (c *Client) Credentials() kmspb.CredentialsClient {
	return kmspb.NewCredentialsClient(c.authenticated())
}

// Operator returns a client for operators, who need a certificate. It does not
// use the access key and opens no session.
func (c *Client) Operator() kmspb.OperatorClient { return kmspb.NewOperatorClient(c.conn) }

// Cluster returns a client for the cluster's membership. It is for operators
// too.
func (c *Client) Cluster() kmspb.ClusterClient { return kmspb.NewClusterClient(c.conn) }

// Conn returns the connection itself, without a session, for the health
// service.
func (c *Client) Conn() grpc.ClientConnInterface { return c.conn }

func (c *Client) authenticated() grpc.ClientConnInterface {
	return &authenticated{conn: c.conn, session: c.session, region: c.region}
}
