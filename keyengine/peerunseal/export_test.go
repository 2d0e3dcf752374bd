package peerunseal

import (
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/peerunseal/peerunsealpb"
)

// Exchanged returns what was secret in a session in which a node with the ephemeral key asked
// its peers, and the session's name in records. do is called with the session's key, and with
// the text of each share.
func Exchanged(arena *keymat.Arena, o *vault.Opened, c *fsmpb.Cluster, node string, incarnation uint64, ephemeral []byte, agreements uint32, peers []string, do func(what string, secret []byte)) (session string, err error) {
	a := &peerunsealpb.Answer{Key: ephemeral, Generation: vault.PeerKeys{Opened: o}.Newest(), Agreements: agreements, Peers: peers}
	id := sessionID(c, node, incarnation, a)
	h := hash([]byte(keyDomain), id[:], number(0))
	key, err := vault.PeerKeys{Opened: o}.Secret(h[:])
	if err != nil {
		return "", err
	}
	defer key.Destroy()
	if err := key.With(func(b []byte) error { do("session key", b); return nil }); err != nil {
		return "", err
	}
	to, err := keymat.NewReceiver(arena)
	if err != nil {
		return "", err
	}
	a.Key = to.Public()
	for i, peer := range peers {
		info := shareInfo(id, node, peer, nil)
		p, err := deal(o, c, id, a, i+1, info)
		if err != nil {
			return "", err
		}
		text, err := to.Open(info, p.Sealed)
		if err != nil {
			return "", err
		}
		if err := text.With(func(b []byte) error { do("part of "+peer, b); return nil }); err != nil {
			return "", err
		}
	}
	return sessionText(id), nil
}
