package request

import (
	"slices"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// ServesRegion reports whether a Region is one of the cluster's.
func ServesRegion(c *fsmpb.Cluster, region string) bool {
	return region == c.Region || slices.Contains(c.MoreRegions, region)
}

// Regions returns the Regions of a cluster, the default one first.
func Regions(c *fsmpb.Cluster) []string { return append([]string{c.Region}, c.MoreRegions...) }

// Region returns the Region of the request: the one that it was signed for, or the
// cluster's default Region if the cluster does not serve it (see inRegion) or none was
// named.
func (ev *Evaluation) Region() string {
	if c := ev.Cluster(); ServesRegion(c, ev.Caller.Region) {
		return ev.Caller.Region
	}
	return ev.Cluster().Region
}
