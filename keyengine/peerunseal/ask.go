package peerunseal

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/origin"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/shamir"
	"github.com/conclavekms/conclave/keyengine/peerunseal/peerunsealpb"
)

// session is what a sealed node asks for, and what it has got so far.
type session struct {
	id       [32]byte
	began    time.Time
	cluster  *fsmpb.Cluster
	receiver *keymat.Receiver
	answer   *peerunsealpb.Answer // without the fields of one challenge
	nonces   map[string][]byte    // by peer; each is good for one part
	shares   map[string]*keymat.Secret
	keyring  []*fsmpb.WrappedKEK
}

func (s *session) wipe() {
	if s == nil {
		return
	}
	s.receiver.Destroy()
	for _, share := range s.shares {
		share.Destroy()
	}
	clear(s.shares)
}

// end ends the session, if there is one.
func (s *Service) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.session.wipe()
	s.session, s.status = nil, ""
}

var errNotAsking = errors.New("this node has not asked to be unsealed")

// begin returns the session to ask in, a new one if the last is too old or does not fit any
// more.
func (s *Service) begin(c *fsmpb.Cluster) (*session, error) {
	peers := s.cfg.Peers.Others()
	newest := c.Keyring[len(c.Keyring)-1].Generation
	agreements := c.PeerUnseal.Agreements
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.session; o != nil && time.Since(o.began) < sessionAge && o.answer.Generation == newest && o.answer.Agreements == agreements && slices.Equal(o.answer.Peers, peers) {
		return o, nil
	}
	s.session.wipe()
	s.session = nil
	r, err := keymat.NewReceiver(s.cfg.Vault.Arena())
	if err != nil {
		return nil, err
	}
	n := &session{
		began: time.Now(), cluster: c, receiver: r, nonces: make(map[string][]byte), shares: make(map[string]*keymat.Secret),
		answer: &peerunsealpb.Answer{Key: r.Public(), Generation: newest, Agreements: agreements, Peers: peers},
	}
	n.id = sessionID(c, s.cfg.NodeID, s.cfg.Peers.Incarnation(), n.answer)
	s.session = n
	return n, nil
}

