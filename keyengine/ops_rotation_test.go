package keyengine

import (
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/ops"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/internal/schedule"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

func (r *room) stored(id string) *fsmpb.Key {
	r.t.Helper()
	k, _ := r.cluster.state().Key(r.keyID(id))
	if k == nil {
		r.t.Fatalf("key %s is gone", id)
	}
	return k
}

func (r *room) seal(id, plaintext string) []byte {
	r.t.Helper()
	return must[kmsapi.EncryptOutput](r, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte(plaintext)}).CiphertextBlob
}

// opens checks that a ciphertext opens, and returns the id of the material that did it.
func (r *room) opens(blob []byte, plaintext string) string {
	r.t.Helper()
	out := must[kmsapi.DecryptOutput](r, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob})
	if string(out.Plaintext) != plaintext {
		r.t.Errorf("opened to %q, want %q", out.Plaintext, plaintext)
	}
	return *out.KeyMaterialId
}

func (r *room) current(id string) string {
	r.t.Helper()
	return *must[kmsapi.DescribeKeyOutput](r, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &id}).KeyMetadata.CurrentKeyMaterialId
}

func (r *room) status(id string) *kmsapi.GetKeyRotationStatusOutput {
	r.t.Helper()
	return must[kmsapi.GetKeyRotationStatusOutput](r, "GetKeyRotationStatus", &kmsapi.GetKeyRotationStatusInput{KeyId: &id})
}

// recorded counts the records of an event.
func (r *room) recorded(event string) (n int) {
	r.t.Helper()
	for _, name := range names(records(r.t, r.cluster, r.first)) {
		if name == event {
			n++
		}
	}
	return n
}

func TestRotationStatus(t *testing.T) {
	r := newRoom(t)
	id, arn := r.newKey()
	check := func(when string, enabled bool, days int32, next time.Time) {
		t.Helper()
		got := r.status(id)
		if *got.KeyId != arn || *got.KeyRotationEnabled != enabled || got.OnDemandRotationStartDate != nil {
			t.Errorf("%s: %s enabled %v", when, *got.KeyId, *got.KeyRotationEnabled)
		}
		if enabled != (got.RotationPeriodInDays != nil) || enabled != (got.NextRotationDate != nil) {
			t.Errorf("%s: period %v, next %v", when, got.RotationPeriodInDays, got.NextRotationDate)
		} else if enabled && (*got.RotationPeriodInDays != days || !got.NextRotationDate.Equal(next)) {
			t.Errorf("%s: every %d days, next %v; want %d and %v", when, *got.RotationPeriodInDays, *got.NextRotationDate, days, next)
		}
	}
	none_ := time.Time{}
	check("new key", false, 0, none_)
	must[request.None](r, "DisableKeyRotation", &kmsapi.DisableKeyRotationInput{KeyId: &id})
	start := r.cluster.clock.Now()
	must[request.None](r, "EnableKeyRotation", &kmsapi.EnableKeyRotationInput{KeyId: &id})
	check("enabled", true, 365, start.Add(365*ops.Day))
	r.cluster.advance(ops.Day)
	must[request.None](r, "EnableKeyRotation", &kmsapi.EnableKeyRotationInput{KeyId: &id})
	check("enabled again", true, 365, start.Add(365*ops.Day))
	must[request.None](r, "EnableKeyRotation", &kmsapi.EnableKeyRotationInput{KeyId: &id, RotationPeriodInDays: new(int32(90))})
	check("another period", true, 90, start.Add(91*ops.Day))
	must[kmsapi.RotateKeyOnDemandOutput](r, "RotateKeyOnDemand", &kmsapi.RotateKeyOnDemandInput{KeyId: &id})
	check("rotated on demand", true, 90, start.Add(91*ops.Day))
	must[request.None](r, "DisableKey", &kmsapi.DisableKeyInput{KeyId: &id})
	check("disabled key", true, 90, start.Add(91*ops.Day))
	must[kmsapi.ScheduleKeyDeletionOutput](r, "ScheduleKeyDeletion", &kmsapi.ScheduleKeyDeletionInput{KeyId: &id})
	check("pending deletion", false, 0, none_)
	must[kmsapi.CancelKeyDeletionOutput](r, "CancelKeyDeletion", &kmsapi.CancelKeyDeletionInput{KeyId: &id})
	check("deletion cancelled", true, 90, start.Add(91*ops.Day))
	must[request.None](r, "EnableKey", &kmsapi.EnableKeyInput{KeyId: &id})
	must[request.None](r, "DisableKeyRotation", &kmsapi.DisableKeyRotationInput{KeyId: &id})
	check("switched off", false, 0, none_)
	for _, days := range []int32{89, 2561} {
		_, err := call[request.None](r, "EnableKeyRotation", &kmsapi.EnableKeyRotationInput{KeyId: &id, RotationPeriodInDays: &days})
		wantError(t, err, kmsapi.ErrValidation, "…")
	}
}

