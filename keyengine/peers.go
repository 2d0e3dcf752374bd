package keyengine

import (
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/record"
)

// PeerMAC authenticates what this node sends to other unsealed nodes, under the
// keyring's newest generation. The error of a sealed node is ErrUnavailable.
func (e *Engine) PeerMAC(message []byte) (generation uint32, mac []byte, err error) {
	o, err := e.vault.Current()
	if err != nil {
		return 0, nil, err
	}
	return o.PeerMAC(message)
}

// CheckPeerMAC checks what PeerMAC of another unsealed node gave. The error is
// ErrUnavailable when this node is sealed, or does not have the generation yet, and
// another one when no unsealed node made the MAC.
func (e *Engine) CheckPeerMAC(generation uint32, message, mac []byte) error {
	o, err := e.vault.Current()
	if err != nil {
		return err
	}
	return o.CheckPeerMAC(generation, message, mac)
}

// SignOrigin signs a digest as an unsealed node of the cluster; domain tells what
// it is the digest of. See [fsm.VerifyOrigin]. The error of a sealed node is
// ErrUnavailable.
func (e *Engine) SignOrigin(domain string, digest [32]byte) (generation uint32, signature []byte, err error) {
	o, err := e.vault.Current()
	if err != nil {
		return 0, nil, err
	}
	return o.SignOrigin(domain, digest)
}

// RecordForgery records that another node sent what only an unsealed node can,
// without being one: its disk or its identity is in wrong hands. It does not block.
func (e *Engine) RecordForgery(node, reason string) {
	e.events.Pending.Add(record.ServiceEvent("RefuseForgery", e.clock.Now(), auditfield.Text("node", node), auditfield.Text("reason", reason)))
}
