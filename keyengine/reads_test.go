package keyengine

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/ops"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// A readCase is a request whose outcome depends on an object, and a change of only that
// object that changes the outcome.
type readCase struct {
	name   string
	op     string
	in     func(f *readFixture) any
	kind   fsmpb.Kind
	object func(f *readFixture) []byte
	mutate func(f *readFixture)
	before string // outcome before the change: "ok" or a code
	after  string
	reads  string // the whole read set, by kinds, ascending

	root     bool // asked by the account's root user, else by alice
	destroys bool // the change destroys the key, with all that has its id
}

// A readFixture is what each case begins with: a testCluster with a key that has an alias and
// a tag, another key, and alice, whom the policies of both allow everything.
type readFixture struct {
	*testCluster
	alice     iam.Identity
	id, other string
	imported  string // a key that waits for material, in the cases that make one
	used      string // the key of the cases of asymmetric keys
	token     []byte // the id of the import token for it
	blob      []byte
	// multi is a multi-Region key with a replica in secondRegion, lone is one without, and
	// elsewhere is a ciphertext of a key in secondRegion.
	multi, lone string
	elsewhere   []byte
	// store is a custom key store and inStore is a key in it, in the cases that make one.
	store, inStore string
}

func newReadFixture(t *testing.T, options ...clusterOption) *readFixture {
	f := &readFixture{testCluster: newTestCluster(t, append(options, withRegions(testRegion, secondRegion))...)}
	f.alice = f.newUser(aliceARN)
	f.id, _ = f.newKey()
	f.other, _ = f.newKey()
	must[request.None](f.testCluster, "CreateAlias", &kmsapi.CreateAliasInput{AliasName: new("alias/app"), TargetKeyId: &f.id})
	must[request.None](f.testCluster, "TagResource", &kmsapi.TagResourceInput{KeyId: &f.id, Tags: manyTags(1)})
	f.blob = must[kmsapi.EncryptOutput](f.testCluster, "Encrypt", &kmsapi.EncryptInput{KeyId: &f.id, Plaintext: []byte("x")}).CiphertextBlob
	allow := policyDocument(rootStatement, statement("Allow", aliceARN, "kms:*"))
	f.setPolicy(f.id, allow)
	f.setPolicy(f.other, allow)
	f.multi, f.lone = f.newMultiKey(kmsapi.CreateKeyInput{}, secondRegion), f.newMultiKey(kmsapi.CreateKeyInput{})
	there := mustIn[kmsapi.CreateKeyOutput](f.testCluster, secondRegion, "CreateKey", &kmsapi.CreateKeyInput{}).KeyMetadata.KeyId
	f.elsewhere = mustIn[kmsapi.EncryptOutput](f.testCluster, secondRegion, "Encrypt", &kmsapi.EncryptInput{KeyId: there, Plaintext: []byte("x")}).CiphertextBlob
	return f
}

// replicaBytes returns the id of a key's replica, as in read sets.
func (f *readFixture) replicaBytes(id string) []byte {
	k := f.keyID(id)
	k.Region = secondRegion
	return k.Bytes()
}

// putReplica makes a replica of lone.
func (f *readFixture) putReplica() {
	k := proto.CloneOf(f.keyIn(testRegion, f.lone))
	k.Region = secondRegion
	f.Change(putKeyChange(k), defaultPolicyChange(k))
}

func (f *readFixture) keyBytes(id string) []byte { return f.keyID(id).Bytes() }

// toImport creates a key for imported material, with which alice may do everything.
func (f *readFixture) toImport() *kmsapi.ImportKeyMaterialInput {
	f.imported, _ = f.newKeyForImport(kmsapi.SpecSymmetric, kmsapi.UsageEncrypt)
	f.setPolicy(f.imported, policyDocument(rootStatement, statement("Allow", aliceARN, "kms:*")))
	in := f.symmetricImport(f.imported, 1)
	tok, private, err := f.engine.vault.OpenImportToken(in.ImportToken)
	if err != nil {
		f.t.Fatal(err)
	}
	private.Destroy()
	f.token = tok.ID[:]
	return in
}

func (f *readFixture) deny(id string) {
	f.setPolicy(id, policyDocument(rootStatement))
}

func (f *readFixture) disable() {
	f.modifyKey(f.id, func(k *fsmpb.Key) { k.State = fsmpb.KeyState_KEY_STATE_DISABLED })
}

func (f *readFixture) moveAlias(to string) {
	k := f.keyID(to)
	f.Change(&fsmpb.Change{Change: &fsmpb.Change_PutAlias{PutAlias: &fsmpb.Alias{Account: uint64(testAccountNumber), Name: "alias/app", Region: testRegion, Key: k.ID[:]}}})
}

func (f *readFixture) revoke(id iam.Identity) {
	c, _ := f.State().Credential(testAccountNumber, id.Credential())
	c = proto.CloneOf(c)
	c.Active = false
	f.Change(&fsmpb.Change{Change: &fsmpb.Change_PutCredential{PutCredential: c}})
}

