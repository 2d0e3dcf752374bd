package keyengine

import (
	"bytes"
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

func multiARN(region, id string) string {
	return "arn:aws:kms:" + region + ":" + testAccount + ":key/" + id
}

// configured returns the configuration of a multi-Region set as one of its keys has it.
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
	t.Parallel()
	c := newTestCluster(t, withRegions(threeRegions()...))
	cluster, _ := c.State().Cluster()
	if cluster.Region != testRegion || !slices.Equal(cluster.MoreRegions, []string{secondRegion, thirdRegion}) {
		t.Errorf("the cluster has Region %s and more Regions %v", cluster.Region, cluster.MoreRegions)
	}
	if st := c.engine.SealStatus(); st.Region != testRegion || !slices.Equal(st.MoreRegions, cluster.MoreRegions) {
		t.Errorf("SealStatus has Region %s and more Regions %v", st.Region, st.MoreRegions)
	}
}

// Keys, aliases, lists and records of one Region are separate from those of others.
func TestRegionsAreApart(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withRegions(threeRegions()...))
	var ids []string
	for _, region := range threeRegions() {
		m := mustIn[kmsapi.CreateKeyOutput](c, region, "CreateKey", &kmsapi.CreateKeyInput{}).KeyMetadata
		if want := multiARN(region, *m.KeyId); *m.Arn != want {
			t.Errorf("got key %s, want one in %s", *m.Arn, region)
		}
		if got := c.lastRecord(); got.Region != region || got.Resources[0].Arn != *m.Arn {
			t.Errorf("got record in %s of %v, want one in %s of %s", got.Region, got.Resources, region, *m.Arn)
		}
		mustIn[request.None](c, region, "CreateAlias", &kmsapi.CreateAliasInput{AliasName: new("alias/same"), TargetKeyId: m.KeyId})
		ids = append(ids, *m.KeyId)
	}
	for i, region := range threeRegions() {
		keys := mustIn[kmsapi.ListKeysOutput](c, region, "ListKeys", &kmsapi.ListKeysInput{}).Keys
		if len(keys) != 1 || *keys[0].KeyId != ids[i] || *keys[0].KeyArn != multiARN(region, ids[i]) {
			t.Errorf("got keys %v in %s, want only %s", keys, region, ids[i])
		}
		aliases := mustIn[kmsapi.ListAliasesOutput](c, region, "ListAliases", &kmsapi.ListAliasesInput{}).Aliases
		if len(aliases) != 1 || *aliases[0].TargetKeyId != ids[i] || !strings.Contains(*aliases[0].AliasArn, ":"+region+":") {
			t.Errorf("got aliases %v in %s, want only that of %s", aliases, region, ids[i])
		}
		if m := c.describeIn(region, "alias/same"); *m.KeyId != ids[i] {
			t.Errorf("the alias in %s is for %s, want %s", region, *m.KeyId, ids[i])
		}
	}
	_, err := call[kmsapi.DescribeKeyOutput](c, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &ids[1]})
	wantError(t, err, kmsapi.ErrNotFound, "Key '"+multiARN(testRegion, ids[1])+"' does not exist")
	_, err = call[kmsapi.DescribeKeyOutput](c, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: new(multiARN(thirdRegion, ids[1]))})
	wantError(t, err, kmsapi.ErrNotFound, "Invalid arn "+thirdRegion)
	_, err = callIn[kmsapi.ListKeysOutput](c, "ap-south-1", "ListKeys", &kmsapi.ListKeysInput{})
	wantError(t, err, kmsapi.ErrInvalidSignature, "Credential should be scoped to a valid region, not 'ap-south-1'.")
	if got := c.lastRecord().Region; got != testRegion {
		t.Errorf("a request for an unknown Region was recorded in %s, want %s", got, testRegion)
	}

	// A ciphertext of a key in another Region cannot be decrypted.
	blob := mustIn[kmsapi.EncryptOutput](c, thirdRegion, "Encrypt", &kmsapi.EncryptInput{KeyId: &ids[1], Plaintext: []byte("x")}).CiphertextBlob
	_, err = call[kmsapi.DecryptOutput](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob})
	wantError(t, err, kmsapi.ErrAccessDenied, "…")
	if !strings.Contains(err.Error(), "does not exist in this Region") {
		t.Errorf("got error %v, want one that says that the key does not exist in this Region", err)
	}
}

