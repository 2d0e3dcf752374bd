package keyengine

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

// Multi-Region keys are a set: a primary and replicas, one at most in each of the
// cluster's Regions, with the same 16 bytes of id. They share id, material, spec,
// usage, origin and automatic rotation, and whatever changes one of these changes
// it in all of them with one record (putMembers).

const (
	typePrimary = "PRIMARY"
	typeReplica = "REPLICA"

	actionCreateKey = "kms:CreateKey"

	// stateCreating is what ReplicateKey says of the replica, as AWS does. The
	// next request finds it made.
	stateCreating = "Creating"
)

// members are all keys of a key's set, itself included, in the order of the
// Regions; a single-Region key is alone. That a Region has none is noted too. An
// eval without a caller will do, for events: what they need is its reads and
// changes.
func membersOf(ev *eval, t *target) []*target {
	if !t.key.MultiRegion {
		return []*target{t}
	}
	var all []*target
	for _, r := range regions(ev.cluster()) {
		if r == t.id.Region {
			all = append(all, t)
		} else if m := memberIn(ev, t, r); m.key != nil {
			all = append(all, m)
		}
	}
	return all
}

// member is the key of t's set in another Region; its key is nil when there is
// none. Unlike target, it does not say that the request acts on it.
func memberIn(ev *eval, t *target, region string) *target {
	id := fsm.KeyID{Account: t.id.Account, Region: region, ID: t.id.ID}
	return &target{id: id, key: ev.key(id), arn: keyARN(ev.cluster(), region, t.name())}
}

// putMembers changes a key of a set to k, and what the others share with it to
// the same: material that they lack is wrapped for each of them.
func putMembers(ev *eval, k *fsmpb.Key, members []*target) error {
	for _, m := range members {
		n := k
		if m.id.Region != k.Region {
			var err error
			if n, err = inStep(ev.Vault, k, m.key); err != nil {
				return err
			}
		}
		if !proto.Equal(n, m.key) {
			putKey(ev, n)
		}
	}
	return nil
}

// inStep is a key of a set, with what the set shares as another of its keys has
// it.
func inStep(v *vault.Vault, from, to *fsmpb.Key) (*fsmpb.Key, error) {
	k := proto.CloneOf(to)
	k.PrimaryRegion, k.Rotation, k.RotationsOnDemand = from.PrimaryRegion, proto.CloneOf(from.Rotation), from.RotationsOnDemand
	k.Materials = nil
	for _, m := range from.Materials {
		n, err := sharedMaterial(v, from, m, to)
		if err != nil {
			return nil, err
		}
		k.Materials = append(k.Materials, n)
	}
	for _, m := range to.Materials {
		if len(m.Wrapped) > 0 && materialOf(k, m.Id) == nil {
			return nil, fmt.Errorf("key %x of %s has material that the one of %s lacks", to.Id, to.Region, from.Region)
		}
	}
	return k, nil
}

// sharedMaterial is a version of a key's material as another key of its set has
// it. Imported material comes without the material itself: each key of the set
// gets that by an import of its own.
func sharedMaterial(v *vault.Vault, from *fsmpb.Key, m *fsmpb.Material, to *fsmpb.Key) (*fsmpb.Material, error) {
	n := &fsmpb.Material{
		Id: m.Id, MaterialId: m.MaterialId, Created: m.Created, PublicKey: m.PublicKey,
		Rotated: m.Rotated, OnDemand: m.OnDemand, Pending: m.Pending,
	}
	if has := materialOf(to, m.Id); has != nil {
		n.Generation, n.Wrapped, n.ValidTo, n.Description = has.Generation, has.Wrapped, has.ValidTo, has.Description
		return n, nil
	}
	if from.Origin == kmsapi.OriginImported {
		return n, nil
	}
	return n, v.HandOver(from, m, to, n)
}

// isPrimary tells whether a key is the primary of a set.
func (t *target) isPrimary() bool { return t.key.MultiRegion && t.key.PrimaryRegion == t.id.Region }

// configuration describes a key's set.
func configurationOf(ev *eval, t *target) *kmsapi.MultiRegionConfiguration {
	name := func(region string) kmsapi.MultiRegionKey {
		return kmsapi.MultiRegionKey{Arn: new(keyARN(ev.cluster(), region, t.name())), Region: new(region)}
	}
	c := &kmsapi.MultiRegionConfiguration{
		MultiRegionKeyType: new(typeReplica), PrimaryKey: new(name(t.key.PrimaryRegion)), ReplicaKeys: []kmsapi.MultiRegionKey{},
	}
	if t.isPrimary() {
		c.MultiRegionKeyType = new(typePrimary)
	}
	for _, m := range membersOf(ev, t) {
		if m.id.Region != t.key.PrimaryRegion {
			c.ReplicaKeys = append(c.ReplicaKeys, name(m.id.Region))
		}
	}
	return c
}

// managedPrimary is managed for operations on the primary of a set.
func managedPrimary(ev *eval, keyID string) (*target, error) {
	t, err := ev.managed(keyID)
	if err == nil && !t.isPrimary() {
		err = notPrimary(t)
	}
	return t, err
}

func notPrimary(t *target) error {
	return kmsapi.Errorf(kmsapi.ErrUnsupported, "%s is not a multi-region primary key.", t.arn)
}

