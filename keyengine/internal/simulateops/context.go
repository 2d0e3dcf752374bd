package simulateops

import (
	"strconv"
	"strings"
	"time"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// context has the condition keys of a simulated request: those of the input and, of those
// that it leaves out, the ones that describe the principal.
type context struct {
	entries map[string][]string // by name in lower case
	who     *iam.Entity         // nil for policies without a principal
	now     time.Time
}

// Values implements policy.Context.
func (c *context) Values(key string) []string {
	if v, ok := c.entries[key]; ok {
		return v
	}
	if name, ok := strings.CutPrefix(key, "aws:"); ok && c.who != nil {
		return request.CallerValues(c.who, name)
	}
	return nil
}

// Now implements policy.Context.
func (c *context) Now() time.Time { return c.now }

// Holds implements policy.Context. A simulation is about its own time only.
func (c *context) Holds(_, _ time.Time) {}

// contextOf returns the condition keys of an input.
func contextOf(entries []iamapi.ContextEntry, who *iam.Entity, now time.Time) (*context, error) {
	c := &context{entries: make(map[string][]string, len(entries)), who: who, now: now}
	for i := range entries {
		e := &entries[i]
		if e.ContextKeyName == nil || e.ContextKeyType == nil {
			return nil, kmsapi.Errorf(iamapi.ErrInvalidInput, "A context entry needs a name, a type and values.")
		}
		name := fsm.EntityName(*e.ContextKeyName)
		if _, ok := c.entries[name]; ok {
			return nil, kmsapi.Errorf(iamapi.ErrInvalidInput, "Duplicate context entry: %s", *e.ContextKeyName)
		}
		if !strings.HasSuffix(*e.ContextKeyType, "List") && len(e.ContextKeyValues) != 1 {
			return nil, kmsapi.Errorf(iamapi.ErrInvalidInput, "The context entry %s is of type %s and has %d values.", *e.ContextKeyName, *e.ContextKeyType, len(e.ContextKeyValues))
		}
		// A key with an empty list is there, and has no values.
		c.entries[name] = append([]string{}, e.ContextKeyValues...)
		if err := c.setTime(name, e.ContextKeyValues); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// setTime sets the time of the request if a condition key gives it.
func (c *context) setTime(name string, values []string) error {
	if name != "aws:currenttime" && name != "aws:epochtime" {
		return nil
	}
	if len(values) == 1 {
		if n, err := strconv.ParseInt(values[0], 10, 64); err == nil {
			c.now = time.Unix(n, 0)
			return nil
		}
		if t, err := time.Parse(time.RFC3339, values[0]); err == nil {
			c.now = t
			return nil
		}
	}
	return kmsapi.Errorf(iamapi.ErrInvalidInput, "The context entry for the time is neither a date and time nor a number of seconds.")
}
