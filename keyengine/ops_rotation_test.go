package keyengine

import (
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
	"github.com/conclavekms/conclave/keyengine/internal/ops"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/internal/schedule"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

func (c *testCluster) rotationStatus(id string) *kmsapi.GetKeyRotationStatusOutput {
	c.t.Helper()
	return must[kmsapi.GetKeyRotationStatusOutput](c, "GetKeyRotationStatus", &kmsapi.GetKeyRotationStatusInput{KeyId: &id})
}

func TestRotationStatus(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, arn := c.newKey()
	check := func(when string, enabled bool, days int32, next time.Time) {
		t.Helper()
		got := c.rotationStatus(id)
		if *got.KeyId != arn || *got.KeyRotationEnabled != enabled || got.OnDemandRotationStartDate != nil {
			t.Errorf("%s: got key %s, rotation enabled %v; want %s, %v", when, *got.KeyId, *got.KeyRotationEnabled, arn, enabled)
		}
		if enabled != (got.RotationPeriodInDays != nil) || enabled != (got.NextRotationDate != nil) {
			t.Errorf("%s: got period %v, next rotation %v", when, got.RotationPeriodInDays, got.NextRotationDate)
		} else if enabled && (*got.RotationPeriodInDays != days || !got.NextRotationDate.Equal(next)) {
			t.Errorf("%s: got a period of %d days, next rotation %v; want %d and %v", when, *got.RotationPeriodInDays, *got.NextRotationDate, days, next)
		}
	}
	none_ := time.Time{}
	check("new key", false, 0, none_)
	must[request.None](c, "DisableKeyRotation", &kmsapi.DisableKeyRotationInput{KeyId: &id})
	start := c.Clock.Now()
	must[request.None](c, "EnableKeyRotation", &kmsapi.EnableKeyRotationInput{KeyId: &id})
	check("enabled", true, 365, start.Add(365*ops.Day))
	c.Advance(ops.Day)
	must[request.None](c, "EnableKeyRotation", &kmsapi.EnableKeyRotationInput{KeyId: &id})
	check("enabled again", true, 365, start.Add(365*ops.Day))
	must[request.None](c, "EnableKeyRotation", &kmsapi.EnableKeyRotationInput{KeyId: &id, RotationPeriodInDays: new(int32(90))})
	check("another period", true, 90, start.Add(91*ops.Day))
	must[kmsapi.RotateKeyOnDemandOutput](c, "RotateKeyOnDemand", &kmsapi.RotateKeyOnDemandInput{KeyId: &id})
	check("rotated on demand", true, 90, start.Add(91*ops.Day))
	must[request.None](c, "DisableKey", &kmsapi.DisableKeyInput{KeyId: &id})
	check("disabled key", true, 90, start.Add(91*ops.Day))
	must[kmsapi.ScheduleKeyDeletionOutput](c, "ScheduleKeyDeletion", &kmsapi.ScheduleKeyDeletionInput{KeyId: &id})
	check("pending deletion", false, 0, none_)
	must[kmsapi.CancelKeyDeletionOutput](c, "CancelKeyDeletion", &kmsapi.CancelKeyDeletionInput{KeyId: &id})
	check("deletion cancelled", true, 90, start.Add(91*ops.Day))
	must[request.None](c, "EnableKey", &kmsapi.EnableKeyInput{KeyId: &id})
	must[request.None](c, "DisableKeyRotation", &kmsapi.DisableKeyRotationInput{KeyId: &id})
	check("switched off", false, 0, none_)
	for _, days := range []int32{89, 2561} {
		_, err := call[request.None](c, "EnableKeyRotation", &kmsapi.EnableKeyRotationInput{KeyId: &id, RotationPeriodInDays: &days})
		wantError(t, err, kmsapi.ErrValidation, "…")
	}
}

func TestRotationOnDemand(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, arn := c.newKey()
	blobs := map[string][]byte{c.currentMaterialID(id): c.encrypt(id, "0")}
	for i := range 25 {
		if got := must[kmsapi.RotateKeyOnDemandOutput](c, "RotateKeyOnDemand", &kmsapi.RotateKeyOnDemandInput{KeyId: &id}); *got.KeyId != arn {
			t.Errorf("RotateKeyOnDemand returned key %s, want %s", *got.KeyId, arn)
		}
		if i < 3 {
			blobs[c.currentMaterialID(id)] = c.encrypt(id, "0")
		}
	}
	if len(blobs) != 4 {
		t.Errorf("three rotations made %d materials, want 3", len(blobs)-1)
	}
	for material, blob := range blobs {
		if got := c.wantDecrypt(blob, "0"); got != material {
			t.Errorf("Decrypt used material %s, want %s", got, material)
		}
	}
	_, err := call[kmsapi.RotateKeyOnDemandOutput](c, "RotateKeyOnDemand", &kmsapi.RotateKeyOnDemandInput{KeyId: &id})
	wantError(t, err, kmsapi.ErrLimitExceeded, "The on-demand rotations limit has been reached for the given keyId. "+
		"No more on-demand rotations can be performed for this key: "+arn)
}

// A ciphertext that was made before rotations can be decrypted after them, on all nodes, also
// when their caches are empty.
func TestCiphertextOfBeforeRotation(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2))
	id, _ := c.newKey()
	blob := c.encrypt(id, "golden")
	was := c.currentMaterialID(id)
	must[request.None](c, "EnableKeyRotation", &kmsapi.EnableKeyRotationInput{KeyId: &id, RotationPeriodInDays: new(int32(90))})
	must[kmsapi.RotateKeyOnDemandOutput](c, "RotateKeyOnDemand", &kmsapi.RotateKeyOnDemandInput{KeyId: &id})
	c.Advance(91 * ops.Day)
	newSchedule(c.engine).Round(t.Context(), time.Now())
	if n := len(c.storedKey(id).Materials); n != 3 {
		t.Fatalf("the key has %d materials after two rotations, want 3", n)
	}
	for _, e := range c.engines {
		e.vault.Follow(fsm.Events{Restored: true}) // nothing cached
		out, err := callAs[kmsapi.DecryptOutput](c, e, c.root, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob})
		if err != nil || string(out.Plaintext) != "golden" || *out.KeyMaterialId != was {
			t.Errorf("Decrypt after rotations: got %v, error %v", out, err)
		}
	}
	if c.currentMaterialID(id) == was || c.wantDecrypt(c.encrypt(id, "new"), "new") != c.currentMaterialID(id) {
		t.Error("Encrypt did not use the newest material")
	}
}

