package cli

import (
	"fmt"
	"strings"
)

// ParsePeers reads nodes with their peer addresses: ID=HOST:PORT,…
func ParsePeers(s string) (map[string]string, error) {
	peers := make(map[string]string)
	for _, item := range strings.Split(s, ",") {
		id, addr, ok := strings.Cut(strings.TrimSpace(item), "=")
		if !ok || id == "" || addr == "" {
			return nil, fmt.Errorf("%q is not ID=HOST:PORT", item)
		}
		if _, ok := peers[id]; ok {
			return nil, fmt.Errorf("duplicate %q", id)
		}
		peers[id] = addr
	}
	return peers, nil
}
