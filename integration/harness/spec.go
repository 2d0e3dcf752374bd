package harness

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Spec is the simplest possible specification of the service: one machine that processes
// one request at a time, all of them from the account's root. A witness check compares the
// log with it. It shares no code with the engine.
type Spec struct {
	Keys    map[string]*SpecKey // by id
	Aliases map[string]string   // key ids by name
}

// SpecKey is the specification of a key.
type SpecKey struct {
	State       string // as in AWS's KeyState
	Description string
	// Policy is the key's policy, or "" for the default one.
	Policy string
	Tags   map[string]string
}

// NewSpec returns an empty Spec.
func NewSpec() *Spec {
	return &Spec{Keys: make(map[string]*SpecKey), Aliases: make(map[string]string)}
}

// States in which operations on keys work. In all others they are refused.
var (
	specUsable     = map[string]string{"Enabled": "", "Disabled": "DisabledException", "PendingDeletion": "KMSInvalidStateException"}
	specChangeable = map[string]string{"Enabled": "", "Disabled": "", "PendingDeletion": "KMSInvalidStateException"}
	specAny        = map[string]string{"Enabled": "", "Disabled": "", "PendingDeletion": ""}
	specPending    = map[string]string{"Enabled": "KMSInvalidStateException", "Disabled": "KMSInvalidStateException", "PendingDeletion": ""}
)

// specOps are the operations on one key, with the states in which they work and their
// effects.
var specOps = map[string]struct {
	states map[string]string
	effect func(*SpecKey, *Record) error
}{
	"Encrypt":                         {specUsable, nil},
	"Decrypt":                         {specUsable, nil},
	"GenerateDataKey":                 {specUsable, nil},
	"GenerateDataKeyWithoutPlaintext": {specUsable, nil},
	"DescribeKey":                     {specAny, nil},
	"GetKeyPolicy":                    {specAny, nil},
	"ListKeyPolicies":                 {specAny, nil},
	"ListResourceTags":                {specAny, nil},
	"EnableKey":                       {specChangeable, func(k *SpecKey, _ *Record) error { k.State = "Enabled"; return nil }},
	"DisableKey":                      {specChangeable, func(k *SpecKey, _ *Record) error { k.State = "Disabled"; return nil }},
	"RotateKeyOnDemand":               {specUsable, nil}, // as often as the key's quota allows
	"ScheduleKeyDeletion":             {specChangeable, func(k *SpecKey, _ *Record) error { k.State = "PendingDeletion"; return nil }},
	"CancelKeyDeletion":               {specPending, func(k *SpecKey, _ *Record) error { k.State = "Disabled"; return nil }},
	"UpdateKeyDescription": {specChangeable, func(k *SpecKey, r *Record) error {
		k.Description = r.param("description")
		return nil
	}},
	"PutKeyPolicy": {specAny, func(k *SpecKey, r *Record) error {
		k.Policy = r.param("policy")
		return nil
	}},
	"TagResource": {specChangeable, func(k *SpecKey, r *Record) error {
		tags, err := r.tags()
		for name, value := range tags {
			k.Tags[name] = value
		}
		return err
	}},
	"UntagResource": {specChangeable, func(k *SpecKey, r *Record) error {
		for _, name := range r.list("tagKeys") {
			delete(k.Tags, name)
		}
		return nil
	}},
}

// Apply applies the next record of the log, and returns the outcome that the request must
// have had at this point.
func (s *Spec) Apply(r *Record) (code string, err error) {
	if r.Type != "AwsApiCall" {
		if r.Name == "DeleteKey" && r.Code == "" {
			return "", s.deleted(r)
		}
		return r.Code, nil // not about keys
	}
	if r.Code == "LimitExceededException" {
		return r.Code, nil // the log does not contain how full the disks were
	}
	switch r.Name {
	case "ListKeys", "ListAliases", "GenerateRandom":
		return "", nil
	case "CreateKey":
		return "", s.create(r)
	case "CreateAlias", "UpdateAlias", "DeleteAlias":
		return s.alias(r), nil
	}
	op, ok := specOps[r.Name]
	if !ok {
		return "", fmt.Errorf("no specification of %s", r.Name)
	}
	k, _ := s.find(r.key())
	if k == nil {
		return "NotFoundException", nil
	}
	allowed, err := k.allows("kms:" + r.Name)
	switch {
	case err != nil:
		return "", err
	case !allowed:
		return "AccessDeniedException", nil
	case op.states[k.State] != "":
		return op.states[k.State], nil
	}
	if op.effect != nil {
		err = op.effect(k, r)
	}
	return "", err
}

