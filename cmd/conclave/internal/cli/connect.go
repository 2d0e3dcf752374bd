package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/cmd/conclave/internal/certs"
	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// RemoteFlags say which server to connect to, and as which caller. Access keys
// come only from the environment or a file.
type RemoteFlags struct {
	address, ca, cert, key, crl, region string
	profile                             string
	Timeout                             time.Duration
}

const defaultAddress = "127.0.0.1:7601"

// Config returns the configuration from flags and environment.
func (r *RemoteFlags) Config() (client.Config, error) {
	cfg := client.Config{
		Address:   First(r.address, "CONCLAVE_ADDRESS"),
		Region:    First(r.region, "CONCLAVE_REGION"),
		UserAgent: "conclave-cli/" + Version,
		CAFile:    First(r.ca, "CONCLAVE_CA"),
		CertFile:  First(r.cert, "CONCLAVE_CERT"),
		KeyFile:   First(r.key, "CONCLAVE_KEY"),
	}
	if err := r.credentials(&cfg); err != nil {
		return cfg, err
	}
	if cfg.Address == "" {
		cfg.Address = defaultAddress
	}
	cfg.SessionCache = sessionCacheDir()
	if err := r.nodes(&cfg); err != nil {
		return cfg, err
	}
	if cfg.Plaintext {
		cfg.CAFile, cfg.CertFile, cfg.KeyFile = "", "", ""
		return cfg, nil
	}
	if (cfg.CertFile == "") != (cfg.KeyFile == "") {
		return cfg, Usagef("--cert and --key-file (CONCLAVE_CERT and CONCLAVE_KEY) must be given together")
	}
	return cfg, r.revoked(&cfg)
}

// revoked makes the client refuse nodes whose certificates are on the list that
// --crl (CONCLAVE_CRL) names.
func (r *RemoteFlags) revoked(cfg *client.Config) error {
	name := First(r.crl, "CONCLAVE_CRL")
	if name == "" {
		return nil
	}
	if cfg.CAFile == "" {
		return Usagef("--crl (CONCLAVE_CRL) requires --ca (CONCLAVE_CA)")
	}
	ca, err := files.Read(cfg.CAFile, certs.MaxFile)
	if err != nil {
		return err
	}
	raw, err := files.Read(name, pki.MaxCRLFile)
	if err != nil {
		return err
	}
	lists, err := pki.ReadCRLs(raw, ca)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	cfg.VerifyConnection = lists.VerifyConnection
	return nil
}

// credentials sets the access key: that of the profile that --profile names, of the
// environment, of the profile that AWS_PROFILE names or, if there is no certificate
// either, of the default profile.
func (r *RemoteFlags) credentials(cfg *client.Config) error {
	id, secret, token := environmentKey(os.Getenv)
	name := r.profile
	if name == "" && id == "" && secret == "" {
		name = os.Getenv("AWS_PROFILE")
		if name == "" && cfg.CertFile == "" {
			name = "default"
		}
	}
	if name != "" {
		p, err := readProfile(name, os.Getenv)
		if err != nil && r.profile == "" && os.Getenv("AWS_PROFILE") == "" {
			return nil // nobody asked for the profile, which may be meant for AWS only
		}
		if err != nil {
			return err
		}
		id, secret, token = p.accessKeyID, p.secretAccessKey, p.sessionToken
		if cfg.Region == "" && id != "" {
			cfg.Region = p.region
		}
	}
	cfg.AccessKeyID, cfg.SessionToken = id, token
	if secret != "" {
		cfg.SecretAccessKey = client.Secret(secret)
	}
	return nil
}

// environmentKey returns the access key of the environment, with the session token if it is one
// of temporary credentials. The token is that of the variables that have the access key: that
// of another one would only make the server refuse both.
func environmentKey(getenv func(string) string) (id, secret, token string) {
	own := getenv("CONCLAVE_ACCESS_KEY_ID")
	id, secret = cmp.Or(own, getenv("AWS_ACCESS_KEY_ID")), cmp.Or(getenv("CONCLAVE_SECRET_ACCESS_KEY"), getenv("AWS_SECRET_ACCESS_KEY"))
	token = getenv("CONCLAVE_SESSION_TOKEN")
	if own == "" {
		token = cmp.Or(token, getenv("AWS_SESSION_TOKEN"))
	}
	return id, secret, token
}

