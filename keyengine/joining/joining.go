package joining

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/form"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/jointoken"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

const (
	// neededLevel is the feature level from which on a CA can be in the state.
	neededLevel = 2

	// DefaultTokenLife and MaxTokenLife are how long a token is valid by default and at most.
	DefaultTokenLife = time.Hour
	MaxTokenLife     = 24 * time.Hour
	minTokenLife     = time.Minute

	maxCertificate = 8 << 10
	maxRequest     = 4 << 10 // of the request for a certificate, in DER

	// A node answers joinBurst attempts at once, and joinRate a second: anybody can make them,
	// and few are needed.
	joinRate  = 2
	joinBurst = 10
	// joinTimeout bounds the use of a token.
	joinTimeout = 20 * time.Second
)

// CA signs certificates.
type CA interface {
	// Check returns an error if a CA, whose key is PKCS #8 in DER, does not match its key, is
	// not one that this node trusts, or is not valid at that time.
	Check(certificate, key []byte, now time.Time) error
	// Certify returns the certificate of a node for a public key, in DER, with the given host
	// names and IP addresses. It is not valid for longer than the CA's.
	Certify(certificate, key []byte, node string, names []string, public any, now time.Time) ([]byte, error)
}

// Members are the members of the cluster.
type Members interface {
	// Leads reports whether this node leads: only the leader adds members.
	Leads() bool
	// MayAdd returns an error if a node cannot be added, because its id or address is
	// malformed, or is or was that of a member. Add adds it without a vote.
	MayAdd(node, address string) error
	Add(ctx context.Context, node, address string) error
	// Has reports whether a node is a member at the address.
	Has(node, address string) bool
}

// Config configures a Service. Everything is required.
type Config struct {
	NodeID  string
	CA      CA
	Members Members
	Vault   *vault.Vault
	Replica record.Log
	Events  *record.Recorder
	Clock   record.Clock
	Log     *slog.Logger
	// Fresh returns a state with everything that was committed before the call.
	Fresh func(context.Context) (*fsm.State, error)
}

// Service makes join tokens and takes them, on one node. It is safe for concurrent use.
type Service struct {
	cfg      Config
	attempts *rate.Limiter
	turn     chan struct{} // held by the machine that joins

	mu       sync.Mutex
	receiver *keymat.Receiver // of CAs' keys
	made     time.Time
}

// New returns the Service of a node.
func New(cfg Config) *Service {
	return &Service{cfg: cfg, attempts: rate.NewLimiter(joinRate, joinBurst), turn: make(chan struct{}, 1)}
}

// TokenParams say what a token is for.
type TokenParams struct {
	Node, Address string
	// Names are further host names and IP addresses for the node's certificate.
	Names []string
	// Life is how long the token is valid, at most MaxTokenLife; 0 for DefaultTokenLife.
	Life time.Duration
}

func (p *TokenParams) check() error {
	if p.Life == 0 {
		p.Life = DefaultTokenLife
	}
	if p.Life < minTokenLife || p.Life > MaxTokenLife {
		return kmsapi.Errorf(kmsapi.ErrValidation, "A join token is valid from %v to %v.", minTokenLife, MaxTokenLife)
	}
	if len(p.Names) > jointoken.MaxNames {
		return kmsapi.Errorf(kmsapi.ErrValidation, "There can be %d names at most.", jointoken.MaxNames)
	}
	for _, n := range p.Names {
		if !validName(n) {
			return kmsapi.Errorf(kmsapi.ErrValidation, "%q is neither a host name nor an IP address.", n)
		}
	}
	return nil
}

// validName reports whether a name is an IP address or a host name.
func validName(n string) bool {
	if net.ParseIP(n) != nil {
		return true
	}
	if len(n) == 0 || len(n) > jointoken.MaxName {
		return false
	}
	for label := range strings.SplitSeq(n, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.Trim(label, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") != "" {
			return false
		}
	}
	return true
}