// With AnyRegion, a request for a Region that the cluster does not serve is for its first Region.
func TestAnyRegionGoesToTheFirst(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withRegions(threeRegions()...))
	c.acceptAnyRegion()
	for asked, want := range map[string]string{"ap-south-1": testRegion, "": testRegion, thirdRegion: thirdRegion} {
		if m := mustIn[kmsapi.CreateKeyOutput](c, asked, "CreateKey", &kmsapi.CreateKeyInput{}).KeyMetadata; *m.Arn != multiARN(want, *m.KeyId) {
			t.Errorf("CreateKey for Region %q made key %s, want one in %s", asked, *m.Arn, want)
		}
	}
}

func TestMarkersAreOfTheirRegion(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withRegions(threeRegions()...))
	for range 2 {
		for _, region := range threeRegions() {
			mustIn[kmsapi.CreateKeyOutput](c, region, "CreateKey", &kmsapi.CreateKeyInput{})
		}
	}
	in := &kmsapi.ListKeysInput{Limit: new(int32(1))}
	in.Marker = must[kmsapi.ListKeysOutput](c, "ListKeys", in).NextMarker
	must[kmsapi.ListKeysOutput](c, "ListKeys", in)
	_, err := callIn[kmsapi.ListKeysOutput](c, secondRegion, "ListKeys", in)
	wantError(t, err, kmsapi.ErrInvalidMarker, "")
}

func TestMultiRegionKey(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withRegions(threeRegions()...))
	id := c.newMultiKey(kmsapi.CreateKeyInput{Description: new("the primary"), Tags: manyTags(2)})
	if !strings.HasPrefix(id, "mrk-") || len(id) != 36 {
		t.Errorf("got key id %s, want mrk- and 32 hex digits", id)
	}
	primary := c.describeIn(testRegion, id)
	if !*primary.MultiRegion {
		t.Error("the key is not multi-Region")
	}
	if d := cmp.Diff(configured(id, "PRIMARY", testRegion), primary.MultiRegionConfiguration); d != "" {
		t.Errorf("configuration of a primary without replicas (-want +got):\n%s", d)
	}

	c.Clock.Advance(time.Hour)
	doc := policyDocument(rootStatement, statement("Allow", testAccount, "kms:Encrypt"))
	in := &kmsapi.ReplicateKeyInput{KeyId: &id, ReplicaRegion: new(thirdRegion), Policy: &doc, Description: new("the replica"), Tags: []kmsapi.Tag{{TagKey: new("b"), TagValue: new("2")}, {TagKey: new("a"), TagValue: new("1")}}}
	out := must[kmsapi.ReplicateKeyOutput](c, "ReplicateKey", in)
	now := c.Clock.Now()
	want := *primary
	want.Arn, want.CreationDate, want.Description = new(multiARN(thirdRegion, id)), &now, new("the replica")
	want.KeyState, want.Enabled, want.CurrentKeyMaterialId = new("Creating"), new(false), nil
	want.MultiRegionConfiguration = configured(id, "REPLICA", testRegion, thirdRegion)
	if d := cmp.Diff(&kmsapi.ReplicateKeyOutput{ReplicaKeyMetadata: &want, ReplicaPolicy: &doc, ReplicaTags: in.Tags}, out); d != "" {
		t.Errorf("ReplicateKey (-want +got):\n%s", d)
	}
	rec := c.lastRecord()
	if rec.Region != testRegion || rec.EventName != "ReplicateKey" {
		t.Errorf("got record of %s in %s, want ReplicateKey in %s", rec.EventName, rec.Region, testRegion)
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
	// The next request shows the replica enabled.
	want.KeyState, want.Enabled, want.CurrentKeyMaterialId = new("Enabled"), new(true), primary.CurrentKeyMaterialId
	if d := cmp.Diff(&want, c.describeIn(thirdRegion, id)); d != "" {
		t.Errorf("DescribeKey of the replica (-want +got):\n%s", d)
	}
	if got := c.lastRecord().Resources; len(got) != 1 {
		t.Errorf("the record of DescribeKey has resources %v, want one", got)
	}
	tags := mustIn[kmsapi.ListResourceTagsOutput](c, thirdRegion, "ListResourceTags", &kmsapi.ListResourceTagsInput{KeyId: &id}).Tags
	if d := cmp.Diff([]kmsapi.Tag{{TagKey: new("a"), TagValue: new("1")}, {TagKey: new("b"), TagValue: new("2")}}, tags); d != "" {
		t.Errorf("tags of the replica (-want +got):\n%s", d)
	}
	if got := *mustIn[kmsapi.GetKeyPolicyOutput](c, thirdRegion, "GetKeyPolicy", &kmsapi.GetKeyPolicyInput{KeyId: &id}).Policy; got != doc {
		t.Errorf("got policy %s of the replica, want %s", got, doc)
	}

	// The defaults.
	least := must[kmsapi.ReplicateKeyOutput](c, "ReplicateKey", &kmsapi.ReplicateKeyInput{KeyId: new(multiARN(testRegion, id)), ReplicaRegion: new(secondRegion)})
	if *least.ReplicaPolicy != policy.DefaultKeyPolicy("aws", testAccount) || least.ReplicaTags != nil || *least.ReplicaKeyMetadata.Description != "" {
		t.Errorf("got policy %s, tags %v, description %q; want the defaults", *least.ReplicaPolicy, least.ReplicaTags, *least.ReplicaKeyMetadata.Description)
	}
	for region, kind := range map[string]string{testRegion: "PRIMARY", secondRegion: "REPLICA", thirdRegion: "REPLICA"} {
		if d := cmp.Diff(configured(id, kind, testRegion, secondRegion, thirdRegion), c.describeIn(region, id).MultiRegionConfiguration); d != "" {
			t.Errorf("configuration in %s (-want +got):\n%s", region, d)
		}
	}
}