// sessionCacheDir returns the directory in which sessions are kept between
// commands; "" for none.
func sessionCacheDir() string {
	if dir := os.Getenv("CONCLAVE_SESSION_CACHE"); dir == None {
		return ""
	} else if dir != "" {
		return dir
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "conclave", "sessions")
}

// nodes parses the schemes of one or several addresses.
func (r *RemoteFlags) nodes(cfg *client.Config) error {
	addrs, err := client.Addresses(cfg.Address)
	if err != nil {
		return Usagef("--address (CONCLAVE_ADDRESS) %q: %v", cfg.Address, err)
	}
	for i, given := range addrs {
		addr, plaintext := strings.CutPrefix(given, "http://")
		switch {
		case plaintext && !client.Loopback(addr): // it would be sent in the clear
			return Usagef("address %s: only loopback addresses may be used without TLS; leave out http://", given)
		case i > 0 && plaintext != cfg.Plaintext:
			return Usagef("address %s: either all addresses or none must be without TLS", given)
		}
		addrs[i], cfg.Plaintext = strings.TrimPrefix(addr, "https://"), plaintext
	}
	cfg.Address = strings.Join(addrs, ",")
	return nil
}

// Connection is a client and the address that it connects to.
type Connection struct {
	*client.Client
	Address string
}

// dial returns a client for the configuration from flags and environment.
func (a *App) dial(ctx context.Context) (*Connection, error) {
	cfg, err := a.Remote.Config()
	if err != nil {
		return nil, err
	}
	c, err := client.Dial(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", cfg.Address, err)
	}
	return &Connection{c, cfg.Address}, nil
}

// With calls use with a client and a context that ends when an answer takes too
// long, and explains errors. doing says what is done, as in "describing key 1234".
func (a *App) With(ctx context.Context, doing string, use func(context.Context, *Connection) error) error {
	return a.WithEach(ctx, doing, func(ctx context.Context, c *Connection) error {
		return a.Timed(ctx, func(ctx context.Context) error { return use(ctx, c) })
	})
}

// WithEach is With for a use that limits the time of its calls itself, such as a
// long list with many answers.
func (a *App) WithEach(ctx context.Context, doing string, use func(context.Context, *Connection) error) error {
	// Checked before the call, since an answer that cannot be shown is useless.
	if _, err := a.Format(); err != nil {
		return err
	}
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	err = use(ctx, c)
	if isSealed(err) && c.uninitialised(ctx) {
		return &CodedError{ExitSealed, fmt.Errorf("%s: the cluster is not initialised\n`conclave operator init` initialises it", doing)}
	}
	return a.withEncoded(err, Explain(doing, c.Address, err))
}

// EncodedMessage is what denials have before an encoded message.
const EncodedMessage = "Encoded authorization failure message: "

// withEncoded adds the encoded message of a denial to its explanation if the output is for
// programs. People are better served by the id of the request, as the message is long.
func (a *App) withEncoded(err, explained error) error {
	f, ok := client.FromError(err)
	format, _ := a.Format() // checked before the call
	if coded, is := errors.AsType[*CodedError](explained); is && ok && f.Encoded != "" && format != "table" {
		return &CodedError{coded.Code, fmt.Errorf("%w\n%s%s", coded.err, EncodedMessage, Printable(f.Encoded))}
	}
	return explained
}

// isSealed reports whether a node refused a call because it is sealed.
func isSealed(err error) bool {
	f, ok := client.FromError(err)
	return ok && f.Type == "ServiceUnavailable" && strings.Contains(f.Message, "sealed")
}

// uninitialised reports whether the node is sealed because the cluster is not
// initialised.
func (c *Connection) uninitialised(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	st, err := c.Operator().Status(ctx, &kmspb.StatusRequest{})
	return err == nil && !st.GetSeal().GetInitialised()
}

// Timed calls call with a context that ends when an answer takes too long.
func (a *App) Timed(ctx context.Context, call func(context.Context) error) error {
	if a.Remote.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, a.Remote.Timeout)
		defer cancel()
	}
	return call(ctx)
}