// CreateToken makes a token with which one machine can join as the given node. Errors:
// ErrNotInitialised, ErrNotUpgraded, ErrNotFound if the cluster has no CA, ErrValidation,
// ErrUnavailable.
func (s *Service) CreateToken(ctx context.Context, op ceremony.Operator, p TokenParams) (text string, expires time.Time, err error) {
	o, err := s.cfg.Vault.Current()
	if err != nil {
		return "", time.Time{}, err
	}
	if err := p.check(); err != nil {
		return "", time.Time{}, err
	}
	state, err := s.cfg.Fresh(ctx)
	if err != nil {
		return "", time.Time{}, err
	}
	c, _ := state.Cluster()
	if err := allowed(state, c); err != nil {
		return "", time.Time{}, err
	}
	if c.GetAuthority() == nil {
		return "", time.Time{}, errNoCA
	}
	if err := s.cfg.Members.MayAdd(p.Node, p.Address); err != nil {
		return "", time.Time{}, err
	}
	t := &jointoken.Token{
		Generation: vault.JoinGeneration(o), Cluster: [16]byte(c.Id), Authority: sha256.Sum256(c.Authority.Certificate),
		Expires: s.cfg.Clock.Now().Add(p.Life).Truncate(time.Second), Node: p.Node, Address: p.Address, Names: p.Names,
	}
	_, _ = rand.Read(t.ID[:]) // never fails: crypto/rand ends the process instead
	body := t.Body()
	mac, err := vault.JoinMAC(o, c, t.Generation, body)
	if err != nil {
		return "", time.Time{}, err
	}
	ev := op.Event("CreateJoinToken", c)
	ev.Parameters = append(fields(t), auditfield.TextList("names", p.Names), auditfield.Text("expires", t.Expires.UTC().Format(time.RFC3339)))
	if _, err := s.cfg.Events.Record(ctx, ev); err != nil {
		return "", time.Time{}, err
	}
	return jointoken.Encode(body, mac[:]), t.Expires, nil
}

// fields identify a token in records.
func fields(t *jointoken.Token) []*auditpb.Field {
	return []*auditpb.Field{auditfield.Text("nodeId", t.Node), auditfield.Text("peerAddress", t.Address), auditfield.Text("tokenId", hex.EncodeToString(t.ID[:]))}
}

func fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// Authority returns the CA's certificate in DER, for a machine that has a token and compares
// it with that. It is not a secret. Errors: ErrNotFound.
func (s *Service) Authority() ([]byte, error) {
	c, _ := s.cfg.Replica.State().Cluster()
	if a := c.GetAuthority(); a != nil {
		return slices.Clone(a.Certificate), nil
	}
	return nil, errNoCA
}

// Request is what a machine sends that wants to join.
type Request struct {
	Token string
	// CSR is a PKCS #10 request in DER. Only its public key is used.
	CSR       []byte
	SourceIP  string
	RequestID [16]byte
}

var (
	// errRefused is the answer to every token that is not good, whatever is wrong with it: a
	// stranger must not be able to find out whether one was genuine.
	errRefused  = kmsapi.Errorf(kmsapi.ErrAccessDenied, "The join token is refused. The cluster's logs say why.")
	errBusy     = kmsapi.Errorf(kmsapi.ErrThrottling, "Too many machines want to join at this moment. Try again.")
	errNoLeader = kmsapi.Errorf(kmsapi.ErrUnavailable, "This node does not lead. Ask another one.")
)