// Ciphertexts, signatures and MACs made with one key of a set can be used with the others, and each
// Region decides by the policy and state of its own key.
func TestOneKeyInAllRegions(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withRegions(threeRegions()...))
	id := c.newMultiKey(kmsapi.CreateKeyInput{}, secondRegion, thirdRegion)
	for _, from := range threeRegions() {
		blob := mustIn[kmsapi.EncryptOutput](c, from, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("from " + from)}).CiphertextBlob
		for _, to := range threeRegions() {
			for _, given := range []*string{nil, &id, new(multiARN(to, id))} {
				out := mustIn[kmsapi.DecryptOutput](c, to, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob, KeyId: given})
				if string(out.Plaintext) != "from "+from || *out.KeyId != multiARN(to, id) {
					t.Errorf("encrypted in %s, decrypted in %s: got %q with key %s", from, to, out.Plaintext, *out.KeyId)
				}
				if rec := c.lastRecord(); rec.Region != to || rec.Resources[0].Arn != multiARN(to, id) {
					t.Errorf("got record in %s with resources %v, want %s", rec.Region, rec.Resources, multiARN(to, id))
				}
			}
		}
	}
	wrapped := map[string]bool{}
	for _, region := range threeRegions() {
		wrapped[string(c.keyIn(region, id).Materials[0].Wrapped)] = true
	}
	if len(wrapped) != 3 {
		t.Error("keys in two Regions have the same wrapped material")
	}

	blob := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")}).CiphertextBlob
	mustIn[request.None](c, testRegion, "DisableKey", &kmsapi.DisableKeyInput{KeyId: &id})
	k := c.keyID(id)
	c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutKeyPolicy{PutKeyPolicy: &fsmpb.KeyPolicy{Account: uint64(testAccountNumber), Key: k.ID[:], Region: thirdRegion,
		Document: policyDocument(rootStatement, statement("Deny", testAccount, "kms:Decrypt"))}}})
	decrypt := &kmsapi.DecryptInput{CiphertextBlob: blob}
	_, err := callIn[kmsapi.DecryptOutput](c, testRegion, "Decrypt", decrypt)
	wantError(t, err, kmsapi.ErrDisabled, multiARN(testRegion, id)+" is disabled.")
	_, err = callIn[kmsapi.DecryptOutput](c, thirdRegion, "Decrypt", decrypt)
	wantError(t, err, kmsapi.ErrAccessDenied, "…")
	mustIn[kmsapi.DecryptOutput](c, secondRegion, "Decrypt", decrypt)

	sig := c.newMultiKey(kmsapi.CreateKeyInput{KeySpec: new("ECC_NIST_P256"), KeyUsage: new("SIGN_VERIFY")}, secondRegion)
	s := mustIn[kmsapi.SignOutput](c, secondRegion, "Sign", &kmsapi.SignInput{KeyId: &sig, Message: []byte("m"), SigningAlgorithm: new("ECDSA_SHA_256")})
	must[kmsapi.VerifyOutput](c, "Verify", &kmsapi.VerifyInput{KeyId: &sig, Message: []byte("m"), Signature: s.Signature, SigningAlgorithm: new("ECDSA_SHA_256")})
	a := must[kmsapi.GetPublicKeyOutput](c, "GetPublicKey", &kmsapi.GetPublicKeyInput{KeyId: &sig}).PublicKey
	b := mustIn[kmsapi.GetPublicKeyOutput](c, secondRegion, "GetPublicKey", &kmsapi.GetPublicKeyInput{KeyId: &sig}).PublicKey
	if len(a) == 0 || !bytes.Equal(a, b) {
		t.Error("the public keys of the primary key and the replica differ")
	}
	mac := c.newMultiKey(kmsapi.CreateKeyInput{KeySpec: new("HMAC_256"), KeyUsage: new("GENERATE_VERIFY_MAC")}, secondRegion)
	m := must[kmsapi.GenerateMacOutput](c, "GenerateMac", &kmsapi.GenerateMacInput{KeyId: &mac, Message: []byte("m"), MacAlgorithm: new("HMAC_SHA_256")})
	mustIn[kmsapi.VerifyMacOutput](c, secondRegion, "VerifyMac", &kmsapi.VerifyMacInput{KeyId: &mac, Message: []byte("m"), Mac: m.Mac, MacAlgorithm: new("HMAC_SHA_256")})
}

