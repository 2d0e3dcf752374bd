package keyengine

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/ops"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

const (
	secondRegion = "eu-central-1"
	thirdRegion  = "us-east-2"
)

// threeRegions begin with the room's own, and are not in ascending order.
func threeRegions() []string { return []string{testRegion, thirdRegion, secondRegion} }

// callIn is one request of the account's root user for a Region.
func callIn[Out any](r *room, region, name string, in any) (*Out, error) {
	c := r.caller(r.root)
	c.Region = region
	out, err := r.first.Do(context.Background(), c, OperationNamed(name), in)
	if err != nil {
		return nil, err
	}
	return out.(*Out), nil
}

func mustIn[Out any](r *room, region, name string, in any) *Out {
	r.t.Helper()
	out, err := callIn[Out](r, region, name, in)
	if err != nil {
		r.t.Fatalf("%s in %s: %v", name, region, err)
	}
	return out
}

// newMultiKey makes a multi-Region key with replicas in some Regions.
func (r *room) newMultiKey(in kmsapi.CreateKeyInput, replicas ...string) string {
	r.t.Helper()
	in.MultiRegion = new(true)
	id := *must[kmsapi.CreateKeyOutput](r, "CreateKey", &in).KeyMetadata.KeyId
	for _, region := range replicas {
		must[kmsapi.ReplicateKeyOutput](r, "ReplicateKey", &kmsapi.ReplicateKeyInput{KeyId: &id, ReplicaRegion: new(region)})
	}
	return id
}

func (r *room) describeIn(region, id string) *kmsapi.KeyMetadata {
	r.t.Helper()
	return mustIn[kmsapi.DescribeKeyOutput](r, region, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &id}).KeyMetadata
}

func (r *room) keyIn(region, id string) *fsmpb.Key {
	r.t.Helper()
	k, _ := r.cluster.state().Key(fsm.KeyID{Account: testAccountNumber, Region: region, ID: r.keyID(id).ID})
	return k
}

// mangleIn changes a key of a Region behind the engine's back.
func (r *room) mangleIn(region, id string, f func(*fsmpb.Key)) {
	r.t.Helper()
	k := cloneOf(r.keyIn(region, id))
	f(k)
	r.cluster.change(&fsmpb.Change{Change: &fsmpb.Change_PutKey{PutKey: k}})
}

func putKeyChange(k *fsmpb.Key) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_PutKey{PutKey: k}}
}

func defaultPolicyChange(k *fsmpb.Key) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_PutKeyPolicy{
		PutKeyPolicy: &fsmpb.KeyPolicy{Account: uint64(testAccountNumber), Key: k.Id, Region: k.Region, Document: policy.DefaultKeyPolicy("aws", testAccount)},
	}}
}

func multiARN(region, id string) string {
	return "arn:aws:kms:" + region + ":" + testAccount + ":key/" + id
}

// configured is a set's configuration as one of its keys shows it.
func configured(id, kind, primary string, replicas ...string) *kmsapi.MultiRegionConfiguration {
	name := func(r string) kmsapi.MultiRegionKey {
		return kmsapi.MultiRegionKey{Arn: new(multiARN(r, id)), Region: new(r)}
	}
	c := &kmsapi.MultiRegionConfiguration{MultiRegionKeyType: &kind, PrimaryKey: new(name(primary)), ReplicaKeys: []kmsapi.MultiRegionKey{}}
	for _, r := range replicas {
		c.ReplicaKeys = append(c.ReplicaKeys, name(r))
	}
	return c
}

func TestClusterOfSeveralRegions(t *testing.T) {
	r := newRoomIn(t, threeRegions())
	c, _ := r.cluster.state().Cluster()
	if c.Region != testRegion || !slices.Equal(c.MoreRegions, []string{secondRegion, thirdRegion}) {
		t.Errorf("the cluster has %s and %v", c.Region, c.MoreRegions)
	}
	if st := r.first.SealStatus(); st.Region != testRegion || !slices.Equal(st.MoreRegions, c.MoreRegions) {
		t.Errorf("status shows %s and %v", st.Region, st.MoreRegions)
	}
}

