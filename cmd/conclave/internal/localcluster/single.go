package localcluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/cmd/conclave/internal/certs"
	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
	"github.com/conclavekms/conclave/cmd/conclave/node"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// SingleNode is the id of the node.
const SingleNode = "dev"

// Single is a cluster of one node in this process, which unseals itself:
// everything that is needed to unseal it is in one directory.
type Single struct {
	Dir             string
	TLS             bool // clients get files with certificates
	Account, Region string
	Regions         []string // all, the default one first
	ClusterID       [16]byte // of the cluster, if it is initialised now; zero for a random one

	// Which settings the user gave, so that a directory with other ones is
	// refused.
	AccountGiven, RegionGiven, RegionsGiven bool

	secrets *secrets
}

// Prepare reads or makes the secrets of the server, and its certificates.
func (s *Single) Prepare() (*node.Identity, error) {
	if err := files.OwnDir(s.Dir); err != nil {
		return nil, err
	}
	kept, err := loadSecrets(s.Dir)
	if err != nil {
		return nil, err
	}
	if kept == nil {
		ca, err := pki.NewCA("conclave development CA", certs.CAValidity)
		if err != nil {
			return nil, err
		}
		key, err := ca.KeyPEM()
		if err != nil {
			return nil, err
		}
		if err := s.mayTake(); err != nil {
			return nil, err
		}
		kept = &secrets{Account: s.Account, Region: s.Region, Regions: s.Regions, CACert: string(ca.CertPEM()), CAKey: string(key)}
		if err := kept.save(s.Dir); err != nil {
			return nil, err
		}
	}
	if s.AccountGiven && kept.Account != s.Account || s.RegionGiven && kept.Region != s.Region ||
		s.RegionsGiven && !slices.Equal(kept.allRegions(), s.allRegions()) {
		return nil, fmt.Errorf("%s belongs to account %s in %s, which cannot be changed; leave out --account, --region and --regions, or use another directory",
			s.Dir, kept.Account, strings.Join(kept.allRegions(), ","))
	}
	s.secrets = kept
	ca, err := pki.LoadCA([]byte(kept.CACert), []byte(kept.CAKey))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(s.Dir, secretsFile), err)
	}
	cert, key, err := ca.Issue(pki.IssueRequest{
		Kind: pki.KindNode, Name: SingleNode, DNS: []string{"localhost"},
		IPs: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}, Validity: certs.Validity,
	})
	if err != nil {
		return nil, err
	}
	if s.TLS {
		// Clients read these.
		plan := certs.Plan{Dir: s.Dir}
		if err := plan.Issue(ca, pki.KindOperator, certs.OperatorFile, certs.OperatorFile); err != nil {
			return nil, err
		}
		if err := files.WritePublic(filepath.Join(s.Dir, certs.CAFile), ca.CertPEM()); err != nil {
			return nil, err
		}
	}
	return &node.Identity{Cert: cert, Key: key, CA: ca.CertPEM()}, nil
}

// mayTake refuses a directory that contains something else, such as that of a
// server.
func (s *Single) mayTake() error {
	there, err := os.ReadDir(s.Dir)
	if err != nil || len(there) == 0 {
		return err
	}
	return fmt.Errorf("%s is not empty, and does not belong to a development server, as it has no %s; use another directory", s.Dir, secretsFile)
}

// allRegions returns the requested Regions.
func (s *Single) allRegions() []string {
	return (&secrets{Region: s.Region, Regions: s.Regions}).allRegions()
}

// Open initialises the node, if necessary, and unseals it.
func (s *Single) Open(ctx context.Context, n *node.Node) error {
	op := ceremony.Operator{Name: "root", SourceIP: "127.0.0.1"}
	if s.secrets.AccessKeyID == "" {
		return s.init(ctx, n, op)
	}
	// The state has been read from disk once the node is the leader.
	err := Poll(ctx, func() (bool, error) { return n.Engine().SealStatus().Initialised, nil })
	if err != nil {
		return fmt.Errorf("%s was initialised before, but its state could not be read back: %w", s.Dir, err)
	}
	for _, share := range s.secrets.Shares {
		if !n.Engine().Sealed() {
			break
		}
		if _, err := n.Engine().SubmitShare(ctx, op, share); err != nil {
			return fmt.Errorf("unsealing: %w", err)
		}
	}
	return nil
}

// init initialises the cluster and keeps the secrets that unseal it again.
func (s *Single) init(ctx context.Context, n *node.Node, op ceremony.Operator) error {
	var res *ceremony.InitResult
	params := ceremony.InitParams{
		Shares: 1, Threshold: 1, Account: s.secrets.Account, Regions: s.secrets.allRegions(), AnyRegion: true, KeepUnsealed: true,
		ClusterID: s.ClusterID,
	}
	err := whenLed(ctx, func() (err error) {
		res, err = n.Engine().Init(ctx, op, params)
		return err
	}, func(err error) bool {
		return errors.Is(err, kmsapi.ErrUnavailable) || errors.Is(err, ceremony.ErrNotReady)
	})
	if errors.Is(err, ceremony.ErrInitialised) {
		return fmt.Errorf("%s was initialised, but its share was not saved, as an earlier start was interrupted. It cannot be unsealed; remove it", s.Dir)
	}
	if err != nil {
		return fmt.Errorf("initialising: %w", err)
	}
	s.secrets.Keys = Keys{AccessKeyID: res.AccessKeyID, SecretAccessKey: res.SecretAccessKey, Shares: res.Shares, VerifierKey: res.VerifierKey}
	return s.secrets.save(s.Dir)
}

// InitKeys returns the secrets from the initialisation of the cluster, once the
// node is unsealed.
func (s *Single) InitKeys() Keys { return s.secrets.Keys }

// HomeRegion returns the default Region of the cluster, once its directory is
// prepared.
func (s *Single) HomeRegion() string { return s.secrets.Region }
