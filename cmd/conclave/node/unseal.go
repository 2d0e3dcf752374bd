package node

import (
	"context"
	"errors"

	"github.com/conclavekms/conclave/cluster"
	"github.com/conclavekms/conclave/keyengine/peerunseal"
	"github.com/conclavekms/conclave/keyengine/seal"
)

// unsealer is the engine's part of peer-assisted unsealing, as the cluster sees it.
type unsealer struct{ *peerunseal.Service }

var _ cluster.Unsealer = unsealer{}

// Release implements cluster.Unsealer.
func (u unsealer) Release(ctx context.Context, to cluster.UnsealAsker, nonce, answer []byte) ([]byte, error) {
	part, err := u.Service.Release(ctx, peerunseal.Asker(to), nonce, answer)
	if r := (*peerunseal.Refusal)(nil); errors.As(err, &r) {
		err = &cluster.UnsealRefusal{Reason: r.Reason, Suspicious: r.Suspicious}
	}
	return part, err
}

// seals returns the seals that the node is configured with.
func (c *Config) seals(ctx context.Context) (list []seal.Seal, err error) {
	for _, text := range c.Seals {
		s, err := seal.Parse(ctx, c.NodeID, text)
		if err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	return list, nil
}