// ask asks all peers that have not given their parts yet.
func (s *Service) ask(ctx context.Context, c *fsmpb.Cluster) {
	need := int(c.PeerUnseal.Agreements)
	waiting := func(format string, args ...any) {
		s.setStatus("peer-assisted unseal: " + fmt.Sprintf(format, args...))
	}
	if err := s.hasKey(c); err != nil {
		s.end()
		waiting("%v", err)
		return
	}
	if n := len(s.cfg.Peers.Others()); n < need || len(c.Keyring) == 0 {
		waiting("%d peers have to agree, and there are only %d", need, n)
		return
	}
	on, err := s.begin(c)
	if err != nil {
		waiting("%v", err)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var mu sync.Mutex
	said := make(map[string]string)
	var asked sync.WaitGroup
	for _, peer := range on.answer.Peers {
		if s.has(on, peer) {
			continue
		}
		asked.Go(func() {
			refusal, err := s.cfg.Peers.Ask(ctx, peer, on.id)
			if err != nil {
				refusal = err.Error()
			}
			if refusal != "" {
				mu.Lock()
				defer mu.Unlock()
				said[peer] = peer + ": " + refusal
			}
		})
	}
	asked.Wait()
	if !s.cfg.Vault.Sealed() || ctx.Err() != nil {
		return
	}
	have := 0
	for _, peer := range on.answer.Peers {
		if s.has(on, peer) {
			have++
		}
	}
	text := fmt.Sprintf("%d of %d peers agreed", have, need)
	for _, peer := range slices.Sorted(maps.Keys(said)) {
		text += "; " + said[peer]
	}
	waiting("%s", text)
}

func (s *Service) has(on *session, peer string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return on.shares[peer] != nil
}

// hasKey returns an error if the peers cannot know this node.
func (s *Service) hasKey(c *fsmpb.Cluster) error {
	public := returnKeyOf(c, s.cfg.NodeID)
	if public == nil {
		return errors.New("the custodians have to unseal this node once, so that its peers know it")
	}
	s.keys.Lock()
	defer s.keys.Unlock()
	k, err := loadKeys(s.cfg.Peers)
	if err != nil {
		return err
	}
	defer k.wipe()
	if !k.find(public, func(ed25519.PrivateKey) {}) {
		return errors.New("this node does not have the return key that its peers know: it was sealed by an operator, or its files are not the newest ones. The custodians have to unseal it")
	}
	return nil
}

// Answer returns the answer to a peer's nonce. A peer can have one challenge at a time, and
// each answers one nonce only, so a part that is sent again is refused.
func (s *Service) Answer(peer string, nonce []byte) (id [32]byte, answer []byte, err error) {
	s.mu.Lock()
	on := s.session
	if on == nil || !slices.Contains(on.answer.Peers, peer) || on.shares[peer] != nil {
		s.mu.Unlock()
		return id, nil, errNotAsking
	}
	on.nonces[peer] = slices.Clone(nonce)
	a := proto.CloneOf(on.answer)
	id, c := on.id, on.cluster
	s.mu.Unlock()

	s.keys.Lock()
	defer s.keys.Unlock()
	k, err := loadKeys(s.cfg.Peers)
	if err != nil {
		return id, nil, err
	}
	defer k.wipe()
	public := returnKeyOf(c, s.cfg.NodeID)
	if !k.find(public, func(key ed25519.PrivateKey) {
		a.ReturnKey, a.Signature = public, ed25519.Sign(key, answerDigest(id, s.cfg.NodeID, peer, nonce))
	}) {
		return id, nil, errNotAsking
	}
	answer, err = proto.Marshal(a)
	return id, answer, err
}

// Accept takes a peer's part. The one that completes the session unseals the node.
func (s *Service) Accept(_ context.Context, peer string, nonce, encoded []byte) error {
	p := new(peerunsealpb.Part)
	if err := decode(encoded, maxPart, p); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	on := s.session
	if on == nil || on.nonces[peer] == nil || !slices.Equal(on.nonces[peer], nonce) {
		return errNotAsking
	}
	delete(on.nonces, peer)
	at := slices.Index(on.answer.Peers, peer)
	if int(p.Number) != at+1 || len(p.Keyring) == 0 || slices.Contains(p.Keyring, nil) {
		return errMalformed
	}
	// Only an unsealed node can make a part. A sealed one whose identity was stolen could
	// otherwise spoil every session.
	if !origin.Verify(on.cluster, p.Generation, partDomain, partDigest(on.id, s.cfg.NodeID, peer, nonce, p), p.Signature) {
		return errors.New("the part is not from an unsealed node of this cluster")
	}
	share, err := on.receiver.Open(shareInfo(on.id, s.cfg.NodeID, peer, nonce), p.Sealed)
	if err != nil {
		return err
	}
	on.shares[peer] = share
	on.keyring = on.keyring[:0]
	for _, g := range p.Keyring {
		on.keyring = append(on.keyring, &fsmpb.WrappedKEK{Generation: g.Generation, Wrapped: g.Wrapped})
	}
	if len(on.shares) < int(on.answer.Agreements) {
		return nil
	}
	return s.openLocked(on)
}

// openLocked unseals the node with the shares of a session, and ends it.
func (s *Service) openLocked(on *session) error {
	defer func() {
		on.wipe()
		s.session = nil
	}()
	var err error
	keymat.Scrub(func() {
		var key *keymat.Secret
		if key, err = on.combine(s.cfg.Vault.Arena()); err != nil {
			return
		}
		defer key.Destroy()
		err = s.cfg.Vault.OpenKeyring(on.cluster, key, on.keyring)
	})
	if err != nil {
		s.cfg.Log.Error("the peers agreed to unseal this node, but what they sent does not", "err", err)
		return err
	}
	s.was, s.status = true, ""
	by := slices.Sorted(maps.Keys(on.shares))
	s.cfg.Log.Info("node unsealed by its peers", "peers", strings.Join(by, ","), "session", sessionText(on.id))
	s.cfg.Events.Pending.Add(record.ServiceEvent("UnsealByPeers", s.cfg.Clock.Now(),
		auditfield.Text("node", s.cfg.NodeID), auditfield.TextList("peers", by), auditfield.Text("session", sessionText(on.id))))
	return nil
}

// combine returns the session's key.
func (s *session) combine(arena *keymat.Arena) (*keymat.Secret, error) {
	want := shamir.SetInfo{Cluster: [16]byte(s.cluster.Id), Set: [16]byte(s.id[:16]), Threshold: int(s.answer.Agreements), Count: len(s.answer.Peers)}
	var shares []shamir.Share
	defer func() {
		for _, share := range shares {
			share.Wipe()
		}
	}()
	for peer, secret := range s.shares {
		var share shamir.Share
		if err := secret.With(func(b []byte) (err error) { share, err = shamir.ParseShare(b); return err }); err != nil {
			return nil, err
		}
		shares = append(shares, share)
		if share.Set() != want || share.Index() != slices.Index(s.answer.Peers, peer)+1 {
			return nil, errMalformed
		}
	}
	key, err := shamir.Combine(shares)
	if err != nil {
		return nil, err
	}
	return arena.Store(key) // wipes key
}

func sessionText(id [32]byte) string { return hex.EncodeToString(id[:16]) }