// Explain returns an error that says what failed, why, and what to try next.
func Explain(doing, address string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*CodedError](err); ok {
		return err
	}
	f, ok := client.FromError(err)
	if !ok {
		return fmt.Errorf("%s: %w", doing, err)
	}
	if f.Type == "" {
		return fmt.Errorf("%s: %s%s", doing, Printable(f.Message), hint(f, address))
	}
	msg := f.Type
	if f.Message != "" {
		msg += ": " + Printable(f.Message)
	}
	if f.RequestID != "" {
		msg += " (request " + Printable(f.RequestID) + ")"
	}
	code := ExitError
	switch {
	case isSealed(err):
		code = ExitSealed
		msg += "\n`conclave operator status` shows its progress; `conclave operator unseal` submits a share to it"
	case f.Type == "NotInitialisedException":
		msg += "\n`conclave operator init` initialises the cluster"
	case f.Type == "MissingAuthenticationTokenException" || f.Type == "UnrecognizedClientException" || f.Type == "InvalidSignatureException":
		msg += "\nset AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a development server: eval \"$(conclave env)\""
	case f.Encoded != "" && f.RequestID != "":
		msg += "\nthe audit log has what decided: `conclave policy why " + Printable(f.RequestID) + "`"
	case f.Type == "AccessDeniedException" && strings.Contains(f.Message, "certificate of an operator"):
		msg += "\ngive one with --cert and --key-file, or CONCLAVE_CERT and CONCLAVE_KEY"
	}
	return &CodedError{code, fmt.Errorf("%s: %s", doing, msg)}
}

// hint returns what to try if no Conclave server answered.
func hint(f client.Error, address string) string {
	has := func(parts ...string) bool {
		return slices.ContainsFunc(parts, func(p string) bool { return strings.Contains(f.Message, p) })
	}
	const port = "use the gRPC port, 7601 unless it was changed; 7600 is for the AWS API, 7602 for other nodes, 7604 for metrics and health"
	const files = "check --ca, --cert and --key-file (CONCLAVE_CA, CONCLAVE_CERT, CONCLAVE_KEY)"
	switch {
	case f.Code == codes.DeadlineExceeded:
		return "\n--timeout allows more time"
	case has("unexpected HTTP status", "unexpected content-type"):
		return "\n" + address + " is not a gRPC port: " + port
	case f.Code != codes.Unavailable:
		return ""
	case has("first record does not look like a TLS handshake"):
		return "\n" + address + " does not use TLS: " + port + ". A gRPC port without TLS, such as a development server's, is written http://" + address
	case has(pki.ErrRevoked.Error()):
		return "\n" + address + " may be a stolen node: it is on the list that --crl (CONCLAVE_CRL) names"
	case has("remote error: tls:"):
		return "\n" + address + " refused the client's certificate, which may be revoked: " + files + "; or " + port
	case has("error reading server preface", "broken pipe", "connection reset", "EOF"):
		return "\n" + address + " closed the connection: " + port + "; http:// is for servers without TLS; servers also close connections with revoked certificates"
	case has("certificate", "tls:"):
		return "\n" + files
	}
	return "\nis a server running at " + address + "? `conclave dev` starts one to try; CONCLAVE_ADDRESS or --address name another"
}

// ReadInput reads a file that the user names, or standard input for "" and "-".
// It refuses more than limit bytes.
func (a *App) ReadInput(name string, limit int64) ([]byte, error) {
	if name == "" || name == "-" {
		if a.stdinRead {
			return nil, Usagef("standard input can be read only once; give a file for the other input")
		}
		a.stdinRead = true
		return files.ReadLimited(a.Stdin, "standard input", limit)
	}
	return files.Read(name, limit)
}

// ErrorText returns an error that a node reported, for a terminal.
func ErrorText(e *kmspb.ErrorDetail) string {
	if e.GetMessage() == "" {
		return Printable(OrDash(e.GetType()))
	}
	return Printable(e.GetMessage())
}

// Open opens a file that the user names, or standard input for "" and "-".
func (a *App) Open(name string) (io.ReadCloser, string, error) {
	if name != "" && name != "-" {
		f, err := os.Open(name)
		return f, name, err
	}
	if a.stdinRead {
		return nil, "", Usage(errors.New("standard input can be read only once; give a file for the other input"))
	}
	a.stdinRead = true
	return io.NopCloser(a.Stdin), "standard input", nil
}
