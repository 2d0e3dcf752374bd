package pki

import (
	"fmt"
	"regexp"
)

var validID = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// CheckNodeID says what is wrong with the id of a node, which stands in certificates,
// addresses, file names and logs: it is a label of a host name, in lower case.
func CheckNodeID(id string) error {
	if !validID.MatchString(id) {
		return fmt.Errorf("node id %q: want 1 to 63 of a-z, 0-9 and inner hyphens", id)
	}
	return nil
}