// TestRegionsAreApart: keys, aliases, lists and records of one Region are not
// those of another.
func TestRegionsAreApart(t *testing.T) {
	r := newRoomIn(t, threeRegions())
	var ids []string
	for _, region := range threeRegions() {
		m := mustIn[kmsapi.CreateKeyOutput](r, region, "CreateKey", &kmsapi.CreateKeyInput{}).KeyMetadata
		if want := multiARN(region, *m.KeyId); *m.Arn != want {
			t.Errorf("key made in %s is %s", region, *m.Arn)
		}
		if got := r.lastRecord(); got.Region != region || got.Resources[0].Arn != *m.Arn {
			t.Errorf("the record says %s, %v, want %s", got.Region, got.Resources, region)
		}
		mustIn[request.None](r, region, "CreateAlias", &kmsapi.CreateAliasInput{AliasName: new("alias/same"), TargetKeyId: m.KeyId})
		ids = append(ids, *m.KeyId)
	}
	for i, region := range threeRegions() {
		keys := mustIn[kmsapi.ListKeysOutput](r, region, "ListKeys", &kmsapi.ListKeysInput{}).Keys
		if len(keys) != 1 || *keys[0].KeyId != ids[i] || *keys[0].KeyArn != multiARN(region, ids[i]) {
			t.Errorf("keys of %s: %v", region, keys)
		}
		aliases := mustIn[kmsapi.ListAliasesOutput](r, region, "ListAliases", &kmsapi.ListAliasesInput{}).Aliases
		if len(aliases) != 1 || *aliases[0].TargetKeyId != ids[i] || !strings.Contains(*aliases[0].AliasArn, ":"+region+":") {
			t.Errorf("aliases of %s: %v", region, aliases)
		}
		if m := r.describeIn(region, "alias/same"); *m.KeyId != ids[i] {
			t.Errorf("the alias in %s is of %s, want %s", region, *m.KeyId, ids[i])
		}
	}
	_, err := call[kmsapi.DescribeKeyOutput](r, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &ids[1]})
	wantError(t, err, kmsapi.ErrNotFound, "Key '"+multiARN(testRegion, ids[1])+"' does not exist")
	_, err = call[kmsapi.DescribeKeyOutput](r, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: new(multiARN(thirdRegion, ids[1]))})
	wantError(t, err, kmsapi.ErrNotFound, "Invalid arn "+thirdRegion)
	_, err = callIn[kmsapi.ListKeysOutput](r, "ap-south-1", "ListKeys", &kmsapi.ListKeysInput{})
	wantError(t, err, kmsapi.ErrInvalidSignature, "Credential should be scoped to a valid region, not 'ap-south-1'.")
	if got := r.lastRecord().Region; got != testRegion {
		t.Errorf("a request for no Region of the cluster's is recorded in %s, want %s", got, testRegion)
	}

	// A ciphertext of another Region's key is that of a key out of reach.
	blob := mustIn[kmsapi.EncryptOutput](r, thirdRegion, "Encrypt", &kmsapi.EncryptInput{KeyId: &ids[1], Plaintext: []byte("x")}).CiphertextBlob
	_, err = call[kmsapi.DecryptOutput](r, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob})
	wantError(t, err, kmsapi.ErrAccessDenied, "…")
	if !strings.Contains(err.Error(), "does not exist in this Region") {
		t.Errorf("got %v", err)
	}
}

func TestAnyRegionGoesToTheFirst(t *testing.T) {
	r := newRoomIn(t, threeRegions())
	c, _ := r.cluster.state().Cluster()
	r.cluster.change(&fsmpb.Change{Change: &fsmpb.Change_PutCluster{PutCluster: anyRegion(c)}})
	for asked, want := range map[string]string{"ap-south-1": testRegion, "": testRegion, thirdRegion: thirdRegion} {
		if m := mustIn[kmsapi.CreateKeyOutput](r, asked, "CreateKey", &kmsapi.CreateKeyInput{}).KeyMetadata; *m.Arn != multiARN(want, *m.KeyId) {
			t.Errorf("a key asked for in %q is %s, want one of %s", asked, *m.Arn, want)
		}
	}
}

func TestMarkersAreOfTheirRegion(t *testing.T) {
	r := newRoomIn(t, threeRegions())
	for range 2 {
		for _, region := range threeRegions() {
			mustIn[kmsapi.CreateKeyOutput](r, region, "CreateKey", &kmsapi.CreateKeyInput{})
		}
	}
	in := &kmsapi.ListKeysInput{Limit: new(int32(1))}
	in.Marker = must[kmsapi.ListKeysOutput](r, "ListKeys", in).NextMarker
	must[kmsapi.ListKeysOutput](r, "ListKeys", in)
	_, err := callIn[kmsapi.ListKeysOutput](r, secondRegion, "ListKeys", in)
	wantError(t, err, kmsapi.ErrInvalidMarker, "")
}

