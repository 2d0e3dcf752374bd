package ceremony

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/level"
	"github.com/conclavekms/conclave/keyengine/custodian"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/internal/shamir"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

// maxShares is the maximum number of custodians.
const maxShares = 16

// MaxRegions is the maximum number of Regions, which is more than AWS has. A record has at
// most 128 reads, and a Decrypt whose ciphertext names an unknown key adds two for each
// Region: that the key is not there, and that it was not there before.
const MaxRegions = 40

// InitParams describes a new cluster. Account, Region and Partition are part of the ARN of
// every key and never change.
type InitParams struct {
	// Shares is the number of custodians, 1 to 16, and Threshold how many of them are
	// needed to unseal a node. Threshold must be at least 2 if Shares is more than 1: with
	// a threshold of 1, every share would be the whole key.
	// Shares may be 0 if Custodians are given, whose number it then is.
	Shares    int
	Threshold int
	// Custodians keep the shares, in this order. Each share is encrypted to the key of its
	// custodian, and none is returned in another form. Without them, shares are returned
	// like the root user's secret.
	Custodians []CustodianKey
	// Account consists of 12 digits.
	Account string
	// Region consists of lower-case letters, digits and single hyphens, such as eu-west-1.
	Region string
	// Regions are all Regions of the cluster, the default one first; Region may then be
	// left empty. If Regions is empty, Region is the only one. Several Regions must have
	// names of AWS's form, or ReplicateKey could not name them.
	Regions []string
	// Partition is "aws" or begins with "aws-"; the default is "aws".
	Partition string
	// AnyRegion accepts requests that clients have signed for any Region.
	AnyRegion bool
	// RootCertificate is the URI of a client certificate that authenticates the account's
	// root user, in addition to the access key. It may be empty.
	RootCertificate string
	// ClusterID is random if zero. Development servers that use the same seeds use the same
	// id too, as ciphertexts contain it.
	ClusterID [16]byte
	// KeepUnsealed leaves this node unsealed after Init, for development and trials.
	KeepUnsealed bool
	// AnswerKey is the public key that the secrets are encrypted to, as by keymat.SealTo.
	// Without it they are returned in the clear, which is for programs that run the node in
	// their own process.
	AnswerKey []byte

	keepers []custodian.Custodian // with the keys of Custodians
}

// InitResult is the result of Init. Its secrets are not stored anywhere else. Formatting
// and logging leave them out.
type InitResult struct {
	ClusterID   string
	AccessKeyID string
	// SealedSecrets is a kmspb.InitSecrets with the shares and the secret access key,
	// encrypted to the answer key.
	SealedSecrets []byte
	// EncryptedShares are the shares if there are Custodians, in their order. They are no
	// secrets.
	EncryptedShares []EncryptedShare
	ShareSet        *ShareSet
	// Shares, one for each custodian, and SecretAccessKey are set if there is no answer
	// key. There are no Shares if there are EncryptedShares.
	Shares          []string
	SecretAccessKey string
	RootARN         string
	// VerifierKey verifies the audit log's checkpoints; see verify.Dir in auditlog/verify.
	VerifierKey string
}

// String returns the result without its secrets, and so do the other formatting methods.
func (r InitResult) String() string {
	return fmt.Sprintf("{ClusterID:%s Shares:%s AccessKeyID:%s SecretAccessKey:%s RootARN:%s}", r.ClusterID, redacted, r.AccessKeyID, redacted, r.RootARN)
}
func (r InitResult) GoString() string           { return r.String() }
func (r InitResult) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, r.String()) }
func (r InitResult) LogValue() slog.Value       { return slog.StringValue(r.String()) }

