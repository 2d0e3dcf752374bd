package keyengine

import (
	"slices"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// servesRegion tells whether a Region is one of the cluster's.
func servesRegion(c *fsmpb.Cluster, region string) bool {
	return region == c.Region || slices.Contains(c.MoreRegions, region)
}

// regions are the Regions of a cluster, its first one first.
func regions(c *fsmpb.Cluster) []string { return append([]string{c.Region}, c.MoreRegions...) }

// region is the Region that the request is for: the one it was signed for, or
// the cluster's first where that is none of the cluster's (see inRegion) or the
// caller named none.
func (ev *eval) region() string {
	if c := ev.cluster(); servesRegion(c, ev.caller.Region) {
		return ev.caller.Region
	}
	return ev.cluster().Region
}