func TestMultiRegionKey(t *testing.T) {
	r := newRoomIn(t, threeRegions())
	id := r.newMultiKey(kmsapi.CreateKeyInput{Description: new("the primary"), Tags: manyTags(2)})
	if !strings.HasPrefix(id, "mrk-") || len(id) != 36 {
		t.Errorf("id is %s", id)
	}
	primary := r.describeIn(testRegion, id)
	if !*primary.MultiRegion {
		t.Error("the key is not multi-Region")
	}
	if d := cmp.Diff(configured(id, "PRIMARY", testRegion), primary.MultiRegionConfiguration); d != "" {
		t.Errorf("configuration of a primary without replicas (-want +got):\n%s", d)
	}

	r.cluster.clock.advance(time.Hour)
	doc := r.policyFor(rootStatement, statement("Allow", testAccount, "kms:Encrypt"))
	in := &kmsapi.ReplicateKeyInput{KeyId: &id, ReplicaRegion: new(thirdRegion), Policy: &doc, Description: new("the replica"), Tags: []kmsapi.Tag{{TagKey: new("b"), TagValue: new("2")}, {TagKey: new("a"), TagValue: new("1")}}}
	out := must[kmsapi.ReplicateKeyOutput](r, "ReplicateKey", in)
	now := r.cluster.clock.Now()
	want := *primary
	want.Arn, want.CreationDate, want.Description = new(multiARN(thirdRegion, id)), &now, new("the replica")
	want.KeyState, want.Enabled, want.CurrentKeyMaterialId = new("Creating"), new(false), nil
	want.MultiRegionConfiguration = configured(id, "REPLICA", testRegion, thirdRegion)
	if d := cmp.Diff(&kmsapi.ReplicateKeyOutput{ReplicaKeyMetadata: &want, ReplicaPolicy: &doc, ReplicaTags: in.Tags}, out); d != "" {
		t.Errorf("ReplicateKey (-want +got):\n%s", d)
	}
	rec := r.lastRecord()
	if rec.Region != testRegion || rec.EventName != "ReplicateKey" {
		t.Errorf("recorded as %s in %s", rec.EventName, rec.Region)
	}
	var arns []string
	for _, res := range rec.Resources {
		arns = append(arns, res.Arn)
	}
	if d := cmp.Diff([]string{multiARN(testRegion, id), multiARN(thirdRegion, id)}, arns); d != "" {
		t.Errorf("resources of the record (-want +got):\n%s", d)
	}
	for _, name := range []string{"replicaKeyMetadata", "replicaPolicy"} {
		if !slices.ContainsFunc(rec.ResponseElements, func(f *auditpb.Field) bool { return f.Name == name }) {
			t.Errorf("the record has no %s: %v", name, rec.ResponseElements)
		}
	}
	// The next request finds it made.
	want.KeyState, want.Enabled, want.CurrentKeyMaterialId = new("Enabled"), new(true), primary.CurrentKeyMaterialId
	if d := cmp.Diff(&want, r.describeIn(thirdRegion, id)); d != "" {
		t.Errorf("the replica (-want +got):\n%s", d)
	}
	if got := r.lastRecord().Resources; len(got) != 1 {
		t.Errorf("DescribeKey's record names %v", got)
	}
	tags := mustIn[kmsapi.ListResourceTagsOutput](r, thirdRegion, "ListResourceTags", &kmsapi.ListResourceTagsInput{KeyId: &id}).Tags
	if d := cmp.Diff([]kmsapi.Tag{{TagKey: new("a"), TagValue: new("1")}, {TagKey: new("b"), TagValue: new("2")}}, tags); d != "" {
		t.Errorf("tags of the replica (-want +got):\n%s", d)
	}
	if got := *mustIn[kmsapi.GetKeyPolicyOutput](r, thirdRegion, "GetKeyPolicy", &kmsapi.GetKeyPolicyInput{KeyId: &id}).Policy; got != doc {
		t.Errorf("policy of the replica is %s", got)
	}

	// Nothing but the Region given: the defaults.
	least := must[kmsapi.ReplicateKeyOutput](r, "ReplicateKey", &kmsapi.ReplicateKeyInput{KeyId: new(multiARN(testRegion, id)), ReplicaRegion: new(secondRegion)})
	if *least.ReplicaPolicy != policy.DefaultKeyPolicy("aws", testAccount) || least.ReplicaTags != nil || *least.ReplicaKeyMetadata.Description != "" {
		t.Errorf("a replica by default has policy %s, tags %v, description %q", *least.ReplicaPolicy, least.ReplicaTags, *least.ReplicaKeyMetadata.Description)
	}
	for region, kind := range map[string]string{testRegion: "PRIMARY", secondRegion: "REPLICA", thirdRegion: "REPLICA"} {
		if d := cmp.Diff(configured(id, kind, testRegion, secondRegion, thirdRegion), r.describeIn(region, id).MultiRegionConfiguration); d != "" {
			t.Errorf("configuration in %s (-want +got):\n%s", region, d)
		}
	}
}

