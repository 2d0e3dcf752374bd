package vault

import (
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
)

// PeerKeys are the keys with which an unsealed node unseals another.
type PeerKeys struct{ Opened *Opened }

// Secret returns a secret of keymat.KeySize bytes that every unsealed node derives from
// the newest generation of the keyring for the same context, and nobody else can. The caller
// must destroy it.
func (k PeerKeys) Secret(context []byte) (*keymat.Secret, error) {
	o := k.Opened
	key, err := o.ring.DeriveMAC(o.ring.Newest(), keymat.PurposeUnseal)
	if err != nil {
		return nil, Gone(err)
	}
	sum, err := key.Sum(context)
	if err != nil {
		return nil, Gone(err)
	}
	defer clear(sum[:])
	s, err := o.arena.Store(sum[:])
	return s, Gone(err)
}

// Newest returns the newest generation of the keyring, or 0 after it has been wiped.
func (k PeerKeys) Newest() uint32 { return k.Opened.ring.Newest() }

// WrapKeyring returns all generations of the keyring, wrapped by key, for
// [Vault.OpenKeyring] on another node.
func (k PeerKeys) WrapKeyring(key *keymat.Secret) ([]*fsmpb.WrappedKEK, error) {
	var list []*fsmpb.WrappedKEK
	for _, g := range k.Opened.ring.Generations() {
		wrapped, err := k.Opened.ring.WrapGeneration(key, g)
		if err != nil {
			return nil, Gone(err)
		}
		list = append(list, &fsmpb.WrappedKEK{Generation: g, Wrapped: wrapped})
	}
	if len(list) == 0 {
		return nil, ErrSealed // wiped in the meantime
	}
	return list, nil
}
