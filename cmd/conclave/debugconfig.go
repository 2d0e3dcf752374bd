package main

import (
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/cmd/conclave/internal/bundle"
	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/node"
)

// withheld stands for a setting that is there and not shown.
const withheld = "set, not shown"

// showable are the settings whose values may be shown, if they have the form that they
// should have. A path is not shown: somebody may have put the content of the file there.
// Settings that are true or false need not be here.
var showable = map[string]func(string) bool{
	"node-id":    isNodeID,
	"listen":     isHost,
	"peers":      isPeers,
	"aws-listen": isAddress, "grpc-listen": isAddress, "peer-listen": isAddress, "gossip-listen": isAddress, "ops-listen": isAddress, "pprof-address": isAddress,
	"aws-advertise": isAddress, "grpc-advertise": isAddress, "peer-advertise": isAddress, "gossip-advertise": isAddress,
	"trusted-proxies":  isRanges,
	"bootstrap-expect": parsed, "quotas": parsed, "alerts": parsed, "refusal-rate": parsed, "trace-sample": parsed, "disk-low": parsed, "disk-scarce": parsed, "disk-yield": parsed, "disk-full": parsed,
	"heartbeat-timeout": parsed, "shutdown-timeout": parsed, "log-level": parsed,
}

// parsed is for settings that are parsed into numbers and names that this program knows.
func parsed(string) bool { return true }

// hostName is a name with at most 20 characters between dots: a key in hexadecimal or base32
// is longer.
var hostName = regexp.MustCompile(`^[a-z0-9-]{1,20}(?:\.[a-z0-9-]{1,20}){0,6}$`)

func isNodeID(v string) bool { return pki.CheckNodeID(v) == nil && hostName.MatchString(v) }

func isHost(v string) bool {
	return bundle.IsAddress(strings.Trim(v, "[]")) || hostName.MatchString(v)
}

func isAddress(v string) bool {
	host, _, err := net.SplitHostPort(v)
	return v == cli.None || err == nil && (host == "" || isHost(host))
}

func isPeers(v string) bool {
	peers, err := cli.ParsePeers(v)
	for id, addr := range peers {
		if !isNodeID(id) || !isAddress(addr) {
			return false
		}
	}
	return err == nil
}

func isRanges(v string) bool {
	return !slices.ContainsFunc(strings.Split(v, ","), func(s string) bool {
		_, err := netip.ParsePrefix(s)
		return err != nil && !bundle.IsAddress(s)
	})
}

// harmlessSettings returns the settings of a server that are set in an environment, with the
// values that may be shown, and the names of nodes among them.
func harmlessSettings(getenv func(string) string) (shown map[string]string, nodes []string) {
	shown = make(map[string]string)
	show := func(flag string, may bool) {
		v := getenv(envName(flag))
		switch {
		case v == "":
		case may:
			shown[flag] = v
		default:
			shown[flag] = withheld
		}
	}
	var c node.Config
	show("listen", isHost(getenv(envName("listen"))))
	for _, s := range serverSettings {
		v := getenv(envName(s.flag))
		form := showable[s.flag]
		show(s.flag, v != "" && s.set(&c, v) == nil && (s.isBool || form != nil && form(v)))
	}
	if shown["node-id"] == c.NodeID {
		nodes = append(nodes, c.NodeID)
	}
	if v, ok := shown["peers"]; ok && v != withheld {
		for id := range c.Peers {
			nodes = append(nodes, id)
		}
	}
	return shown, nodes
}
