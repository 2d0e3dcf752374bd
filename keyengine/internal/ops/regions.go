package ops

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

// A set of multi-Region keys consists of a primary and replicas, at most one key in each of
// the cluster's Regions, with the same 16 bytes of id. Id, material, spec, usage, origin
// and automatic rotation are shared. A change of one of these is made to all keys of the
// set in one record (PutMembers).

const (
	typePrimary = "PRIMARY"
	typeReplica = "REPLICA"

	actionCreateKey = "kms:CreateKey"

	// stateCreating is the state in ReplicateKey's answer, as in AWS. The next request
	// finds the replica ready.
	stateCreating = "Creating"
)

// MembersOf returns all keys of a key's set, including itself, in the order of the Regions;
// for a single-Region key that is the key alone. Missing keys are added to the read set
// too. The evaluation needs no caller, so events can use it.
func MembersOf(ev *request.Evaluation, t *request.Target) []*request.Target {
	if !t.Key.MultiRegion {
		return []*request.Target{t}
	}
	var all []*request.Target
	for _, r := range request.Regions(ev.Cluster()) {
		if r == t.ID.Region {
			all = append(all, t)
		} else if m := member(ev, t, r); m.Key != nil {
			all = append(all, m)
		}
	}
	return all
}

// member returns the key of t's set in another Region. If it does not exist, its Key is
// nil. Unlike Evaluation.Target, member does not add the key to the resources of the
// record.
func member(ev *request.Evaluation, t *request.Target, region string) *request.Target {
	id := fsm.KeyID{Account: t.ID.Account, Region: region, ID: t.ID.ID}
	return &request.Target{ID: id, Key: ev.Key(id), ARN: request.KeyARN(ev.Cluster(), t.ID.Account, region, t.Name())}
}

// PutMembers changes a key of a set to k and updates the other keys to match: material that
// they lack is wrapped for each of them.
func PutMembers(ev *request.Evaluation, k *fsmpb.Key, members []*request.Target) error {
	for _, m := range members {
		n := k
		if m.ID.Region != k.Region {
			var err error
			if n, err = InStep(ev.Vault, k, m.Key); err != nil {
				return err
			}
		}
		if !proto.Equal(n, m.Key) {
			PutKey(ev, n)
		}
	}
	return nil
}

// InStep returns a copy of the key to, with everything that a set shares taken from the key
// from.
func InStep(v *vault.Vault, from, to *fsmpb.Key) (*fsmpb.Key, error) {
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
		if len(m.Wrapped) > 0 && request.MaterialOf(k, m.Id) == nil {
			return nil, fmt.Errorf("key %x of %s has material that the one of %s lacks", to.Id, to.Region, from.Region)
		}
	}
	return k, nil
}

// sharedMaterial returns a material of one key for another key of its set. The bytes of
// imported material are not copied: each key of the set must import them itself.
func sharedMaterial(v *vault.Vault, from *fsmpb.Key, m *fsmpb.Material, to *fsmpb.Key) (*fsmpb.Material, error) {
	n := &fsmpb.Material{
		Id: m.Id, MaterialId: m.MaterialId, Created: m.Created, PublicKey: m.PublicKey,
		Rotated: m.Rotated, OnDemand: m.OnDemand, Pending: m.Pending,
	}
	if has := request.MaterialOf(to, m.Id); has != nil {
		n.Generation, n.Wrapped, n.ValidTo, n.Description = has.Generation, has.Wrapped, has.ValidTo, has.Description
		return n, nil
	}
	if from.Origin == kmsapi.OriginImported {
		return n, nil
	}
	return n, v.HandOver(from, m, to, n)
}

// isPrimary reports whether a key is the primary of a set.
func isPrimary(t *request.Target) bool {
	return t.Key.MultiRegion && t.Key.PrimaryRegion == t.ID.Region
}

