package request

import (
	"slices"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// ServesRegion tells whether a Region is one of the cluster's.
func ServesRegion(c *fsmpb.Cluster, region string) bool {
	return region == c.Region || slices.Contains(c.MoreRegions, region)
}

// Regions are the Regions of a cluster, its first one first.
func Regions(c *fsmpb.Cluster) []string { return append([]string{c.Region}, c.MoreRegions...) }

// Region is the Region that the request is for: the one it was signed for, or
// the cluster's first where that is none of the cluster's (see inRegion) or the
// caller named none.
func (ev *Evaluation) Region() string {
	if c := ev.Cluster(); ServesRegion(c, ev.Caller.Region) {
		return ev.Caller.Region
	}
	return ev.Cluster().Region
}
