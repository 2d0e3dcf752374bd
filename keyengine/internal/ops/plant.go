package ops

import (
	"errors"
	"fmt"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/cryptops"
	"github.com/conclavekms/conclave/keyengine/internal/primitive"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

// Seed describes a key with a known id and possibly known material, for tests and
// development.
type Seed struct {
	// ID is a key id as AWS writes it: a UUID, or mrk-… for a multi-Region primary key.
	ID string
	// Region is one of the cluster's; the default is its default Region.
	Region      string
	Description string
	Spec, Usage string // default: a symmetric encryption key
	// Material is the key material, in the form in which it would be imported. If nil, it
	// is random. Plant wipes it.
	Material []byte
	// Policy is a policy in JSON; the default is the default key policy.
	Policy   string
	Tags     map[string]string
	Aliases  []string // with the prefix "alias/"
	Disabled bool
}

// MaxSeedAliases ensures that a seed fits in a record, which can make 16 changes.
const MaxSeedAliases = 12

// PlantKey adds the changes that create a seed's key to the evaluation and returns the key.
// It returns nil if the key exists already.
func PlantKey(ev *request.Evaluation, s *Seed) (*request.Target, error) {
	id, multi, ok := request.ParseKeyID(s.ID)
	if !ok {
		return nil, kmsapi.Errorf(kmsapi.ErrValidation, "%q is not a key id: a UUID, or mrk- and 32 hexadecimal digits.", s.ID)
	}
	c := ev.Cluster()
	key := fsm.KeyID{Account: request.AccountOf(ev), Region: s.Region, ID: id}
	if s.Region == "" {
		key.Region = c.Region
	}
	if !request.ServesRegion(c, key.Region) {
		return nil, kmsapi.Errorf(kmsapi.ErrValidation, "%s is not a Region of this cluster.", key.Region)
	}
	if ev.Key(key) != nil {
		return nil, nil
	}
	if ev.Tombstone(key) != nil {
		return nil, kmsapi.Errorf(kmsapi.ErrInvalidState, "%s was deleted; its id is never a key's again.", s.ID)
	}
	in := &kmsapi.CreateKeyInput{MultiRegion: &multi}
	if s.Spec != "" {
		in.KeySpec = &s.Spec
	}
	if s.Usage != "" {
		in.KeyUsage = &s.Usage
	}
	if err := errors.Join(keyKind(in), supportedKey(in)); err != nil {
		return nil, err
	}
	k := &fsmpb.Key{
		Account: uint64(key.Account), Id: id[:], Region: key.Region, Created: ev.Now().UnixNano(), Description: s.Description,
		Spec: specOf(in), Usage: usageOf(in), Origin: kmsapi.OriginKMS, State: fsmpb.KeyState_KEY_STATE_ENABLED,
	}
	if multi {
		k.MultiRegion, k.PrimaryRegion = true, key.Region
	}
	if s.Disabled {
		k.State = fsmpb.KeyState_KEY_STATE_DISABLED
	}
	if err := plantMaterial(ev, k, s.Material); err != nil {
		return nil, err
	}
	t := &request.Target{ID: key, Key: k, ARN: request.KeyARN(c, key.Account, key.Region, s.ID)}
	PutKey(ev, k)
	return t, plantRest(ev, t, s)
}

// plantMaterial gives a key known material. The material's id is derived from it, so that
// ciphertexts of one development server can be decrypted by the next one with the same
// seeds.
func plantMaterial(ev *request.Evaluation, k *fsmpb.Key, material []byte) error {
	if material == nil {
		m, err := randomMaterial(ev, k)
		k.Materials = []*fsmpb.Material{m}
		return err
	}
	if err := soundMaterial(k.Spec, material); err != nil {
		return fmt.Errorf("the material is not one of KeySpec %s: %w", k.Spec, err)
	}
	m := &fsmpb.Material{Created: k.Created, MaterialId: vault.KeyMaterialID(k, material)}
	m.Id = m.MaterialId[:16]
	if k.Spec != kmsapi.SpecSymmetric && k.Usage != kmsapi.UsageMac {
		var err error
		if m.PublicKey, err = primitive.Public(k.Spec, material); err != nil {
			return cryptops.RefusedByFIPS(err)
		}
	}
	k.Materials = []*fsmpb.Material{m}
	return ev.Vault.WrapAgain(k, m, material)
}

// randomMaterial is makeMaterial for an evaluation that has no request to keep results in.
func randomMaterial(ev *request.Evaluation, k *fsmpb.Key) (*fsmpb.Material, error) {
	if k.Spec == kmsapi.SpecSymmetric {
		return ev.Vault.NewMaterial(k, k.Created)
	}
	b, err := primitive.Generate(k.Spec)
	if err != nil {
		return nil, cryptops.RefusedByFIPS(err)
	}
	return wrapPrivate(ev, k, k.Created, b)
}

func plantRest(ev *request.Evaluation, t *request.Target, s *Seed) error {
	doc := s.Policy
	var bindings []*fsmpb.Binding
	if doc == "" {
		doc = policy.DefaultKeyPolicy(ev.Cluster().Partition, t.ID.Account.String())
	} else {
		var err error
		if bindings, err = request.CheckPolicy(ev, doc, t, nil, true); err != nil {
			return err
		}
	}
	putPolicy(ev, t.ID, doc, bindings)
	var add []kmsapi.Tag
	for k, v := range s.Tags {
		add = append(add, kmsapi.Tag{TagKey: &k, TagValue: &v})
	}
	tags, err := mergeTags(ev, nil, add)
	if err != nil {
		return err
	}
	if len(tags) > 0 {
		PutTags(ev, t.ID, tags)
	}
	if len(s.Aliases) > MaxSeedAliases {
		return kmsapi.Errorf(kmsapi.ErrLimitExceeded, "A seed has %d aliases at most.", MaxSeedAliases)
	}
	for _, name := range s.Aliases {
		if err := aliasName(name); err != nil {
			return err
		}
		if ev.Alias(t.ID.Account, t.ID.Region, name) != nil {
			return kmsapi.Errorf(kmsapi.ErrAlreadyExists, "An alias with the name %s already exists in %s", name, t.ID.Region)
		}
		putAlias(ev, &fsmpb.Alias{Account: uint64(t.ID.Account), Name: name, Region: t.ID.Region, Key: t.ID.ID[:], Created: t.Key.Created, Updated: t.Key.Created})
	}
	return nil
}