func (f *readFixture) fillTags(n int) {
	k := f.keyID(f.id)
	tags := &fsmpb.KeyTags{Account: uint64(testAccountNumber), Key: k.ID[:], Region: k.Region}
	for i := range n {
		tags.Tags = append(tags.Tags, &fsmpb.Tag{Key: fmt.Sprintf("t%02d", i)})
	}
	f.Change(&fsmpb.Change{Change: &fsmpb.Change_PutKeyTags{PutKeyTags: tags}})
}

func (f *readFixture) fillAliases(n int) {
	k := f.keyID(f.id)
	for i := range n {
		f.Change(&fsmpb.Change{Change: &fsmpb.Change_PutAlias{PutAlias: &fsmpb.Alias{Account: uint64(testAccountNumber), Name: fmt.Sprintf("alias/f%02d", i), Region: testRegion, Key: k.ID[:]}}})
	}
}

func (f *readFixture) deleteKey() { f.deleteKeyIn(testRegion, f.id) }

func readCases() []readCase {
	encrypt := func(f *readFixture) any { return &kmsapi.EncryptInput{KeyId: &f.id, Plaintext: []byte("x")} }
	byAlias := func(f *readFixture) any { return &kmsapi.EncryptInput{KeyId: new("alias/app"), Plaintext: []byte("x")} }
	decrypt := func(f *readFixture) any { return &kmsapi.DecryptInput{CiphertextBlob: f.blob} }
	reEncrypt := func(f *readFixture) any {
		return &kmsapi.ReEncryptInput{CiphertextBlob: f.blob, DestinationKeyId: &f.other}
	}
	key := func(f *readFixture) []byte { return f.keyBytes(f.id) }
	other := func(f *readFixture) []byte { return f.keyBytes(f.other) }
	alias := func(*readFixture) []byte { return fsm.AliasID(testAccountNumber, testRegion, "alias/app") }
	credential := func(f *readFixture) []byte { return fsm.CredentialID(testAccountNumber, f.alice.Credential()) }
	const (
		kindKey    = fsmpb.Kind_KIND_KEY
		kindPolicy = fsmpb.Kind_KIND_KEY_POLICY
		kindTags   = fsmpb.Kind_KIND_KEY_TAGS
		kindAlias  = fsmpb.Kind_KIND_ALIAS
		kindCred   = fsmpb.Kind_KIND_CREDENTIAL
		kindUser   = fsmpb.Kind_KIND_USER
	)
	return []readCase{
		{"encrypt, key disabled", "Encrypt", encrypt, kindKey, key, (*readFixture).disable, "ok", "DisabledException", "KEY KEY_POLICY CREDENTIAL", false, false},
		{"encrypt, permission withdrawn", "Encrypt", encrypt, kindPolicy, key, func(f *readFixture) { f.deny(f.id) }, "ok", "AccessDeniedException", "KEY KEY_POLICY CREDENTIAL", false, false},
		{"encrypt, credential revoked", "Encrypt", encrypt, kindCred, credential, func(f *readFixture) { f.revoke(f.alice) }, "ok", "UnrecognizedClientException", "KEY KEY_POLICY CREDENTIAL", false, false},
		{"encrypt by alias, alias moved", "Encrypt", byAlias, kindAlias, alias, func(f *readFixture) { f.moveAlias(f.other) }, "ok", "ok other", "KEY KEY_POLICY ALIAS CREDENTIAL", false, false},
		{"encrypt by alias, alias deleted", "Encrypt", byAlias, kindAlias, alias, func(f *readFixture) {
			f.Change(&fsmpb.Change{Change: &fsmpb.Change_DeleteAlias{DeleteAlias: &fsmpb.AliasName{Account: uint64(testAccountNumber), Name: "alias/app", Region: testRegion}}})
		}, "ok", "NotFoundException", "KEY KEY_POLICY ALIAS CREDENTIAL", false, false},
		{"decrypt, key disabled", "Decrypt", decrypt, kindKey, key, (*readFixture).disable, "ok", "DisabledException", "KEY KEY_POLICY CREDENTIAL", false, false},
		{"decrypt, permission withdrawn", "Decrypt", decrypt, kindPolicy, key, func(f *readFixture) { f.deny(f.id) }, "ok", "AccessDeniedException", "KEY KEY_POLICY CREDENTIAL", false, false},
		{"decrypt, key deleted", "Decrypt", decrypt, kindKey, key, (*readFixture).deleteKey, "ok", "AccessDeniedException", "KEY KEY_POLICY CREDENTIAL", false, true},
		{"re-encrypt, source disabled", "ReEncrypt", reEncrypt, kindKey, key, (*readFixture).disable, "ok", "DisabledException", "KEY KEY KEY_POLICY KEY_POLICY CREDENTIAL", false, false},
		{"re-encrypt, no permission on the source", "ReEncrypt", reEncrypt, kindPolicy, key, func(f *readFixture) { f.deny(f.id) }, "ok", "AccessDeniedException", "KEY KEY KEY_POLICY KEY_POLICY CREDENTIAL", false, false},
		{"re-encrypt, no permission on the destination", "ReEncrypt", reEncrypt, kindPolicy, other, func(f *readFixture) { f.deny(f.other) }, "ok", "AccessDeniedException", "KEY KEY KEY_POLICY KEY_POLICY CREDENTIAL", false, false},
		{"re-encrypt, destination disabled", "ReEncrypt", reEncrypt, kindKey, other, func(f *readFixture) {
			f.modifyKey(f.other, func(k *fsmpb.Key) { k.State = fsmpb.KeyState_KEY_STATE_DISABLED })
		}, "ok", "DisabledException", "KEY KEY KEY_POLICY KEY_POLICY CREDENTIAL", false, false},
		{"describe, description changed", "DescribeKey", func(f *readFixture) any { return &kmsapi.DescribeKeyInput{KeyId: &f.id} }, kindKey, key, func(f *readFixture) {
			f.modifyKey(f.id, func(k *fsmpb.Key) { k.Description = "changed" })
		}, "ok", "okchanged", "KEY KEY_POLICY CREDENTIAL", false, false},
		{"policy read, policy changed", "GetKeyPolicy", func(f *readFixture) any { return &kmsapi.GetKeyPolicyInput{KeyId: &f.id} }, kindPolicy, key, func(f *readFixture) {
			f.setPolicy(f.id, policyDocument(rootStatement, statement("Allow", aliceARN, "kms:Get*")))
		}, "ok", "ok changed", "KEY KEY_POLICY CREDENTIAL", false, false},
		{"tags read, tags changed", "ListResourceTags", func(f *readFixture) any { return &kmsapi.ListResourceTagsInput{KeyId: &f.id} }, kindTags, key, func(f *readFixture) { f.fillTags(2) },
			"ok 1", "ok 2", "KEY KEY_POLICY KEY_TAGS CREDENTIAL", false, false},
		{"tags added, tags full", "TagResource", func(f *readFixture) any {
			return &kmsapi.TagResourceInput{KeyId: &f.id, Tags: []kmsapi.Tag{{TagKey: new("new"), TagValue: new("")}}}
		}, kindTags, key, func(f *readFixture) { f.fillTags(50) },
			"ok", "TagException", "KEY KEY_POLICY KEY_TAGS CREDENTIAL", false, false},
		{"state changed, deletion scheduled", "EnableKey", func(f *readFixture) any { return &kmsapi.EnableKeyInput{KeyId: &f.id} }, kindKey, key, func(f *readFixture) {
			f.scheduleDeletionIn(testRegion, f.id)
		}, "ok", "KMSInvalidStateException", "KEY KEY_POLICY CREDENTIAL", false, false},
		{"policy put, permission withdrawn", "PutKeyPolicy", func(f *readFixture) any {
			return &kmsapi.PutKeyPolicyInput{KeyId: &f.id, Policy: new(policyDocument(rootStatement)), BypassPolicyLockoutSafetyCheck: new(true)}
		}, kindPolicy, key, func(f *readFixture) { f.deny(f.id) }, "ok", "AccessDeniedException", "KEY KEY_POLICY CREDENTIAL", false, false},
		{"policy read, user renamed", "GetKeyPolicy", func(f *readFixture) any {
			f.exist(bobARN)
			f.setPolicy(f.id, policyDocument(rootStatement, statement("Allow", aliceARN, "kms:*"), statement("Allow", bobARN, "kms:*")))
			return &kmsapi.GetKeyPolicyInput{KeyId: &f.id}
		}, kindUser, bob, renameBob, "ok", "ok renamed", "KEY KEY_POLICY CREDENTIAL USER", false, false},
		{"policy put, user deleted", "PutKeyPolicy", putForBob(true), kindUser, bob, deleteBob, "ok", "MalformedPolicyDocumentException", "KEY KEY_POLICY CREDENTIAL USER", false, false},
		{"policy put for nobody, user made", "PutKeyPolicy", putForBob(false), kindUser, bob, func(f *readFixture) { f.exist(bobARN) },
			"MalformedPolicyDocumentException", "ok", "KEY KEY_POLICY CREDENTIAL USER", false, false},
		{"policy put for a unique id, user deleted", "PutKeyPolicy", func(f *readFixture) any {
			f.exist(bobARN)
			f.setPolicy(f.id, policyDocument(rootStatement, statement("Allow", aliceARN, "kms:*"), statement("Allow", bobARN, "kms:*")))
			return &kmsapi.PutKeyPolicyInput{KeyId: &f.id, Policy: new(policyDocument(rootStatement, statement("Allow", uniqueID("AIDA", "bob"), "kms:*"))), BypassPolicyLockoutSafetyCheck: new(true)}
		}, kindUser, bob, deleteBob, "MalformedPolicyDocumentException", "ok", "KEY KEY_POLICY CREDENTIAL USER", false, false},
	}
}