func TestRotationRefused(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	imported, importedARN := c.newKeyForImport("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	hmac, hmacARN := c.newKeyOf("HMAC_256", kmsapi.UsageMac)
	_, err := call[request.None](c, "EnableKeyRotation", &kmsapi.EnableKeyRotationInput{KeyId: &imported})
	wantError(t, err, kmsapi.ErrUnsupported, importedARN+" origin is EXTERNAL which is not valid for this operation.")
	_, err = call[kmsapi.RotateKeyOnDemandOutput](c, "RotateKeyOnDemand", &kmsapi.RotateKeyOnDemandInput{KeyId: &imported})
	wantError(t, err, kmsapi.ErrInvalidState, importedARN+" is pending import.")
	if got := c.rotationStatus(imported); *got.KeyRotationEnabled {
		t.Error("rotation is enabled for a key with imported material")
	}
	for op, in := range map[string]any{
		"EnableKeyRotation": &kmsapi.EnableKeyRotationInput{KeyId: &hmac}, "RotateKeyOnDemand": &kmsapi.RotateKeyOnDemandInput{KeyId: &hmac},
		"ListKeyRotations": &kmsapi.ListKeyRotationsInput{KeyId: &hmac},
	} {
		_, err := c.engine.Do(t.Context(), c.caller(c.root), OperationNamed(KMS, op), in)
		wantError(t, err, kmsapi.ErrUnsupported, hmacARN+" has key spec HMAC_256. Only symmetric encryption keys can be rotated.")
	}
}

// RotateKeyOnDemand is refused while an automatic rotation is due soon, by cluster time.
func TestRotationConflict(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, _ := c.newKey()
	must[request.None](c, "EnableKeyRotation", &kmsapi.EnableKeyRotationInput{KeyId: &id, RotationPeriodInDays: new(int32(90))})
	c.Advance(90*ops.Day - ops.RotationSoon - time.Second)
	must[kmsapi.RotateKeyOnDemandOutput](c, "RotateKeyOnDemand", &kmsapi.RotateKeyOnDemandInput{KeyId: &id})
	// The time is reached between evaluation and commit.
	once := false
	c.Replica("n1").BeforeCommit = func(*fsmpb.Record) {
		if !once {
			once = true
			c.Advance(time.Second)
		}
	}
	_, err := call[kmsapi.RotateKeyOnDemandOutput](c, "RotateKeyOnDemand", &kmsapi.RotateKeyOnDemandInput{KeyId: &id})
	wantError(t, err, kmsapi.ErrConflict, "An automatic rotation of the key is in progress or about to begin.")
	c.Replica("n1").BeforeCommit = nil
	c.Advance(time.Hour) // due, but no leader has done it
	_, err = call[kmsapi.RotateKeyOnDemandOutput](c, "RotateKeyOnDemand", &kmsapi.RotateKeyOnDemandInput{KeyId: &id})
	wantError(t, err, kmsapi.ErrConflict, "…")
	newSchedule(c.engine).Round(t.Context(), time.Now())
	must[kmsapi.RotateKeyOnDemandOutput](c, "RotateKeyOnDemand", &kmsapi.RotateKeyOnDemandInput{KeyId: &id})
}

func TestListKeyRotations(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, _ := c.newKey()
	list := func(in kmsapi.ListKeyRotationsInput) *kmsapi.ListKeyRotationsOutput {
		t.Helper()
		in.KeyId = &id
		return must[kmsapi.ListKeyRotationsOutput](c, "ListKeyRotations", &in)
	}
	if got := list(kmsapi.ListKeyRotationsInput{}); len(got.Rotations) != 0 || *got.Truncated {
		t.Errorf("a new key has %d rotations, want 0", len(got.Rotations))
	}
	first := c.currentMaterialID(id)
	must[request.None](c, "EnableKeyRotation", &kmsapi.EnableKeyRotationInput{KeyId: &id, RotationPeriodInDays: new(int32(90))})
	c.Advance(90 * ops.Day)
	automatic := c.Clock.Now()
	newSchedule(c.engine).Round(t.Context(), time.Now())
	c.Advance(time.Hour)
	must[kmsapi.RotateKeyOnDemandOutput](c, "RotateKeyOnDemand", &kmsapi.RotateKeyOnDemandInput{KeyId: &id})
	line := func(e kmsapi.RotationsListEntry) string {
		s := *e.KeyMaterialState
		if e.RotationType != nil {
			s += " " + *e.RotationType + " " + e.RotationDate.Sub(automatic).String()
		}
		if *e.KeyId != id || e.ImportState != nil || e.ExpirationModel != nil {
			t.Errorf("unexpected entry %+v", e)
		}
		return s
	}
	show := func(list []kmsapi.RotationsListEntry) string {
		var lines []string
		for _, e := range list {
			lines = append(lines, line(e))
		}
		return strings.Join(lines, ", ")
	}
	if got := show(list(kmsapi.ListKeyRotationsInput{}).Rotations); got != "NON_CURRENT AUTOMATIC 0s, CURRENT ON_DEMAND 1h0m0s" {
		t.Errorf("got rotations %s", got)
	}
	all := list(kmsapi.ListKeyRotationsInput{IncludeKeyMaterial: new(ops.AllMaterial)}).Rotations
	if got := show(all); got != "NON_CURRENT, NON_CURRENT AUTOMATIC 0s, CURRENT ON_DEMAND 1h0m0s" || *all[0].KeyMaterialId != first || *all[2].KeyMaterialId != c.currentMaterialID(id) {
		t.Errorf("got materials %s", got)
	}
	got := pages(t, func(after *string) ([]string, *string, *bool, error) {
		out, err := call[kmsapi.ListKeyRotationsOutput](c, "ListKeyRotations", &kmsapi.ListKeyRotationsInput{
			KeyId: &id, IncludeKeyMaterial: new(ops.AllMaterial), Limit: new(int32(2)), Marker: after,
		})
		if err != nil {
			return nil, nil, nil, err
		}
		var ids []string
		for _, e := range out.Rotations {
			ids = append(ids, *e.KeyMaterialId)
		}
		return ids, out.NextMarker, out.Truncated, nil
	})
	if sizes(got) != "2 1" {
		t.Errorf("got pages of %s, want 2 1", sizes(got))
	}
	marker := list(kmsapi.ListKeyRotationsInput{IncludeKeyMaterial: new(ops.AllMaterial), Limit: new(int32(1))}).NextMarker
	_, err := call[kmsapi.ListKeyRotationsOutput](c, "ListKeyRotations", &kmsapi.ListKeyRotationsInput{KeyId: &id, Marker: marker})
	wantError(t, err, kmsapi.ErrInvalidMarker, "")
}

// An automatic rotation is made once, when it is due, although two nodes take it for due.
func TestDueRotationOnce(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2))
	id, arn := c.newKey()
	must[request.None](c, "EnableKeyRotation", &kmsapi.EnableKeyRotationInput{KeyId: &id, RotationPeriodInDays: new(int32(90))})
	due := c.storedKey(id).Rotation.Next
	d1, d2, now := newSchedule(c.engines["n1"]), newSchedule(c.engines["n2"]), time.Now()
	d1.Round(t.Context(), now)
	c.Advance(90*ops.Day - time.Second)
	now = now.Add(schedule.LookMax)
	d1.Round(t.Context(), now)
	if n := c.countRecords("RotateKey"); n != 0 {
		t.Fatalf("got %d rotations before they were due, want 0", n)
	}
	c.Advance(time.Second)
	c.Replica("n1").FallBehind() // n1 led, and does not hear of what n2 does
	now = now.Add(schedule.LookMax)
	d2.Round(t.Context(), now)
	d1.Round(t.Context(), now)
	c.Replica("n1").CatchUp()
	for range 3 {
		now = now.Add(schedule.LookMax)
		d1.Round(t.Context(), now)
		d2.Round(t.Context(), now)
	}
	k := c.storedKey(id)
	if n := c.countRecords("RotateKey"); n != 1 || len(k.Materials) != 2 {
		t.Fatalf("got %d rotations and %d materials, want 1 and 2", n, len(k.Materials))
	}
	if k.Rotation.Next != due+90*int64(ops.Day) || k.RotationsOnDemand != 0 {
		t.Errorf("got next rotation at %d and %d rotations on demand, want %d and 0", k.Rotation.Next, k.RotationsOnDemand, due+90*int64(ops.Day))
	}
	rec := c.lastRecord()
	if rec.EventName != "RotateKey" || rec.EventType != "AwsServiceEvent" || rec.ServiceEventDetails[0].GetText() != arn ||
		rec.ServiceEventDetails[1].GetText() != "AUTOMATIC" || rec.ServiceEventDetails[2].GetText() != hex.EncodeToString(k.Materials[1].MaterialId) {
		t.Errorf("unexpected record of the rotation: %v", rec)
	}
}