// TestOneKeyInAllRegions: what one key of a set made, each other opens or
// verifies, and each Region decides by its own policy and state.
func TestOneKeyInAllRegions(t *testing.T) {
	r := newRoomIn(t, threeRegions())
	id := r.newMultiKey(kmsapi.CreateKeyInput{}, secondRegion, thirdRegion)
	for _, from := range threeRegions() {
		blob := mustIn[kmsapi.EncryptOutput](r, from, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("from " + from)}).CiphertextBlob
		for _, to := range threeRegions() {
			for _, given := range []*string{nil, &id, new(multiARN(to, id))} {
				out := mustIn[kmsapi.DecryptOutput](r, to, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob, KeyId: given})
				if string(out.Plaintext) != "from "+from || *out.KeyId != multiARN(to, id) {
					t.Errorf("from %s, in %s: %q under %s", from, to, out.Plaintext, *out.KeyId)
				}
				if rec := r.lastRecord(); rec.Region != to || rec.Resources[0].Arn != multiARN(to, id) {
					t.Errorf("recorded in %s for %v", rec.Region, rec.Resources)
				}
			}
		}
	}
	wrapped := map[string]bool{}
	for _, region := range threeRegions() {
		wrapped[string(r.keyIn(region, id).Materials[0].Wrapped)] = true
	}
	if len(wrapped) != 3 {
		t.Error("keys of two Regions have the same wrapped material")
	}

	blob := must[kmsapi.EncryptOutput](r, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")}).CiphertextBlob
	mustIn[request.None](r, testRegion, "DisableKey", &kmsapi.DisableKeyInput{KeyId: &id})
	k := r.keyID(id)
	r.cluster.change(&fsmpb.Change{Change: &fsmpb.Change_PutKeyPolicy{PutKeyPolicy: &fsmpb.KeyPolicy{Account: uint64(testAccountNumber), Key: k.ID[:], Region: thirdRegion,
		Document: r.policyFor(rootStatement, statement("Deny", testAccount, "kms:Decrypt"))}}})
	decrypt := &kmsapi.DecryptInput{CiphertextBlob: blob}
	_, err := callIn[kmsapi.DecryptOutput](r, testRegion, "Decrypt", decrypt)
	wantError(t, err, kmsapi.ErrDisabled, multiARN(testRegion, id)+" is disabled.")
	_, err = callIn[kmsapi.DecryptOutput](r, thirdRegion, "Decrypt", decrypt)
	wantError(t, err, kmsapi.ErrAccessDenied, "…")
	mustIn[kmsapi.DecryptOutput](r, secondRegion, "Decrypt", decrypt)

	sig := r.newMultiKey(kmsapi.CreateKeyInput{KeySpec: new("ECC_NIST_P256"), KeyUsage: new("SIGN_VERIFY")}, secondRegion)
	s := mustIn[kmsapi.SignOutput](r, secondRegion, "Sign", &kmsapi.SignInput{KeyId: &sig, Message: []byte("m"), SigningAlgorithm: new("ECDSA_SHA_256")})
	must[kmsapi.VerifyOutput](r, "Verify", &kmsapi.VerifyInput{KeyId: &sig, Message: []byte("m"), Signature: s.Signature, SigningAlgorithm: new("ECDSA_SHA_256")})
	a := must[kmsapi.GetPublicKeyOutput](r, "GetPublicKey", &kmsapi.GetPublicKeyInput{KeyId: &sig}).PublicKey
	b := mustIn[kmsapi.GetPublicKeyOutput](r, secondRegion, "GetPublicKey", &kmsapi.GetPublicKeyInput{KeyId: &sig}).PublicKey
	if len(a) == 0 || !bytes.Equal(a, b) {
		t.Error("the public keys differ")
	}
	mac := r.newMultiKey(kmsapi.CreateKeyInput{KeySpec: new("HMAC_256"), KeyUsage: new("GENERATE_VERIFY_MAC")}, secondRegion)
	m := must[kmsapi.GenerateMacOutput](r, "GenerateMac", &kmsapi.GenerateMacInput{KeyId: &mac, Message: []byte("m"), MacAlgorithm: new("HMAC_SHA_256")})
	mustIn[kmsapi.VerifyMacOutput](r, secondRegion, "VerifyMac", &kmsapi.VerifyMacInput{KeyId: &mac, Message: []byte("m"), Mac: m.Mac, MacAlgorithm: new("HMAC_SHA_256")})
}