func TestRotationOnDemand(t *testing.T) {
	r := newRoom(t)
	id, arn := r.newKey()
	blobs := map[string][]byte{r.current(id): r.seal(id, "0")}
	for i := range 25 {
		if got := must[kmsapi.RotateKeyOnDemandOutput](r, "RotateKeyOnDemand", &kmsapi.RotateKeyOnDemandInput{KeyId: &id}); *got.KeyId != arn {
			t.Errorf("answered %s, want %s", *got.KeyId, arn)
		}
		if i < 3 {
			blobs[r.current(id)] = r.seal(id, "0")
		}
	}
	if len(blobs) != 4 {
		t.Errorf("%d materials in three rotations", len(blobs)-1)
	}
	for material, blob := range blobs {
		if got := r.opens(blob, "0"); got != material {
			t.Errorf("opened by %s, want %s", got, material)
		}
	}
	_, err := call[kmsapi.RotateKeyOnDemandOutput](r, "RotateKeyOnDemand", &kmsapi.RotateKeyOnDemandInput{KeyId: &id})
	wantError(t, err, kmsapi.ErrLimitExceeded, "The on-demand rotations limit has been reached for the given keyId. "+
		"No more on-demand rotations can be performed for this key: "+arn)
}

// TestCiphertextOfBeforeRotation holds that ciphertext made before a rotation opens after, on
// other nodes and after the materials were read anew.
func TestCiphertextOfBeforeRotation(t *testing.T) {
	r := newRoom(t, "n1", "n2")
	id, _ := r.newKey()
	blob := r.seal(id, "golden")
	was := r.current(id)
	must[request.None](r, "EnableKeyRotation", &kmsapi.EnableKeyRotationInput{KeyId: &id, RotationPeriodInDays: new(int32(90))})
	must[kmsapi.RotateKeyOnDemandOutput](r, "RotateKeyOnDemand", &kmsapi.RotateKeyOnDemandInput{KeyId: &id})
	r.cluster.advance(91 * ops.Day)
	scheduleOf(r.first).Round(t.Context(), time.Now())
	if n := len(r.stored(id).Materials); n != 3 {
		t.Fatalf("%d materials, want 3", n)
	}
	for _, e := range r.engines {
		e.vault.Follow(fsm.Events{Restored: true}) // nothing cached
		out, err := callAs[kmsapi.DecryptOutput](r, e, r.root, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob})
		if err != nil || string(out.Plaintext) != "golden" || *out.KeyMaterialId != was {
			t.Errorf("after rotation: %v, %v", out, err)
		}
	}
	if r.current(id) == was || r.opens(r.seal(id, "new"), "new") != r.current(id) {
		t.Error("what is encrypted now is not under the newest material")
	}
}

