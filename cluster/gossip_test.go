package cluster

import (
	"encoding/json"
	"io"
	"log"

	"github.com/hashicorp/memberlist"
)

// liesDelegate is a member that says of itself what it likes.
type liesDelegate struct {
	gossipDelegate
	peer string
}

func (d liesDelegate) NodeMeta(int) []byte {
	b, _ := json.Marshal(gossipMeta{Peer: d.peer})
	return b
}

func lyingMember(name, listen, peer string, key []byte) (*memberlist.Memberlist, error) {
	c := memberlist.DefaultLocalConfig()
	c.Name, c.Label, c.SecretKey = name, gossipLabel, key
	c.Logger = log.New(io.Discard, "", 0)
	c.Delegate = liesDelegate{peer: peer}
	var err error
	if c.BindAddr, c.BindPort, err = splitPort(listen); err != nil {
		return nil, err
	}
	c.AdvertisePort = c.BindPort
	return memberlist.Create(c)
}
