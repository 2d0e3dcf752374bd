package node

import (
	"errors"
	"fmt"

	"github.com/conclavekms/conclave/cluster"
	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// Authority returns what an engine lets the cluster do while it is unsealed.
func Authority(e *keyengine.Engine) cluster.Authority { return authority{e} }

type authority struct{ *keyengine.Engine }

// SignOrigin implements cluster.Authority.
func (a authority) SignOrigin(domain string, digest [32]byte) (generation uint32, signature []byte, err error) {
	generation, signature, err = a.Engine.SignOrigin(domain, digest)
	return generation, signature, sealed(err)
}

// PeerMAC implements cluster.Authority.
func (a authority) PeerMAC(message []byte) (generation uint32, mac []byte, err error) {
	generation, mac, err = a.Engine.PeerMAC(message)
	return generation, mac, sealed(err)
}

// CheckPeerMAC implements cluster.Authority.
func (a authority) CheckPeerMAC(generation uint32, message, mac []byte) error {
	return sealed(a.Engine.CheckPeerMAC(generation, message, mac))
}

// sealed turns the engine's error for a sealed node into the cluster's.
func sealed(err error) error {
	if errors.Is(err, kmsapi.ErrUnavailable) {
		return fmt.Errorf("%w: %w", cluster.ErrSealed, err)
	}
	return err
}
