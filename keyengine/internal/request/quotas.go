package request

import (
	"cmp"
	"fmt"
)

// Quotas bound what an account may have. 0 stands for AWS's own quota. They are this
// node's to apply, so they should be the same on all nodes: whichever is asked
// decides. What is there already stays when a quota is lowered.
type Quotas struct {
	// Keys in each Region (AWS: 100,000). It is not in any read set, as that would
	// let no two keys be made at a time: the number can be exceeded by a few.
	Keys int
	// KeyStores in each Region (AWS: 10).
	KeyStores int
	// Of each key: its aliases (AWS: 50), its tags (50), its grants (50,000; like
	// Keys, this can be exceeded by a few) and its rotations on demand (25).
	Aliases, Tags, Grants, Rotations int
}

// MaxQuota is the largest that a quota can be: more of anything was never tried.
const MaxQuota = 1_000_000

// DefaultQuotas are AWS's.
var DefaultQuotas = Quotas{Keys: 100_000, KeyStores: 10, Aliases: 50, Tags: 50, Grants: 50_000, Rotations: 25}

// fields are the quotas by the names that settings have for them.
func (q *Quotas) fields() map[string]*int {
	return map[string]*int{
		"keys": &q.Keys, "key-stores": &q.KeyStores, "aliases-per-key": &q.Aliases, "tags-per-key": &q.Tags,
		"grants-per-key": &q.Grants, "rotations-per-key": &q.Rotations,
	}
}

// Set sets the quota of that name, as in a setting, to n.
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

// OrDefault has AWS's quotas where none is set.
func (q Quotas) OrDefault() Quotas {
	standard := DefaultQuotas
	fallback := standard.fields()
	for name, f := range q.fields() {
		*f = cmp.Or(*f, *fallback[name])
	}
	return q
}