func TestReplicateKeyErrors(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withRegions(threeRegions()...))
	single, singleARN := c.newKey()
	id := c.newMultiKey(kmsapi.CreateKeyInput{}, secondRegion)
	gone := c.newMultiKey(kmsapi.CreateKeyInput{}, secondRegion)
	c.scheduleDeletionIn(secondRegion, gone)
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
		{"policy that locks out", testRegion, kmsapi.ReplicateKeyInput{KeyId: &id, Policy: new(policyDocument(statement("Allow", testAccount, "kms:Encrypt")))}, kmsapi.ErrMalformedPolicy,
			"The new key policy will not allow you to update the key policy in the future."},
		{"policy that is none", testRegion, kmsapi.ReplicateKeyInput{KeyId: &id, Policy: new("{")}, kmsapi.ErrMalformedPolicy, "…"},
		{"tags", testRegion, kmsapi.ReplicateKeyInput{KeyId: &id, Tags: manyTags(51)}, kmsapi.ErrTag, "Too many tags"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.in.ReplicaRegion == nil {
				tt.in.ReplicaRegion = new(thirdRegion)
			}
			_, err := callIn[kmsapi.ReplicateKeyOutput](c, tt.region, "ReplicateKey", &tt.in)
			wantError(t, err, tt.kind, tt.message)
		})
	}
	for k := range c.State().Keys(fsm.KeyID{Account: testAccountNumber, Region: thirdRegion}) {
		t.Errorf("a refused ReplicateKey made %x", k.Id)
	}
	must[kmsapi.ReplicateKeyOutput](c, "ReplicateKey", &kmsapi.ReplicateKeyInput{KeyId: &id, ReplicaRegion: new(thirdRegion), BypassPolicyLockoutSafetyCheck: new(true),
		Policy: new(policyDocument(statement("Allow", testAccount, "kms:Encrypt")))})

	// ReplicateKey needs permission by the primary key's policy, and by the account for
	// CreateKey and TagResource, which key policies cannot give.
	other := c.newMultiKey(kmsapi.CreateKeyInput{})
	alice := c.newUser(aliceARN)
	c.setPolicy(other, policyDocument(rootStatement, statement("Allow", aliceARN, "kms:*")))
	ask := func() error {
		_, err := callAs[kmsapi.ReplicateKeyOutput](c, c.engine, alice, "ReplicateKey", &kmsapi.ReplicateKeyInput{KeyId: &other, ReplicaRegion: new(thirdRegion)})
		return err
	}
	if err := ask(); !errors.Is(err, kmsapi.ErrAccessDenied) || !strings.Contains(err.Error(), "kms:CreateKey") {
		t.Errorf("without permission for CreateKey: got error %v, want AccessDeniedException that names it", err)
	}
	c.setPolicy(other, policyDocument(rootStatement))
	if err := ask(); !errors.Is(err, kmsapi.ErrAccessDenied) || !strings.Contains(err.Error(), "kms:ReplicateKey") {
		t.Errorf("without permission for ReplicateKey: got error %v, want AccessDeniedException that names it", err)
	}
}