// configuration returns the multi-Region configuration of a key's set.
func configuration(ev *request.Evaluation, t *request.Target) *kmsapi.MultiRegionConfiguration {
	name := func(region string) kmsapi.MultiRegionKey {
		return kmsapi.MultiRegionKey{Arn: new(request.KeyARN(ev.Cluster(), t.ID.Account, region, t.Name())), Region: new(region)}
	}
	c := &kmsapi.MultiRegionConfiguration{
		MultiRegionKeyType: new(typeReplica), PrimaryKey: new(name(t.Key.PrimaryRegion)), ReplicaKeys: []kmsapi.MultiRegionKey{},
	}
	if isPrimary(t) {
		c.MultiRegionKeyType = new(typePrimary)
	}
	for _, m := range MembersOf(ev, t) {
		if m.ID.Region != t.Key.PrimaryRegion {
			c.ReplicaKeys = append(c.ReplicaKeys, name(m.ID.Region))
		}
	}
	return c
}

// managedPrimary is Evaluation.Managed for operations on the primary of a set.
func managedPrimary(ev *request.Evaluation, keyID string) (*request.Target, error) {
	t, err := ev.Managed(keyID)
	if err == nil && !isPrimary(t) {
		err = notPrimary(t)
	}
	return t, err
}

func notPrimary(t *request.Target) error {
	return kmsapi.Errorf(kmsapi.ErrUnsupported, "%s is not a multi-region primary key.", t.ARN)
}

func replicateKey(ev *request.Evaluation, in *kmsapi.ReplicateKeyInput) (*kmsapi.ReplicateKeyOutput, error) {
	t, err := managedPrimary(ev, *in.KeyId)
	if err != nil {
		return nil, err
	}
	if !request.ServesRegion(ev.Cluster(), *in.ReplicaRegion) {
		return nil, kmsapi.Errorf(kmsapi.ErrValidation, "ReplicaRegion %s is not a Region of this cluster.", *in.ReplicaRegion)
	}
	if err := authoriseReplica(ev, t, in); err != nil {
		return nil, err
	}
	r := member(ev, t, *in.ReplicaRegion)
	ev.Resource("AWS::KMS::Key", r.ARN)
	if r.Key != nil {
		return nil, kmsapi.Errorf(kmsapi.ErrAlreadyExists, "Key '%s' already exists", r.ARN)
	}
	if len(MembersOf(ev, t)) >= MaxSet {
		return nil, kmsapi.Errorf(kmsapi.ErrLimitExceeded, "%s has keys in %d Regions and cannot have more.", t.ARN, MaxSet)
	}
	tags, err := mergeTags(ev, nil, in.Tags)
	if err != nil {
		return nil, err
	}
	c := ev.Cluster()
	doc := policy.DefaultKeyPolicy(c.Partition, t.ID.Account.String())
	var bindings []*fsmpb.Binding
	if in.Policy != nil {
		doc = *in.Policy
		toBe := &request.Target{ID: r.ID, Key: replicaKind(t, r.ID.Region), ARN: r.ARN}
		if bindings, err = request.CheckPolicy(ev, doc, toBe, nil, request.IsSet(in.BypassPolicyLockoutSafetyCheck)); err != nil {
			return nil, err
		}
	}
	if err := roomForKey(ev, r.ID.Region); err != nil {
		return nil, err
	}
	if r.Key, err = newReplica(ev, t, r.ID.Region, in.Description); err != nil {
		return nil, err
	}
	PutKey(ev, r.Key)
	putPolicy(ev, r.ID, doc, bindings)
	if len(tags) > 0 {
		PutTags(ev, r.ID, tags)
	}
	d := metadataOf(ev, r)
	d.KeyState, d.Enabled, d.CurrentKeyMaterialId = new(stateCreating), new(false), nil
	return &kmsapi.ReplicateKeyOutput{ReplicaKeyMetadata: d, ReplicaPolicy: &doc, ReplicaTags: in.Tags}, nil
}

