// Package gossiptest provides gossip members that lie.
package gossiptest

import (
	"encoding/json"
	"io"
	"log"
	"net"
	"strconv"

	"github.com/hashicorp/memberlist"
)

// Liar starts a member that claims to be the node name with its peer port at peer. It
// listens on the address listen; key is from gossip.DeriveKey.
func Liar(name, listen, peer string, key []byte) (*memberlist.Memberlist, error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return nil, err
	}
	c := memberlist.DefaultLocalConfig()
	c.Name, c.Label, c.SecretKey = name, "conclave", key
	c.Logger = log.New(io.Discard, "", 0)
	c.Delegate = delegate{peer}
	c.BindAddr = host
	if c.BindPort, err = strconv.Atoi(port); err != nil {
		return nil, err
	}
	c.AdvertisePort = c.BindPort
	return memberlist.Create(c)
}

// delegate announces an address of a peer port in the format of package gossip.
type delegate struct{ peer string }

// NodeMeta implements memberlist.Delegate, like the methods below.
func (d delegate) NodeMeta(int) []byte {
	b, _ := json.Marshal(map[string]string{"p": d.peer})
	return b
}
func (delegate) NotifyMsg([]byte)                {}
func (delegate) GetBroadcasts(int, int) [][]byte { return nil }
func (delegate) LocalState(bool) []byte          { return nil }
func (delegate) MergeRemoteState([]byte, bool)   {}
