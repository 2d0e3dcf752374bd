package fsm

import (
	"github.com/conclavekms/conclave/fsm/form"
	"github.com/conclavekms/conclave/fsm/level"
)

// limits are the limits of a level.
type limits struct{ *level.Limits }

// limitsAt returns the limits of a state's level.
func limitsAt(l uint32) limits { return limits{level.LimitsAt(l)} }

// iam returns the limits of objects of IAM.
func (l limits) iam() form.Limits {
	return form.Limits{Policy: l.Policy, Object: l.Entity, List: l.List}
}
