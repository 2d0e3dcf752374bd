package bootstrap

import (
	"errors"
	"testing"
)

// An objection of a node that may be a thief is overruled by an unsealed node that
// knows what the cluster does, and by nobody else.
func TestObjections(t *testing.T) {
	no := errors.New("no")
	proven, other := helloResult{node: "n2", proven: true}, helloResult{node: "n3"}
	for name, tt := range map[string]struct {
		hear        func(o *objections)
		final, open bool
	}{
		"nobody":                        {func(o *objections) {}, false, false},
		"a sealed node has none":        {func(o *objections) { o.hear(other, nil) }, false, false},
		"a sealed node":                 {func(o *objections) { o.hear(other, no) }, false, true},
		"two of them differ":            {func(o *objections) { o.hear(other, no); o.hear(other, nil) }, false, true},
		"an unsealed node denies it":    {func(o *objections) { o.hear(other, no); o.hear(proven, nil) }, false, false},
		"an unsealed node denied it":    {func(o *objections) { o.hear(proven, nil); o.hear(other, no) }, false, false},
		"an unsealed node":              {func(o *objections) { o.hear(proven, no) }, true, false},
		"of two unsealed ones, one has": {func(o *objections) { o.hear(proven, nil); o.hear(proven, no) }, true, false},
	} {
		var o objections
		tt.hear(&o)
		if (o.final() != nil) != tt.final || (o.open() != nil) != tt.open {
			t.Errorf("%s: %v, %v", name, o.final(), o.open())
		}
	}
}
