package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/conclavekms/conclave/transport/client"
)

// remoteFlags say which server to talk to, and as whom. Access keys come from
// the environment only.
type remoteFlags struct {
	address, ca, cert, key, region string
	timeout                        time.Duration
}

const defaultAddress = "127.0.0.1:7601"

// config is what flags and environment say together.
func (r *remoteFlags) config() (client.Config, error) {
	cfg := client.Config{
		Address:     first(r.address, "CONCLAVE_ADDRESS"),
		Region:      first(r.region, "CONCLAVE_REGION"),
		UserAgent:   "conclave-cli/" + version,
		AccessKeyID: first("", "CONCLAVE_ACCESS_KEY_ID", "AWS_ACCESS_KEY_ID"),
	}
	if secret := first("", "CONCLAVE_SECRET_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY"); secret != "" {
		cfg.SecretAccessKey = client.Secret(secret)
	}
	if cfg.Address == "" {
		cfg.Address = defaultAddress
	}
	if addr, ok := strings.CutPrefix(cfg.Address, "http://"); ok {
		// Plaintext would go in the clear.
		if !loopback(addr) {
			return cfg, usagef("address %s: without TLS only loopback addresses are used; leave out http://", cfg.Address)
		}
		cfg.Address, cfg.Plaintext = addr, true
		return cfg, nil
	}
	cfg.Address = strings.TrimPrefix(cfg.Address, "https://")
	cfg.CAFile = first(r.ca, "CONCLAVE_CA")
	cfg.CertFile = first(r.cert, "CONCLAVE_CERT")
	cfg.KeyFile = first(r.key, "CONCLAVE_KEY")
	if (cfg.CertFile == "") != (cfg.KeyFile == "") {
		return cfg, usagef("--cert and --key-file (CONCLAVE_CERT and CONCLAVE_KEY) go together")
	}
	return cfg, nil
}

func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// connection is a client and the address that it was made for.
type connection struct {
	*client.Client
	address string
}

// dial makes a client from flags and environment.
func (a *app) dial(ctx context.Context) (*connection, error) {
	cfg, err := a.remote.config()
	if err != nil {
		return nil, err
	}
	c, err := client.Dial(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", cfg.Address, err)
	}
	return &connection{c, cfg.Address}, nil
}

// with calls use with a client, and words what goes wrong. doing says what for,
// as in "describing key 1234".
func (a *app) with(ctx context.Context, doing string, use func(context.Context, *connection) error) error {
	// Before the call: an answer that cannot be shown is no use.
	if _, err := a.format(); err != nil {
		return err
	}
	if a.remote.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, a.remote.timeout)
		defer cancel()
	}
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	return explain(doing, c.address, use(ctx, c))
}

// explain words an error of a call: what failed, why, and what to try next.
func explain(doing, address string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*codedError](err); ok {
		return err
	}
	f, ok := client.Error(err)
	if !ok {
		return fmt.Errorf("%s: %w", doing, err)
	}
	if f.Type == "" {
		hint := ""
		switch f.Code {
		case codes.Unavailable:
			hint = "\nis a server running at " + address + "? `conclave dev` starts one to try; CONCLAVE_ADDRESS or --address name another"
			if strings.Contains(f.Message, "certificate") || strings.Contains(f.Message, "tls:") {
				hint = "\ncheck --ca, --cert and --key-file (CONCLAVE_CA, CONCLAVE_CERT, CONCLAVE_KEY)"
			}
			if strings.Contains(f.Message, "first record does not look like a TLS handshake") {
				hint = "\nthe server speaks without TLS: write the address as http://" + address
			}
		case codes.DeadlineExceeded:
			hint = "\n--timeout allows more time"
		}
		return fmt.Errorf("%s: %s%s", doing, printable(f.Message), hint)
	}
	msg := f.Type
	if f.Message != "" {
		msg += ": " + printable(f.Message)
	}
	if f.RequestID != "" {
		msg += " (request " + printable(f.RequestID) + ")"
	}
	code := exitError
	switch {
	case f.Type == "ServiceUnavailable" && strings.Contains(f.Message, "sealed"):
		code = exitSealed
		msg += "\n`conclave operator status` shows how far it is; `conclave operator unseal` gives it a share"
	case f.Type == "NotInitialisedException":
		msg += "\n`conclave operator init` founds the cluster"
	case f.Type == "MissingAuthenticationTokenException" || f.Type == "UnrecognizedClientException" || f.Type == "InvalidSignatureException":
		msg += "\nset AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a development server: eval \"$(conclave env)\""
	case f.Type == "AccessDeniedException" && strings.Contains(f.Message, "certificate of an operator"):
		msg += "\ngive one with --cert and --key-file, or CONCLAVE_CERT and CONCLAVE_KEY"
	}
	return &codedError{code, fmt.Errorf("%s: %s", doing, msg)}
}

// readInput reads a file of the user's, or standard input for "" and "-", and
// refuses more than limit bytes.
func (a *app) readInput(name string, limit int64) ([]byte, error) {
	in, what := a.stdin, "standard input"
	if name != "" && name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in, what = f, name
	}
	return readLimited(in, what, limit)
}