func bob(*readFixture) []byte { return fsm.EntityID(testAccountNumber, "bob") }

// putForBob puts a policy that names bob, who may exist.
func putForBob(exists bool) func(*readFixture) any {
	return func(f *readFixture) any {
		if exists {
			f.exist(bobARN)
		}
		return &kmsapi.PutKeyPolicyInput{KeyId: &f.id, Policy: new(policyDocument(rootStatement, statement("Allow", bobARN, "kms:*"))), BypassPolicyLockoutSafetyCheck: new(true)}
	}
}

func deleteBob(f *readFixture) {
	f.Change(&fsmpb.Change{Change: &fsmpb.Change_DeleteUser{DeleteUser: &fsmpb.EntityID{Account: uint64(testAccountNumber), Name: "bob"}}})
}

func renameBob(f *readFixture) {
	u, _ := fsm.Object[*fsmpb.User](f.State(), bob(f))
	u = proto.CloneOf(u)
	u.Name = "robert"
	f.Change(&fsmpb.Change{Change: &fsmpb.Change_DeleteUser{DeleteUser: &fsmpb.EntityID{Account: u.Account, Name: "bob"}}}, &fsmpb.Change{Change: &fsmpb.Change_PutUser{PutUser: u}})
}

// materialReadCases are the cases of operations on key material.
func materialReadCases() []readCase {
	key := func(f *readFixture) []byte { return f.keyBytes(f.id) }
	imported := func(f *readFixture) []byte { return f.keyBytes(f.imported) }
	const (
		kindKey    = fsmpb.Kind_KIND_KEY
		kindPolicy = fsmpb.Kind_KIND_KEY_POLICY
		all        = "KEY KEY_POLICY CREDENTIAL"
	)
	enable := func(f *readFixture) any { return &kmsapi.EnableKeyRotationInput{KeyId: &f.id} }
	rotate := func(f *readFixture) any { return &kmsapi.RotateKeyOnDemandInput{KeyId: &f.id} }
	status := func(f *readFixture) any { return &kmsapi.GetKeyRotationStatusInput{KeyId: &f.id} }
	list := func(f *readFixture) any {
		return &kmsapi.ListKeyRotationsInput{KeyId: &f.id, IncludeKeyMaterial: new(ops.AllMaterial)}
	}
	bring := func(f *readFixture) any { return f.toImport() }
	// The newer of two materials can be deleted, because it was never used.
	remove := func(f *readFixture) any {
		f.importMaterial(f.toImport())
		in := f.symmetricImport(f.imported, 2)
		in.ImportType = new(ops.ImportNew)
		return &kmsapi.DeleteImportedKeyMaterialInput{KeyId: &f.imported, KeyMaterialId: new(f.importMaterial(in))}
	}
	parameters := func(f *readFixture) any {
		f.toImport()
		return &kmsapi.GetParametersForImportInput{KeyId: &f.imported, WrappingAlgorithm: new("RSAES_OAEP_SHA_256"), WrappingKeySpec: new("RSA_2048")}
	}
	denied := func(f *readFixture) { f.deny(f.imported) }
	pending := func(f *readFixture) {
		f.scheduleDeletionIn(testRegion, f.imported)
	}
	return []readCase{
		{"rotation enabled, key disabled", "EnableKeyRotation", enable, kindKey, key, (*readFixture).disable, "ok", "DisabledException", all, false, false},
		{"rotation enabled, permission withdrawn", "EnableKeyRotation", enable, kindPolicy, key, func(f *readFixture) { f.deny(f.id) }, "ok", "AccessDeniedException", all, false, false},
		{"rotation disabled, permission withdrawn", "DisableKeyRotation", func(f *readFixture) any { return &kmsapi.DisableKeyRotationInput{KeyId: &f.id} }, kindPolicy, key,
			func(f *readFixture) { f.deny(f.id) }, "ok", "AccessDeniedException", all, false, false},
		{"rotated, limit reached", "RotateKeyOnDemand", rotate, kindKey, key, func(f *readFixture) {
			f.modifyKey(f.id, func(k *fsmpb.Key) { k.RotationsOnDemand = uint32(request.DefaultQuotas.Rotations) })
		}, "ok", "LimitExceededException", all, false, false},
		{"status read, rotation enabled", "GetKeyRotationStatus", status, kindKey, key, func(f *readFixture) {
			f.modifyKey(f.id, func(k *fsmpb.Key) { k.Rotation = &fsmpb.Rotation{Enabled: true, PeriodDays: 90, Next: 2e18} })
		}, "ok false", "ok true", all, false, false},
		{"rotations read, key rotated", "ListKeyRotations", list, kindKey, key, func(f *readFixture) {
			f.modifyKey(f.id, func(k *fsmpb.Key) {
				m := proto.CloneOf(k.Materials[0])
				m.Id = []byte("another material")
				k.Materials = append(k.Materials, m)
			})
		}, "ok 1", "ok 2", all, false, false},
		{"imported, token used", "ImportKeyMaterial", bring, kindKey, imported, func(f *readFixture) {
			f.modifyKey(f.imported, func(k *fsmpb.Key) {
				k.UsedTokens = []*fsmpb.UsedToken{{Id: f.token, Expires: 2e18}}
			})
		}, "ok", "InvalidImportTokenException", all, false, false},
		{"imported, permission withdrawn", "ImportKeyMaterial", bring, kindPolicy, imported, denied, "ok", "AccessDeniedException", all, false, false},
		{"parameters, deletion scheduled", "GetParametersForImport", parameters, kindKey, imported, pending, "ok", "KMSInvalidStateException", all, false, false},
		{"parameters, permission withdrawn", "GetParametersForImport", parameters, kindPolicy, imported, denied, "ok", "AccessDeniedException", all, false, false},
		{"material deleted, permission withdrawn", "DeleteImportedKeyMaterial", remove, kindPolicy, imported, denied, "ok", "AccessDeniedException", all, false, false},
		{"material deleted, deleted by another", "DeleteImportedKeyMaterial", remove, kindKey, imported, func(f *readFixture) {
			f.modifyKey(f.imported, func(k *fsmpb.Key) { k.Materials = k.Materials[:1] })
		}, "ok", "NotFoundException", all, false, false},
	}
}

