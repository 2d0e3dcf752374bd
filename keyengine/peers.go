package keyengine

import (
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/record"
)

// PeerMAC authenticates a message to other unsealed nodes with a key of the newest
// generation of the keyring. It returns ErrUnavailable if the node is sealed.
func (e *Engine) PeerMAC(message []byte) (generation uint32, mac []byte, err error) {
	o, err := e.vault.Current()
	if err != nil {
		return 0, nil, err
	}
	return o.PeerMAC(message)
}

// CheckPeerMAC verifies a MAC that PeerMAC made on another unsealed node. It returns
// ErrUnavailable if this node is sealed or does not have the generation yet, and another
// error if the MAC is wrong.
func (e *Engine) CheckPeerMAC(generation uint32, message, mac []byte) error {
	o, err := e.vault.Current()
	if err != nil {
		return err
	}
	return o.CheckPeerMAC(generation, message, mac)
}

// SignOrigin signs a digest with the origin key, which shows that this node is unsealed.
// The domain says what the digest is of; see Verify of package fsm/origin. It returns ErrUnavailable
// if the node is sealed.
func (e *Engine) SignOrigin(domain string, digest [32]byte) (generation uint32, signature []byte, err error) {
	o, err := e.vault.Current()
	if err != nil {
		return 0, nil, err
	}
	return o.SignOrigin(domain, digest)
}

// RecordForgery records that another node sent a message that only an unsealed node can
// make, and that this one could not have made: its disk or its identity may be stolen. It
// does not block.
func (e *Engine) RecordForgery(node, reason string) {
	e.events.Pending.Add(record.ServiceEvent("RefuseForgery", e.clock.Now(), auditfield.Text("node", node), auditfield.Text("reason", reason)))
}
