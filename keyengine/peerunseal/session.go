package peerunseal

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/shamir"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/peerunseal/peerunsealpb"
)

const (
	sessionDomain = "conclave peer unseal session v1"
	answerDomain  = "conclave peer unseal answer v1"
	partDomain    = "conclave peer unseal part v1"
	shareDomain   = "conclave peer unseal share v1"
	keyDomain     = "conclave peer unseal key v1"

	keySize = 65 // of a point on P-256
	// MaxPeers is how many peers a session can have.
	MaxPeers = shamir.MaxShares

	maxAnswer = 64 << 10 // bytes
	maxPart   = 1 << 20
)

// hash returns the hash of byte strings, each preceded by its length.
func hash(parts ...[]byte) [32]byte {
	h := sha256.New()
	for _, b := range parts {
		_, _ = h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b))))
		_, _ = h.Write(b)
	}
	return [32]byte(h.Sum(nil))
}

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// sessionID returns the id of the session in which a node sends that answer. It covers all
// that the shares depend on.
func sessionID(c *fsmpb.Cluster, node string, incarnation uint64, a *peerunsealpb.Answer) [32]byte {
	parts := [][]byte{
		[]byte(sessionDomain), c.Id, c.GetLineage().GetId(), []byte(node), number(incarnation),
		a.Key, number(uint64(a.Generation)), number(uint64(a.Agreements)),
	}
	for _, p := range a.Peers {
		parts = append(parts, []byte(p))
	}
	return hash(parts...)
}

// answerDigest returns the digest that a return key signs.
func answerDigest(session [32]byte, node, peer string, nonce []byte) []byte {
	h := hash([]byte(answerDomain), session[:], []byte(node), []byte(peer), nonce)
	return h[:]
}

// partDigest returns the digest of a part that its peer signs with the origin key.
func partDigest(session [32]byte, node, peer string, nonce []byte, p *peerunsealpb.Part) [32]byte {
	parts := [][]byte{session[:], []byte(node), []byte(peer), nonce, number(uint64(p.Number)), p.Sealed}
	for _, g := range p.Keyring {
		parts = append(parts, number(uint64(g.GetGeneration())), g.GetWrapped())
	}
	return hash(parts...)
}

// shareInfo binds an encrypted share to the session, the challenge and the peer.
func shareInfo(session [32]byte, node, peer string, nonce []byte) []byte {
	h := hash([]byte(shareDomain), session[:], []byte(node), []byte(peer), nonce)
	return h[:]
}

// checkAnswer checks the form of an answer.
func checkAnswer(a *peerunsealpb.Answer) error {
	switch {
	case len(a.Key) != keySize, a.Generation == 0, a.Agreements == 0, len(a.Peers) < int(a.Agreements), len(a.Peers) > MaxPeers:
		return errMalformed
	}
	for i, p := range a.Peers {
		if p == "" || i > 0 && p <= a.Peers[i-1] {
			return errMalformed // the same peer twice would give two shares of one session
		}
	}
	return nil
}

var errMalformed = errors.New("malformed message")

// decode decodes a message of at most max bytes without unknown fields at its top.
func decode(b []byte, max int, m proto.Message) error {
	if len(b) > max || proto.Unmarshal(b, m) != nil || len(m.ProtoReflect().GetUnknown()) > 0 {
		return errMalformed
	}
	return nil
}

// deal returns the keyring, wrapped by the key of a session, and the share of that key with
// the given number, encrypted to the session's public key. Every unsealed node that has the
// same keyring derives the same key and the same shares.
func deal(o *vault.Opened, c *fsmpb.Cluster, session [32]byte, a *peerunsealpb.Answer, n int, info []byte) (p *peerunsealpb.Part, err error) {
	keys := vault.PeerKeys{Opened: o}
	secret := func(i int) (*keymat.Secret, error) {
		h := hash([]byte(keyDomain), session[:], number(uint64(i)))
		return keys.Secret(h[:])
	}
	key, err := secret(0)
	if err != nil {
		return nil, err
	}
	defer key.Destroy()
	wrapped, err := keys.WrapKeyring(key)
	if err != nil {
		return nil, err
	}
	var random coefficients
	defer random.wipe()
	for i := 1; i < int(a.Agreements); i++ {
		s, err := secret(i)
		if err != nil {
			return nil, err
		}
		random.secrets = append(random.secrets, s)
	}
	set := shamir.SetInfo{Cluster: [16]byte(c.Id), Set: [16]byte(session[:16]), Threshold: int(a.Agreements), Count: len(a.Peers)}
	var shares []shamir.Share
	if err := key.With(func(b []byte) (err error) { shares, err = shamir.Split(&random, b, set); return err }); err != nil {
		return nil, err
	}
	defer func() {
		for _, s := range shares {
			s.Wipe()
		}
	}()
	p = &peerunsealpb.Part{Number: uint32(n)}
	for _, g := range wrapped {
		p.Keyring = append(p.Keyring, &peerunsealpb.WrappedGeneration{Generation: g.Generation, Wrapped: g.Wrapped})
	}
	text := make([]byte, 0, shamir.TextSize)
	defer func() { clear(text[:cap(text)]) }()
	p.Sealed, err = keymat.SealTo(a.Key, info, shares[n-1].AppendText(text))
	return p, err
}

// coefficients is a source of the secrets in their order.
type coefficients struct {
	secrets []*keymat.Secret
	at      int // bytes that were read
}

// Read implements io.Reader.
func (c *coefficients) Read(b []byte) (n int, err error) {
	i, from := c.at/keymat.KeySize, c.at%keymat.KeySize
	if i >= len(c.secrets) {
		return 0, errors.New("no more coefficients")
	}
	err = c.secrets[i].With(func(s []byte) error {
		n = copy(b, s[from:])
		return nil
	})
	c.at += n
	return n, err
}

func (c *coefficients) wipe() {
	for _, s := range c.secrets {
		s.Destroy()
	}
}

// returnKeyOf returns the return key that the state has for a node, or nil.
func returnKeyOf(c *fsmpb.Cluster, node string) []byte {
	for _, k := range c.GetPeerUnseal().GetKeys() {
		if k.GetNode() == node {
			return k.GetPublicKey()
		}
	}
	return nil
}

// nodesOf returns the nodes that have return keys, in ascending order.
func nodesOf(c *fsmpb.Cluster) (list []string) {
	for _, k := range c.GetPeerUnseal().GetKeys() {
		list = append(list, k.GetNode())
	}
	slices.Sort(list)
	return list
}