// The replica of a key with imported material has the ids of the material, and is pending import.
func TestImportedReplica(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withRegions(threeRegions()...))
	k := &fsmpb.Key{
		Account: uint64(testAccountNumber), Id: bytes.Repeat([]byte{7}, 16), Region: testRegion, MultiRegion: true, PrimaryRegion: testRegion, Created: 1,
		Spec: kmsapi.SpecSymmetric, Usage: kmsapi.UsageEncrypt, Origin: kmsapi.OriginImported, State: fsmpb.KeyState_KEY_STATE_ENABLED,
	}
	m, err := c.engine.vault.NewMaterial(k, 1)
	if err != nil {
		t.Fatal(err)
	}
	m.ValidTo, m.Description = 4e18, "imported"
	k.Materials = []*fsmpb.Material{m}
	id := request.FormatKeyID([16]byte(k.Id), true)
	c.Change(putKeyChange(k), defaultPolicyChange(k))
	must[kmsapi.ReplicateKeyOutput](c, "ReplicateKey", &kmsapi.ReplicateKeyInput{KeyId: &id, ReplicaRegion: new(thirdRegion)})
	got := c.keyIn(thirdRegion, id)
	want := []*fsmpb.Material{{Id: m.Id, MaterialId: m.MaterialId, Created: m.Created}}
	if d := cmp.Diff(want, got.Materials, protocmp.Transform()); d != "" {
		t.Errorf("the replica's materials (-want +got):\n%s", d)
	}
	if d := c.describeIn(thirdRegion, id); *d.KeyState != "PendingImport" || *d.Enabled {
		t.Errorf("the replica is %s, want PendingImport", *d.KeyState)
	}
	// After a cancelled deletion the replica is still pending import.
	mustIn[kmsapi.ScheduleKeyDeletionOutput](c, thirdRegion, "ScheduleKeyDeletion", &kmsapi.ScheduleKeyDeletionInput{KeyId: &id})
	mustIn[kmsapi.CancelKeyDeletionOutput](c, thirdRegion, "CancelKeyDeletion", &kmsapi.CancelKeyDeletionInput{KeyId: &id})
	if k := c.keyIn(thirdRegion, id); k.State != fsmpb.KeyState_KEY_STATE_PENDING_IMPORT || !k.DisabledBeforeImport {
		t.Errorf("after CancelKeyDeletion the replica has state %v, want pending import", k.State)
	}
}

