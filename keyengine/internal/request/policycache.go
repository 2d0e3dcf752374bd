package request

import (
	"fmt"
	"sync"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/policy"
)

// PolicyCache keeps key policies parsed, by their texts: most keys have the same one,
// and nothing can make an entry wrong.
type PolicyCache struct {
	mu   sync.RWMutex
	docs map[string]*policy.Document
	size int // of all texts
	max  int
}

// maxCachedPolicies bounds the texts of the policies that are cached, in bytes.
// Parsed they take some times that.
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

// put keeps a policy. When the cache is full, any others go.
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

// Len is how many policies are kept.
func (c *PolicyCache) Len() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.docs)
}

// parsed is a stored policy parsed. One that cannot be parsed lets nobody
// do anything: that is an internal error.
func (c *PolicyCache) parsed(id fsm.KeyID, v fsm.Version, p *fsmpb.KeyPolicy) (*policy.Document, error) {
	if doc := c.get(p.Document); doc != nil {
		return doc, nil
	}
	doc, err := policy.Parse([]byte(p.Document))
	if err != nil {
		return nil, fmt.Errorf("stored policy of key %s, version %d: %w", id, v, err)
	}
	c.put(p.Document, doc)
	return doc, nil
}