func (s *Spec) create(r *Record) error {
	meta, _ := r.Response["keyMetadata"].(map[string]any)
	id, _ := meta["keyId"].(string)
	if id == "" {
		return errors.New("no key id in the record")
	}
	if s.Keys[id] != nil {
		return fmt.Errorf("key %s is made twice", id)
	}
	tags, err := r.tags()
	s.Keys[id] = &SpecKey{State: "Enabled", Description: r.param("description"), Policy: r.param("policy"), Tags: tags}
	return err
}

// deleted applies the end of a key's waiting period, which the cluster itself records.
func (s *Spec) deleted(r *Record) error {
	k, id := s.find(r.key())
	if k == nil || k.State != "PendingDeletion" {
		return fmt.Errorf("key %q is deleted, but was not pending deletion", id)
	}
	delete(s.Keys, id)
	for name, target := range s.Aliases {
		if target == id {
			delete(s.Aliases, name)
		}
	}
	return nil
}

const specMaxAliases = 50

func (s *Spec) alias(r *Record) string {
	name := r.param("aliasName")
	var keys []*SpecKey
	at, exists := s.Aliases[name]
	if r.Name != "CreateAlias" {
		if !exists {
			return "NotFoundException"
		}
		keys = append(keys, s.Keys[at])
	}
	var target string
	states := specAny
	if r.Name != "DeleteAlias" {
		var k *SpecKey
		if k, target = s.find(r.param("targetKeyId")); k == nil {
			return "NotFoundException"
		}
		keys = append(keys, k)
		states = specChangeable
	}
	for _, k := range keys {
		if ok, err := k.allows("kms:" + r.Name); err != nil || !ok {
			return "AccessDeniedException"
		}
	}
	if code := states[keys[len(keys)-1].State]; code != "" {
		return code
	}
	if r.Name == "CreateAlias" && exists {
		return "AlreadyExistsException"
	}
	if r.Name == "DeleteAlias" {
		delete(s.Aliases, name)
		return ""
	}
	if at != target {
		n := 0
		for _, id := range s.Aliases {
			if id == target {
				n++
			}
		}
		if n >= specMaxAliases {
			return "LimitExceededException"
		}
	}
	s.Aliases[name] = target
	return ""
}

// find returns the key that a KeyId names.
func (s *Spec) find(given string) (*SpecKey, string) {
	if strings.HasPrefix(given, "arn:") {
		given = given[strings.LastIndexByte(given, ':')+1:]
		given = strings.TrimPrefix(given, "key/")
	}
	if strings.HasPrefix(given, "alias/") {
		given = s.Aliases[given]
	}
	return s.Keys[given], given
}

// allows evaluates a key policy for the account's root. It supports only the policies that
// tests use: exact actions and "kms:*".
func (k *SpecKey) allows(action string) (bool, error) {
	if k.Policy == "" {
		return true, nil
	}
	var doc struct {
		Statement []struct {
			Effect string
			Action any
		}
	}
	if err := json.Unmarshal([]byte(k.Policy), &doc); err != nil {
		return false, fmt.Errorf("policy in the log: %w", err)
	}
	allowed := false
	for _, st := range doc.Statement {
		var actions []string
		switch a := st.Action.(type) {
		case string:
			actions = []string{a}
		case []any:
			for _, x := range a {
				if s, ok := x.(string); ok {
					actions = append(actions, s)
				}
			}
		}
		if !slices.Contains(actions, action) && !slices.Contains(actions, "kms:*") {
			continue
		}
		if st.Effect == "Deny" {
			return false, nil
		}
		allowed = true
	}
	return allowed, nil
}