// PutMembers gives new material to all keys of a set, wrapped for each, and sets their rotation.
func TestPutMembers(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withRegions(threeRegions()...))
	id := c.newMultiKey(kmsapi.CreateKeyInput{}, secondRegion, thirdRegion)
	old := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("old")}).CiphertextBlob
	ev := &request.Evaluation{Ctx: t.Context(), Services: c.engine.services, State: c.State()}
	members := ops.MembersOf(ev, ev.Target(c.keyID(id)))
	var order []string
	for _, m := range members {
		order = append(order, m.ID.Region)
	}
	if d := cmp.Diff([]string{testRegion, secondRegion, thirdRegion}, order); d != "" {
		t.Errorf("members (-want +got):\n%s", d)
	}
	if len(ev.Reads) != 3 {
		t.Errorf("MembersOf noted %d reads, want one for each Region", len(ev.Reads))
	}
	k := proto.CloneOf(members[0].Key)
	m, err := c.engine.vault.NewMaterial(k, 5)
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
		t.Fatalf("PutMembers made %d changes, want 3", len(ev.Changes))
	}
	c.Change(ev.Changes...)
	was := members[1].Key.Materials[0]
	is := c.keyIn(secondRegion, id)
	if !proto.Equal(was, is.Materials[0]) {
		t.Error("PutMembers wrapped material again that the replica had")
	}
	if n := is.Materials[1]; !bytes.Equal(n.Id, m.Id) || !bytes.Equal(n.MaterialId, m.MaterialId) || n.Rotated != 6 || n.Created != 5 || bytes.Equal(n.Wrapped, m.Wrapped) {
		t.Errorf("got new material %v of the replica, want that of the primary key, %v, wrapped separately", n, m)
	}
	if !proto.Equal(is.Rotation, k.Rotation) || is.RotationsOnDemand != 1 {
		t.Errorf("got rotation %v of the replica, want %v", is.Rotation, k.Rotation)
	}
	fresh := mustIn[kmsapi.EncryptOutput](c, secondRegion, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("new")}).CiphertextBlob
	for _, region := range threeRegions() {
		for want, blob := range map[string][]byte{"old": old, "new": fresh} {
			if got := mustIn[kmsapi.DecryptOutput](c, region, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob}).Plaintext; string(got) != want {
				t.Errorf("Decrypt in %s returned %q, want %q", region, got, want)
			}
		}
		if got := *c.describeIn(region, id).CurrentKeyMaterialId; got != *request.MaterialID(m) {
			t.Errorf("the current material in %s is %s, want %s", region, got, *request.MaterialID(m))
		}
	}
	// A replica that is made later has all materials.
	late := c.newMultiKey(kmsapi.CreateKeyInput{})
	c.modifyKey(late, func(k *fsmpb.Key) {
		n, err := c.engine.vault.NewMaterial(k, 5)
		if err != nil {
			t.Fatal(err)
		}
		k.Materials, k.Rotation = append(k.Materials, n), &fsmpb.Rotation{Enabled: true, PeriodDays: 90, Next: 1e18}
	})
	must[kmsapi.ReplicateKeyOutput](c, "ReplicateKey", &kmsapi.ReplicateKeyInput{KeyId: &late, ReplicaRegion: new(thirdRegion)})
	if k := c.keyIn(thirdRegion, late); len(k.Materials) != 2 || !k.Rotation.GetEnabled() {
		t.Errorf("a new replica has %d materials and rotation %v, want 2 and rotation enabled", len(k.Materials), k.Rotation)
	}
	// PutMembers fails if a material would be removed.
	k = proto.CloneOf(members[0].Key)
	ev = &request.Evaluation{Ctx: t.Context(), Services: c.engine.services, State: c.State()}
	k.Materials = k.Materials[:1]
	if err := ops.PutMembers(ev, k, ops.MembersOf(ev, ev.Target(c.keyID(id)))); err == nil {
		t.Error("PutMembers removed a material of a replica")
	}
	single, _ := c.newKey()
	ev.State = c.State()
	if n := len(ops.MembersOf(ev, ev.Target(c.keyID(single)))); n != 1 {
		t.Errorf("MembersOf a single-Region key returned %d keys, want 1", n)
	}
}

