package operator

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
	"github.com/conclavekms/conclave/keyengine/custodian"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

func initCommand(a *cli.App) *cobra.Command {
	var req kmspb.InitRequest
	var file, dir, transcriptFile string
	var custodians []string
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Initialise the cluster: once, on any node",
		Long: `Init initialises the cluster. It is called once, on any node. It shows the shares of
the unseal key and the root user's credentials, which cannot be shown again.

With --custodian, given once for each, the node encrypts each share to the public key
of its custodian, and nobody ever has a share in the clear but its custodian. KEY is a
recipient of age (age1…), a key that "conclave operator custodian-key" made
(hpke-p256:…), or a file with such a key or with an OpenPGP public key.

With --shares-dir, each share is written to a file of its own, mode 0600, to be
handed to its custodian, and the credentials to root.env, for a shell to read.
Account and regions are part of every ARN and cannot be changed later.

With --regions, one cluster serves several regions, each with keys, aliases and
grants of its own. Multi-region keys can be replicated between them.

With --file, a file says all of this, and which accounts, users, roles, groups,
policies, certificate mappings and keys the cluster begins with; docs/operate/install.md
describes it. The command is then run several times: it does what can be done now and
says what comes next, with exit code 3 while custodians have to unseal the nodes. What
exists is compared with the file, and never changed: a difference is reported, with exit
code 1. When everything is there, a run changes nothing.`,
		Example: `  conclave operator init --shares 5 --threshold 3 --region eu-west-1 --shares-dir ceremony
  conclave operator init --regions eu-west-1,eu-central-1
  conclave operator init --threshold 2 --custodian alice=alice.pub --custodian bob=bob.asc --custodian carol=carol.pub --shares-dir shares
  conclave operator init --file cluster.yaml --shares-dir ceremony --transcript init.txt`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := a.Format(); err != nil {
				return err
			}
			if file != "" {
				for _, name := range clusterFlags {
					if cmd.Flags().Changed(name) {
						return cli.Usagef("--%s is in the file: leave it out", name)
					}
				}
				return initFromFile(cmd.Context(), a, file, dir, transcriptFile)
			}
			if len(req.Regions) > 0 {
				req.Region = "" // the first of them
			}
			if len(custodians) > 0 {
				keys, err := custodianKeys(cmd, a, custodians)
				if err != nil {
					return err
				}
				req.Shares, req.Custodians = 0, keys
			}
			paper, err := newTranscript(a, transcriptFile, "initialisation")
			if err != nil {
				return err
			}
			defer paper.discard()
			f, err := initialise(cmd.Context(), a, &req, dir, paper)
			if err != nil {
				return err
			}
			return a.Print(f, f.table)
		},
	}
	f := cmd.Flags()
	f.StringVar(&file, "file", "", "file that describes the cluster, instead of the flags about it")
	f.Uint32Var(&req.Shares, "shares", 5, "number of custodians, 1 to 16")
	f.Uint32Var(&req.Threshold, "threshold", 3, "how many of them can unseal the cluster")
	f.StringArrayVar(&custodians, "custodian", nil, "NAME=KEY of a custodian, once for each")
	f.StringVar(&req.Account, "account", "000000000000", "account id, 12 digits")
	f.StringVar(&req.Region, "region", "us-east-1", "region in ARNs and requests")
	f.StringSliceVar(&req.Regions, "regions", nil, "all regions that the cluster serves, instead of --region; the first is the default")
	cmd.MarkFlagsMutuallyExclusive("region", "regions")
	f.StringVar(&req.Partition, "partition", "", "partition of ARNs (default aws)")
	f.BoolVar(&req.AnyRegion, "any-region", false, "accept requests that are signed for any region")
	f.StringVar(&req.RootCertificate, "root-certificate", "", "URI of a client certificate that also stands for the account's root user, such as conclave://operator/alice")
	f.StringVar(&dir, "shares-dir", "", "write each share to a file in this directory instead of showing it")
	transcriptFlag(cmd, &transcriptFile)
	return cmd
}

// clusterFlags are those that --file takes the place of.
var clusterFlags = []string{"shares", "threshold", "custodian", "account", "region", "regions", "partition", "any-region", "root-certificate"}