func TestDueRotationIsNeverEarly(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, _ := c.newKey()
	must[request.None](c, "EnableKeyRotation", &kmsapi.EnableKeyRotationInput{KeyId: &id, RotationPeriodInDays: new(int32(90))})
	setClock(c.engine, enginetest.NewClock(c.Clock.Now().Add(100*ops.Day)))
	d, now := newSchedule(c.engine), time.Now()
	for range 600 {
		d.Round(t.Context(), now)
		now = now.Add(time.Second)
		c.Clock.Advance(time.Second)
	}
	if n := len(c.storedKey(id).Materials); n != 1 {
		t.Fatalf("a node whose clock is ahead rotated the key: it has %d materials, want 1", n)
	}
	setClock(c.engine, c.Clock)
	c.Advance(90 * ops.Day)
	d.Round(t.Context(), now.Add(schedule.RetryMax))
	if n := len(c.storedKey(id).Materials); n != 2 {
		t.Errorf("the key has %d materials when the rotation is due, want 2", n)
	}
}

// A disabled key is not rotated. Once it is enabled, a rotation that was missed is made, and
// the next is due one period later.
func TestDueRotationOfADisabledKey(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, _ := c.newKey()
	must[request.None](c, "EnableKeyRotation", &kmsapi.EnableKeyRotationInput{KeyId: &id, RotationPeriodInDays: new(int32(90))})
	must[request.None](c, "DisableKey", &kmsapi.DisableKeyInput{KeyId: &id})
	d, now := newSchedule(c.engine), time.Now()
	c.Advance(200 * ops.Day)
	d.Round(t.Context(), now)
	if n := len(c.storedKey(id).Materials); n != 1 {
		t.Fatalf("a disabled key was rotated: it has %d materials, want 1", n)
	}
	must[request.None](c, "EnableKey", &kmsapi.EnableKeyInput{KeyId: &id})
	for range 3 {
		now = now.Add(schedule.LookMax)
		d.Round(t.Context(), now)
	}
	k := c.storedKey(id)
	if want := c.Clock.Now().Add(90 * ops.Day).UnixNano(); len(k.Materials) != 2 || k.Rotation.Next != want {
		t.Errorf("got %d materials, next rotation at %d; want 2 and %d", len(k.Materials), k.Rotation.Next, want)
	}
}