func TestReplicateKeyErrors(t *testing.T) {
	r := newRoomIn(t, threeRegions())
	single, singleARN := r.newKey()
	id := r.newMultiKey(kmsapi.CreateKeyInput{}, secondRegion)
	gone := r.newMultiKey(kmsapi.CreateKeyInput{}, secondRegion)
	r.doom(secondRegion, gone)
	tests := []struct {
		name, region string
		in           kmsapi.ReplicateKeyInput
		kind         *kmsapi.Error
		message      string
	}{
		{"single-Region key", testRegion, kmsapi.ReplicateKeyInput{KeyId: &single}, kmsapi.ErrUnsupported, singleARN + " is not a multi-region primary key."},
		{"replica", secondRegion, kmsapi.ReplicateKeyInput{KeyId: &id}, kmsapi.ErrUnsupported, multiARN(secondRegion, id) + " is not a multi-region primary key."},
		{"not there", thirdRegion, kmsapi.ReplicateKeyInput{KeyId: &id}, kmsapi.ErrNotFound, "Key '" + multiARN(thirdRegion, id) + "' does not exist"},
		{"alias", testRegion, kmsapi.ReplicateKeyInput{KeyId: new("alias/x")}, kmsapi.ErrInvalidArn, "Key Aliases are not supported for this operation."},
		{"no such Region", testRegion, kmsapi.ReplicateKeyInput{KeyId: &id, ReplicaRegion: new("ap-south-1")}, kmsapi.ErrValidation, "ReplicaRegion ap-south-1 is not a Region of this cluster."},
		{"no Region at all", testRegion, kmsapi.ReplicateKeyInput{KeyId: &id, ReplicaRegion: new("here")}, kmsapi.ErrValidation, "…"},
		{"own Region", testRegion, kmsapi.ReplicateKeyInput{KeyId: &id, ReplicaRegion: new(testRegion)}, kmsapi.ErrAlreadyExists, "Key '" + multiARN(testRegion, id) + "' already exists"},
		{"exists", testRegion, kmsapi.ReplicateKeyInput{KeyId: &id, ReplicaRegion: new(secondRegion)}, kmsapi.ErrAlreadyExists, "Key '" + multiARN(secondRegion, id) + "' already exists"},
		{"exists, pending deletion", testRegion, kmsapi.ReplicateKeyInput{KeyId: &gone, ReplicaRegion: new(secondRegion)}, kmsapi.ErrAlreadyExists, "Key '" + multiARN(secondRegion, gone) + "' already exists"},
		{"policy that locks out", testRegion, kmsapi.ReplicateKeyInput{KeyId: &id, Policy: new(r.policyFor(statement("Allow", testAccount, "kms:Encrypt")))}, kmsapi.ErrMalformedPolicy,
			"The new key policy will not allow you to update the key policy in the future."},
		{"policy that is none", testRegion, kmsapi.ReplicateKeyInput{KeyId: &id, Policy: new("{")}, kmsapi.ErrMalformedPolicy, "…"},
		{"tags", testRegion, kmsapi.ReplicateKeyInput{KeyId: &id, Tags: manyTags(51)}, kmsapi.ErrTag, "Too many tags"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.in.ReplicaRegion == nil {
				tt.in.ReplicaRegion = new(thirdRegion)
			}
			_, err := callIn[kmsapi.ReplicateKeyOutput](r, tt.region, "ReplicateKey", &tt.in)
			wantError(t, err, tt.kind, tt.message)
		})
	}
	for k := range r.cluster.state().Keys(fsm.KeyID{Account: testAccountNumber, Region: thirdRegion}) {
		t.Errorf("a refused ReplicateKey made %x", k.Id)
	}
	must[kmsapi.ReplicateKeyOutput](r, "ReplicateKey", &kmsapi.ReplicateKeyInput{KeyId: &id, ReplicaRegion: new(thirdRegion), BypassPolicyLockoutSafetyCheck: new(true),
		Policy: new(r.policyFor(statement("Allow", testAccount, "kms:Encrypt")))})

	// The primary's policy decides about ReplicateKey, the account about CreateKey
	// and TagResource: a user whom the policy allows everything may not.
	other := r.newMultiKey(kmsapi.CreateKeyInput{})
	alice := r.user(aliceARN)
	r.setPolicy(other, r.policyFor(rootStatement, statement("Allow", aliceARN, "kms:*")))
	ask := func() error {
		_, err := callAs[kmsapi.ReplicateKeyOutput](r, r.first, alice, "ReplicateKey", &kmsapi.ReplicateKeyInput{KeyId: &other, ReplicaRegion: new(thirdRegion)})
		return err
	}
	if err := ask(); !errors.Is(err, kmsapi.ErrAccessDenied) || !strings.Contains(err.Error(), "kms:CreateKey") {
		t.Errorf("without CreateKey: %v", err)
	}
	r.setPolicy(other, r.policyFor(rootStatement))
	if err := ask(); !errors.Is(err, kmsapi.ErrAccessDenied) || !strings.Contains(err.Error(), "kms:ReplicateKey") {
		t.Errorf("without ReplicateKey: %v", err)
	}
}

// TestImportedReplica: the replica of a key with imported material has the names of
// its material, and waits for an import of its own.
func TestImportedReplica(t *testing.T) {
	r := newRoomIn(t, threeRegions())
	k := &fsmpb.Key{
		Account: uint64(testAccountNumber), Id: bytes.Repeat([]byte{7}, 16), Region: testRegion, MultiRegion: true, PrimaryRegion: testRegion, Created: 1,
		Spec: kmsapi.SpecSymmetric, Usage: kmsapi.UsageEncrypt, Origin: kmsapi.OriginImported, State: fsmpb.KeyState_KEY_STATE_ENABLED,
	}
	m, err := r.first.vault.NewMaterial(k, 1)
	if err != nil {
		t.Fatal(err)
	}
	m.ValidTo, m.Description = 4e18, "imported"
	k.Materials = []*fsmpb.Material{m}
	id := request.FormatKeyID([16]byte(k.Id), true)
	r.cluster.change(putKeyChange(k), defaultPolicyChange(k))
	must[kmsapi.ReplicateKeyOutput](r, "ReplicateKey", &kmsapi.ReplicateKeyInput{KeyId: &id, ReplicaRegion: new(thirdRegion)})
	got := r.keyIn(thirdRegion, id)
	want := []*fsmpb.Material{{Id: m.Id, MaterialId: m.MaterialId, Created: m.Created}}
	if d := cmp.Diff(want, got.Materials, protocmp.Transform()); d != "" {
		t.Errorf("the replica's materials (-want +got):\n%s", d)
	}
	if d := r.describeIn(thirdRegion, id); *d.KeyState != "PendingImport" || *d.Enabled {
		t.Errorf("the replica is %s, want PendingImport", *d.KeyState)
	}
	// Cancelling its deletion does not make it a key that could be enabled.
	mustIn[kmsapi.ScheduleKeyDeletionOutput](r, thirdRegion, "ScheduleKeyDeletion", &kmsapi.ScheduleKeyDeletionInput{KeyId: &id})
	mustIn[kmsapi.CancelKeyDeletionOutput](r, thirdRegion, "CancelKeyDeletion", &kmsapi.CancelKeyDeletionInput{KeyId: &id})
	if k := r.keyIn(thirdRegion, id); k.State != fsmpb.KeyState_KEY_STATE_PENDING_IMPORT || !k.DisabledBeforeImport {
		t.Errorf("after a cancelled deletion the replica is in state %v", k.State)
	}
}