// custodianKeys reads the values of --custodian, and says to which keys shares will be
// encrypted.
func custodianKeys(cmd *cobra.Command, a *cli.App, values []string) ([]*kmspb.CustodianKey, error) {
	if cmd.Flags().Changed("shares") {
		return nil, cli.Usagef("--shares is the number of --custodian: leave it out")
	}
	parsed, keys, err := readCustodians(values)
	if err != nil {
		return nil, err
	}
	for _, c := range parsed {
		a.Note("the share of %s will be encrypted to the %s key %s", cli.Printable(c.Name), c.Key.Kind(), c.Key.Fingerprint())
	}
	return keys, nil
}

// readCustodians reads the values of --custodian.
func readCustodians(values []string) ([]custodian.Custodian, []*kmspb.CustodianKey, error) {
	var parsed []custodian.Custodian
	var keys []*kmspb.CustodianKey
	for _, v := range values {
		name, text, ok := strings.Cut(v, "=")
		if !ok {
			return nil, nil, cli.Usagef("--custodian %q is not NAME=KEY", v)
		}
		raw := []byte(text)
		if !strings.HasPrefix(text, "age1") && !strings.HasPrefix(text, "hpke-p256:") {
			var err error
			if raw, err = files.Read(text, custodian.MaxKey); err != nil {
				return nil, nil, err
			}
		}
		key, err := custodian.Parse(raw, time.Now())
		if err != nil {
			return nil, nil, fmt.Errorf("the key of custodian %q: %w", name, err)
		}
		parsed, keys = append(parsed, custodian.Custodian{Name: name, Key: key}), append(keys, &kmspb.CustodianKey{Name: name, PublicKey: raw})
	}
	if err := custodian.Check(parsed); err != nil {
		return nil, nil, cli.Usage(err)
	}
	return parsed, keys, nil
}

// initialise initialises the cluster. Its secrets are written to files in dir or, if that is "",
// or it cannot be done, are in what is returned.
func initialise(ctx context.Context, a *cli.App, req *kmspb.InitRequest, dir string, paper *transcript) (*initOutput, error) {
	var out *secretFiles
	if dir != "" {
		// Before the cluster is initialised, as it is too late to fail afterwards.
		names := shareFiles(req)
		if len(names) < 1 || len(names) > 16 {
			return nil, cli.Usagef("--shares %d is not from 1 to 16", len(names))
		}
		var err error
		if out, err = newSecretFiles(dir, append(names, "root.env")); err != nil {
			return nil, err
		}
	}
	f := &initOutput{threshold: req.GetThreshold()}
	err := a.With(ctx, "initialising the cluster", func(ctx context.Context, c *cli.Connection) error {
		res, secrets, err := client.Init(ctx, c.Operator(), req)
		if err != nil {
			return err
		}
		f.set(res, secrets)
		paper.initialised(req, res)
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, out.discard())
	}
	if err := paper.write(); err != nil {
		a.Note("conclave: writing the transcript: %v", err) // the secrets must not be lost for it
	}
	if out != nil {
		if err := out.fill(f.contents()); err != nil {
			a.Note("conclave: writing to %s: %v; the secrets are shown here instead, and only here", dir, err)
			return f, nil
		}
		a.Note("%d shares and root.env are in %s: give each custodian one, and delete them here", len(out.files)-1, dir)
		f.Shares, f.SecretAccessKey = nil, ""
		for i := range f.EncryptedShares {
			f.EncryptedShares[i].Text, f.EncryptedShares[i].File = "", out.files[i].Name()
		}
	}
	return f, nil
}

// initOutput is the output of init.
type initOutput struct {
	ClusterID       string           `json:"cluster_id"`
	Shares          []string         `json:"shares,omitempty"`
	EncryptedShares []encryptedShare `json:"encrypted_shares,omitempty"`
	AccessKeyID     string           `json:"access_key_id"`
	SecretAccessKey string           `json:"secret_access_key,omitempty"`
	RootARN         string           `json:"root_arn"`
	VerifierKey     string           `json:"verifier_key"`
	ShareSet        string           `json:"share_set,omitempty"`

	threshold uint32
}