// Join lets a machine join, on the leader: the node of the token becomes a member without a
// vote, and its certificate, in DER, is returned. Until the token expires, the machine that
// used it gets another certificate for the same key if the answer was lost. Errors:
// ErrAccessDenied for whatever is wrong with the token, ErrThrottling, ErrUnavailable, and
// those of adding a member.
func (s *Service) Join(ctx context.Context, in *Request) (certificate []byte, node string, err error) {
	now := s.cfg.Clock.Now()
	if !s.attempts.AllowN(now, 1) {
		return nil, "", errBusy
	}
	o, err := s.cfg.Vault.Current()
	if err != nil {
		return nil, "", err
	}
	if !s.cfg.Members.Leads() {
		return nil, "", errNoLeader
	}
	// One at a time: of two tokens for one node, the second one finds a member.
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return nil, "", errBusy
	}
	state, err := s.cfg.Fresh(ctx)
	if err != nil {
		return nil, "", err
	}
	c, _ := state.Cluster()
	t, body, mac, err := jointoken.Parse(in.Token)
	if err == nil {
		err = vault.CheckJoinToken(o, c, t.Generation, body, mac)
	}
	if errors.Is(err, jointoken.ErrMalformed) || errors.Is(err, vault.ErrJoinToken) {
		// Anybody can send this, so it is not worth a record of the audit log.
		s.cfg.Log.Warn("a join token that the cluster did not issue was refused", "source", in.SourceIP, "err", err)
		return nil, "", errRefused
	}
	if err != nil {
		return nil, "", err
	}
	// No token is forgotten before cluster time has reached its end, so a leader whose clock
	// is behind must not take one that was.
	if of := time.Unix(0, state.Time()); now.Before(of) {
		now = of
	}
	// A machine that goes away now does not leave a token that is used without a member.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), joinTimeout)
	defer cancel()
	j := &join{s: s, in: in, token: t}
	certificate, err = j.run(ctx, o, state, now)
	if err != nil {
		return nil, "", err
	}
	return certificate, t.Node, nil
}

// join is the use of a token that the cluster has issued.
type join struct {
	s     *Service
	in    *Request
	token *jointoken.Token
	key   [32]byte // hash of the public key
}

func (j *join) run(ctx context.Context, o *vault.Opened, state *fsm.State, now time.Time) ([]byte, error) {
	s, c := j.s, j.cluster(state)
	public, why := j.publicKey()
	switch {
	case why != "":
	case !now.Before(j.token.Expires):
		why = "it has expired"
	case allowed(state, c) != nil || !j.authority(c):
		why = "the cluster does not have that CA any more"
	case j.token.Cluster != [16]byte(c.Id):
		why = "it is of another cluster"
	}
	if why != "" {
		return nil, j.refuse(ctx, state, why)
	}
	// Before the token is used: what fails here can be tried again.
	var certificate []byte
	host, _, _ := net.SplitHostPort(j.token.Address)
	err := vault.WithAuthority(o, c.Authority, func(key []byte) (err error) {
		certificate, err = s.cfg.CA.Certify(c.Authority.Certificate, key, j.token.Node, append([]string{host}, j.token.Names...), public, now)
		return err
	})
	if err != nil {
		return nil, err
	}
	if again, why := j.used(c); why != "" {
		return nil, j.refuse(ctx, state, why)
	} else if again {
		return certificate, s.record(ctx, j.event(state, "end"))
	}
	if err := s.cfg.Members.MayAdd(j.token.Node, j.token.Address); err != nil {
		return nil, j.refuse(ctx, state, err.Error())
	}
	if err := j.use(ctx); err != nil {
		return nil, err
	}
	err = s.cfg.Members.Add(ctx, j.token.Node, j.token.Address)
	ended := j.event(state, "end")
	ended.Err, ended.RequestID, ended.At = err, [16]byte{}, s.cfg.Clock.Now()
	if recorded := s.record(ctx, ended); err == nil {
		err = recorded
	}
	if err != nil {
		return nil, err
	}
	s.cfg.Log.Warn("a node joined with a token", "peer", j.token.Node, "address", j.token.Address, "source", j.in.SourceIP)
	return certificate, nil
}

func (j *join) cluster(state *fsm.State) *fsmpb.Cluster {
	c, _ := state.Cluster()
	return c
}

// authority reports whether the cluster has the CA that the token names.
func (j *join) authority(c *fsmpb.Cluster) bool {
	return c.GetAuthority() != nil && sha256.Sum256(c.Authority.Certificate) == j.token.Authority
}