// TestPutMembers: a new version of the material gets to all members, each with it
// wrapped for itself, and with the automatic rotation.
func TestPutMembers(t *testing.T) {
	r := newRoomIn(t, threeRegions())
	id := r.newMultiKey(kmsapi.CreateKeyInput{}, secondRegion, thirdRegion)
	old := must[kmsapi.EncryptOutput](r, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("old")}).CiphertextBlob
	ev := &request.Evaluation{Ctx: t.Context(), Services: r.first.services, State: r.cluster.state()}
	members := ops.MembersOf(ev, ev.Target(r.keyID(id)))
	var order []string
	for _, m := range members {
		order = append(order, m.ID.Region)
	}
	if d := cmp.Diff([]string{testRegion, secondRegion, thirdRegion}, order); d != "" {
		t.Errorf("members (-want +got):\n%s", d)
	}
	if len(ev.Reads) != 3 {
		t.Errorf("%d reads are noted, want one for each Region", len(ev.Reads))
	}
	k := cloneOf(members[0].Key)
	m, err := r.first.vault.NewMaterial(k, 5)
	if err != nil {
		t.Fatal(err)
	}
	m.Rotated = 6
	k.Materials = append(k.Materials, m)
	k.Rotation = &fsmpb.Rotation{Enabled: true, PeriodDays: 90, Next: 1e18}
	k.RotationsOnDemand = 1
	if err := ops.PutMembers(ev, k, members); err != nil {
		t.Fatal(err)
	}
	if len(ev.Changes) != 3 {
		t.Fatalf("%d changes, want 3", len(ev.Changes))
	}
	r.cluster.change(ev.Changes...)
	was := members[1].Key.Materials[0]
	is := r.keyIn(secondRegion, id)
	if !proto.Equal(was, is.Materials[0]) {
		t.Error("material that a replica had was wrapped again")
	}
	if n := is.Materials[1]; !bytes.Equal(n.Id, m.Id) || !bytes.Equal(n.MaterialId, m.MaterialId) || n.Rotated != 6 || n.Created != 5 || bytes.Equal(n.Wrapped, m.Wrapped) {
		t.Errorf("the replica's new material is %v, the primary's %v", n, m)
	}
	if !proto.Equal(is.Rotation, k.Rotation) || is.RotationsOnDemand != 1 {
		t.Errorf("the replica's rotation is %v", is.Rotation)
	}
	fresh := mustIn[kmsapi.EncryptOutput](r, secondRegion, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("new")}).CiphertextBlob
	for _, region := range threeRegions() {
		for want, blob := range map[string][]byte{"old": old, "new": fresh} {
			if got := mustIn[kmsapi.DecryptOutput](r, region, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob}).Plaintext; string(got) != want {
				t.Errorf("in %s: %q, want %q", region, got, want)
			}
		}
		if got := *r.describeIn(region, id).CurrentKeyMaterialId; got != *request.MaterialID(m) {
			t.Errorf("current material in %s is %s", region, got)
		}
	}
	// A replica made later gets all of it.
	late := r.newMultiKey(kmsapi.CreateKeyInput{})
	r.mangle(late, func(k *fsmpb.Key) {
		n, err := r.first.vault.NewMaterial(k, 5)
		if err != nil {
			t.Fatal(err)
		}
		k.Materials, k.Rotation = append(k.Materials, n), &fsmpb.Rotation{Enabled: true, PeriodDays: 90, Next: 1e18}
	})
	must[kmsapi.ReplicateKeyOutput](r, "ReplicateKey", &kmsapi.ReplicateKeyInput{KeyId: &late, ReplicaRegion: new(thirdRegion)})
	if k := r.keyIn(thirdRegion, late); len(k.Materials) != 2 || !k.Rotation.GetEnabled() {
		t.Errorf("a late replica has %d materials and rotation %v", len(k.Materials), k.Rotation)
	}
	// Nothing is lost for want of it elsewhere.
	k = cloneOf(members[0].Key)
	ev = &request.Evaluation{Ctx: t.Context(), Services: r.first.services, State: r.cluster.state()}
	k.Materials = k.Materials[:1]
	if err := ops.PutMembers(ev, k, ops.MembersOf(ev, ev.Target(r.keyID(id)))); err == nil {
		t.Error("a replica's material was taken away")
	}
	single, _ := r.newKey()
	ev.State = r.cluster.state()
	if n := len(ops.MembersOf(ev, ev.Target(r.keyID(single)))); n != 1 {
		t.Errorf("a single-Region key has %d members", n)
	}
}