// encryptedShare is a share for its custodian, or the file that it is in.
type encryptedShare struct {
	Index          uint32 `json:"index"`
	Custodian      string `json:"custodian"`
	Kind           string `json:"kind"`
	KeyFingerprint string `json:"key_fingerprint"`
	File           string `json:"file,omitempty"`
	Text           string `json:"text,omitempty"`
}

func (f *initOutput) set(r *kmspb.InitResponse, s *kmspb.InitSecrets) {
	f.ClusterID, f.AccessKeyID, f.RootARN, f.VerifierKey = r.GetClusterId(), r.GetAccessKeyId(), r.GetRootArn(), r.GetVerifierKey()
	f.ShareSet = hex.EncodeToString(r.GetShareSet().GetId())
	for _, share := range s.GetShares() {
		f.Shares = append(f.Shares, string(share))
	}
	for _, x := range r.GetEncryptedShares() {
		f.EncryptedShares = append(f.EncryptedShares, encryptedShare{
			Index: x.GetIndex(), Custodian: x.GetCustodian(), Kind: x.GetKind(), KeyFingerprint: x.GetKeyFingerprint(), Text: x.GetText(),
		})
	}
	f.SecretAccessKey = string(s.GetSecretAccessKey())
}

func (f *initOutput) table(w io.Writer) {
	cli.Line(w, "cluster", f.ClusterID)
	cli.Line(w, "root", f.RootARN)
	cli.Line(w, "access key id", f.AccessKeyID)
	if f.SecretAccessKey != "" {
		cli.Line(w, "secret access key", f.SecretAccessKey)
	}
	cli.Line(w, "audit public key", f.VerifierKey)
	for i, s := range f.Shares {
		cli.Line(w, fmt.Sprintf("share %d", i+1), s)
	}
	for _, s := range f.EncryptedShares {
		cli.Line(w, fmt.Sprintf("share %d", s.Index), fmt.Sprintf("of %s, for the %s key %s", s.Custodian, s.Kind, s.KeyFingerprint))
	}
	for _, s := range f.EncryptedShares {
		if s.Text != "" {
			fmt.Fprintf(w, "\nFor %s:\n%s", cli.Printable(s.Custodian), cli.Visible(s.Text))
		}
	}
	if n := len(f.Shares); n > 0 {
		fmt.Fprintf(w, "\nThese are shown only once. Any %d of the %d shares unseal the cluster.\n", f.threshold, n)
	} else if f.SecretAccessKey != "" {
		fmt.Fprintf(w, "\nThese are shown only once.\n")
	}
}

// shareFiles returns the names of the files for the shares.
func shareFiles(req *kmspb.InitRequest) (names []string) {
	for i, c := range req.GetCustodians() {
		var kind custodian.Kind
		if key, err := custodian.Parse(c.GetPublicKey(), time.Now()); err == nil { // it was checked before
			kind = key.Kind()
		}
		names = append(names, encryptedFile(i+1, c.GetName(), kind))
	}
	if names == nil {
		for i := range req.GetShares() {
			names = append(names, fmt.Sprintf("share-%d.txt", i+1))
		}
	}
	return names
}

// encryptedFile returns the name of the file for a share that is encrypted to its custodian.
func encryptedFile(index int, name string, kind custodian.Kind) string {
	return fmt.Sprintf("share-%d-%s%s", index, fileName(name), kind.Extension())
}

// fileName returns a custodian's name without what a name of a file should not have.
func fileName(name string) string {
	return strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("-_.@", c) {
			return c
		}
		return '_'
	}, name)
}

// contents returns what is written to the files for the shares and to root.env.
func (f *initOutput) contents() (list [][]byte) {
	for _, s := range f.Shares {
		list = append(list, []byte(s+"\n"))
	}
	for _, s := range f.EncryptedShares {
		list = append(list, []byte(s.Text))
	}
	return append(list, fmt.Appendf(nil, "AWS_ACCESS_KEY_ID=%s\nAWS_SECRET_ACCESS_KEY=%s\n", cli.Quote(f.AccessKeyID), cli.Quote(f.SecretAccessKey)))
}
