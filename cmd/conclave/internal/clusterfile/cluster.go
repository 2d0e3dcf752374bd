package clusterfile

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/conclavekms/conclave/transport/kmspb"
)

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// Init returns the request that initialises the cluster.
func (f *File) Init() *kmspb.InitRequest {
	req := &kmspb.InitRequest{
		Threshold: uint32(f.Threshold), Account: f.Account, Regions: f.Regions, Partition: f.Partition, AnyRegion: f.AnyRegion, RootCertificate: f.RootCertificate,
	}
	if len(f.Custodians) == 0 {
		req.Shares = uint32(f.Shares)
	}
	for _, c := range f.Custodians {
		req.Custodians = append(req.Custodians, &kmspb.CustodianKey{Name: c.Name, PublicKey: c.raw})
	}
	return req
}

// Names returns the custodians, for the cluster's state; none if the file has none.
func (f *File) Names() (names []*kmspb.NamedCustodian) {
	for _, c := range f.Custodians {
		names = append(names, &kmspb.NamedCustodian{Name: c.Name, KeyFingerprint: c.parsed.Fingerprint()})
	}
	return names
}

// Compare compares what cannot change, or only by a ceremony, with a cluster that is
// initialised.
func (f *File) Compare(s *kmspb.SealState) Item {
	it := Item{Kind: "cluster", Name: s.GetClusterId(), State: Unchanged}
	it.compare("account", s.GetAccount(), f.Account)
	more := slices.Sorted(slices.Values(f.Regions[1:]))
	it.compare("regions", strings.Join(append([]string{s.GetRegion()}, s.GetMoreRegions()...), ","), strings.Join(append([]string{f.Regions[0]}, more...), ","))
	it.compare("partition", s.GetPartition(), f.Partition)
	it.compare("any_region", s.GetAnyRegion(), f.AnyRegion)
	it.compare("threshold", int(s.GetThreshold()), f.Threshold)
	shares := f.Shares
	if len(f.Custodians) > 0 {
		shares = len(f.Custodians)
	}
	it.compare("shares", int(s.GetShares()), shares)
	if len(f.Custodians) > 0 && len(s.GetShareSet().GetCustodians()) > 0 {
		it.compare("custodians", named(s.GetShareSet().GetCustodians()), named(f.Names()))
	}
	return it
}

func named(custodians []*kmspb.NamedCustodian) string {
	var all []string
	for _, c := range custodians {
		all = append(all, c.GetName()+" ("+c.GetKeyFingerprint()+")")
	}
	return strings.Join(all, ", ")
}

// State is what became of an object.
type State string

// The states of objects.
const (
	Created   State = "created"
	Unchanged State = "unchanged"
	// Differs: it exists, and is not as the file says. It was not changed.
	Differs State = "differs"
	// Later: it cannot be made yet.
	Later State = "later"
	// Unchecked: the caller may not see whether it is as the file says.
	Unchecked State = "unchecked"
)

// Item is an object of the file, and what became of it.
type Item struct {
	Kind   string `json:"kind"`
	Name   string `json:"name"`
	State  State  `json:"state"`
	Detail string `json:"detail,omitempty"`
}

// differ notes a difference.
func (it *Item) differ(format string, args ...any) {
	it.State = Differs
	if it.Detail != "" {
		it.Detail += "; "
	}
	it.Detail += fmt.Sprintf(format, args...)
}

// compare notes a difference unless is and want are equal.
func (it *Item) compare(what string, is, want any) {
	if is != want {
		it.differ("%s is %v, and the file says %v", what, is, want)
	}
}
