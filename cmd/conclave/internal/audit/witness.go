package audit

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"filippo.io/mldsa"
	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/checkpoint"
	"github.com/conclavekms/conclave/auditlog/witness"
	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
	"github.com/conclavekms/conclave/transport"
	"github.com/conclavekms/conclave/transport/admission"
	"github.com/conclavekms/conclave/transport/client"
)

// The files of a witness.
const (
	witnessKeyFile    = "witness.key"
	witnessPublicFile = "witness.pub"
	witnessStateFile  = "state"
	witnessLockFile   = "lock"

	witnessKeyHeader = "conclave witness key v1"
	// stopTimeout is how long requests may take that are under way when the witness stops.
	stopTimeout = 5 * time.Second
)

func witnessCommand(a *cli.App) *cobra.Command {
	var dir, listen, cert, key string
	var logs []string
	cmd := &cobra.Command{
		Use:   "witness --dir DIR --log KEY",
		Short: "Run a witness, which cosigns the checkpoints of logs that only grow",
		Long: `Witness is a process of its own, which belongs on another machine than the nodes, in the
hands of other people. It cosigns a checkpoint of a log if the log has only grown since
the last one that it cosigned (C2SP tlog-witness v1.0.0), so that a log that shows
different histories to different people is found out.

The logs may be of Conclave and of others. Each --log has the public keys of one, or is
a file with them; one of the keys has to have signed. Nodes send requests to
URL/add-checkpoint; URL/SHA-256 OF THE LOG'S NAME/checkpoint has the newest checkpoint.

DIR is made by "conclave audit witness init". Never copy it, and never restore it from a
backup: a witness that forgets what it has cosigned would cosign a fork. If it is
lost, make a new witness, with another name.

Without --tls-cert it listens only on loopback, for a proxy that has TLS.
SIGTERM and SIGINT stop it.`,
		Example: `  conclave audit witness --dir /var/lib/witness --log audit.pub --listen :7610 \
    --tls-cert witness.pem --tls-key witness-key.pem`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" || len(logs) == 0 {
				return cli.Usagef("--dir and --log are required")
			}
			if (cert == "") != (key == "") {
				return cli.Usagef("--tls-cert and --tls-key belong together")
			}
			if cert == "" && !client.Loopback(listen) {
				return cli.Usagef("--listen %s is not a loopback address: that needs --tls-cert and --tls-key", listen)
			}
			var conf *tls.Config
			if cert != "" {
				pair, err := tls.LoadX509KeyPair(cert, key)
				if err != nil {
					return err
				}
				conf = &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2", "http/1.1"}}
			}
			return runWitness(cmd.Context(), a, dir, logs, listen, conf)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", `directory of the witness, made by "conclave audit witness init"`)
	cmd.Flags().StringArrayVar(&logs, "log", nil, "public keys of a log that is cosigned, or a file with them; may be repeated")
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:7610", "address to listen on")
	cmd.Flags().StringVar(&cert, "tls-cert", "", "PEM file with the certificate of the server")
	cmd.Flags().StringVar(&key, "tls-key", "", "PEM file with its key")
	cmd.AddCommand(witnessInitCommand(a))
	return cmd
}

func witnessInitCommand(a *cli.App) *cobra.Command {
	var dir, name string
	cmd := &cobra.Command{
		Use:   "init --dir DIR --name NAME",
		Short: "Make the keys and the state of a witness",
		Long: `Init makes a directory with the keys of a witness, Ed25519 and ML-DSA-44, and with a state
that has no log yet. It prints the public keys, which are in DIR/witness.pub too. NAME
tells witnesses apart, and should be a URL without https://, such as
witness.example.com/conclave.`,
		Example: `  conclave audit witness init --dir /var/lib/witness --name witness.example.com/conclave`,
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if dir == "" || name == "" {
				return cli.Usagef("--dir and --name are required")
			}
			keys, err := initWitness(dir, name)
			if err != nil {
				return err
			}
			_, err = fmt.Fprint(a.Stdout, keys)
			return err
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "directory to make")
	cmd.Flags().StringVar(&name, "name", "", "name of the witness's keys")
	return cmd
}