// rootReadCases are the cases of operations that only the root user may do.
func rootReadCases() []readCase {
	key := func(f *readFixture) []byte { return f.keyBytes(f.id) }
	other := func(f *readFixture) []byte { return f.keyBytes(f.other) }
	alias := func(name string) func(*readFixture) []byte {
		return func(*readFixture) []byte { return fsm.AliasID(testAccountNumber, testRegion, name) }
	}
	create := func(f *readFixture) any {
		return &kmsapi.CreateAliasInput{AliasName: new("alias/new"), TargetKeyId: &f.id}
	}
	update := func(f *readFixture) any {
		return &kmsapi.UpdateAliasInput{AliasName: new("alias/app"), TargetKeyId: &f.other}
	}
	remove := func(*readFixture) any { return &kmsapi.DeleteAliasInput{AliasName: new("alias/app")} }
	const (
		kindKey     = fsmpb.Kind_KIND_KEY
		kindPolicy  = fsmpb.Kind_KIND_KEY_POLICY
		kindAlias   = fsmpb.Kind_KIND_ALIAS
		kindAliases = fsmpb.Kind_KIND_KEY_ALIASES
		all         = "KEY KEY_POLICY ALIAS KEY_ALIASES CREDENTIAL"
		both        = "KEY KEY KEY_POLICY KEY_POLICY ALIAS KEY_ALIASES CREDENTIAL"
	)
	nobody := func(id func(*readFixture) string) func(*readFixture) {
		return func(f *readFixture) {
			f.setPolicy(id(f), policyDocument(statement("Allow", testAccount, "kms:Encrypt")))
		}
	}
	taken := func(f *readFixture) {
		k := f.keyID(f.other)
		f.Change(&fsmpb.Change{Change: &fsmpb.Change_PutAlias{PutAlias: &fsmpb.Alias{Account: uint64(testAccountNumber), Name: "alias/new", Region: testRegion, Key: k.ID[:]}}})
	}
	gone := func(f *readFixture) {
		f.Change(&fsmpb.Change{Change: &fsmpb.Change_DeleteAlias{DeleteAlias: &fsmpb.AliasName{Account: uint64(testAccountNumber), Name: "alias/app", Region: testRegion}}})
	}
	return []readCase{
		{"alias made, name taken", "CreateAlias", create, kindAlias, alias("alias/new"), taken, "ok", "AlreadyExistsException", all, true, false},
		{"alias made, key full", "CreateAlias", create, kindAliases, key, func(f *readFixture) { f.fillAliases(49) }, "ok", "LimitExceededException", all, true, false},
		{"alias made, key deleted", "CreateAlias", create, kindKey, key, (*readFixture).deleteKey, "ok", "NotFoundException", all, true, true},
		{"alias made, permission withdrawn", "CreateAlias", create, kindPolicy, key, nobody(func(f *readFixture) string { return f.id }), "ok", "AccessDeniedException", all, true, false},
		{"alias moved, alias deleted", "UpdateAlias", update, kindAlias, alias("alias/app"), gone, "ok", "NotFoundException", both, true, false},
		{"alias moved, no permission on the old key", "UpdateAlias", update, kindPolicy, key, nobody(func(f *readFixture) string { return f.id }), "ok", "AccessDeniedException", both, true, false},
		{"alias moved, no permission on the new key", "UpdateAlias", update, kindPolicy, other, nobody(func(f *readFixture) string { return f.other }), "ok", "AccessDeniedException", both, true, false},
		{"alias deleted, no permission on the key", "DeleteAlias", remove, kindPolicy, key, nobody(func(f *readFixture) string { return f.id }), "ok", "AccessDeniedException", "KEY KEY_POLICY ALIAS CREDENTIAL", true, false},
		{"key made", "CreateKey", func(*readFixture) any { return &kmsapi.CreateKeyInput{} }, 0, nil, nil, "ok", "", "KEY CREDENTIAL", true, false},
		{"keys listed", "ListKeys", func(*readFixture) any { return &kmsapi.ListKeysInput{} }, 0, nil, nil, "ok", "", "CREDENTIAL", true, false},
		{"describe, key deleted", "DescribeKey", func(f *readFixture) any { return &kmsapi.DescribeKeyInput{KeyId: &f.id} }, kindKey, key, (*readFixture).deleteKey, "ok", "NotFoundException", "KEY KEY_POLICY CREDENTIAL", true, true},
	}
}

