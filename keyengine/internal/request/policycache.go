package request

import (
	"fmt"
	"sync"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/bounded"
	"github.com/conclavekms/conclave/policy"
)

// policyText identifies a parsed policy: the same text can be a policy of several kinds, and
// its names can mean several users and roles.
type policyText struct {
	kind     policy.Kind
	text     string
	bindings string // see appendBindings
}

func (t *policyText) size() int { return len(t.text) + len(t.bindings) }

// appendBindings appends the bindings of a policy to b, so that no two lists are the same.
func appendBindings(b []byte, list []*fsmpb.Binding) []byte {
	for _, p := range list {
		b = append(append(append(append(b, p.Name...), 0), p.Id...), 0)
	}
	return b
}

// idsOf returns the unique ids of the names in a policy.
func idsOf(list []*fsmpb.Binding) map[string]string {
	ids := make(map[string]string, len(list))
	for _, b := range list {
		ids[b.Name] = b.Id
	}
	return ids
}

// PolicyCache caches parsed policies by their text, managed policies by their ARN, and all
// policies of a user or role. Most keys have the same policy, and entries never become stale: of a
// managed policy the state is asked each time, and what a user or role has is used only with a
// state that has the same objects.
type PolicyCache struct {
	mu   sync.RWMutex
	docs map[policyText]*policy.Document
	size int // total length of the texts
	max  int

	managed *bounded.Map[policyText, *managed] // by ARN
	owners  *bounded.Map[entity, *foundRules]  // by the object of the user or role
}

// maxCachedPolicies limits the total length of the cached policies' texts, in bytes. The
// parsed policies need a multiple of it.
const maxCachedPolicies = 16 << 20

// maxManaged limits the number of managed policies that are found by their ARN. Each keeps one
// document, of at most 6,144 characters unless the quota is another, also after the cache of
// texts has evicted it.
const maxManaged = 1024

// NewPolicyCache returns an empty cache.
func NewPolicyCache() *PolicyCache {
	return &PolicyCache{
		docs: make(map[policyText]*policy.Document), max: maxCachedPolicies,
		managed: bounded.New[policyText, *managed](maxManaged), owners: bounded.New[entity, *foundRules](maxOwners),
	}
}

// managedBy returns what the ARN of a customer managed policy says, for policies of a kind; nil if
// it is not one. Sessions may name policies at will, and what was evicted costs a microsecond.
func (c *PolicyCache) managedBy(partition string, kind policy.Kind, arn string) *managed {
	key := policyText{kind: kind, text: arn}
	if m, ok := c.managed.Get(key); ok {
		return m
	}
	m := parseManaged(partition, arn)
	if m != nil {
		c.managed.Put(key, m)
	}
	return m
}

// put adds a policy. If the cache is full, it evicts arbitrary entries.
func (c *PolicyCache) put(text policyText, doc *policy.Document) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.docs[text] != nil {
		return
	}
	c.docs[text] = doc
	c.size += text.size()
	for old := range c.docs {
		if c.size <= c.max {
			return
		}
		if old != text {
			delete(c.docs, old)
			c.size -= old.size()
		}
	}
}

// Len returns the number of cached policies.
func (c *PolicyCache) Len() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.docs)
}

// parsed returns a stored policy, parsed. A policy that cannot be parsed is an internal
// error, and so allows nothing. what says which policy it is, for the error.
func (c *PolicyCache) parsed(kind policy.Kind, text string, what func() string) (*policy.Document, error) {
	return c.bound(kind, text, nil, what)
}

// bound returns a stored policy that names principals, parsed and with its bindings. If a name
// has none, nobody knows whom a Deny is for, which is an internal error too.
func (c *PolicyCache) bound(kind policy.Kind, text string, bindings []*fsmpb.Binding, what func() string) (*policy.Document, error) {
	var room [256]byte
	b := appendBindings(room[:0], bindings)
	c.mu.RLock()
	doc := c.docs[policyText{kind, text, string(b)}] // does not allocate
	c.mu.RUnlock()
	if doc != nil {
		return doc, nil
	}
	doc, err := policy.Parse(kind, []byte(text))
	if err == nil {
		doc, err = doc.Bind(idsOf(bindings))
	}
	if err != nil {
		return nil, fmt.Errorf("stored %s: %w", what(), err)
	}
	c.put(policyText{kind, text, string(b)}, doc)
	return doc, nil
}