// newReplicatedKey creates a primary key with a replica in secondRegion.
func (c *testCluster) newReplicatedKey() (name string, primary, second fsm.KeyID) {
	c.t.Helper()
	name = c.newMultiKey(kmsapi.CreateKeyInput{}, secondRegion)
	id := c.keyID(name).ID
	return name, fsm.KeyID{Account: testAccountNumber, Region: testRegion, ID: id}, fsm.KeyID{Account: testAccountNumber, Region: secondRegion, ID: id}
}

// A rotation gives the same material to all keys of a multi-Region set, and they have the
// same settings.
func TestRotationOfReplicas(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withRegions(threeRegions()...))
	name, _, second := c.newReplicatedKey()
	arn := request.KeyARN(&fsmpb.Cluster{Partition: "aws"}, testAccountNumber, secondRegion, name)
	for op, in := range map[string]any{
		"EnableKeyRotation": &kmsapi.EnableKeyRotationInput{KeyId: &name}, "DisableKeyRotation": &kmsapi.DisableKeyRotationInput{KeyId: &name},
		"RotateKeyOnDemand": &kmsapi.RotateKeyOnDemandInput{KeyId: &name},
	} {
		caller := c.caller(c.root)
		caller.Region = secondRegion
		_, err := c.engine.Do(t.Context(), caller, OperationNamed(KMS, op), in)
		wantError(t, err, kmsapi.ErrUnsupported, arn+" is not a multi-region primary key.")
	}
	must[request.None](c, "EnableKeyRotation", &kmsapi.EnableKeyRotationInput{KeyId: &name, RotationPeriodInDays: new(int32(90))})
	status := func() (int32, time.Time) {
		out, err := callIn[kmsapi.GetKeyRotationStatusOutput](c, secondRegion, "GetKeyRotationStatus", &kmsapi.GetKeyRotationStatusInput{KeyId: &name})
		if err != nil || !*out.KeyRotationEnabled {
			t.Fatalf("rotation status of the replica: got %v, error %v; want rotation enabled", out, err)
		}
		return *out.RotationPeriodInDays, *out.NextRotationDate
	}
	crosses := func(when string) {
		t.Helper()
		blob := c.encrypt(name, when)
		c.engine.vault.Follow(fsm.Events{Restored: true}) // nothing cached
		out, err := callIn[kmsapi.DecryptOutput](c, secondRegion, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob})
		if err != nil || string(out.Plaintext) != when || *out.KeyMaterialId != c.currentMaterialID(name) {
			t.Errorf("after a rotation (%s), Decrypt with the replica: got %v, error %v", when, out, err)
		}
	}
	// A change of the replica between evaluation and commit is kept.
	once := false
	c.Replica("n1").BeforeCommit = func(*fsmpb.Record) {
		if !once {
			once = true
			k, _ := c.State().Key(second)
			k = proto.CloneOf(k)
			k.Description = "kept"
			c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutKey{PutKey: k}})
		}
	}
	must[kmsapi.RotateKeyOnDemandOutput](c, "RotateKeyOnDemand", &kmsapi.RotateKeyOnDemandInput{KeyId: &name})
	c.Replica("n1").BeforeCommit = nil
	if k, _ := c.State().Key(second); k.Description != "kept" {
		t.Error("the rotation undid a change of the replica")
	}
	crosses("on demand")
	c.Advance(90 * ops.Day)
	d, now := newSchedule(c.engine), time.Now()
	for range 3 {
		d.Round(t.Context(), now)
		now = now.Add(schedule.LookMax)
	}
	crosses("automatic")
	if k, _ := c.State().Key(second); c.countRecords("RotateKey") != 1 || len(k.Materials) != 3 {
		t.Errorf("got %d automatic rotations, and the replica has %d materials; want 1 and 3", c.countRecords("RotateKey"), len(k.Materials))
	}
	_, next := status()
	if want := *c.rotationStatus(name).NextRotationDate; !next.Equal(want) {
		t.Errorf("the next rotation of the replica is at %v, want that of the primary key, %v", next, want)
	}
}