// regionReadCases are the cases of multi-Region keys.
func regionReadCases() []readCase {
	multi := func(f *readFixture) []byte { return f.keyBytes(f.multi) }
	lone := func(f *readFixture) []byte { return f.keyBytes(f.lone) }
	replica := func(f *readFixture) []byte { return f.replicaBytes(f.multi) }
	none := func(f *readFixture) []byte { return f.replicaBytes(f.lone) }
	replicate := func(f *readFixture) any {
		return &kmsapi.ReplicateKeyInput{KeyId: &f.lone, ReplicaRegion: new(secondRegion)}
	}
	update := func(f *readFixture) any {
		return &kmsapi.UpdatePrimaryRegionInput{KeyId: &f.multi, PrimaryRegion: new(secondRegion)}
	}
	describe := func(id func(*readFixture) *string) func(*readFixture) any {
		return func(f *readFixture) any { return &kmsapi.DescribeKeyInput{KeyId: id(f)} }
	}
	disable := func(region string, id func(*readFixture) string) func(*readFixture) {
		return func(f *readFixture) {
			f.modifyKeyIn(region, id(f), func(k *fsmpb.Key) { k.State = fsmpb.KeyState_KEY_STATE_DISABLED })
		}
	}
	ofMulti, ofLone := func(f *readFixture) string { return f.multi }, func(f *readFixture) string { return f.lone }
	nobody := func(region string, id func(*readFixture) string) func(*readFixture) {
		return func(f *readFixture) {
			k := proto.CloneOf(f.keyIn(region, id(f)))
			c := defaultPolicyChange(k)
			c.GetPutKeyPolicy().Document = policyDocument(statement("Allow", testAccount, "kms:Encrypt"))
			f.Change(c)
		}
	}
	const (
		kindKey    = fsmpb.Kind_KIND_KEY
		kindPolicy = fsmpb.Kind_KIND_KEY_POLICY
		all        = "KEY KEY KEY_POLICY CREDENTIAL"
		both       = "KEY KEY KEY_POLICY KEY_POLICY CREDENTIAL"
	)
	return []readCase{
		{"describe, replica deleted", "DescribeKey", describe(func(f *readFixture) *string { return &f.multi }), kindKey, replica,
			func(f *readFixture) { f.deleteKeyIn(secondRegion, f.multi) }, "ok 1 replicas", "ok 0 replicas", all, true, true},
		{"describe, replica made", "DescribeKey", describe(func(f *readFixture) *string { return &f.lone }), kindKey, none,
			(*readFixture).putReplica, "ok 0 replicas", "ok 1 replicas", all, true, false},
		{"replicated, replica made", "ReplicateKey", replicate, kindKey, none, (*readFixture).putReplica, "ok", "AlreadyExistsException", all, true, false},
		{"replicated, primary disabled", "ReplicateKey", replicate, kindKey, lone, disable(testRegion, ofLone), "ok", "DisabledException", all, true, false},
		{"replicated, permission withdrawn", "ReplicateKey", replicate, kindPolicy, lone, nobody(testRegion, ofLone), "ok", "AccessDeniedException", all, true, false},
		{"primary moved, primary disabled", "UpdatePrimaryRegion", update, kindKey, multi, disable(testRegion, ofMulti), "ok", "DisabledException", both, true, false},
		{"primary moved, replica disabled", "UpdatePrimaryRegion", update, kindKey, replica, disable(secondRegion, ofMulti), "ok", "DisabledException", both, true, false},
		{"primary moved, no permission on the primary", "UpdatePrimaryRegion", update, kindPolicy, multi, nobody(testRegion, ofMulti), "ok", "AccessDeniedException", both, true, false},
		{"primary moved, no permission on the replica", "UpdatePrimaryRegion", update, kindPolicy, replica, nobody(secondRegion, ofMulti), "ok", "AccessDeniedException", both, true, false},
		{"primary on its way out, replica made", "ScheduleKeyDeletion", func(f *readFixture) any { return &kmsapi.ScheduleKeyDeletionInput{KeyId: &f.lone} }, kindKey, none,
			(*readFixture).putReplica, "ok PendingDeletion", "ok PendingReplicaDeletion", all, true, false},
		{"primary on its way out, replica deleted", "ScheduleKeyDeletion", func(f *readFixture) any { return &kmsapi.ScheduleKeyDeletionInput{KeyId: &f.multi} }, kindKey, replica,
			func(f *readFixture) { f.deleteKeyIn(secondRegion, f.multi) }, "ok PendingReplicaDeletion", "ok PendingDeletion", all, true, true},
		{"last usage, permission withdrawn", "GetKeyLastUsage", func(f *readFixture) any { return &kmsapi.GetKeyLastUsageInput{KeyId: &f.id} }, kindPolicy,
			func(f *readFixture) []byte { return f.keyBytes(f.id) }, func(f *readFixture) { f.deny(f.id) }, "ok", "AccessDeniedException", "KEY KEY_POLICY CREDENTIAL", false, false},
		{"multi-Region key made", "CreateKey", func(*readFixture) any { return &kmsapi.CreateKeyInput{MultiRegion: new(true)} }, 0, nil, nil, "ok", "", "KEY KEY CREDENTIAL", true, false},
		{"decrypt of another Region's key", "Decrypt", func(f *readFixture) any { return &kmsapi.DecryptInput{CiphertextBlob: f.elsewhere} }, 0, nil, nil,
			"AccessDeniedException", "", "KEY CREDENTIAL", false, false},
	}
}

