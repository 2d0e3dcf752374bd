package audit

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/checkpoint"
	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
)

func auditConsistencyCommand(a *cli.App) *cobra.Command {
	var key, url, ca string
	var by quorumFlags
	cmd := &cobra.Command{
		Use:   "verify-consistency OLD NEW --key KEY --url URL",
		Short: "Verify that one checkpoint's log is a continuation of another's",
		Long: `Verify-consistency verifies that the log of one saved checkpoint begins with the log of
another: that no record was changed or removed between the two. It reads the hashes
that it needs from URL, where the log is published: the AWS API's address and /tlog, if
the server was started with --publish-audit-log. It does not trust them: they have to
lead to the roots in both checkpoints, whose signatures by KEY are verified.

With --witness, witnesses have to have cosigned NEW too, all that are named or as many as
--quorum says.

To verify checkpoints with a copy of the log instead, use "conclave audit verify DIR
--earlier OLD --earlier NEW".`,
		Example: `  conclave audit verify-consistency monday tuesday --key audit.pub --url "$AWS_ENDPOINT_URL_KMS/tlog"`,
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if key == "" || url == "" {
				return cli.Usagef("--key and --url are required")
			}
			if _, err := a.Format(); err != nil {
				return err
			}
			quorum, err := by.quorum()
			if err != nil {
				return err
			}
			keys, err := KeyText(key)
			if err != nil {
				return err
			}
			var c [2]checkpoint.Checkpoint
			var names []string
			for i, name := range args {
				raw, err := a.ReadInput(name, MaxCheckpointFile)
				if err != nil {
					return err
				}
				if c[i], err = checkpoint.ParseKept(raw, keys); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				if i == 0 {
					continue // it is the caller's own, and may be older than the witnesses
				}
				if names, err = quorum.Check(raw); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
			}
			if c[0].Size > c[1].Size {
				return fmt.Errorf("%s has %d records, more than %s with %d: they are in the wrong order, or the log was rolled back", args[0], c[0].Size, args[1], c[1].Size)
			}
			p, err := newPublished(cmd.Context(), url, cli.First(ca, "CONCLAVE_CA"))
			if err != nil {
				return err
			}
			if err := p.consistent(c[0], c[1]); err != nil {
				return err
			}
			v := struct {
				OK   bool   `json:"ok"`
				Log  string `json:"log"`
				From uint64 `json:"from"`
				To   uint64 `json:"to"`
				// CosignedBy are those of the witnesses that were named.
				CosignedBy []string `json:"cosigned_by,omitempty"`
			}{true, c[1].Origin, c[0].Size, c[1].Size, names}
			return a.Print(v, func(w io.Writer) {
				cli.Line(w, "verdict", "good")
				cli.Line(w, "log", v.Log)
				cli.Line(w, "consistent", fmt.Sprintf("%d records begin with the %d of before", v.To, v.From))
				cosignedLine(w, v.CosignedBy)
			})
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "public key, or a file with it")
	by.add(cmd.Flags())
	cmd.Flags().StringVar(&url, "url", "", "where the log is published, such as https://HOST:PORT/tlog")
	cmd.Flags().StringVar(&ca, "ca", "", "PEM file of the CA of the server's certificate (CONCLAVE_CA; default the system's)")
	return a.OutputFlag(cmd)
}

// published reads the tiles of a published log. It implements tlog.TileReader.
type published struct {
	ctx    context.Context
	client *http.Client
	url    string
}

func newPublished(ctx context.Context, url, ca string) (*published, error) {
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment}
	if ca != "" {
		pem, err := files.Read(ca, 1<<20)
		if err != nil {
			return nil, err
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s has no certificate", ca)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
	return &published{ctx, &http.Client{Transport: transport, Timeout: 30 * time.Second}, strings.TrimSuffix(url, "/")}, nil
}

// consistent verifies that the tree of a checkpoint begins with that of an earlier one.
func (p *published) consistent(old, next checkpoint.Checkpoint) error {
	if old.Size == next.Size || old.Size == 0 {
		if old.Size != 0 && old.Root != next.Root {
			return fmt.Errorf("%w: two checkpoints of %d records have different roots", auditlog.ErrProof, old.Size)
		}
		return nil
	}
	tree := tlog.Tree{N: int64(next.Size), Hash: next.Root}
	proof, err := tlog.ProveTree(tree.N, int64(old.Size), tlog.TileHashReader(tree, p))
	if err != nil {
		return fmt.Errorf("proving that %d records begin with %d: %w", next.Size, old.Size, err)
	}
	hashes := make([]auditlog.Hash, len(proof))
	for i := range proof {
		hashes[i] = auditlog.Hash(proof[i])
	}
	return auditlog.VerifyConsistency(hashes, old.Size, next.Size, old.Root, next.Root)
}

// Height returns the height of the tiles.
func (*published) Height() int { return 8 }

// SaveTiles does nothing: the tiles of one proof are read once.
func (*published) SaveTiles([]tlog.Tile, [][]byte) {}

// ReadTiles reads tiles, which the caller verifies.
func (p *published) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	data := make([][]byte, len(tiles))
	for i, t := range tiles {
		path := strings.Replace(t.Path(), "tile/8/", "tile/", 1)
		req, err := http.NewRequestWithContext(p.ctx, http.MethodGet, p.url+"/"+path, nil)
		if err != nil {
			return nil, err
		}
		if data[i], err = p.read(req, t.W*auditlog.HashSize); err != nil {
			return nil, fmt.Errorf("%s: %w", req.URL, err)
		}
	}
	return data, nil
}

func (p *published) read(req *http.Request, size int) ([]byte, error) {
	res, err := p.client.Do(req)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the server answered %s", res.Status)
	}
	b, err := files.ReadLimited(res.Body, "the tile", int64(size))
	if err == nil && len(b) != size {
		err = fmt.Errorf("%d bytes, not %d", len(b), size)
	}
	return b, err
}