// A replica is not rotated while its primary key is disabled.
func TestReplicaDoesNotRotate(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withRegions(threeRegions()...))
	name, _, second := c.newReplicatedKey()
	must[request.None](c, "EnableKeyRotation", &kmsapi.EnableKeyRotationInput{KeyId: &name})
	must[request.None](c, "DisableKey", &kmsapi.DisableKeyInput{KeyId: &name})
	c.Advance(366 * ops.Day)
	newSchedule(c.engine).Round(t.Context(), time.Now())
	if k, _ := c.State().Key(second); len(k.Materials) != 1 || !k.Rotation.Enabled {
		t.Errorf("the replica has %d materials, rotation enabled %v; want 1, true", len(k.Materials), k.Rotation.Enabled)
	}
}

// The waiting period of a primary key that is pending replica deletion begins, once, when its
// last replica is deleted.
func TestDueWindow(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withRegions(threeRegions()...))
	name, primary, second := c.newReplicatedKey()
	k, _ := c.State().Key(primary)
	k = proto.CloneOf(k)
	k.State, k.DeletionDays = fsmpb.KeyState_KEY_STATE_PENDING_REPLICA_DELETION, 7
	c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutKey{PutKey: k}})
	d, now := newSchedule(c.engine), time.Now()
	round := func() {
		now = now.Add(schedule.LookMax)
		d.Round(t.Context(), now)
	}
	c.Advance(8 * ops.Day)
	round()
	if k, _ := c.State().Key(primary); k.DeletionTime != 0 {
		t.Fatal("the waiting period began while there is a replica")
	}
	c.scheduleDeletionIn(second.Region, name)
	c.Advance(7 * ops.Day)
	for range 4 {
		round()
	}
	k, _ = c.State().Key(primary)
	if want := c.Clock.Now().Add(7 * ops.Day).UnixNano(); k.State != fsmpb.KeyState_KEY_STATE_PENDING_DELETION || k.DeletionTime != want {
		t.Fatalf("the key has state %v, deletion time %d; want pending deletion, %d", k.State, k.DeletionTime, want)
	}
	if n := c.countRecords("SynchronizeMultiRegionKey"); n != 1 {
		t.Errorf("got %d records of the beginning of the waiting period, want 1", n)
	}
	c.Advance(7 * ops.Day)
	round()
	if k, _ := c.State().Key(primary); k != nil {
		t.Errorf("key %s exists after its waiting period", name)
	}
}