// authoriseReplica checks that the caller may create a key in the replica's Region, which is
// the Region of the request as far as conditions are concerned.
func authoriseReplica(ev *request.Evaluation, t *request.Target, in *kmsapi.ReplicateKeyInput) error {
	for _, action := range []string{actionCreateKey, actionTagResource} {
		if action == actionTagResource && len(in.Tags) == 0 {
			continue
		}
		c := &request.Conditions{New: replicaKind(t, *in.ReplicaRegion), More: map[string][]string{"aws:requestedregion": {*in.ReplicaRegion}}}
		if err := ev.AuthoriseResource(action, "*", c); err != nil {
			return err
		}
	}
	return nil
}

// replicaKind returns a key of the kind of t's replicas.
func replicaKind(t *request.Target, region string) *fsmpb.Key {
	return &fsmpb.Key{
		Account: uint64(t.ID.Account), Id: t.ID.ID[:], Region: region, MultiRegion: true, PrimaryRegion: t.Key.PrimaryRegion,
		Spec: t.Key.Spec, Usage: t.Key.Usage, Origin: t.Key.Origin,
	}
}

// newReplica returns a new key of t's set.
func newReplica(ev *request.Evaluation, t *request.Target, region string, description *string) (*fsmpb.Key, error) {
	k := replicaKind(t, region)
	k.Created, k.State = ev.Now().UnixNano(), fsmpb.KeyState_KEY_STATE_ENABLED
	if description != nil {
		k.Description = *description
	}
	if k.Origin == kmsapi.OriginImported {
		k.State = fsmpb.KeyState_KEY_STATE_PENDING_IMPORT
	}
	return InStep(ev.Vault, t.Key, k)
}

// recordReplica returns what the record has of ReplicateKey's answer.
func recordReplica(out *kmsapi.ReplicateKeyOutput, _ []*auditpb.Resource) []*auditpb.Field {
	return []*auditpb.Field{
		metadataField("replicaKeyMetadata", out.ReplicaKeyMetadata), auditfield.Text("replicaPolicy", *out.ReplicaPolicy),
	}
}

// updatePrimaryRegion swaps the roles of the primary and a replica. The caller needs
// permission on both keys, and neither may be scheduled for deletion.
func updatePrimaryRegion(ev *request.Evaluation, in *kmsapi.UpdatePrimaryRegionInput) (*request.None, error) {
	t, err := managedPrimary(ev, *in.KeyId)
	if err != nil {
		return nil, err
	}
	if *in.PrimaryRegion == t.ID.Region {
		return nil, kmsapi.Errorf(kmsapi.ErrUnsupported, "%s is the multi-region primary key already.", t.ARN)
	}
	members := MembersOf(ev, t)
	i := slices.IndexFunc(members, func(m *request.Target) bool { return m.ID.Region == *in.PrimaryRegion })
	if i < 0 {
		return nil, kmsapi.Errorf(kmsapi.ErrNotFound, "Key '%s' does not exist", request.KeyARN(ev.Cluster(), t.ID.Account, *in.PrimaryRegion, t.Name()))
	}
	r := members[i]
	ev.Resource("AWS::KMS::Key", r.ARN)
	if err := ev.Authorise(r, ev.Op.Action(), nil); err != nil {
		return nil, err
	}
	if err := ev.Op.States.Check(r.ARN, r.Key.State); err != nil {
		return nil, err
	}
	k := proto.CloneOf(t.Key)
	k.PrimaryRegion = r.ID.Region
	return &request.None{}, PutMembers(ev, k, members)
}

// waitsForReplicas reports whether a key is a primary with replicas. It is deleted only
// after all of them, whatever their state.
func waitsForReplicas(ev *request.Evaluation, t *request.Target) bool {
	return isPrimary(t) && len(MembersOf(ev, t)) > 1
}

// MaxSet is the maximum number of keys in a multi-Region set. Some operations change all of
// them in one record, which can make 16 changes.
const MaxSet = 12
