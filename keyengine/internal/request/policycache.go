package request

import (
	"fmt"
	"sync"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/policy"
)

// PolicyCache caches parsed key policies by their text. Most keys have the same policy, and
// entries never become stale.
type PolicyCache struct {
	mu   sync.RWMutex
	docs map[string]*policy.Document
	size int // total length of the texts
	max  int
}

// maxCachedPolicies limits the total length of the cached policies' texts, in bytes. The
// parsed policies need a multiple of it.
const maxCachedPolicies = 16 << 20

// NewPolicyCache returns an empty cache.
func NewPolicyCache() *PolicyCache {
	return &PolicyCache{docs: make(map[string]*policy.Document), max: maxCachedPolicies}
}

func (c *PolicyCache) get(text string) *policy.Document {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.docs[text]
}

// put adds a policy. If the cache is full, it evicts arbitrary entries.
func (c *PolicyCache) put(text string, doc *policy.Document) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.docs[text] != nil {
		return
	}
	c.docs[text] = doc
	c.size += len(text)
	for old := range c.docs {
		if c.size <= c.max {
			return
		}
		if old != text {
			delete(c.docs, old)
			c.size -= len(old)
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
// error, and so allows nothing.
func (c *PolicyCache) parsed(id fsm.KeyID, v fsm.Version, p *fsmpb.KeyPolicy) (*policy.Document, error) {
	if doc := c.get(p.Document); doc != nil {
		return doc, nil
	}
	doc, err := policy.Parse(policy.KeyPolicy, []byte(p.Document))
	if err != nil {
		return nil, fmt.Errorf("stored policy of key %s, version %d: %w", id, v, err)
	}
	c.put(p.Document, doc)
	return doc, nil
}