func TestUpdatePrimaryRegion(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withRegions(threeRegions()...))
	single, singleARN := c.newKey()
	id := c.newMultiKey(kmsapi.CreateKeyInput{}, secondRegion)
	update := func(region, id, to string) error {
		_, err := callIn[request.None](c, region, "UpdatePrimaryRegion", &kmsapi.UpdatePrimaryRegionInput{KeyId: &id, PrimaryRegion: &to})
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
		c.modifyKeyIn(secondRegion, id, func(k *fsmpb.Key) {
			k.State, k.DeletionTime = state, 0
			if state == fsmpb.KeyState_KEY_STATE_PENDING_DELETION {
				k.DeletionTime = c.inAWeek()
			}
		})
		wantError(t, update(testRegion, id, secondRegion), kind, "…")
	}
	for _, state := range []fsmpb.KeyState{fsmpb.KeyState_KEY_STATE_DISABLED, fsmpb.KeyState_KEY_STATE_ENABLED} {
		c.modifyKeyIn(secondRegion, id, func(k *fsmpb.Key) { k.State, k.DeletionTime = state, 0 })
	}

	// The policy of the replica must allow it too.
	key := c.keyID(id)
	deny := policyDocument(rootStatement, statement("Deny", testAccount, "kms:UpdatePrimaryRegion"))
	c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutKeyPolicy{PutKeyPolicy: &fsmpb.KeyPolicy{Account: uint64(testAccountNumber), Key: key.ID[:], Region: secondRegion, Document: deny}}})
	wantError(t, update(testRegion, id, secondRegion), kmsapi.ErrAccessDenied, "…")
	c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutKeyPolicy{PutKeyPolicy: &fsmpb.KeyPolicy{Account: uint64(testAccountNumber), Key: key.ID[:], Region: secondRegion, Document: policyDocument(rootStatement)}}})

	must[kmsapi.ReplicateKeyOutput](c, "ReplicateKey", &kmsapi.ReplicateKeyInput{KeyId: &id, ReplicaRegion: new(thirdRegion)})
	blob := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")}).CiphertextBlob
	size := c.Audit.Size()
	if err := update(testRegion, id, secondRegion); err != nil {
		t.Fatal(err)
	}
	if n := c.Audit.Size() - size; n != 1 {
		t.Errorf("got %d records, want 1", n)
	}
	for region, kind := range map[string]string{testRegion: "REPLICA", secondRegion: "PRIMARY", thirdRegion: "REPLICA"} {
		d := c.describeIn(region, id)
		if diff := cmp.Diff(configured(id, kind, secondRegion, testRegion, thirdRegion), d.MultiRegionConfiguration); diff != "" {
			t.Errorf("configuration in %s (-want +got):\n%s", region, diff)
		}
		if *d.KeyState != "Enabled" {
			t.Errorf("the key in %s is %s, want Enabled", region, *d.KeyState)
		}
		mustIn[kmsapi.DecryptOutput](c, region, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob})
	}
	wantError(t, update(testRegion, id, thirdRegion), kmsapi.ErrUnsupported, multiARN(testRegion, id)+" is not a multi-region primary key.")
	if err := update(secondRegion, id, testRegion); err != nil {
		t.Errorf("UpdatePrimaryRegion back to the first Region: %v", err)
	}
}