func TestRotationRefused(t *testing.T) {
	r := newRoom(t)
	imported, importedARN := r.keyToImport("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	hmac, hmacARN := r.newKeyOf("HMAC_256", kmsapi.UsageMac)
	_, err := call[request.None](r, "EnableKeyRotation", &kmsapi.EnableKeyRotationInput{KeyId: &imported})
	wantError(t, err, kmsapi.ErrUnsupported, importedARN+" origin is EXTERNAL which is not valid for this operation.")
	_, err = call[kmsapi.RotateKeyOnDemandOutput](r, "RotateKeyOnDemand", &kmsapi.RotateKeyOnDemandInput{KeyId: &imported})
	wantError(t, err, kmsapi.ErrInvalidState, importedARN+" is pending import.")
	if got := r.status(imported); *got.KeyRotationEnabled {
		t.Error("an imported key rotates by itself")
	}
	for op, in := range map[string]any{
		"EnableKeyRotation": &kmsapi.EnableKeyRotationInput{KeyId: &hmac}, "RotateKeyOnDemand": &kmsapi.RotateKeyOnDemandInput{KeyId: &hmac},
		"ListKeyRotations": &kmsapi.ListKeyRotationsInput{KeyId: &hmac},
	} {
		_, err := r.first.Do(t.Context(), r.caller(r.root), OperationNamed(op), in)
		wantError(t, err, kmsapi.ErrUnsupported, hmacARN+" has key spec HMAC_256. Only symmetric encryption keys can be rotated.")
	}
}

// TestRotationConflict: an automatic rotation that is due soon, by cluster time,
// excludes one on demand.
func TestRotationConflict(t *testing.T) {
	r := newRoom(t)
	id, _ := r.newKey()
	must[request.None](r, "EnableKeyRotation", &kmsapi.EnableKeyRotationInput{KeyId: &id, RotationPeriodInDays: new(int32(90))})
	r.cluster.advance(90*ops.Day - ops.RotationSoon - time.Second)
	must[kmsapi.RotateKeyOnDemandOutput](r, "RotateKeyOnDemand", &kmsapi.RotateKeyOnDemandInput{KeyId: &id})
	// The time comes between evaluation and commit.
	once := false
	r.cluster.replica("n1").before = func(*fsmpb.Record) {
		if !once {
			once = true
			r.cluster.advance(time.Second)
		}
	}
	_, err := call[kmsapi.RotateKeyOnDemandOutput](r, "RotateKeyOnDemand", &kmsapi.RotateKeyOnDemandInput{KeyId: &id})
	wantError(t, err, kmsapi.ErrConflict, "An automatic rotation of the key is in progress or about to begin.")
	r.cluster.replica("n1").before = nil
	r.cluster.advance(time.Hour) // due, but no leader has done it
	_, err = call[kmsapi.RotateKeyOnDemandOutput](r, "RotateKeyOnDemand", &kmsapi.RotateKeyOnDemandInput{KeyId: &id})
	wantError(t, err, kmsapi.ErrConflict, "…")
	scheduleOf(r.first).Round(t.Context(), time.Now())
	must[kmsapi.RotateKeyOnDemandOutput](r, "RotateKeyOnDemand", &kmsapi.RotateKeyOnDemandInput{KeyId: &id})
}

func TestListKeyRotations(t *testing.T) {
	r := newRoom(t)
	id, _ := r.newKey()
	list := func(in kmsapi.ListKeyRotationsInput) *kmsapi.ListKeyRotationsOutput {
		t.Helper()
		in.KeyId = &id
		return must[kmsapi.ListKeyRotationsOutput](r, "ListKeyRotations", &in)
	}
	if got := list(kmsapi.ListKeyRotationsInput{}); len(got.Rotations) != 0 || *got.Truncated {
		t.Errorf("a new key has %d rotations", len(got.Rotations))
	}
	first := r.current(id)
	must[request.None](r, "EnableKeyRotation", &kmsapi.EnableKeyRotationInput{KeyId: &id, RotationPeriodInDays: new(int32(90))})
	r.cluster.advance(90 * ops.Day)
	automatic := r.cluster.clock.Now()
	scheduleOf(r.first).Round(t.Context(), time.Now())
	r.cluster.advance(time.Hour)
	must[kmsapi.RotateKeyOnDemandOutput](r, "RotateKeyOnDemand", &kmsapi.RotateKeyOnDemandInput{KeyId: &id})
	line := func(e kmsapi.RotationsListEntry) string {
		s := *e.KeyMaterialState
		if e.RotationType != nil {
			s += " " + *e.RotationType + " " + e.RotationDate.Sub(automatic).String()
		}
		if *e.KeyId != id || e.ImportState != nil || e.ExpirationModel != nil {
			t.Errorf("entry %+v", e)
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
		t.Errorf("rotations: %s", got)
	}
	all := list(kmsapi.ListKeyRotationsInput{IncludeKeyMaterial: new(ops.AllMaterial)}).Rotations
	if got := show(all); got != "NON_CURRENT, NON_CURRENT AUTOMATIC 0s, CURRENT ON_DEMAND 1h0m0s" || *all[0].KeyMaterialId != first || *all[2].KeyMaterialId != r.current(id) {
		t.Errorf("materials: %s", got)
	}
	got := pages(t, func(after *string) ([]string, *string, *bool, error) {
		out, err := call[kmsapi.ListKeyRotationsOutput](r, "ListKeyRotations", &kmsapi.ListKeyRotationsInput{
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
		t.Errorf("pages of %s", sizes(got))
	}
	marker := list(kmsapi.ListKeyRotationsInput{IncludeKeyMaterial: new(ops.AllMaterial), Limit: new(int32(1))}).NextMarker
	_, err := call[kmsapi.ListKeyRotationsOutput](r, "ListKeyRotations", &kmsapi.ListKeyRotationsInput{KeyId: &id, Marker: marker})
	wantError(t, err, kmsapi.ErrInvalidMarker, "")
}

// TestDueRotationOnce: a rotation happens once, at its time, whichever nodes lead
// meanwhile.
func TestDueRotationOnce(t *testing.T) {
	r := newRoom(t, "n1", "n2")
	id, arn := r.newKey()
	must[request.None](r, "EnableKeyRotation", &kmsapi.EnableKeyRotationInput{KeyId: &id, RotationPeriodInDays: new(int32(90))})
	due := r.stored(id).Rotation.Next
	d1, d2, now := scheduleOf(r.engines["n1"]), scheduleOf(r.engines["n2"]), time.Now()
	d1.Round(t.Context(), now)
	r.cluster.advance(90*ops.Day - time.Second)
	now = now.Add(schedule.LookMax)
	d1.Round(t.Context(), now)
	if n := r.recorded("RotateKey"); n != 0 {
		t.Fatalf("%d rotations before the time", n)
	}
	r.cluster.advance(time.Second)
	r.cluster.replica("n1").freeze() // n1 led, and does not hear of what n2 does
	now = now.Add(schedule.LookMax)
	d2.Round(t.Context(), now)
	d1.Round(t.Context(), now)
	r.cluster.replica("n1").thaw()
	for range 3 {
		now = now.Add(schedule.LookMax)
		d1.Round(t.Context(), now)
		d2.Round(t.Context(), now)
	}
	k := r.stored(id)
	if n := r.recorded("RotateKey"); n != 1 || len(k.Materials) != 2 {
		t.Fatalf("%d rotations, %d materials", n, len(k.Materials))
	}
	if k.Rotation.Next != due+90*int64(ops.Day) || k.RotationsOnDemand != 0 {
		t.Errorf("next %d, want %d; %d on demand", k.Rotation.Next, due+90*int64(ops.Day), k.RotationsOnDemand)
	}
	rec := r.lastRecord()
	if rec.EventName != "RotateKey" || rec.EventType != "AwsServiceEvent" || rec.ServiceEventDetails[0].GetText() != arn ||
		rec.ServiceEventDetails[1].GetText() != "AUTOMATIC" || rec.ServiceEventDetails[2].GetText() != hex.EncodeToString(k.Materials[1].MaterialId) {
		t.Errorf("record: %v", rec)
	}
}

func TestDueRotationIsNeverEarly(t *testing.T) {
	r := newRoom(t)
	id, _ := r.newKey()
	must[request.None](r, "EnableKeyRotation", &kmsapi.EnableKeyRotationInput{KeyId: &id, RotationPeriodInDays: new(int32(90))})
	setClock(r.first, &fakeClock{now: r.cluster.clock.Now().Add(100 * ops.Day)})
	d, now := scheduleOf(r.first), time.Now()
	for range 600 {
		d.Round(t.Context(), now)
		now = now.Add(time.Second)
		r.cluster.clock.advance(time.Second)
	}
	if n := len(r.stored(id).Materials); n != 1 {
		t.Fatalf("a clock that is ahead rotated the key: %d materials", n)
	}
	setClock(r.first, r.cluster.clock)
	r.cluster.advance(90 * ops.Day)
	d.Round(t.Context(), now.Add(schedule.RetryMax))
	if n := len(r.stored(id).Materials); n != 2 {
		t.Errorf("not rotated in the end: %d materials", n)
	}
}

// TestDueRotationOfADisabledKey: it waits until the key is enabled, and is due at
// once then; the next is counted from there.
func TestDueRotationOfADisabledKey(t *testing.T) {
	r := newRoom(t)
	id, _ := r.newKey()
	must[request.None](r, "EnableKeyRotation", &kmsapi.EnableKeyRotationInput{KeyId: &id, RotationPeriodInDays: new(int32(90))})
	must[request.None](r, "DisableKey", &kmsapi.DisableKeyInput{KeyId: &id})
	d, now := scheduleOf(r.first), time.Now()
	r.cluster.advance(200 * ops.Day)
	d.Round(t.Context(), now)
	if n := len(r.stored(id).Materials); n != 1 {
		t.Fatalf("a disabled key was rotated: %d materials", n)
	}
	must[request.None](r, "EnableKey", &kmsapi.EnableKeyInput{KeyId: &id})
	for range 3 {
		now = now.Add(schedule.LookMax)
		d.Round(t.Context(), now)
	}
	k := r.stored(id)
	if want := r.cluster.clock.Now().Add(90 * ops.Day).UnixNano(); len(k.Materials) != 2 || k.Rotation.Next != want {
		t.Errorf("%d materials, next %d, want 2 and %d", len(k.Materials), k.Rotation.Next, want)
	}
}

// multiRegion makes a primary key with a replica in the second Region.
func (r *room) multiRegion() (name string, primary, second fsm.KeyID) {
	r.t.Helper()
	name = r.newMultiKey(kmsapi.CreateKeyInput{}, secondRegion)
	id := r.keyID(name).ID
	return name, fsm.KeyID{Account: testAccountNumber, Region: testRegion, ID: id}, fsm.KeyID{Account: testAccountNumber, Region: secondRegion, ID: id}
}

// TestRotationOfReplicas: all keys of a multi-Region set get the same material, and
// have the same settings.
func TestRotationOfReplicas(t *testing.T) {
	r := newRoomIn(t, threeRegions())
	name, _, second := r.multiRegion()
	arn := request.KeyARN(&fsmpb.Cluster{Partition: "aws", Account: testAccount}, secondRegion, name)
	for op, in := range map[string]any{
		"EnableKeyRotation": &kmsapi.EnableKeyRotationInput{KeyId: &name}, "DisableKeyRotation": &kmsapi.DisableKeyRotationInput{KeyId: &name},
		"RotateKeyOnDemand": &kmsapi.RotateKeyOnDemandInput{KeyId: &name},
	} {
		c := r.caller(r.root)
		c.Region = secondRegion
		_, err := r.first.Do(t.Context(), c, OperationNamed(op), in)
		wantError(t, err, kmsapi.ErrUnsupported, arn+" is not a multi-region primary key.")
	}
	must[request.None](r, "EnableKeyRotation", &kmsapi.EnableKeyRotationInput{KeyId: &name, RotationPeriodInDays: new(int32(90))})
	status := func() (int32, time.Time) {
		out, err := callIn[kmsapi.GetKeyRotationStatusOutput](r, secondRegion, "GetKeyRotationStatus", &kmsapi.GetKeyRotationStatusInput{KeyId: &name})
		if err != nil || !*out.KeyRotationEnabled {
			t.Fatalf("the replica's status: %v, %v", out, err)
		}
		return *out.RotationPeriodInDays, *out.NextRotationDate
	}
	crosses := func(when string) {
		t.Helper()
		blob := r.seal(name, when)
		r.first.vault.Follow(fsm.Events{Restored: true}) // nothing cached
		out, err := callIn[kmsapi.DecryptOutput](r, secondRegion, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob})
		if err != nil || string(out.Plaintext) != when || *out.KeyMaterialId != r.current(name) {
			t.Errorf("%s: the replica gives %v, %v", when, out, err)
		}
	}
	// What happens to a replica between evaluation and commit is not undone.
	once := false
	r.cluster.replica("n1").before = func(*fsmpb.Record) {
		if !once {
			once = true
			k, _ := r.cluster.state().Key(second)
			k = proto.CloneOf(k)
			k.Description = "kept"
			r.cluster.change(&fsmpb.Change{Change: &fsmpb.Change_PutKey{PutKey: k}})
		}
	}
	must[kmsapi.RotateKeyOnDemandOutput](r, "RotateKeyOnDemand", &kmsapi.RotateKeyOnDemandInput{KeyId: &name})
	r.cluster.replica("n1").before = nil
	if k, _ := r.cluster.state().Key(second); k.Description != "kept" {
		t.Error("rotation undid a change of the replica")
	}
	crosses("on demand")
	r.cluster.advance(90 * ops.Day)
	d, now := scheduleOf(r.first), time.Now()
	for range 3 {
		d.Round(t.Context(), now)
		now = now.Add(schedule.LookMax)
	}
	crosses("automatic")
	if k, _ := r.cluster.state().Key(second); r.recorded("RotateKey") != 1 || len(k.Materials) != 3 {
		t.Errorf("%d rotations, and the replica has %d materials", r.recorded("RotateKey"), len(k.Materials))
	}
	_, next := status()
	if want := *r.status(name).NextRotationDate; !next.Equal(want) {
		t.Errorf("the replica's next rotation is %v, the primary's %v", next, want)
	}
}

// TestReplicaDoesNotRotate: a replica waits for its primary, which is disabled here.
func TestReplicaDoesNotRotate(t *testing.T) {
	r := newRoomIn(t, threeRegions())
	name, _, second := r.multiRegion()
	must[request.None](r, "EnableKeyRotation", &kmsapi.EnableKeyRotationInput{KeyId: &name})
	must[request.None](r, "DisableKey", &kmsapi.DisableKeyInput{KeyId: &name})
	r.cluster.advance(366 * ops.Day)
	scheduleOf(r.first).Round(t.Context(), time.Now())
	if k, _ := r.cluster.state().Key(second); len(k.Materials) != 1 || !k.Rotation.Enabled {
		t.Errorf("the replica has %d materials", len(k.Materials))
	}
}

// TestDueWindow: a primary's window begins, once, when its last replica is gone.
func TestDueWindow(t *testing.T) {
	r := newRoomIn(t, threeRegions())
	name, primary, second := r.multiRegion()
	k, _ := r.cluster.state().Key(primary)
	k = proto.CloneOf(k)
	k.State, k.DeletionDays = fsmpb.KeyState_KEY_STATE_PENDING_REPLICA_DELETION, 7
	r.cluster.change(&fsmpb.Change{Change: &fsmpb.Change_PutKey{PutKey: k}})
	d, now := scheduleOf(r.first), time.Now()
	round := func() {
		now = now.Add(schedule.LookMax)
		d.Round(t.Context(), now)
	}
	r.cluster.advance(8 * ops.Day)
	round()
	if k, _ := r.cluster.state().Key(primary); k.DeletionTime != 0 {
		t.Fatal("the window runs while there is a replica")
	}
	r.doom(second.Region, name)
	r.cluster.advance(7 * ops.Day)
	for range 4 {
		round()
	}
	k, _ = r.cluster.state().Key(primary)
	if want := r.cluster.clock.Now().Add(7 * ops.Day).UnixNano(); k.State != fsmpb.KeyState_KEY_STATE_PENDING_DELETION || k.DeletionTime != want {
		t.Fatalf("state %v, deletion at %d, want %d", k.State, k.DeletionTime, want)
	}
	if n := r.recorded("SynchronizeMultiRegionKey"); n != 1 {
		t.Errorf("the window began %d times", n)
	}
	r.cluster.advance(7 * ops.Day)
	round()
	if k, _ := r.cluster.state().Key(primary); k != nil {
		t.Errorf("key %s is still there after its window", name)
	}
}

// TestDueWindowSeesAReplica: a replica that is made after the leader looked keeps the
// window from beginning.
func TestDueWindowSeesAReplica(t *testing.T) {
	r := newRoomIn(t, threeRegions())
	id := fsm.KeyID{Account: testAccountNumber, Region: testRegion, ID: [16]byte{9}}
	k := &fsmpb.Key{
		Account: uint64(testAccountNumber), Id: id.ID[:], Region: testRegion, MultiRegion: true, PrimaryRegion: testRegion, Created: 1, Spec: kmsapi.SpecSymmetric, Usage: kmsapi.UsageEncrypt,
		Origin: kmsapi.OriginKMS, State: fsmpb.KeyState_KEY_STATE_ENABLED,
	}
	enter := func(state fsmpb.KeyState, days int32) {
		k := proto.CloneOf(k)
		k.State, k.DeletionDays = state, days
		r.cluster.change(putKeyChange(k))
	}
	enter(fsmpb.KeyState_KEY_STATE_ENABLED, 0)
	enter(fsmpb.KeyState_KEY_STATE_PENDING_REPLICA_DELETION, 7)
	made := 0
	r.cluster.replica("n1").before = func(*fsmpb.Record) {
		enter(fsmpb.KeyState_KEY_STATE_DISABLED, 0)
		enter(fsmpb.KeyState_KEY_STATE_ENABLED, 0)
		o := proto.CloneOf(k)
		o.Region = secondRegion
		r.cluster.change(putKeyChange(o))
		enter(fsmpb.KeyState_KEY_STATE_PENDING_REPLICA_DELETION, 7)
		made++
	}
	d, now := scheduleOf(r.first), time.Now()
	for range 3 {
		d.Round(t.Context(), now)
		now = now.Add(schedule.LookMax)
	}
	if k, _ := r.cluster.state().Key(id); made != 1 || k.DeletionTime != 0 {
		t.Errorf("after %d tries the window runs until %d although there is a replica", made, k.DeletionTime)
	}
}

// TestRotationByAClockThatIsAhead: the leader's clock puts the next rotation neither
// off nor forward, and a rotation that is missed meanwhile is no second one.
func TestRotationByAClockThatIsAhead(t *testing.T) {
	r := newRoom(t)
	id, _ := r.newKey()
	must[request.None](r, "EnableKeyRotation", &kmsapi.EnableKeyRotationInput{KeyId: &id, RotationPeriodInDays: new(int32(90))})
	due := time.Unix(0, r.stored(id).Rotation.Next)
	r.cluster.advance(due.Sub(r.cluster.clock.Now()))
	setClock(r.first, &fakeClock{now: due.Add(10 * 365 * ops.Day)})
	d, now := scheduleOf(r.first), time.Now()
	d.Round(t.Context(), now)
	if k := r.stored(id); len(k.Materials) != 2 || k.Rotation.Next != due.Add(90*ops.Day).UnixNano() {
		t.Errorf("%d materials, next rotation %v after this one", len(k.Materials), time.Unix(0, k.Rotation.Next).Sub(due))
	}
	// Cluster time makes a step over two dates between evaluation and commit.
	r.cluster.advance(89 * ops.Day)
	late := scheduleOf(r.first)
	late.Look(r.cluster.state(), now)
	fake := r.cluster.replica("n1")
	fake.before = func(*fsmpb.Record) {
		fake.before = nil
		r.cluster.advance(200 * ops.Day)
	}
	r.cluster.advance(ops.Day)
	for range 5 {
		now = now.Add(schedule.RetryMax)
		late.Round(t.Context(), now)
	}
	k, want := r.stored(id), r.cluster.clock.Now().Add(90*ops.Day)
	if got := time.Unix(0, k.Rotation.Next); len(k.Materials) != 3 || got.Before(want.Add(-time.Minute)) || got.After(want) {
		t.Errorf("after two missed dates: %d materials, next rotation at %v, want %v", len(k.Materials), got, want)
	}
}
