package auditwitness

import (
	"errors"
	"fmt"
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/conclavekms/conclave/auditlog/checkpoint"
	"github.com/conclavekms/conclave/keyengine/internal/outbound"
)

// maxFile bounds the configuration, in bytes.
const maxFile = 1 << 20

// Configuration says who the witnesses of the audit log are.
type Configuration struct {
	// Quorum is how many witnesses have to cosign a checkpoint before it is published as a
	// cosigned one; by default, more than half of them.
	Quorum    int       `json:"quorum,omitzero"`
	Witnesses []Witness `json:"witnesses"`

	// What check has made of the above.
	quorum  checkpoint.Quorum
	clients []client
}

// Witness is the configuration of a witness.
type Witness struct {
	// URL is the witness's submission prefix: requests go to URL/add-checkpoint.
	URL string `json:"url"`
	// Keys are the witness's public keys in the form NAME+HASH+KEY: of Ed25519 cosignatures, of
	// ML-DSA-44 ones, or both. All of them have to sign.
	Keys []string      `json:"keys"`
	TLS  *outbound.TLS `json:"tls,omitzero"`
}

// Load reads the witnesses from a file of JSON and checks them. Files with certificates are read
// too, and not again by New, but no witness is called.
func Load(name string) (*Configuration, error) {
	b, err := outbound.ReadFile(name, maxFile)
	if err != nil {
		return nil, err
	}
	c := new(Configuration)
	if err := json.Unmarshal(b, c, json.RejectUnknownMembers(true)); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return c, nil
}

// check checks the configuration and opens the clients, if that was not done before.
func (c *Configuration) check() error {
	if c.clients != nil {
		return nil
	}
	if len(c.Witnesses) == 0 {
		return errors.New("it has no witnesses")
	}
	var parsed []*checkpoint.Witness
	var clients []client
	for i := range c.Witnesses {
		w := &c.Witnesses[i]
		p, err := checkpoint.ParseWitness(strings.Join(w.Keys, "\n"))
		if err != nil {
			return fmt.Errorf("witness %d: %w", i+1, err)
		}
		client, err := w.open(p)
		if err != nil {
			return fmt.Errorf("witness %d (%q): %w", i+1, p.Name(), err)
		}
		parsed, clients = append(parsed, p), append(clients, client)
	}
	if c.Quorum == 0 {
		c.Quorum = len(parsed)/2 + 1
	}
	quorum, err := checkpoint.NewQuorum(parsed, c.Quorum)
	if err != nil {
		return err
	}
	c.quorum, c.clients = quorum, clients
	return nil
}