// denialCases are the cases of requests that are refused, and succeed when permission is given.
func denialCases() []readCase {
	key := func(f *readFixture) []byte { return f.keyBytes(f.id) }
	absent := "alias/later"
	return []readCase{
		{"denied, then allowed", "Encrypt", func(f *readFixture) any {
			f.deny(f.id)
			return &kmsapi.EncryptInput{KeyId: &f.id, Plaintext: []byte("x")}
		}, fsmpb.Kind_KIND_KEY_POLICY, key, func(f *readFixture) {
			f.setPolicy(f.id, policyDocument(rootStatement, statement("Allow", aliceARN, "kms:*")))
		}, "AccessDeniedException", "ok", "KEY KEY_POLICY CREDENTIAL KEY_GRANTS", false, false},
		{"disabled, then enabled", "Encrypt", func(f *readFixture) any {
			f.disable()
			return &kmsapi.EncryptInput{KeyId: &f.id, Plaintext: []byte("x")}
		}, fsmpb.Kind_KIND_KEY, key, func(f *readFixture) {
			f.modifyKey(f.id, func(k *fsmpb.Key) { k.State = fsmpb.KeyState_KEY_STATE_ENABLED })
		}, "DisabledException", "ok", "KEY KEY_POLICY CREDENTIAL", false, false},
		{"no such alias, then made", "Encrypt", func(*readFixture) any { return &kmsapi.EncryptInput{KeyId: &absent, Plaintext: []byte("x")} },
			fsmpb.Kind_KIND_ALIAS, func(*readFixture) []byte { return fsm.AliasID(testAccountNumber, testRegion, absent) }, func(f *readFixture) {
				k := f.keyID(f.id)
				f.Change(&fsmpb.Change{Change: &fsmpb.Change_PutAlias{PutAlias: &fsmpb.Alias{Account: uint64(testAccountNumber), Name: absent, Region: testRegion, Key: k.ID[:]}}})
			}, "NotFoundException", "ok", "ALIAS CREDENTIAL", false, false},
		{"decrypt of a deleted key", "Decrypt", func(f *readFixture) any {
			f.deleteKey()
			return &kmsapi.DecryptInput{CiphertextBlob: f.blob}
		}, 0, nil, nil, "AccessDeniedException", "", "KEY CREDENTIAL", false, false},
		{"decrypt of something else", "Decrypt", func(*readFixture) any { return &kmsapi.DecryptInput{CiphertextBlob: []byte("x")} }, 0, nil, nil, "InvalidCiphertextException", "", "CREDENTIAL", false, false},
		{"invalid input", "Encrypt", func(*readFixture) any { return &kmsapi.EncryptInput{} }, 0, nil, nil, "ValidationException", "", "CREDENTIAL", false, false},
		{"random", "GenerateRandom", func(*readFixture) any { return &kmsapi.GenerateRandomInput{NumberOfBytes: new(int32(1))} }, 0, nil, nil, "AccessDeniedException", "", "CREDENTIAL", false, false},
	}
}

