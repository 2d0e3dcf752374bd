package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
	"github.com/conclavekms/conclave/cmd/conclave/internal/keys"
	"github.com/conclavekms/conclave/cmd/conclave/node"
	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/keyengine/ceremony"
)

// maxSeedFile is larger than tests need.
const maxSeedFile = 4 << 20

// seedCluster is the id of clusters that were initialised with seeds.
var seedCluster = func() [16]byte {
	sum := sha256.Sum256([]byte("conclave development cluster with seeds v1"))
	return [16]byte(sum[:])
}()

// seedFile is the content of a --seed file: YAML, which includes JSON.
type seedFile struct {
	Keys []seedKey `yaml:"keys"`
}

type seedKey struct {
	ID          string            `yaml:"id"`
	Region      string            `yaml:"region"`
	Description string            `yaml:"description"`
	Spec        string            `yaml:"spec"`
	Usage       string            `yaml:"usage"`
	Material    string            `yaml:"material"` // base64, or PEM
	Policy      yaml.Node         `yaml:"policy"`   // JSON in a string, or an object
	Tags        map[string]string `yaml:"tags"`
	Aliases     []string          `yaml:"aliases"`
	Enabled     *bool             `yaml:"enabled"`
}

// readSeeds reads a file of seeds; none if name is "". Its error lists everything
// that is wrong.
func readSeeds(name string) ([]keyengine.Seed, error) {
	if name == "" {
		return nil, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("seeds: %w", err)
	}
	defer f.Close()
	raw, err := files.ReadLimited(f, name, maxSeedFile)
	if err != nil {
		return nil, err
	}
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	dec.KnownFields(true) // a misspelt member would make another key than intended
	var file seedFile
	if err := dec.Decode(&file); err != nil && !errors.Is(err, io.EOF) {
		return nil, cli.Usagef("seeds: %s: %v", name, err)
	}
	var seeds []keyengine.Seed
	var faults []error
	seen := make(map[string]bool)
	for i, k := range file.Keys {
		s, err := k.seed()
		if err == nil && seen[k.Region+" "+k.ID] {
			err = errors.New("duplicate key id in this Region")
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("key %d (%s): %w", i+1, cli.OrDash(k.ID), err))
			continue
		}
		seen[k.Region+" "+k.ID] = true
		seeds = append(seeds, s)
	}
	if err := errors.Join(faults...); err != nil {
		return nil, cli.Usagef("seeds: %s is not valid:\n%s", name, cli.Indent(err.Error()))
	}
	return seeds, nil
}

func (k *seedKey) seed() (s keyengine.Seed, err error) {
	s = keyengine.Seed{
		ID: k.ID, Region: k.Region, Description: k.Description, Spec: k.Spec, Usage: k.Usage,
		Tags: k.Tags, Disabled: k.Enabled != nil && !*k.Enabled,
	}
	if !keys.IsKeyID(k.ID) {
		return s, errors.New("id is not a UUID, or mrk- and 32 hexadecimal digits, in lower case")
	}
	for _, name := range k.Aliases {
		s.Aliases = append(s.Aliases, keys.AliasName(name))
	}
	switch {
	case k.Material == "":
	case strings.Contains(k.Material, "-----BEGIN"):
		if s.Material, err = keys.PrivateKey([]byte(k.Material)); err != nil {
			return s, err
		}
	default:
		compact := strings.Join(strings.Fields(k.Material), "")
		if s.Material, err = base64.StdEncoding.DecodeString(compact); err != nil {
			return s, fmt.Errorf("material is neither base64 nor PEM: %w", err)
		}
	}
	switch {
	case k.Policy.IsZero():
	case k.Policy.Kind == yaml.ScalarNode:
		s.Policy = k.Policy.Value
	default:
		var v any
		if err := k.Policy.Decode(&v); err != nil {
			return s, fmt.Errorf("policy: %w", err)
		}
		doc, err := json.Marshal(v)
		if err != nil {
			return s, fmt.Errorf("policy: %w", err)
		}
		s.Policy = string(doc)
	}
	return s, nil
}

// plant creates the keys of seeds that do not exist yet.
func plant(ctx context.Context, n *node.Node, seeds []keyengine.Seed) error {
	op := ceremony.Operator{Name: "root", SourceIP: "127.0.0.1"}
	for _, s := range seeds {
		if _, err := n.Engine().Plant(ctx, op, s); err != nil {
			return fmt.Errorf("seeds: key %s: %w", s.ID, err)
		}
	}
	return nil
}
