package keymaterial

import (
	"fmt"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// day is a day, in nanoseconds.
const day = 24 * 60 * 60 * 1e9

// IsPrimary reports whether a key is the primary key of a multi-Region set.
func IsPrimary(k *fsmpb.Key) bool { return k.MultiRegion && k.PrimaryRegion == k.Region }

// IsEnabled reports whether a key is enabled.
func IsEnabled(k *fsmpb.Key) bool { return k.State == fsmpb.KeyState_KEY_STATE_ENABLED }

// Waiting bounds the waiting period before a key's deletion.
type Waiting struct {
	Now      int64 // cluster time, in Unix nanoseconds
	Min, Max int32 // in days
}

// CheckState checks the state of a key that replaces was, which is nil for a new one. When a
// deletion is cancelled, the key is disabled, or pending import if it lacks material. The date
// of a deletion is never moved: to set another one, the deletion is cancelled first, which
// everybody can see. replicas reports whether the key has replicas in other Regions.
func CheckState(was, n *fsmpb.Key, within Waiting, replicas func() bool) (broken string) {
	waits := func(k *fsmpb.Key) bool {
		return k.GetState() == fsmpb.KeyState_KEY_STATE_PENDING_DELETION || k.GetState() == fsmpb.KeyState_KEY_STATE_PENDING_REPLICA_DELETION
	}
	switch n.State {
	case fsmpb.KeyState_KEY_STATE_ENABLED, fsmpb.KeyState_KEY_STATE_DISABLED:
		if waits(was) && n.State == fsmpb.KeyState_KEY_STATE_ENABLED {
			return "it enables a key that is pending deletion"
		}
		if n.Origin == External && !Complete(n) {
			return "it enables or disables a key that lacks imported material"
		}
	case fsmpb.KeyState_KEY_STATE_PENDING_IMPORT:
		if n.Origin != External {
			return "only a key with imported material is pending import"
		}
	case fsmpb.KeyState_KEY_STATE_PENDING_DELETION:
		if was == nil {
			return "it creates a key that is pending deletion"
		}
		if was.State == n.State {
			if was.DeletionTime != n.DeletionTime {
				return "it changes the date of a scheduled deletion"
			}
			break
		}
		days := int64(within.Min)
		if was.State == fsmpb.KeyState_KEY_STATE_PENDING_REPLICA_DELETION {
			days = int64(was.DeletionDays)
		}
		if n.DeletionTime < within.Now+days*day {
			return "it schedules a deletion too soon"
		}
		if IsPrimary(n) && replicas() {
			return "it schedules the deletion of a primary key that has replicas"
		}
	case fsmpb.KeyState_KEY_STATE_PENDING_REPLICA_DELETION:
		switch {
		case was == nil:
			return "it creates a key that is pending deletion"
		case !IsPrimary(n):
			return "only a multi-Region primary key waits for its replicas to be deleted"
		case was.State == fsmpb.KeyState_KEY_STATE_PENDING_DELETION:
			return "it removes the date of a scheduled deletion"
		case was.State == n.State && was.DeletionDays != n.DeletionDays:
			return "it changes the waiting period of a scheduled deletion"
		case n.DeletionDays < within.Min || n.DeletionDays > within.Max:
			return fmt.Sprintf("the waiting period of a deletion is not %d to %d days", within.Min, within.Max)
		}
	default:
		return "a key has no state, or an unknown one"
	}
	if (n.DeletionTime != 0) != (n.State == fsmpb.KeyState_KEY_STATE_PENDING_DELETION) ||
		(n.DeletionDays != 0) != (n.State == fsmpb.KeyState_KEY_STATE_PENDING_REPLICA_DELETION) {
		return "only a key that is pending deletion has a date or a waiting period"
	}
	return ""
}