func allReadCases() []readCase {
	cases := slices.Concat(readCases(), materialReadCases(), rootReadCases(), regionReadCases(), storeReadCases(), denialCases(), asymmetricReadCases(), grantReadCases())
	for i := range cases {
		if !cases[i].root {
			cases[i].reads = sortedKinds(cases[i].reads + " USER") // alice
		}
	}
	return append(cases, iamReadCases()...)
}

// TestReadSets compares the whole read set of each case. It shows that each object is in it:
// a change of the object between evaluation and commit changes the answer. And it shows that
// the object has to be in it: without that read in the record, the outdated answer is given,
// unless the state machine rejects the record, because it changes what it did not read.
func TestReadSets(t *testing.T) {
	t.Parallel()
	for _, tt := range allReadCases() {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, reads, _ := tt.run(t, false, false)
			if got != tt.before {
				t.Fatalf("without a change: got outcome %s, want %s", got, tt.before)
			}
			if reads != tt.reads {
				t.Errorf("got read set %s, want %s", reads, tt.reads)
			}
			if tt.mutate == nil {
				return
			}
			got, _, records := tt.run(t, true, false)
			if got != tt.after {
				t.Errorf("with the change: got outcome %s, want %s", got, tt.after)
			}
			admitted := tt.after != "UnrecognizedClientException" && tt.after != "ExpiredTokenException"
			if want := map[bool]int{true: 1}[admitted]; records != want {
				t.Errorf("with the change: got %d records, want %d", records, want)
			}
			if got, _, _ = tt.run(t, true, true); got != tt.before && got != "refused" {
				t.Errorf("without the read of %v in the record: got outcome %s, want %s or refused", tt.kind, got, tt.before)
			}
		})
	}
}