// The waiting period does not begin if a replica is made between evaluation and commit.
func TestDueWindowSeesAReplica(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withRegions(threeRegions()...))
	id := fsm.KeyID{Account: testAccountNumber, Region: testRegion, ID: [16]byte{9}}
	k := &fsmpb.Key{
		Account: uint64(testAccountNumber), Id: id.ID[:], Region: testRegion, MultiRegion: true, PrimaryRegion: testRegion, Created: 1, Spec: kmsapi.SpecSymmetric, Usage: kmsapi.UsageEncrypt,
		Origin: kmsapi.OriginKMS, State: fsmpb.KeyState_KEY_STATE_ENABLED,
	}
	enter := func(state fsmpb.KeyState, days int32) {
		k := proto.CloneOf(k)
		k.State, k.DeletionDays = state, days
		c.Change(putKeyChange(k))
	}
	enter(fsmpb.KeyState_KEY_STATE_ENABLED, 0)
	enter(fsmpb.KeyState_KEY_STATE_PENDING_REPLICA_DELETION, 7)
	made := 0
	c.Replica("n1").BeforeCommit = func(*fsmpb.Record) {
		enter(fsmpb.KeyState_KEY_STATE_DISABLED, 0)
		enter(fsmpb.KeyState_KEY_STATE_ENABLED, 0)
		o := proto.CloneOf(k)
		o.Region = secondRegion
		c.Change(putKeyChange(o))
		enter(fsmpb.KeyState_KEY_STATE_PENDING_REPLICA_DELETION, 7)
		made++
	}
	d, now := newSchedule(c.engine), time.Now()
	for range 3 {
		d.Round(t.Context(), now)
		now = now.Add(schedule.LookMax)
	}
	if k, _ := c.State().Key(id); made != 1 || k.DeletionTime != 0 {
		t.Errorf("after %d changes, the deletion time is %d although there is a replica; want 1 and 0", made, k.DeletionTime)
	}
}