func TestUpdatePrimaryRegion(t *testing.T) {
	r := newRoomIn(t, threeRegions())
	single, singleARN := r.newKey()
	id := r.newMultiKey(kmsapi.CreateKeyInput{}, secondRegion)
	update := func(region, id, to string) error {
		_, err := callIn[request.None](r, region, "UpdatePrimaryRegion", &kmsapi.UpdatePrimaryRegionInput{KeyId: &id, PrimaryRegion: &to})
		return err
	}
	wantError(t, update(testRegion, single, secondRegion), kmsapi.ErrUnsupported, singleARN+" is not a multi-region primary key.")
	wantError(t, update(secondRegion, id, testRegion), kmsapi.ErrUnsupported, multiARN(secondRegion, id)+" is not a multi-region primary key.")
	wantError(t, update(testRegion, id, testRegion), kmsapi.ErrUnsupported, multiARN(testRegion, id)+" is the multi-region primary key already.")
	wantError(t, update(testRegion, id, thirdRegion), kmsapi.ErrNotFound, "Key '"+multiARN(thirdRegion, id)+"' does not exist")
	wantError(t, update(testRegion, id, "ap-south-1"), kmsapi.ErrNotFound, "Key '"+multiARN("ap-south-1", id)+"' does not exist")
	wantError(t, update(testRegion, id, "here"), kmsapi.ErrValidation, "…")
	for state, kind := range map[fsmpb.KeyState]*kmsapi.Error{
		fsmpb.KeyState_KEY_STATE_DISABLED: kmsapi.ErrDisabled, fsmpb.KeyState_KEY_STATE_PENDING_DELETION: kmsapi.ErrInvalidState,
	} {
		r.mangleIn(secondRegion, id, func(k *fsmpb.Key) {
			k.State, k.DeletionTime = state, 0
			if state == fsmpb.KeyState_KEY_STATE_PENDING_DELETION {
				k.DeletionTime = r.inAWeek()
			}
		})
		wantError(t, update(testRegion, id, secondRegion), kind, "…")
	}
	for _, state := range []fsmpb.KeyState{fsmpb.KeyState_KEY_STATE_DISABLED, fsmpb.KeyState_KEY_STATE_ENABLED} {
		r.mangleIn(secondRegion, id, func(k *fsmpb.Key) { k.State, k.DeletionTime = state, 0 })
	}

	// The replica's policy has a say.
	key := r.keyID(id)
	deny := r.policyFor(rootStatement, statement("Deny", testAccount, "kms:UpdatePrimaryRegion"))
	r.cluster.change(&fsmpb.Change{Change: &fsmpb.Change_PutKeyPolicy{PutKeyPolicy: &fsmpb.KeyPolicy{Account: uint64(testAccountNumber), Key: key.ID[:], Region: secondRegion, Document: deny}}})
	wantError(t, update(testRegion, id, secondRegion), kmsapi.ErrAccessDenied, "…")
	r.cluster.change(&fsmpb.Change{Change: &fsmpb.Change_PutKeyPolicy{PutKeyPolicy: &fsmpb.KeyPolicy{Account: uint64(testAccountNumber), Key: key.ID[:], Region: secondRegion, Document: r.policyFor(rootStatement)}}})

	must[kmsapi.ReplicateKeyOutput](r, "ReplicateKey", &kmsapi.ReplicateKeyInput{KeyId: &id, ReplicaRegion: new(thirdRegion)})
	blob := must[kmsapi.EncryptOutput](r, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")}).CiphertextBlob
	size := r.cluster.audit.Size()
	if err := update(testRegion, id, secondRegion); err != nil {
		t.Fatal(err)
	}
	if n := r.cluster.audit.Size() - size; n != 1 {
		t.Errorf("%d records, want 1", n)
	}
	for region, kind := range map[string]string{testRegion: "REPLICA", secondRegion: "PRIMARY", thirdRegion: "REPLICA"} {
		d := r.describeIn(region, id)
		if diff := cmp.Diff(configured(id, kind, secondRegion, testRegion, thirdRegion), d.MultiRegionConfiguration); diff != "" {
			t.Errorf("configuration in %s (-want +got):\n%s", region, diff)
		}
		if *d.KeyState != "Enabled" {
			t.Errorf("the key in %s is %s", region, *d.KeyState)
		}
		mustIn[kmsapi.DecryptOutput](r, region, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob})
	}
	wantError(t, update(testRegion, id, thirdRegion), kmsapi.ErrUnsupported, multiARN(testRegion, id)+" is not a multi-region primary key.")
	if err := update(secondRegion, id, testRegion); err != nil {
		t.Errorf("and back: %v", err)
	}
}

