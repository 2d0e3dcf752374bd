package pki

import (
	"fmt"
	"regexp"
)

var validID = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// CheckNodeID returns an error for an invalid node id. Ids are used in certificates,
// addresses, file names and logs, so they have the form of a lower-case host name label.
func CheckNodeID(id string) error {
	if !validID.MatchString(id) {
		return fmt.Errorf("node id %q: want 1 to 63 of a-z, 0-9 and inner hyphens", id)
	}
	return nil
}