// The deletion of a primary key waits for that of its replicas. A replica can be deleted at
// any time, and made again.
func TestPrimaryGoesLast(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withRegions(threeRegions()...))
	id := c.newMultiKey(kmsapi.CreateKeyInput{}, secondRegion)
	arn := multiARN(testRegion, id)
	blob := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")}).CiphertextBlob
	schedule := func(region string) *kmsapi.ScheduleKeyDeletionOutput {
		t.Helper()
		return mustIn[kmsapi.ScheduleKeyDeletionOutput](c, region, "ScheduleKeyDeletion", &kmsapi.ScheduleKeyDeletionInput{KeyId: &id, PendingWindowInDays: new(int32(9))})
	}
	want := &kmsapi.ScheduleKeyDeletionOutput{KeyId: &arn, KeyState: new("PendingReplicaDeletion"), PendingWindowInDays: new(int32(9))}
	if d := cmp.Diff(want, schedule(testRegion)); d != "" {
		t.Errorf("ScheduleKeyDeletion (-want +got):\n%s", d)
	}
	for _, f := range c.lastRecord().ResponseElements {
		if f.Name == "deletionDate" {
			t.Error("the record has a deletion date, which is not known yet")
		}
	}
	d := c.describeIn(testRegion, id)
	if *d.KeyState != "PendingReplicaDeletion" || d.DeletionDate != nil || d.PendingDeletionWindowInDays == nil || *d.PendingDeletionWindowInDays != 9 || *d.Enabled {
		t.Errorf("the primary key is %s with deletion date %v, window %v; want PendingReplicaDeletion, none, 9", *d.KeyState, d.DeletionDate, d.PendingDeletionWindowInDays)
	}
	_, err := call[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
	wantError(t, err, kmsapi.ErrInvalidState, arn+" is pending replica deletion.")
	_, err = call[kmsapi.ReplicateKeyOutput](c, "ReplicateKey", &kmsapi.ReplicateKeyInput{KeyId: &id, ReplicaRegion: new(thirdRegion)})
	wantError(t, err, kmsapi.ErrInvalidState, arn+" is pending replica deletion.")
	if got := string(mustIn[kmsapi.DecryptOutput](c, secondRegion, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob}).Plaintext); got != "x" {
		t.Errorf("Decrypt with the replica returned %q, want x", got)
	}
	must[kmsapi.CancelKeyDeletionOutput](c, "CancelKeyDeletion", &kmsapi.CancelKeyDeletionInput{KeyId: &id})
	if k := c.keyIn(testRegion, id); k.State != fsmpb.KeyState_KEY_STATE_DISABLED || k.DeletionDays != 0 {
		t.Errorf("after CancelKeyDeletion the key has state %v with %d days, want disabled with 0", k.State, k.DeletionDays)
	}
	must[request.None](c, "EnableKey", &kmsapi.EnableKeyInput{KeyId: &id})

	s := schedule(secondRegion)
	if *s.KeyState != "PendingDeletion" || s.DeletionDate == nil {
		t.Errorf("the replica is %s with deletion date %v, want PendingDeletion with a date", *s.KeyState, s.DeletionDate)
	}
	if got := *schedule(testRegion).KeyState; got != "PendingReplicaDeletion" {
		t.Errorf("with a replica that is pending deletion, the primary key is %s, want PendingReplicaDeletion", got)
	}
	must[kmsapi.CancelKeyDeletionOutput](c, "CancelKeyDeletion", &kmsapi.CancelKeyDeletionInput{KeyId: &id})
	must[request.None](c, "EnableKey", &kmsapi.EnableKeyInput{KeyId: &id})

	// The deletion of the replica is recorded in its Region.
	c.Advance(10 * 24 * time.Hour)
	newSchedule(c.engine).Round(t.Context(), time.Now())
	if c.keyIn(secondRegion, id) != nil {
		t.Fatal("the replica was not deleted when it was due")
	}
	if rec := c.lastRecord(); rec.EventName != "DeleteKey" || rec.Region != secondRegion {
		t.Errorf("got record of %s in %s, want DeleteKey in %s", rec.EventName, rec.Region, secondRegion)
	}
	_, err = callIn[kmsapi.DecryptOutput](c, secondRegion, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob})
	wantError(t, err, kmsapi.ErrAccessDenied, "…")
	if d := cmp.Diff(configured(id, "PRIMARY", testRegion), c.describeIn(testRegion, id).MultiRegionConfiguration); d != "" {
		t.Errorf("configuration without the replica (-want +got):\n%s", d)
	}
	must[kmsapi.ReplicateKeyOutput](c, "ReplicateKey", &kmsapi.ReplicateKeyInput{KeyId: &id, ReplicaRegion: new(secondRegion)})
	if got := string(mustIn[kmsapi.DecryptOutput](c, secondRegion, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob}).Plaintext); got != "x" {
		t.Errorf("Decrypt with the replica that was made again returned %q, want x", got)
	}
	c.deleteKeyIn(secondRegion, id)
	if s := schedule(testRegion); *s.KeyState != "PendingDeletion" || s.DeletionDate == nil {
		t.Errorf("without replicas, the primary key is %s with deletion date %v, want PendingDeletion with a date", *s.KeyState, s.DeletionDate)
	}
}

// A sealed node cannot replicate a key, since the material must pass through the vault.
func TestSealedNodeReplicatesNothing(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withRegions(threeRegions()...))
	id := c.newMultiKey(kmsapi.CreateKeyInput{})
	k := c.keyIn(testRegion, id)
	c.engine.vault.Seal()
	if _, err := ops.InStep(c.engine.vault, k, &fsmpb.Key{Account: uint64(testAccountNumber), Id: k.Id, Region: thirdRegion, Spec: k.Spec, Usage: k.Usage, Origin: k.Origin}); !errors.Is(err, kmsapi.ErrUnavailable) {
		t.Errorf("got error %v, want %v", err, kmsapi.ErrUnavailable)
	}
	_, err := call[kmsapi.ReplicateKeyOutput](c, "ReplicateKey", &kmsapi.ReplicateKeyInput{KeyId: &id, ReplicaRegion: new(thirdRegion)})
	wantError(t, err, kmsapi.ErrUnavailable, "…")
}