func (p *InitParams) check(clock record.Clock) error {
	var bad []string
	p.keepers, p.Shares, bad = parseCustodians(p.Custodians, p.Shares, clock)
	bad = append(bad, checkShares(p.Shares, p.Threshold)...)
	if len(p.Account) != 12 || strings.Trim(p.Account, "0123456789") != "" {
		bad = append(bad, "the account must be 12 digits")
	}
	bad = append(bad, p.checkRegions()...)
	if p.Partition == "" {
		p.Partition = "aws"
	}
	if _, err := policy.ParsePrincipal(request.RootARN(p.Partition, "000000000000")); err != nil {
		bad = append(bad, "the partition must be aws or begin with aws-")
	}
	if p.RootCertificate != "" {
		if u, err := url.Parse(p.RootCertificate); err != nil || u.Scheme == "" || len(p.RootCertificate) > vault.MaxCredentialID {
			bad = append(bad, fmt.Sprintf("the root certificate must be given by its URI of at most %d bytes", vault.MaxCredentialID))
		} else if u.Scheme == "conclave" && u.Host == "node" {
			bad = append(bad, "a node's certificate cannot be the root user's")
		}
	}
	if p.AnswerKey != nil {
		if _, err := keymat.SealTo(p.AnswerKey, nil, nil); err != nil {
			bad = append(bad, "the answer key must be an uncompressed point on P-256")
		}
	}
	if bad == nil {
		return nil
	}
	return kmsapi.Errorf(kmsapi.ErrValidation, "Cannot initialise: %s.", strings.Join(bad, "; "))
}

// checkShares checks the numbers of a share set.
func checkShares(shares, threshold int) (bad []string) {
	if shares < 1 || shares > maxShares {
		bad = append(bad, fmt.Sprintf("shares must be 1 to %d", maxShares))
	}
	if threshold < 1 || threshold > shares {
		bad = append(bad, "the threshold must be 1 to the number of shares")
	}
	if threshold == 1 && shares > 1 {
		bad = append(bad, "a threshold of 1 with several shares gives each custodian the whole key")
	}
	return bad
}

// checkRegions sets Region from Regions, or Regions from Region.
func (p *InitParams) checkRegions() (bad []string) {
	if len(p.Regions) == 0 {
		p.Regions = []string{p.Region}
	}
	if p.Region == "" {
		p.Region = p.Regions[0]
	}
	if p.Region != p.Regions[0] {
		bad = append(bad, "the region must be the first of the regions")
	}
	if len(p.Regions) > MaxRegions {
		bad = append(bad, fmt.Sprintf("there can be %d regions at most", MaxRegions))
	}
	seen := make(map[string]bool)
	for _, r := range p.Regions {
		if !isRegion(r) {
			bad = append(bad, "the region must be 1 to 32 lower-case letters, digits and single hyphens, and begin with a letter")
		} else if len(p.Regions) > 1 && !kmsapi.PatternOf("region").Match(r) {
			bad = append(bad, "one of several regions must have a name like eu-west-1")
		}
		if seen[r] {
			bad = append(bad, "the regions must differ")
		}
		seen[r] = true
	}
	return slices.Compact(bad)
}

