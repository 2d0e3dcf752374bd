package vault

import (
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
)

// joinMAC separates the MACs of join tokens from all others.
const joinMAC = "join token v1"

// ErrJoinToken is returned by CheckJoinToken for what the cluster did not issue.
var ErrJoinToken = errors.New("the cluster did not issue this join token")

// JoinGeneration returns the generation of the keyring with which join tokens are made.
func JoinGeneration(o *Opened) uint32 { return o.ring.Settled() }

// JoinMAC returns the MAC of a join token's body by a generation of the keyring. A token is of
// one lineage: a cluster that was restored from a backup has the same keys, and did not issue
// what the other one did.
func JoinMAC(o *Opened, c *fsmpb.Cluster, generation uint32, body []byte) ([32]byte, error) {
	lineage := sha256.Sum256(c.GetLineage().GetId())
	return o.mac(generation, joinMAC, append(lineage[:], body...))
}

// CheckJoinToken verifies the MAC of a join token's body, in constant time. It returns
// ErrJoinToken if it is wrong, or by a generation of the keyring that does not exist.
func CheckJoinToken(o *Opened, c *fsmpb.Cluster, generation uint32, body, mac []byte) error {
	want, err := JoinMAC(o, c, generation, body)
	if errors.Is(err, keymat.ErrGeneration) {
		return ErrJoinToken
	}
	if err != nil {
		return err
	}
	if !hmac.Equal(want[:], mac) {
		return ErrJoinToken
	}
	return nil
}

// authorityBinding binds a CA's key to its certificate.
func authorityBinding(a *fsmpb.CertificateAuthority) keymat.Binding {
	sum := sha256.Sum256(a.Certificate)
	return keymat.Binding{Object: sum[:], Spec: "CA"}
}

// WrapAuthority wraps the key of a CA and stores it in a.
func WrapAuthority(o *Opened, a *fsmpb.CertificateAuthority, key []byte) (err error) {
	a.Generation, a.WrappedKey, err = o.ring.WrapFor(keymat.PurposeCA, authorityBinding(a), key)
	return Gone(err)
}

// WithAuthority calls use with a CA's key. use must not keep the key or block.
func WithAuthority(o *Opened, a *fsmpb.CertificateAuthority, use func(key []byte) error) error {
	key, err := o.ring.Unwrap(a.GetGeneration(), keymat.PurposeCA, authorityBinding(a), a.GetWrappedKey())
	if err != nil {
		return fmt.Errorf("unwrapping the key of the CA: %w", behind(err))
	}
	defer key.Destroy()
	return Gone(key.With(use))
}

// RewrapAuthority returns a cluster's record whose CA is wrapped by the newest generation of
// the keyring, or nil if it is already or there is none.
func RewrapAuthority(o *Opened, c *fsmpb.Cluster) (n *fsmpb.Cluster, err error) {
	a := c.GetAuthority()
	if a == nil || a.Generation >= o.ring.Newest() {
		return nil, nil
	}
	n = proto.CloneOf(c)
	if n.Authority.Generation, n.Authority.WrappedKey, err = rewrap(o.ring, o.ring, keymat.PurposeCA, authorityBinding(a), a.Generation, a.WrappedKey); err != nil {
		return nil, fmt.Errorf("wrapping the key of the CA again: %w", err)
	}
	return n, nil
}
