package clusterfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
	"github.com/conclavekms/conclave/keyengine/custodian"
)

// maxFile is larger than files need that people write.
const maxFile = 1 << 20

// File describes a new cluster: YAML, which includes JSON. What is left out of an object is not
// compared with one that exists.
type File struct {
	// Account, Regions (the default one first) and Partition are in every ARN and never
	// change.
	Account   string   `yaml:"account"`
	Regions   []string `yaml:"regions"`
	Partition string   `yaml:"partition"`
	AnyRegion bool     `yaml:"any_region"`
	// RootCertificate is the URI of a client certificate that also stands for the root user.
	RootCertificate string `yaml:"root_certificate"`
	// Threshold of the custodians are needed to unseal a node. Instead of Custodians, Shares
	// may say how many there are; the shares are then not encrypted.
	Threshold  int         `yaml:"threshold"`
	Shares     int         `yaml:"shares"`
	Custodians []Custodian `yaml:"custodians"`

	// Accounts are further accounts. All below is in the first one.
	Accounts     []Account     `yaml:"accounts"`
	Policies     []Policy      `yaml:"policies"`
	Groups       []Group       `yaml:"groups"`
	Users        []User        `yaml:"users"`
	Roles        []Role        `yaml:"roles"`
	Certificates []Certificate `yaml:"certificates"`
	Keys         []Key         `yaml:"keys"`
}

// Custodian keeps a share. It has either a Key or a KeyFile, whose name is relative to the
// directory of the file.
type Custodian struct {
	Name    string `yaml:"name"`
	Key     string `yaml:"key"`
	KeyFile string `yaml:"key_file"`

	raw    []byte
	parsed *custodian.Key
}

// Account is a further account of the cluster.
type Account struct {
	ID   string `yaml:"id"`
	Name string `yaml:"name"`
}

// Policy is a managed policy.
type Policy struct {
	Name        string            `yaml:"name"`
	Path        string            `yaml:"path"`
	Description *string           `yaml:"description"`
	Document    Document          `yaml:"document"`
	Tags        map[string]string `yaml:"tags"`
}

// Holder is what users, groups and roles have in common. Policies are names of managed policies
// of the account or of AWS, or ARNs; Inline are inline policies by their names.
type Holder struct {
	Name     string              `yaml:"name"`
	Path     string              `yaml:"path"`
	Policies []string            `yaml:"policies"`
	Inline   map[string]Document `yaml:"inline"`
}

// Group is a group of users.
type Group struct {
	Holder `yaml:",inline"`
}

// User is a user, who gets no access key.
type User struct {
	Holder `yaml:",inline"`
	Groups []string          `yaml:"groups"`
	Tags   map[string]string `yaml:"tags"`
}

// Role is a role, which its trust policy says who may assume.
type Role struct {
	Holder      `yaml:",inline"`
	Description *string           `yaml:"description"`
	MaxSession  int32             `yaml:"max_session"` // seconds
	Trust       Document          `yaml:"trust"`
	Tags        map[string]string `yaml:"tags"`
}

// Certificate maps client certificates to a user or a role: user/NAME, role/NAME, or an ARN.
type Certificate struct {
	URI       string `yaml:"uri"`
	Principal string `yaml:"principal"`
}

// Key is a KMS key. The first of its aliases says which one it is.
type Key struct {
	Aliases     []string          `yaml:"aliases"`
	Region      string            `yaml:"region"`
	Description *string           `yaml:"description"`
	Spec        string            `yaml:"spec"`
	Usage       string            `yaml:"usage"`
	MultiRegion *bool             `yaml:"multi_region"`
	Policy      Document          `yaml:"policy"`
	Tags        map[string]string `yaml:"tags"`
}

// Document is a policy: JSON in a string, or written as YAML.
type Document string

// UnmarshalYAML implements yaml.Unmarshaler.
func (d *Document) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str" {
		*d = Document(n.Value)
		return nil
	}
	untimed(n)
	var v map[string]any
	if err := n.Decode(&v); err != nil {
		return fmt.Errorf("line %d: a policy is JSON in a string, or an object", n.Line)
	}
	doc, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("line %d: the policy is not JSON: %w", n.Line, err)
	}
	*d = Document(doc)
	return nil
}

// untimed makes dates texts: the version of a policy is one, and JSON has no dates.
func untimed(n *yaml.Node) {
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!timestamp" {
		n.Tag = "!!str"
	}
	for _, c := range n.Content {
		untimed(c)
	}
}

// goType is what errors of the decoder say about our types, which people do not know.
var goType = regexp.MustCompile(` (in|into) (type )?clusterfile\.\w+`)

// Read reads a file and checks it. Its error lists everything that is wrong.
func Read(name string) (*File, error) {
	raw, err := files.Read(name, maxFile)
	if err != nil {
		return nil, err
	}
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	dec.KnownFields(true) // a misspelt member would make another cluster than intended
	f := new(File)
	if err := dec.Decode(f); err != nil {
		return nil, cli.Usagef("%s: %s", name, goType.ReplaceAllString(err.Error(), ""))
	}
	if err := dec.Decode(new(File)); !errors.Is(err, io.EOF) {
		return nil, cli.Usagef("%s has more than one document", name)
	}
	if faults := f.check(filepath.Dir(name)); len(faults) > 0 {
		return nil, cli.Usagef("%s is not valid; nothing was done:\n%s", name, cli.Indent(strings.Join(faults, "\n")))
	}
	return f, nil
}