// run makes the request in a new cluster. If mutate is set, the object changes between the
// first evaluation and its commit. If strip is set too, the read of the object is removed
// from the record.
func (tt *readCase) run(t *testing.T, mutate, strip bool) (outcome, reads string, records int) {
	f := newReadFixture(t)
	in := tt.in(f)
	who := f.alice
	if tt.root {
		who = f.root
	}
	size := f.Audit.Size()
	first := true
	f.Replica("n1").BeforeCommit = func(rec *fsmpb.Record) {
		if !first {
			return
		}
		first = false
		reads = kindsOf(rec)
		if !mutate {
			return
		}
		if strip {
			id := tt.object(f)
			rec.Reads = slices.DeleteFunc(rec.Reads, func(r *fsmpb.Read) bool {
				return string(r.Id) == string(id) && (r.Kind == tt.kind || tt.destroys)
			})
			f.ExpectInvalid = len(rec.Changes) > 0
		}
		tt.mutate(f)
		size, f.BrokenRule = f.Audit.Size(), ""
	}
	out, err := f.engine.Do(t.Context(), f.caller(who), operationOf(tt.op), in)
	if f.BrokenRule != "" && errors.Is(err, kmsapi.ErrInternal) {
		return "refused", reads, 0
	}
	return f.outcome(out, err), reads, int(f.Audit.Size() - size)
}

func kindsOf(rec *fsmpb.Record) string {
	kinds := make([]fsmpb.Kind, len(rec.Reads))
	for i, r := range rec.Reads {
		kinds[i] = r.Kind
	}
	slices.Sort(kinds)
	names := make([]string, len(kinds))
	for i, k := range kinds {
		names[i] = strings.TrimPrefix(k.String(), "KIND_")
	}
	return strings.Join(names, " ")
}

// operationOf returns the operation of KMS or STS with a name.
func operationOf(name string) *Operation {
	if op := OperationNamed(KMS, name); op != nil {
		return op
	}
	return OperationNamed(STS, name)
}

// outcome describes an answer in a word or two, so that the answers of a case differ.
func (f *readFixture) outcome(out any, err error) string {
	if e, ok := errors.AsType[*kmsapi.Error](err); ok {
		return string(e.Code)
	}
	switch out := out.(type) {
	case *kmsapi.EncryptOutput:
		if strings.HasSuffix(*out.KeyId, f.other) {
			return "ok other"
		}
	case *kmsapi.ScheduleKeyDeletionOutput:
		return "ok " + *out.KeyState
	case *kmsapi.DescribeKeyOutput:
		if c := out.KeyMetadata.MultiRegionConfiguration; c != nil {
			return fmt.Sprintf("ok %d replicas", len(c.ReplicaKeys))
		}
		if out.KeyMetadata.CustomKeyStoreId != nil {
			return "ok " + *out.KeyMetadata.KeyState
		}
		return "ok" + *out.KeyMetadata.Description
	case *kmsapi.DescribeCustomKeyStoresOutput:
		if len(out.CustomKeyStores) > 0 {
			return "ok " + *out.CustomKeyStores[0].ConnectionState
		}
	case *kmsapi.GetKeyPolicyOutput:
		if strings.Contains(*out.Policy, "kms:Get*") {
			return "ok changed"
		}
		if strings.Contains(*out.Policy, "user/robert") {
			return "ok renamed"
		}
	case *kmsapi.GetKeyRotationStatusOutput:
		return fmt.Sprintf("ok %v", *out.KeyRotationEnabled)
	case *kmsapi.ListKeyRotationsOutput:
		return fmt.Sprintf("ok %d", len(out.Rotations))
	case *kmsapi.CreateGrantOutput:
		if *out.GrantId == grantHex(1) {
			return "ok same"
		}
	case *kmsapi.ListResourceTagsOutput:
		return fmt.Sprintf("ok %d", len(out.Tags))
	}
	return "ok"
}