// publicKey returns the key of the request, whose sender has proved to have the private key.
func (j *join) publicKey() (key any, why string) {
	if len(j.in.CSR) == 0 || len(j.in.CSR) > maxRequest {
		return nil, "the request for a certificate is empty or too long"
	}
	r, err := x509.ParseCertificateRequest(j.in.CSR)
	if err == nil {
		err = r.CheckSignature()
	}
	if err != nil {
		return nil, fmt.Sprintf("the request for a certificate is malformed: %v", err)
	}
	if k, ok := r.PublicKey.(*ecdsa.PublicKey); !ok || k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
		return nil, "the key is not ECDSA on P-256 or P-384"
	}
	j.key = sha256.Sum256(r.RawSubjectPublicKeyInfo)
	return r.PublicKey, ""
}

// used reports whether this machine has used the token before and its node is a member. why
// says that the token is used up.
func (j *join) used(c *fsmpb.Cluster) (again bool, why string) {
	i := slices.IndexFunc(c.GetUsedJoinTokens(), func(u *fsmpb.UsedJoinToken) bool { return string(u.GetId()) == string(j.token.ID[:]) })
	switch {
	case i < 0:
		return false, ""
	case string(c.UsedJoinTokens[i].GetKeyHash()) != string(j.key[:]):
		return false, "it was used before, by another machine"
	case !j.s.cfg.Members.Has(j.token.Node, j.token.Address):
		return false, "it was used before, and its node is not a member"
	}
	return true, ""
}

// use notes in the state that the token is used. Of several attempts, on whichever nodes, one
// succeeds.
func (j *join) use(ctx context.Context) error {
	var refused string
	d, err := j.s.cfg.Events.ChangeCluster(ctx, func(state *fsm.State) (record.Event, error) {
		c, version := state.Cluster()
		if again, why := j.used(c); again || why != "" || !j.authority(c) {
			refused = "it was used at the same time, or the CA was replaced"
			return record.Event{}, errRefused
		}
		c = proto.CloneOf(c)
		c.UsedJoinTokens = slices.DeleteFunc(c.UsedJoinTokens, func(u *fsmpb.UsedJoinToken) bool { return u.GetExpires() <= state.Time() })
		if len(c.UsedJoinTokens) >= form.MaxUsedTokens {
			return record.Event{}, kmsapi.Errorf(kmsapi.ErrLimitExceeded, "Too many join tokens were used within a day. Try again later.")
		}
		c.UsedJoinTokens = append(c.UsedJoinTokens, &fsmpb.UsedJoinToken{Id: j.token.ID[:], KeyHash: j.key[:], Expires: j.token.Expires.UnixNano()})
		ev := j.event(state, "begin")
		ev.ReplaceCluster(version, c)
		return ev, nil
	})
	if refused != "" {
		return j.refuse(ctx, j.s.cfg.Replica.State(), refused)
	}
	if err != nil {
		return err
	}
	return j.wait(ctx, d.Index)
}

func (j *join) wait(ctx context.Context, index uint64) error {
	if err := j.s.cfg.Replica.WaitApplied(ctx, index); err != nil {
		return record.Unavailable(err)
	}
	return nil
}

// event returns an event about the token.
func (j *join) event(state *fsm.State, phase string) record.Event {
	ev := record.ServiceEvent("JoinNode", j.s.cfg.Clock.Now())
	ev.Kind, ev.RequestID, ev.SourceIP, ev.Transport = record.KindOperator, j.in.RequestID, j.in.SourceIP, "grpc"
	ev.Parameters = append([]*auditpb.Field{auditfield.Text("phase", phase)}, fields(j.token)...)
	ev.Parameters = append(ev.Parameters, auditfield.Text("publicKeySha256", hex.EncodeToString(j.key[:])))
	return ev
}

// refuse records why a token of the cluster was refused, and returns the answer.
func (j *join) refuse(ctx context.Context, state *fsm.State, why string) error {
	j.s.cfg.Log.Warn("a join token was refused", "peer", j.token.Node, "address", j.token.Address, "source", j.in.SourceIP, "why", why)
	ev := j.event(state, "refused")
	ev.Parameters = append(ev.Parameters, auditfield.Text("reason", why))
	ev.Err = errRefused
	if err := j.s.record(ctx, ev); err != nil {
		return err
	}
	return errRefused
}

func (s *Service) record(ctx context.Context, ev record.Event) error {
	_, err := s.cfg.Events.Record(ctx, ev)
	return err
}