func isRegion(r string) bool {
	if r == "" || len(r) > 32 || r[0] < 'a' || r[0] > 'z' || r[len(r)-1] == '-' || strings.Contains(r, "--") {
		return false
	}
	return strings.Trim(r, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// Init initialises the cluster: it creates the key hierarchy, splits the unseal key into
// shares, creates the account's root access key and the key that signs checkpoints, and
// commits all of this with its record. If the record is not accepted, nothing has been
// created. Afterwards this node is sealed like all others, unless KeepUnsealed is set.
// Errors: ErrValidation, ErrInitialised, ErrNotReady, ErrUnavailable.
func (r *Ceremonies) Init(ctx context.Context, op Operator, p InitParams) (*InitResult, error) {
	if err := p.check(r.cfg.Clock); err != nil {
		return nil, err
	}
	r.initialising.Lock()
	defer r.initialising.Unlock()
	if err := r.cfg.Replica.Barrier(ctx); err != nil {
		return nil, record.Unavailable(err)
	}
	s := r.cfg.Replica.State()
	if c, _ := s.Cluster(); c != nil {
		return nil, errInitialised
	}
	if err := ready(s); err != nil {
		return nil, err
	}
	var f *initialisation
	var err error
	keymat.Scrub(func() { f, err = r.makeCluster(p) })
	if err != nil {
		return nil, fmt.Errorf("making the cluster's keys: %w", err)
	}
	defer f.wipe()
	ev := op.Event("Init", f.cluster)
	ev.Parameters = []*auditpb.Field{
		auditfield.Number("shares", p.Shares), auditfield.Number("threshold", p.Threshold), auditfield.Text("account", p.Account), auditfield.Text("region", p.Region),
		auditfield.Text("partition", p.Partition), auditfield.Flag("anyRegion", p.AnyRegion),
	}
	if f.result.EncryptedShares != nil {
		ev.Parameters = append(ev.Parameters, custodianFields(f.result.ShareSet.Custodians)...)
	}
	if len(p.Regions) > 1 {
		ev.Parameters = append(ev.Parameters, auditfield.TextList("regions", p.Regions))
	}
	if p.RootCertificate != "" {
		ev.Parameters = append(ev.Parameters, auditfield.Text("rootCertificate", p.RootCertificate))
	}
	ev.Response = []*auditpb.Field{auditfield.Text("clusterId", record.ClusterID(f.cluster)), auditfield.Text("accessKeyId", f.result.AccessKeyID)}
	// The read set requires that there is no cluster yet, so of two concurrent calls one
	// fails.
	ev.Reads = []*fsmpb.Read{{Kind: fsmpb.Kind_KIND_CLUSTER}}
	ev.Changes = append(ev.Changes, &fsmpb.Change{Change: &fsmpb.Change_PutCluster{PutCluster: f.cluster}})
	for _, c := range f.credentials {
		ev.Changes = append(ev.Changes, &fsmpb.Change{Change: &fsmpb.Change_PutCredential{PutCredential: c}})
	}
	rec, err := record.Build(f.opened, r.cfg.NodeID, r.cfg.Clock.Now(), f.cluster, level.Oldest, &ev)
	if err != nil {
		return nil, err
	}
	d, err := r.cfg.Replica.Propose(ctx, rec)
	if errors.Is(err, fsm.ErrOutcomeUnknown) {
		err = r.isInitialised(ctx, f.cluster)
		d.Verdict = fsm.Accepted
	}
	if err != nil {
		// A sealed leader rejects an initialisation if there was one before.
		if c, _ := r.cfg.Replica.State().Cluster(); c != nil && !slices.Equal(c.Id, f.cluster.Id) {
			return nil, errInitialised
		}
	}
	switch {
	case err != nil:
		return nil, record.Unavailable(err)
	case d.Verdict == fsm.Conflict:
		return nil, errInitialised
	case d.Verdict != fsm.Accepted:
		return nil, fmt.Errorf("record of Init found %v", d.Verdict)
	}
	if p.KeepUnsealed && r.cfg.Vault.Install(f.opened) {
		f.opened = nil // now owned by the vault
	}
	r.cfg.Log.Info("cluster initialised", "cluster", f.result.ClusterID, "shares", p.Shares, "threshold", p.Threshold, "operator", op.Name)
	// Wait, so that the operator can unseal this node right away.
	if err := r.cfg.Replica.WaitApplied(ctx, d.Index); err != nil {
		r.cfg.Log.Warn("the cluster is initialised, but this node is behind", "err", err)
	}
	return f.result, nil
}

var errInitialised = kmsapi.Errorf(ErrInitialised, "The cluster is already initialised.")

// ready returns an error unless every voter is registered. A cluster must not be
// initialised while some of its nodes are missing.
func ready(s *fsm.State) error {
	voters := s.Voters()
	if len(voters) == 0 {
		return kmsapi.Errorf(ErrNotReady, "The cluster is not formed yet: no node votes.")
	}
	var missing []string
	for _, id := range voters {
		if n, _ := s.Node(id); n == nil {
			missing = append(missing, id)
		}
	}
	if missing != nil {
		return kmsapi.Errorf(ErrNotReady, "Not every node has joined yet; waiting for %s.", strings.Join(missing, ", "))
	}
	return nil
}

// isInitialised determines whether the cluster was initialised with these keys, retrying
// until ctx ends. A wrong answer could leave a cluster whose shares were never handed out.
func (r *Ceremonies) isInitialised(ctx context.Context, want *fsmpb.Cluster) error {
	for {
		if r.cfg.Replica.Barrier(ctx) == nil {
			if c, _ := r.cfg.Replica.State().Cluster(); c != nil && slices.Equal(c.Id, want.Id) {
				return nil
			} else if c != nil {
				return errInitialised
			}
		}
		// The record may still be in flight.
		select {
		case <-ctx.Done():
			return kmsapi.Errorf(kmsapi.ErrUnavailable, "Whether the cluster was initialised is not known. If its status shows cluster %s, "+
				"its shares are lost: clear the nodes' data and initialise again.", record.ClusterID(want))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// initialisation holds everything that Init creates.
type initialisation struct {
	opened      *vault.Opened
	cluster     *fsmpb.Cluster
	credentials []*fsmpb.Credential
	result      *InitResult
}

func (f *initialisation) wipe() {
	if f.opened != nil {
		f.opened.Wipe()
	}
}

// makeCluster creates the keys of a new cluster, in the arena.
func (r *Ceremonies) makeCluster(p InitParams) (_ *initialisation, err error) {
	now := record.Now(r.cfg.Replica.State(), r.cfg.Clock).UnixNano()
	var cluster, set [16]byte
	_, _ = rand.Read(cluster[:]) // never fails: crypto/rand ends the process instead
	_, _ = rand.Read(set[:])
	if p.ClusterID != ([16]byte{}) {
		cluster = p.ClusterID
	}
	arena := r.cfg.Vault.Arena()
	f := new(initialisation)
	defer func() {
		if err != nil {
			f.wipe()
		}
	}()

	c := &fsmpb.Cluster{
		Id: cluster[:], Account: p.Account, Region: p.Region, MoreRegions: slices.Sorted(slices.Values(p.Regions[1:])),
		Partition: p.Partition, Created: now, AnyRegion: p.AnyRegion,
		Shares: &fsmpb.ShareSet{Id: set[:], Epoch: 1, Threshold: uint32(p.Threshold), Count: uint32(p.Shares)},
	}
	f.cluster = c
	var unseal *keymat.Secret
	if f.opened, unseal, err = r.cfg.Vault.Initialise(c); err != nil {
		return nil, err
	}
	defer unseal.Destroy()

	f.result = &InitResult{ClusterID: record.ClusterID(c), RootARN: request.RootARN(p.Partition, p.Account)}
	shares, err := deal(arena, unseal, c)
	if err != nil {
		return nil, err
	}
	defer shares.Destroy()
	f.result.VerifierKey = record.VerifierKey(c)

	account, ok := fsm.ParseAccount(p.Account)
	if !ok {
		return nil, fmt.Errorf("%q is no account id", p.Account)
	}
	key, secret, err := iam.NewAccessKey(arena, f.opened, account, f.result.RootARN, now, 0)
	if err != nil {
		return nil, err
	}
	defer secret.Destroy()
	f.result.AccessKeyID = key.Id
	if err := f.hand(arena, shares, secret, p); err != nil {
		return nil, err
	}
	f.result.ShareSet = publicSet(c.Id, c.Shares)
	for _, s := range f.result.EncryptedShares {
		f.result.ShareSet.Custodians = append(f.result.ShareSet.Custodians, s.Custodian)
	}
	f.credentials = []*fsmpb.Credential{key}
	if p.RootCertificate != "" {
		cert := &fsmpb.Credential{
			Account: uint64(account), Id: p.RootCertificate, Kind: fsmpb.CredentialKind_CREDENTIAL_KIND_CERTIFICATE, Principal: f.result.RootARN, Active: true, Created: now,
		}
		if err := f.opened.SignCredential(cert); err != nil {
			return nil, err
		}
		f.credentials = append(f.credentials, cert)
	}
	return f, nil
}

// deal splits the unseal key into the shares of the cluster's set, to which it adds the
// commitments. It verifies the shares, since shares that do not work would be discovered only
// when they are needed. It returns the texts of the shares, concatenated.
func deal(arena *keymat.Arena, unseal *keymat.Secret, c *fsmpb.Cluster) (texts *keymat.Secret, err error) {
	set := shamir.SetInfo{Cluster: [16]byte(c.Id), Set: [16]byte(c.Shares.Id), Threshold: int(c.Shares.Threshold), Count: int(c.Shares.Count)}
	err = unseal.With(func(secret []byte) error {
		shares, err := shamir.Split(rand.Reader, secret, set)
		if err != nil {
			return err
		}
		defer func() {
			for _, s := range shares {
				s.Wipe()
			}
		}()
		if err := shamir.VerifyShares(secret, shares); err != nil {
			return fmt.Errorf("checking the shares: %w", err)
		}
		for _, b := range shamir.Commitments(shares) {
			c.Shares.Commitments = append(c.Shares.Commitments, b[:])
		}
		texts, err = arena.Fill(len(shares)*shamir.TextSize, func(dst []byte) error {
			for i, s := range shares {
				s.AppendText(dst[:i*shamir.TextSize])
			}
			return nil
		})
		return err
	})
	return texts, err
}

// Field numbers of kmspb.InitSecrets.
const (
	initShares protowire.Number = 1
	initSecret protowire.Number = 2
)

// initInfo binds the secrets of an initialisation to the cluster.
func initInfo(clusterID string) []byte { return []byte("conclave init v1\x00" + clusterID) }

// hand puts the secrets into the result, encrypted if there is an answer key.
func (f *initialisation) hand(arena *keymat.Arena, shares, secret *keymat.Secret, p InitParams) (err error) {
	if p.keepers != nil {
		if f.result.EncryptedShares, err = encryptShares(shares, p.keepers); err != nil {
			return err
		}
		shares = nil // nobody gets them in the clear
	}
	if p.AnswerKey != nil {
		f.result.SealedSecrets, err = sealSecrets(arena, shares, secret, p.AnswerKey, initInfo(f.result.ClusterID))
		return err
	}
	return eachSecret(shares, secret, func(n protowire.Number, b []byte) {
		if n == initShares {
			f.result.Shares = append(f.result.Shares, string(b))
		} else {
			f.result.SecretAccessKey = string(b)
		}
	})
}

// eachSecret calls fn with each field of a kmspb.InitSecrets: the shares, whose texts are
// concatenated, unless they are nil, and the secret unless it is nil.
func eachSecret(shares, secret *keymat.Secret, fn func(number protowire.Number, b []byte)) error {
	if shares != nil {
		err := shares.With(func(texts []byte) error {
			for t := range slices.Chunk(texts, shamir.TextSize) {
				fn(initShares, t)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if secret == nil {
		return nil
	}
	return secret.With(func(b []byte) error {
		fn(initSecret, b)
		return nil
	})
}

// sealSecrets returns a kmspb.InitSecrets, encrypted to an answer key.
func sealSecrets(arena *keymat.Arena, shares, secret *keymat.Secret, answerKey, info []byte) (sealed []byte, err error) {
	size := 0
	if err := eachSecret(shares, secret, func(n protowire.Number, b []byte) { size += protowire.SizeTag(n) + protowire.SizeBytes(len(b)) }); err != nil {
		return nil, err
	}
	message, err := arena.Fill(size, func(dst []byte) error {
		dst = dst[:0]
		return eachSecret(shares, secret, func(n protowire.Number, b []byte) {
			dst = protowire.AppendBytes(protowire.AppendTag(dst, n, protowire.BytesType), b)
		})
	})
	if err != nil {
		return nil, err
	}
	defer message.Destroy()
	err = message.With(func(b []byte) error {
		sealed, err = keymat.SealTo(answerKey, info, b)
		return err
	})
	return sealed, err
}
