package request

import (
	"fmt"
	"sync"

	"github.com/conclavekms/conclave/policy"
)

// policyText identifies a parsed policy: the same text can be a policy of several kinds.
type policyText struct {
	kind policy.Kind
	text string
}

// PolicyCache caches parsed policies by their text. Most keys have the same policy, and
// entries never become stale.
type PolicyCache struct {
	mu   sync.RWMutex
	docs map[policyText]*policy.Document
	size int // total length of the texts
	max  int
}

// maxCachedPolicies limits the total length of the cached policies' texts, in bytes. The
// parsed policies need a multiple of it.
const maxCachedPolicies = 16 << 20

// NewPolicyCache returns an empty cache.
func NewPolicyCache() *PolicyCache {
	return &PolicyCache{docs: make(map[policyText]*policy.Document), max: maxCachedPolicies}
}

func (c *PolicyCache) get(text policyText) *policy.Document {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.docs[text]
}

// put adds a policy. If the cache is full, it evicts arbitrary entries.
func (c *PolicyCache) put(text policyText, doc *policy.Document) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.docs[text] != nil {
		return
	}
	c.docs[text] = doc
	c.size += len(text.text)
	for old := range c.docs {
		if c.size <= c.max {
			return
		}
		if old != text {
			delete(c.docs, old)
			c.size -= len(old.text)
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
	key := policyText{kind, text}
	if doc := c.get(key); doc != nil {
		return doc, nil
	}
	doc, err := policy.Parse(kind, []byte(text))
	if err != nil {
		return nil, fmt.Errorf("stored %s: %w", what(), err)
	}
	c.put(key, doc)
	return doc, nil
}
