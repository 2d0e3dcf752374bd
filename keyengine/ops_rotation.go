package keyengine

import (
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

const (
	// rotationPeriod is how long a material is current when EnableKeyRotation does
	// not say, in days.
	rotationPeriod = 365
	// rotationSoon is how long before an automatic rotation none on demand begins.
	rotationSoon = 20 * time.Minute

	day = 24 * time.Hour

	rotationAutomatic = "AUTOMATIC"
	rotationOnDemand  = "ON_DEMAND"
	allMaterial       = "ALL_KEY_MATERIAL"
)

// rotates checks whether keys of that kind can be rotated at all.
func rotates(t *target) error {
	switch {
	case t.key.Spec != kmsapi.SpecSymmetric:
		return kmsapi.Errorf(kmsapi.ErrUnsupported, "%s has key spec %s. Only symmetric encryption keys can be rotated.", t.arn, t.key.Spec)
	case t.key.Origin != kmsapi.OriginKMS && t.key.Origin != kmsapi.OriginImported:
		return wrongOrigin(t)
	}
	return nil
}

// rotatesByItself checks whether a key can be rotated automatically.
func rotatesByItself(t *target) error {
	if err := rotates(t); err != nil {
		return err
	}
	if t.key.Origin != kmsapi.OriginKMS {
		return wrongOrigin(t)
	}
	return primary(t)
}

// primary refuses replicas for what is done to all keys of a multi-Region set.
func primary(t *target) error {
	if replica(t.key) {
		return notPrimary(t)
	}
	return nil
}

// enableKeyRotation: rotation is never early by cluster time, as deletion is not
// (see scheduleKeyDeletion).
func enableKeyRotation(ev *eval, in *kmsapi.EnableKeyRotationInput) (*none, error) {
	days := uint32(rotationPeriod)
	if in.RotationPeriodInDays != nil {
		days = uint32(*in.RotationPeriodInDays)
	}
	t, err := ev.managed(*in.KeyId)
	if err != nil {
		return nil, err
	}
	if err := rotatesByItself(t); err != nil {
		return nil, err
	}
	if r := t.key.Rotation; r.GetEnabled() && r.PeriodDays == days {
		return &none{}, nil
	}
	next := fromNow(ev).Add(time.Duration(days) * day)
	return &none{}, putRotation(ev, t, &fsmpb.Rotation{Enabled: true, PeriodDays: days, Next: next.UnixNano()})
}

// fromNow is the next whole second, from which times that are promised are
// counted: the record is refused if cluster time is past it by then.
func fromNow(ev *eval) time.Time {
	base := ev.now().Add(time.Second - 1).Truncate(time.Second)
	ev.within(0, base.UnixNano()+1)
	return base
}

// disableKeyRotation succeeds for keys of kinds that never rotate: it is off, and
// clients that switch it off before they change something else see no failure.
// Keys of another origin are refused, as AWS does.
func disableKeyRotation(ev *eval, in *kmsapi.DisableKeyRotationInput) (*none, error) {
	t, err := ev.managed(*in.KeyId)
	if err != nil {
		return nil, err
	}
	if t.key.Spec != kmsapi.SpecSymmetric {
		return &none{}, nil
	}
	if err := rotatesByItself(t); err != nil {
		return nil, err
	}
	if !t.key.Rotation.GetEnabled() {
		return &none{}, nil
	}
	return &none{}, putRotation(ev, t, &fsmpb.Rotation{})
}

// putRotation sets automatic rotation for a key and all of its set.
func putRotation(ev *eval, t *target, r *fsmpb.Rotation) error {
	k := proto.CloneOf(t.key)
	k.Rotation = r
	return putMembers(ev, k, membersOf(ev, t))
}

// getKeyRotationStatus answers for every kind of key: that it does not rotate by
// itself is an answer, and provisioning tools ask it of each key that they make.
// Keys that are to be deleted are not rotated, and say so.
func getKeyRotationStatus(ev *eval, in *kmsapi.GetKeyRotationStatusInput) (*kmsapi.GetKeyRotationStatusOutput, error) {
	t, err := ev.managed(*in.KeyId)
	if err != nil {
		return nil, err
	}
	r := t.key.Rotation
	kept := switchedOn(t.key.State) && r.GetEnabled()
	out := &kmsapi.GetKeyRotationStatusOutput{KeyId: &t.arn, KeyRotationEnabled: &kept}
	if kept {
		out.RotationPeriodInDays, out.NextRotationDate = new(int32(r.PeriodDays)), timeOf(r.Next)
	}
	return out, nil
}

// rotateKeyOnDemand leaves the date of the next automatic rotation as it is.
func rotateKeyOnDemand(ev *eval, in *kmsapi.RotateKeyOnDemandInput) (*kmsapi.RotateKeyOnDemandOutput, error) {
	t, err := ev.managed(*in.KeyId)
	if err != nil {
		return nil, err
	}
	if err := rotates(t); err != nil {
		return nil, err
	}
	if err := primary(t); err != nil {
		return nil, err
	}
	if err := noneDueSoon(ev, t.key); err != nil {
		return nil, err
	}
	if int(t.key.RotationsOnDemand) >= ev.Quotas.Rotations {
		return nil, kmsapi.Errorf(kmsapi.ErrLimitExceeded, "The on-demand rotations limit has been reached for the given keyId. "+
			"No more on-demand rotations can be performed for this key: %s", t.arn)
	}
	k := proto.CloneOf(t.key)
	k.RotationsOnDemand++
	if k.Origin == kmsapi.OriginImported {
		err = rotateImported(ev, t, k)
	} else {
		err = rotateKey(ev, t, k, true)
	}
	if err != nil {
		return nil, err
	}
	return &kmsapi.RotateKeyOnDemandOutput{KeyId: &t.arn}, nil
}

// noneDueSoon refuses what would collide with an automatic rotation.
func noneDueSoon(ev *eval, k *fsmpb.Key) error {
	if !k.Rotation.GetEnabled() {
		return nil
	}
	soon := k.Rotation.Next - int64(rotationSoon)
	if ev.state.Time() >= soon {
		return kmsapi.Errorf(kmsapi.ErrConflict, "An automatic rotation of the key is in progress or about to begin.")
	}
	ev.within(0, soon)
	return nil
}

// rotate gives t's key, as k is to become, and its replicas new material.
func rotateKey(ev *eval, t *target, k *fsmpb.Key, onDemand bool) error {
	m, err := makeMaterial(ev, k)
	if err != nil {
		return err
	}
	m.Rotated, m.OnDemand = m.Created, onDemand
	k.Materials = append(k.Materials, m)
	return putMembers(ev, k, membersOf(ev, t))
}

// rotateImported makes the material that was imported for it the current one, of
// t's key, as k is to become, and of its replicas. All of them must have it.
func rotateImported(ev *eval, t *target, k *fsmpb.Key) error {
	next := pendingMaterial(k)
	members := membersOf(ev, t)
	if next == nil || !haveAll(ev, members, next) {
		return kmsapi.Errorf(kmsapi.ErrInvalidState, "No available key material pending rotation for the key: %s.", t.arn)
	}
	next.Pending, next.Rotated, next.OnDemand = false, ev.now().UnixNano(), true
	return putMembers(ev, k, members)
}

// haveAll tells whether each key of a set holds a material of one of them.
func haveAll(ev *eval, members []*target, m *fsmpb.Material) bool {
	return !slices.ContainsFunc(members, func(o *target) bool {
		n := materialOf(o.key, m.Id)
		return n == nil || !there(n, ev.state.Time())
	})
}

// listKeyRotations reads the key, as a key has few materials.
func listKeyRotations(ev *eval, in *kmsapi.ListKeyRotationsInput) (*kmsapi.ListKeyRotationsOutput, error) {
	t, err := ev.managed(*in.KeyId)
	if err != nil {
		return nil, err
	}
	if err := rotates(t); err != nil {
		return nil, err
	}
	all := in.IncludeKeyMaterial != nil && *in.IncludeKeyMaterial == allMaterial
	p, err := pageOf(ev, in.Limit, 100, 1000, in.Marker, t.arn, fmt.Sprint(all))
	if err != nil {
		return nil, err
	}
	type item struct {
		place string // ascending as text
		m     *fsmpb.Material
	}
	var items []item
	for i, m := range t.key.Materials {
		if all || m.Rotated != 0 {
			items = append(items, item{fmt.Sprintf("%08d", i), m})
		}
	}
	out := &kmsapi.ListKeyRotationsOutput{Rotations: []kmsapi.RotationsListEntry{}}
	out.NextMarker, out.Truncated, err = fill(p, slices.Values(items), func(i item) string { return i.place }, func(i item) {
		out.Rotations = append(out.Rotations, rotationOf(ev, t, i.m))
	})
	return out, err
}

// rotation describes a material of a key.
func rotationOf(ev *eval, t *target, m *fsmpb.Material) kmsapi.RotationsListEntry {
	e := kmsapi.RotationsListEntry{KeyId: new(t.name()), KeyMaterialId: materialID(m), KeyMaterialState: new(materialState(ev, t, m))}
	if m.Rotated != 0 {
		e.RotationDate, e.RotationType = timeOf(m.Rotated), new(rotationAutomatic)
		if m.OnDemand {
			e.RotationType = new(rotationOnDemand)
		}
	}
	if t.key.Origin != kmsapi.OriginImported {
		return e
	}
	if m.Description != "" {
		e.KeyMaterialDescription = &m.Description
	}
	if !there(m, ev.state.Time()) {
		e.ImportState = new("PENDING_IMPORT")
		return e
	}
	e.ImportState = new("IMPORTED")
	e.ExpirationModel, e.ValidTo = expiration(m.ValidTo)
	return e
}

func materialState(ev *eval, t *target, m *fsmpb.Material) string {
	switch {
	case m == currentMaterial(t.key):
		return "CURRENT"
	case !m.Pending:
		return "NON_CURRENT"
	case t.isPrimary() && !haveAll(ev, membersOf(ev, t), m):
		return "PENDING_MULTI_REGION_IMPORT_AND_ROTATION"
	}
	return "PENDING_ROTATION"
}

// Values of ExpirationModelType.
const (
	modelExpires = "KEY_MATERIAL_EXPIRES"
	modelForever = "KEY_MATERIAL_DOES_NOT_EXPIRE"
)

// expiration is what answers show of when material expires, 0 for never.
func expiration(validTo int64) (model *string, at *time.Time) {
	if validTo == 0 {
		return new(modelForever), nil
	}
	return new(modelExpires), timeOf(validTo)
}

// rotateDue does an automatic rotation that was due at a time. When the next one is
// follows from cluster time alone: a leader whose clock is far ahead would put it
// off for years. If that is past too by the time that the log has this one, it is
// refused as late, and made anew on a newer state.
func rotateDue(ev *eval, t *target, at int64) ([]*auditpb.Field, error) {
	k := proto.CloneOf(t.key)
	period := int64(k.Rotation.PeriodDays) * int64(day)
	if k.Rotation.Next = at + period; k.Rotation.Next <= ev.state.Time() {
		k.Rotation.Next = ev.state.Time() + period
	}
	ev.within(0, k.Rotation.Next)
	if err := rotateKey(ev, t, k, false); err != nil {
		return nil, err
	}
	m := currentMaterial(k)
	return []*auditpb.Field{auditfield.Text("rotationType", rotationAutomatic), auditfield.Text("keyMaterialId", hex.EncodeToString(m.MaterialId))}, nil
}