// The clock of the leader does not affect when the next rotation is due. Rotations that were
// missed are made once.
func TestRotationByAClockThatIsAhead(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, _ := c.newKey()
	must[request.None](c, "EnableKeyRotation", &kmsapi.EnableKeyRotationInput{KeyId: &id, RotationPeriodInDays: new(int32(90))})
	due := time.Unix(0, c.storedKey(id).Rotation.Next)
	c.Advance(due.Sub(c.Clock.Now()))
	setClock(c.engine, enginetest.NewClock(due.Add(10*365*ops.Day)))
	d, now := newSchedule(c.engine), time.Now()
	d.Round(t.Context(), now)
	if k := c.storedKey(id); len(k.Materials) != 2 || k.Rotation.Next != due.Add(90*ops.Day).UnixNano() {
		t.Errorf("got %d materials, next rotation after %v; want 2 and 90 days", len(k.Materials), time.Unix(0, k.Rotation.Next).Sub(due))
	}
	// Two rotations become due between evaluation and commit.
	c.Advance(89 * ops.Day)
	late := newSchedule(c.engine)
	late.Look(c.State(), now)
	fake := c.Replica("n1")
	fake.BeforeCommit = func(*fsmpb.Record) {
		fake.BeforeCommit = nil
		c.Advance(200 * ops.Day)
	}
	c.Advance(ops.Day)
	for range 5 {
		now = now.Add(schedule.RetryMax)
		late.Round(t.Context(), now)
	}
	k, want := c.storedKey(id), c.Clock.Now().Add(90*ops.Day)
	if got := time.Unix(0, k.Rotation.Next); len(k.Materials) != 3 || got.Before(want.Add(-time.Minute)) || got.After(want) {
		t.Errorf("after two missed rotations: got %d materials, next rotation at %v; want 3 and about %v", len(k.Materials), got, want)
	}
}