// initWitness makes the directory of a witness and returns its public keys. The key is written
// last: without it, there is no witness that could have forgotten anything.
func initWitness(dir, name string) (keys string, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	there, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	if len(there) > 0 {
		return "", fmt.Errorf("%s is not empty: a witness's keys and state are made once", dir)
	}
	seeds := make([]byte, ed25519.SeedSize+mldsa.PrivateKeySize)
	defer clear(seeds)
	if _, err := rand.Read(seeds); err != nil {
		return "", err
	}
	if _, keys, err = witnessSigners(name, seeds); err != nil {
		return "", err
	}
	for _, f := range []struct {
		name  string
		write func(string, []byte) error
		text  string
	}{
		{witnessStateFile, files.Write, string(witness.EmptyState())},
		{witnessPublicFile, files.WritePublic, keys},
		{witnessKeyFile, files.Write, fmt.Sprintf("%s\n%s\n%s\n", witnessKeyHeader, name, base64.StdEncoding.EncodeToString(seeds))},
	} {
		if err := f.write(filepath.Join(dir, f.name), []byte(f.text)); err != nil {
			return "", err
		}
	}
	return keys, files.SyncDir(filepath.Dir(filepath.Clean(dir)))
}

// witnessSigners returns the cosigners with the keys of two seeds, and their public keys, one a
// line.
func witnessSigners(name string, seeds []byte) ([]*checkpoint.Cosigner, string, error) {
	if len(seeds) != ed25519.SeedSize+mldsa.PrivateKeySize {
		return nil, "", errors.New("it does not have two keys")
	}
	classic := ed25519.NewKeyFromSeed(seeds[:ed25519.SeedSize])
	pq, err := mldsa.NewPrivateKey(mldsa.MLDSA44(), seeds[ed25519.SeedSize:])
	if err != nil {
		return nil, "", err
	}
	first, err := checkpoint.NewEd25519Cosigner(name, classic, time.Now)
	if err != nil {
		return nil, "", fmt.Errorf("the name %q: %w", name, err)
	}
	second, err := checkpoint.NewMLDSACosigner(name, pq, time.Now)
	if err != nil {
		return nil, "", fmt.Errorf("the name %q: %w", name, err)
	}
	keys := checkpoint.Ed25519CosignatureKey(name, classic.Public().(ed25519.PublicKey)) + "\n" + checkpoint.MLDSAVerifierKey(name, pq.PublicKey()) + "\n"
	return []*checkpoint.Cosigner{first, second}, keys, nil
}

// readWitnessKey returns the cosigners of a witness.
func readWitnessKey(dir string) ([]*checkpoint.Cosigner, error) {
	name := filepath.Join(dir, witnessKeyFile)
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s may be read by others than its owner", name)
	}
	text, err := files.Read(name, 4096)
	if err != nil {
		return nil, err
	}
	defer clear(text)
	lines := strings.Split(string(text), "\n")
	if len(lines) != 4 || lines[0] != witnessKeyHeader || lines[3] != "" {
		return nil, fmt.Errorf("%s is not the key of a witness", name)
	}
	seeds, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil {
		return nil, fmt.Errorf("%s is not the key of a witness", name)
	}
	signers, _, err := witnessSigners(lines[1], seeds)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return signers, nil
}

// witnessStore keeps the state of a witness in a file. It implements witness.Store.
type witnessStore string

// Load reads the file. That there is none is an error: init makes it.
func (s witnessStore) Load() ([]byte, error) {
	b, err := files.Read(string(s), witness.MaxState)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: without it, the witness does not know what it has cosigned", err)
	}
	return b, err
}

// Save replaces the file. A crash leaves the old one or the new one.
func (s witnessStore) Save(state []byte) error { return files.Write(string(s), state) }

func runWitness(ctx context.Context, a *cli.App, dir string, logs []string, listen string, conf *tls.Config) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	lock, err := auditlog.OSFS().Lock(filepath.Join(dir, witnessLockFile))
	if err != nil {
		return err
	}
	defer lock.Close()
	signers, err := readWitnessKey(dir)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(a.Stderr, nil))
	cfg := witness.Config{Signers: signers, Store: witnessStore(filepath.Join(dir, witnessStateFile)), Logger: log}
	for _, l := range logs {
		text, err := KeyText(l)
		if err != nil {
			return err
		}
		cfg.Logs = append(cfg.Logs, text)
	}
	w, err := witness.New(cfg)
	if err != nil {
		return err
	}
	budget, err := admission.New(admission.Config{})
	if err != nil {
		return err
	}
	inner, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	// A log sends one request at a time. Bodies are read before the witness has room for their
	// requests, so few streams bound what one connection can make it hold.
	srv := transport.NewHTTPServer(transport.HTTPConfig{TLS: conf, Limits: transport.Limits{MaxStreams: 4}, Logger: log}, w)
	ended := make(chan error, 1)
	go func() {
		ended <- transport.Serve(srv, budget.Listener(inner, admission.Share{Face: "witness", Sixteenths: 8}))
	}()
	log.Info("the witness is ready", "name", signers[0].Name(), "address", inner.Addr().String(), "tls", conf != nil)
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if err := srv.Shutdown(last); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return errors.Join(err, srv.Close())
	}
	return <-ended
}
