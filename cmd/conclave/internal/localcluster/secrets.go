package localcluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
)

// secretsFile is the name of a file in the directory of a development server.
const secretsFile = "dev-secrets.json"

// secrets is what is needed to unseal a development server again. In
// production, custodians have the shares, and the user has the secret access
// key.
type secrets struct {
	Warning string `json:"warning"`

	Account string   `json:"account"`
	Region  string   `json:"region"`
	Regions []string `json:"regions,omitempty"` // all of them, if there are several
	CACert  string   `json:"ca_cert"`
	CAKey   string   `json:"ca_key"`
	Keys
}

// allRegions returns all Regions that the server serves, the default one first
// and the others in ascending order, as in the cluster's record.
func (s *secrets) allRegions() []string {
	if len(s.Regions) == 0 {
		return []string{s.Region}
	}
	return append([]string{s.Region}, slices.Sorted(slices.Values(s.Regions[1:]))...)
}

// loadSecrets returns nil if there are none yet.
func loadSecrets(dir string) (*secrets, error) {
	name := filepath.Join(dir, secretsFile)
	raw, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s := new(secrets)
	if err := json.Unmarshal(raw, s); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return s, nil
}

func (s *secrets) save(dir string) error {
	s.Warning = "for development only: this file opens the server and all its keys"
	raw, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return files.Write(filepath.Join(dir, secretsFile), append(raw, '\n'))
}
