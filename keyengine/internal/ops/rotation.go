package ops

import (
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

const (
	// rotationPeriod is the default rotation period, in days.
	rotationPeriod = 365
	// RotationSoon is how long before an automatic rotation a rotation on demand is
	// refused.
	RotationSoon = 20 * time.Minute

	// Day is 24 hours.
	Day = 24 * time.Hour

	rotationAutomatic = "AUTOMATIC"
	rotationOnDemand  = "ON_DEMAND"
	AllMaterial       = "ALL_KEY_MATERIAL"
)

// rotates checks whether a key can be rotated at all.
func rotates(t *request.Target) error {
	switch {
	case t.Key.Spec != kmsapi.SpecSymmetric:
		return kmsapi.Errorf(kmsapi.ErrUnsupported, "%s has key spec %s. Only symmetric encryption keys can be rotated.", t.ARN, t.Key.Spec)
	case t.Key.Origin != kmsapi.OriginKMS && t.Key.Origin != kmsapi.OriginImported:
		return request.WrongOrigin(t)
	}
	return nil
}

// rotatesByItself checks whether a key can be rotated automatically.
func rotatesByItself(t *request.Target) error {
	if err := rotates(t); err != nil {
		return err
	}
	if t.Key.Origin != kmsapi.OriginKMS {
		return request.WrongOrigin(t)
	}
	return primary(t)
}

// primary refuses replicas, for operations that affect all keys of a multi-Region set.
func primary(t *request.Target) error {
	if request.Replica(t.Key) {
		return notPrimary(t)
	}
	return nil
}

// enableKeyRotation sets the next rotation so that it is never early with respect to
// cluster time, like scheduleKeyDeletion.
func enableKeyRotation(ev *request.Evaluation, in *kmsapi.EnableKeyRotationInput) (*request.None, error) {
	days := uint32(rotationPeriod)
	if in.RotationPeriodInDays != nil {
		days = uint32(*in.RotationPeriodInDays)
	}
	t, err := ev.Managed(*in.KeyId)
	if err != nil {
		return nil, err
	}
	if err := rotatesByItself(t); err != nil {
		return nil, err
	}
	if r := t.Key.Rotation; r.GetEnabled() && r.PeriodDays == days {
		return &request.None{}, nil
	}
	next := FromNow(ev).Add(time.Duration(days) * Day)
	return &request.None{}, putRotation(ev, t, &fsmpb.Rotation{Enabled: true, PeriodDays: days, Next: next.UnixNano()})
}

// FromNow returns the next whole second, to count promised times from. The record is
// rejected if cluster time has passed it by then.
func FromNow(ev *request.Evaluation) time.Time {
	base := ev.Now().Add(time.Second - 1).Truncate(time.Second)
	ev.Within(0, base.UnixNano()+1)
	return base
}

// disableKeyRotation succeeds for kinds of keys that never rotate, so that clients which
// always disable rotation first get no error. Keys of another origin are refused, as in
// AWS.
func disableKeyRotation(ev *request.Evaluation, in *kmsapi.DisableKeyRotationInput) (*request.None, error) {
	t, err := ev.Managed(*in.KeyId)
	if err != nil {
		return nil, err
	}
	if t.Key.Spec != kmsapi.SpecSymmetric {
		return &request.None{}, nil
	}
	if err := rotatesByItself(t); err != nil {
		return nil, err
	}
	if !t.Key.Rotation.GetEnabled() {
		return &request.None{}, nil
	}
	return &request.None{}, putRotation(ev, t, &fsmpb.Rotation{})
}

// putRotation sets automatic rotation for a key and its set.
func putRotation(ev *request.Evaluation, t *request.Target, r *fsmpb.Rotation) error {
	k := proto.CloneOf(t.Key)
	k.Rotation = r
	return PutMembers(ev, k, MembersOf(ev, t))
}

// getKeyRotationStatus succeeds for every kind of key, because provisioning tools call it
// for each key that they create. For keys that cannot rotate or are scheduled for deletion,
// rotation is reported as disabled.
func getKeyRotationStatus(ev *request.Evaluation, in *kmsapi.GetKeyRotationStatusInput) (*kmsapi.GetKeyRotationStatusOutput, error) {
	t, err := ev.Managed(*in.KeyId)
	if err != nil {
		return nil, err
	}
	r := t.Key.Rotation
	kept := request.SwitchedOn(t.Key.State) && r.GetEnabled()
	out := &kmsapi.GetKeyRotationStatusOutput{KeyId: &t.ARN, KeyRotationEnabled: &kept}
	if kept {
		out.RotationPeriodInDays, out.NextRotationDate = new(int32(r.PeriodDays)), TimeOf(r.Next)
	}
	return out, nil
}

// rotateKeyOnDemand does not change the date of the next automatic rotation.
func rotateKeyOnDemand(ev *request.Evaluation, in *kmsapi.RotateKeyOnDemandInput) (*kmsapi.RotateKeyOnDemandOutput, error) {
	t, err := ev.Managed(*in.KeyId)
	if err != nil {
		return nil, err
	}
	if err := rotates(t); err != nil {
		return nil, err
	}
	if err := primary(t); err != nil {
		return nil, err
	}
	if err := noneDueSoon(ev, t.Key); err != nil {
		return nil, err
	}
	if int(t.Key.RotationsOnDemand) >= ev.Quotas.Rotations {
		return nil, kmsapi.Errorf(kmsapi.ErrLimitExceeded, "The on-demand rotations limit has been reached for the given keyId. "+
			"No more on-demand rotations can be performed for this key: %s", t.ARN)
	}
	k := proto.CloneOf(t.Key)
	k.RotationsOnDemand++
	if k.Origin == kmsapi.OriginImported {
		err = rotateImported(ev, t, k)
	} else {
		err = rotateKey(ev, t, k, true)
	}
	if err != nil {
		return nil, err
	}
	return &kmsapi.RotateKeyOnDemandOutput{KeyId: &t.ARN}, nil
}

// noneDueSoon refuses a rotation on demand that could collide with an automatic one.
func noneDueSoon(ev *request.Evaluation, k *fsmpb.Key) error {
	if !k.Rotation.GetEnabled() {
		return nil
	}
	soon := k.Rotation.Next - int64(RotationSoon)
	if ev.State.Time() >= soon {
		return kmsapi.Errorf(kmsapi.ErrConflict, "An automatic rotation of the key is in progress or about to begin.")
	}
	ev.Within(0, soon)
	return nil
}

// rotateKey creates new material for a key and its replicas. k is a copy of t's key to
// change.
func rotateKey(ev *request.Evaluation, t *request.Target, k *fsmpb.Key, onDemand bool) error {
	m, err := makeMaterial(ev, k)
	if err != nil {
		return err
	}
	m.Rotated, m.OnDemand = m.Created, onDemand
	k.Materials = append(k.Materials, m)
	return PutMembers(ev, k, MembersOf(ev, t))
}

// rotateImported makes imported material the current one, for a key and its replicas, all
// of which must have it. k is a copy of t's key to change.
func rotateImported(ev *request.Evaluation, t *request.Target, k *fsmpb.Key) error {
	next := request.PendingMaterial(k)
	members := MembersOf(ev, t)
	if next == nil || !haveAll(ev, members, next) {
		return kmsapi.Errorf(kmsapi.ErrInvalidState, "No available key material pending rotation for the key: %s.", t.ARN)
	}
	next.Pending, next.Rotated, next.OnDemand = false, ev.Now().UnixNano(), true
	return PutMembers(ev, k, members)
}

// haveAll reports whether each key of a set has the bytes of a material.
func haveAll(ev *request.Evaluation, members []*request.Target, m *fsmpb.Material) bool {
	return !slices.ContainsFunc(members, func(o *request.Target) bool {
		n := request.MaterialOf(o.Key, m.Id)
		return n == nil || !request.There(n, ev.State.Time())
	})
}

// listKeyRotations has the key in its read set, because a key has few materials.
func listKeyRotations(ev *request.Evaluation, in *kmsapi.ListKeyRotationsInput) (*kmsapi.ListKeyRotationsOutput, error) {
	t, err := ev.Managed(*in.KeyId)
	if err != nil {
		return nil, err
	}
	if err := rotates(t); err != nil {
		return nil, err
	}
	all := in.IncludeKeyMaterial != nil && *in.IncludeKeyMaterial == AllMaterial
	p, err := request.PageOf(ev, in.Limit, 100, 1000, in.Marker, t.ARN, fmt.Sprint(all))
	if err != nil {
		return nil, err
	}
	type item struct {
		place string // sorts as text
		m     *fsmpb.Material
	}
	var items []item
	for i, m := range t.Key.Materials {
		if all || m.Rotated != 0 {
			items = append(items, item{fmt.Sprintf("%08d", i), m})
		}
	}
	out := &kmsapi.ListKeyRotationsOutput{Rotations: []kmsapi.RotationsListEntry{}}
	out.NextMarker, out.Truncated, err = request.Fill(p, slices.Values(items), func(i item) string { return i.place }, func(i item) {
		out.Rotations = append(out.Rotations, rotation(ev, t, i.m))
	})
	return out, err
}

// rotation returns a material of a key as an entry of ListKeyRotations.
func rotation(ev *request.Evaluation, t *request.Target, m *fsmpb.Material) kmsapi.RotationsListEntry {
	e := kmsapi.RotationsListEntry{KeyId: new(t.Name()), KeyMaterialId: request.MaterialID(m), KeyMaterialState: new(materialState(ev, t, m))}
	if m.Rotated != 0 {
		e.RotationDate, e.RotationType = TimeOf(m.Rotated), new(rotationAutomatic)
		if m.OnDemand {
			e.RotationType = new(rotationOnDemand)
		}
	}
	if t.Key.Origin != kmsapi.OriginImported {
		return e
	}
	if m.Description != "" {
		e.KeyMaterialDescription = &m.Description
	}
	if !request.There(m, ev.State.Time()) {
		e.ImportState = new("PENDING_IMPORT")
		return e
	}
	e.ImportState = new("IMPORTED")
	e.ExpirationModel, e.ValidTo = expiration(m.ValidTo)
	return e
}

func materialState(ev *request.Evaluation, t *request.Target, m *fsmpb.Material) string {
	switch {
	case m == request.CurrentMaterial(t.Key):
		return "CURRENT"
	case !m.Pending:
		return "NON_CURRENT"
	case isPrimary(t) && !haveAll(ev, MembersOf(ev, t), m):
		return "PENDING_MULTI_REGION_IMPORT_AND_ROTATION"
	}
	return "PENDING_ROTATION"
}

// Values of ExpirationModelType.
const (
	ModelExpires = "KEY_MATERIAL_EXPIRES"
	ModelForever = "KEY_MATERIAL_DOES_NOT_EXPIRE"
)

// expiration returns the members that describe when material expires, 0 meaning never.
func expiration(validTo int64) (model *string, at *time.Time) {
	if validTo == 0 {
		return new(ModelForever), nil
	}
	return new(ModelExpires), TimeOf(validTo)
}

// RotateDue performs an automatic rotation that was due at the given time. The next
// rotation is derived from cluster time only, because a leader whose clock is far ahead
// would put it off for years. If the next rotation is past too when the record is applied,
// the record is rejected as late and built again on a newer state.
func RotateDue(ev *request.Evaluation, t *request.Target, at int64) ([]*auditpb.Field, error) {
	k := proto.CloneOf(t.Key)
	period := int64(k.Rotation.PeriodDays) * int64(Day)
	if k.Rotation.Next = at + period; k.Rotation.Next <= ev.State.Time() {
		k.Rotation.Next = ev.State.Time() + period
	}
	ev.Within(0, k.Rotation.Next)
	if err := rotateKey(ev, t, k, false); err != nil {
		return nil, err
	}
	m := request.CurrentMaterial(k)
	return []*auditpb.Field{auditfield.Text("rotationType", rotationAutomatic), auditfield.Text("keyMaterialId", hex.EncodeToString(m.MaterialId))}, nil
}