// TestPrimaryGoesLast: a primary with replicas waits for them, whatever their
// state; a replica goes when it is told, and can be made again.
func TestPrimaryGoesLast(t *testing.T) {
	r := newRoomIn(t, threeRegions())
	id := r.newMultiKey(kmsapi.CreateKeyInput{}, secondRegion)
	arn := multiARN(testRegion, id)
	blob := must[kmsapi.EncryptOutput](r, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")}).CiphertextBlob
	schedule := func(region string) *kmsapi.ScheduleKeyDeletionOutput {
		t.Helper()
		return mustIn[kmsapi.ScheduleKeyDeletionOutput](r, region, "ScheduleKeyDeletion", &kmsapi.ScheduleKeyDeletionInput{KeyId: &id, PendingWindowInDays: new(int32(9))})
	}
	want := &kmsapi.ScheduleKeyDeletionOutput{KeyId: &arn, KeyState: new("PendingReplicaDeletion"), PendingWindowInDays: new(int32(9))}
	if d := cmp.Diff(want, schedule(testRegion)); d != "" {
		t.Errorf("ScheduleKeyDeletion (-want +got):\n%s", d)
	}
	for _, f := range r.lastRecord().ResponseElements {
		if f.Name == "deletionDate" {
			t.Error("the record has a date of deletion")
		}
	}
	d := r.describeIn(testRegion, id)
	if *d.KeyState != "PendingReplicaDeletion" || d.DeletionDate != nil || d.PendingDeletionWindowInDays == nil || *d.PendingDeletionWindowInDays != 9 || *d.Enabled {
		t.Errorf("the primary shows %s, date %v, window %v", *d.KeyState, d.DeletionDate, d.PendingDeletionWindowInDays)
	}
	_, err := call[kmsapi.EncryptOutput](r, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
	wantError(t, err, kmsapi.ErrInvalidState, arn+" is pending replica deletion.")
	_, err = call[kmsapi.ReplicateKeyOutput](r, "ReplicateKey", &kmsapi.ReplicateKeyInput{KeyId: &id, ReplicaRegion: new(thirdRegion)})
	wantError(t, err, kmsapi.ErrInvalidState, arn+" is pending replica deletion.")
	if got := string(mustIn[kmsapi.DecryptOutput](r, secondRegion, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob}).Plaintext); got != "x" {
		t.Errorf("the replica decrypts to %q", got)
	}
	must[kmsapi.CancelKeyDeletionOutput](r, "CancelKeyDeletion", &kmsapi.CancelKeyDeletionInput{KeyId: &id})
	if k := r.keyIn(testRegion, id); k.State != fsmpb.KeyState_KEY_STATE_DISABLED || k.DeletionDays != 0 {
		t.Errorf("after CancelKeyDeletion: %v, %d days", k.State, k.DeletionDays)
	}
	must[request.None](r, "EnableKey", &kmsapi.EnableKeyInput{KeyId: &id})

	s := schedule(secondRegion)
	if *s.KeyState != "PendingDeletion" || s.DeletionDate == nil {
		t.Errorf("a replica's deletion: %s at %v", *s.KeyState, s.DeletionDate)
	}
	if got := *schedule(testRegion).KeyState; got != "PendingReplicaDeletion" {
		t.Errorf("with a replica that is pending deletion, the primary is %s", got)
	}
	must[kmsapi.CancelKeyDeletionOutput](r, "CancelKeyDeletion", &kmsapi.CancelKeyDeletionInput{KeyId: &id})
	must[request.None](r, "EnableKey", &kmsapi.EnableKeyInput{KeyId: &id})

	// The replica goes, and the record of it is its Region's.
	r.cluster.advance(10 * 24 * time.Hour)
	scheduleOf(r.first).Round(t.Context(), time.Now())
	if r.keyIn(secondRegion, id) != nil {
		t.Fatal("the replica is still there")
	}
	if rec := r.lastRecord(); rec.EventName != "DeleteKey" || rec.Region != secondRegion {
		t.Errorf("recorded: %s in %s", rec.EventName, rec.Region)
	}
	_, err = callIn[kmsapi.DecryptOutput](r, secondRegion, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob})
	wantError(t, err, kmsapi.ErrAccessDenied, "…")
	if d := cmp.Diff(configured(id, "PRIMARY", testRegion), r.describeIn(testRegion, id).MultiRegionConfiguration); d != "" {
		t.Errorf("configuration without the replica (-want +got):\n%s", d)
	}
	must[kmsapi.ReplicateKeyOutput](r, "ReplicateKey", &kmsapi.ReplicateKeyInput{KeyId: &id, ReplicaRegion: new(secondRegion)})
	if got := string(mustIn[kmsapi.DecryptOutput](r, secondRegion, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob}).Plaintext); got != "x" {
		t.Errorf("the replica that was made again decrypts to %q", got)
	}
	r.deleteIn(secondRegion, id)
	if s := schedule(testRegion); *s.KeyState != "PendingDeletion" || s.DeletionDate == nil {
		t.Errorf("a primary without replicas: %s at %v", *s.KeyState, s.DeletionDate)
	}
}

// TestSealedNodeReplicatesNothing: the material must pass through the vault.
func TestSealedNodeReplicatesNothing(t *testing.T) {
	r := newRoomIn(t, threeRegions())
	id := r.newMultiKey(kmsapi.CreateKeyInput{})
	k := r.keyIn(testRegion, id)
	r.first.vault.Seal()
	if _, err := ops.InStep(r.first.vault, k, &fsmpb.Key{Account: uint64(testAccountNumber), Id: k.Id, Region: thirdRegion, Spec: k.Spec, Usage: k.Usage, Origin: k.Origin}); !errors.Is(err, kmsapi.ErrUnavailable) {
		t.Errorf("got %v, want %v", err, kmsapi.ErrUnavailable)
	}
	_, err := call[kmsapi.ReplicateKeyOutput](r, "ReplicateKey", &kmsapi.ReplicateKeyInput{KeyId: &id, ReplicaRegion: new(thirdRegion)})
	wantError(t, err, kmsapi.ErrUnavailable, "…")
}