func replicateKey(ev *eval, in *kmsapi.ReplicateKeyInput) (*kmsapi.ReplicateKeyOutput, error) {
	t, err := managedPrimary(ev, *in.KeyId)
	if err != nil {
		return nil, err
	}
	if !servesRegion(ev.cluster(), *in.ReplicaRegion) {
		return nil, kmsapi.Errorf(kmsapi.ErrValidation, "ReplicaRegion %s is not a Region of this cluster.", *in.ReplicaRegion)
	}
	if err := authoriseReplica(ev, in); err != nil {
		return nil, err
	}
	r := memberIn(ev, t, *in.ReplicaRegion)
	ev.resource("AWS::KMS::Key", r.arn)
	if r.key != nil {
		return nil, kmsapi.Errorf(kmsapi.ErrAlreadyExists, "Key '%s' already exists", r.arn)
	}
	if len(membersOf(ev, t)) >= maxSet {
		return nil, kmsapi.Errorf(kmsapi.ErrLimitExceeded, "%s has keys in %d Regions and cannot have more.", t.arn, maxSet)
	}
	tags, err := mergeTags(ev, nil, in.Tags)
	if err != nil {
		return nil, err
	}
	c := ev.cluster()
	doc := policy.DefaultKeyPolicy(c.Partition, c.Account)
	if in.Policy != nil {
		doc = *in.Policy
		if err := checkPolicy(ev, doc, r.arn, isSet(in.BypassPolicyLockoutSafetyCheck)); err != nil {
			return nil, err
		}
	}
	if err := roomForKey(ev, r.id.Region); err != nil {
		return nil, err
	}
	if r.key, err = newReplica(ev, t, r.id.Region, in.Description); err != nil {
		return nil, err
	}
	putKey(ev, r.key)
	putPolicy(ev, r.id, doc)
	if len(tags) > 0 {
		putTags(ev, r.id, tags)
	}
	d := metadataOf(ev, r)
	d.KeyState, d.Enabled, d.CurrentKeyMaterialId = new(stateCreating), new(false), nil
	return &kmsapi.ReplicateKeyOutput{ReplicaKeyMetadata: d, ReplicaPolicy: &doc, ReplicaTags: in.Tags}, nil
}

// authoriseReplica asks for what the replica's Region takes to make a key there.
func authoriseReplica(ev *eval, in *kmsapi.ReplicateKeyInput) error {
	if err := ev.authoriseAccount(actionCreateKey, "*"); err != nil {
		return err
	}
	if len(in.Tags) > 0 {
		return ev.authoriseAccount(actionTagResource, "*")
	}
	return nil
}

// newReplica is a new key of t's set.
func newReplica(ev *eval, t *target, region string, description *string) (*fsmpb.Key, error) {
	k := &fsmpb.Key{
		Account: uint64(t.id.Account), Id: t.id.ID[:], Region: region, MultiRegion: true, Created: ev.now().UnixNano(),
		Spec: t.key.Spec, Usage: t.key.Usage, Origin: t.key.Origin, State: fsmpb.KeyState_KEY_STATE_ENABLED,
	}
	if description != nil {
		k.Description = *description
	}
	if k.Origin == kmsapi.OriginImported {
		k.State = fsmpb.KeyState_KEY_STATE_PENDING_IMPORT
	}
	return inStep(ev.Vault, t.key, k)
}

// recordReplica is what the record of ReplicateKey shows of the answer.
func recordReplica(out *kmsapi.ReplicateKeyOutput, rec *auditpb.Record) {
	rec.ResponseElements = []*auditpb.Field{
		metadataField("replicaKeyMetadata", out.ReplicaKeyMetadata), auditfield.Text("replicaPolicy", *out.ReplicaPolicy),
	}
}

// updatePrimaryRegion swaps the roles of the primary and a replica. The caller
// has to be allowed that on both, and neither may be on its way out.
func updatePrimaryRegion(ev *eval, in *kmsapi.UpdatePrimaryRegionInput) (*none, error) {
	t, err := managedPrimary(ev, *in.KeyId)
	if err != nil {
		return nil, err
	}
	if *in.PrimaryRegion == t.id.Region {
		return nil, kmsapi.Errorf(kmsapi.ErrUnsupported, "%s is the multi-region primary key already.", t.arn)
	}
	members := membersOf(ev, t)
	i := slices.IndexFunc(members, func(m *target) bool { return m.id.Region == *in.PrimaryRegion })
	if i < 0 {
		return nil, kmsapi.Errorf(kmsapi.ErrNotFound, "Key '%s' does not exist", keyARN(ev.cluster(), *in.PrimaryRegion, t.name()))
	}
	r := members[i]
	ev.resource("AWS::KMS::Key", r.arn)
	if err := ev.authorise(r, ev.op.action(), nil); err != nil {
		return nil, err
	}
	if err := ev.op.states.check(r.arn, r.key.State); err != nil {
		return nil, err
	}
	k := proto.CloneOf(t.key)
	k.PrimaryRegion = r.id.Region
	return &none{}, putMembers(ev, k, members)
}

// waitsForReplicas tells whether a key is a primary with replicas, which goes
// only after them, whatever their state.
func waitsForReplicas(ev *eval, t *target) bool {
	return t.isPrimary() && len(membersOf(ev, t)) > 1
}

// maxSet is the largest number of keys in a multi-Region set: some operations
// change all of them with one record, which can make 16 changes.
const maxSet = 12
