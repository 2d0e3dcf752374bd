package request

import (
	"cmp"
	"fmt"
)

// Quotas limit what an account may have. 0 means AWS's default. They are enforced by the
// node that evaluates a request, so they should be the same on all nodes. Lowering a quota
// does not affect what exists already.
type Quotas struct {
	// Keys in each Region (AWS: 100,000). The count is not in any read set, as only one key
	// could be created at a time then, so concurrent requests may exceed the quota
	// slightly.
	Keys int
	// KeyStores in each Region (AWS: 10).
	KeyStores int
	// For each key: aliases (AWS: 50), tags (50), grants (50,000; like Keys, this may be
	// exceeded slightly) and rotations on demand (25).
	Aliases, Tags, Grants, Rotations int
}

// MaxQuota is the largest value of a quota. Larger numbers are untested.
const MaxQuota = 1_000_000

// DefaultQuotas are AWS's defaults.
var DefaultQuotas = Quotas{Keys: 100_000, KeyStores: 10, Aliases: 50, Tags: 50, Grants: 50_000, Rotations: 25}

// fields returns the quotas by their names in settings.
func (q *Quotas) fields() map[string]*int {
	return map[string]*int{
		"keys": &q.Keys, "key-stores": &q.KeyStores, "aliases-per-key": &q.Aliases, "tags-per-key": &q.Tags,
		"grants-per-key": &q.Grants, "rotations-per-key": &q.Rotations,
	}
}

// Set sets the quota with the given name, as used in settings, to n.
func (q *Quotas) Set(name string, n int) error {
	f := q.fields()[name]
	switch {
	case f == nil:
		return fmt.Errorf("there is no quota %q: take keys, key-stores, aliases-per-key, tags-per-key, grants-per-key or rotations-per-key", name)
	case n < 1 || n > MaxQuota:
		return fmt.Errorf("the quota %s is %d: take 1 to %d", name, n, MaxQuota)
	}
	*f = n
	return nil
}

// OrDefault returns the quotas with AWS's defaults for those that are not set.
func (q Quotas) OrDefault() Quotas {
	standard := DefaultQuotas
	fallback := standard.fields()
	for name, f := range q.fields() {
		*f = cmp.Or(*f, *fallback[name])
	}
	return q
}
