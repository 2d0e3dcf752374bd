package integration

import (
	"time"
)

// dueCases are what can be in the way when things are due. run does it, and gives
// the time from which on the cluster can do what is due.
var dueCases = []struct {
	name   string
	before func(*world)
	run    func(*estate) time.Time
}{
	{"nothing", nil, func(e *estate) time.Time { return e.due }},
}
