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

const aliceARN = "arn:aws:iam::" + testAccount + ":user/alice"

// readCase is a request whose outcome depends on an object, and the change of
// that object alone that makes the outcome another one.
type readCase struct {
	name   string
	op     string
	in     func(w *readWorld) any
	kind   fsmpb.Kind
	object func(w *readWorld) []byte
	mutate func(w *readWorld)
	before string // outcome before the change: "ok" or a code
	after  string
	reads  string // the whole read set, by kinds, ascending

	root     bool // asked by the account's root user, else by alice
	destroys bool // the change destroys the key, with all that has its id
}

// readWorld is what each case begins from: a key with an alias and a tag, another
// key, and alice, whom both policies allow everything but PutKeyPolicy.
type readWorld struct {
	*room
	alice     iam.Identity
	id, other string
	imported  string // a key that waits for material, in the cases that make one
	used      string // the key of the cases of asymmetric keys
	token     []byte // the id of the import token for it
	blob      []byte
	// multi is a multi-Region key with a replica in secondRegion, lone one without,
	// and elsewhere a ciphertext of a key in secondRegion.
	multi, lone string
	elsewhere   []byte
	// store is a custom key store and stored a key in it, in the cases that make one.
	store, stored string
}

func newReadWorld(t *testing.T) *readWorld {
	w := &readWorld{room: newRoomIn(t, []string{testRegion, secondRegion})}
	w.alice = w.user(aliceARN)
	w.id, _ = w.newKey()
	w.other, _ = w.newKey()
	must[request.None](w.room, "CreateAlias", &kmsapi.CreateAliasInput{AliasName: new("alias/app"), TargetKeyId: &w.id})
	must[request.None](w.room, "TagResource", &kmsapi.TagResourceInput{KeyId: &w.id, Tags: manyTags(1)})
	w.blob = must[kmsapi.EncryptOutput](w.room, "Encrypt", &kmsapi.EncryptInput{KeyId: &w.id, Plaintext: []byte("x")}).CiphertextBlob
	allow := w.policyFor(rootStatement, statement("Allow", aliceARN, "kms:*"))
	w.setPolicy(w.id, allow)
	w.setPolicy(w.other, allow)
	w.multi, w.lone = w.newMultiKey(kmsapi.CreateKeyInput{}, secondRegion), w.newMultiKey(kmsapi.CreateKeyInput{})
	there := mustIn[kmsapi.CreateKeyOutput](w.room, secondRegion, "CreateKey", &kmsapi.CreateKeyInput{}).KeyMetadata.KeyId
	w.elsewhere = mustIn[kmsapi.EncryptOutput](w.room, secondRegion, "Encrypt", &kmsapi.EncryptInput{KeyId: there, Plaintext: []byte("x")}).CiphertextBlob
	return w
}

// replicaBytes is the id of a key's replica, as read sets have it.
func (w *readWorld) replicaBytes(id string) []byte {
	k := w.keyID(id)
	k.Region = secondRegion
	return k.Bytes()
}

// putReplica makes a replica of the key that has none.
func (w *readWorld) putReplica() {
	k := cloneOf(w.keyIn(testRegion, w.lone))
	k.Region = secondRegion
	w.cluster.change(putKeyChange(k), defaultPolicyChange(k))
}

func (w *readWorld) keyBytes(id string) []byte { return w.keyID(id).Bytes() }

// toImport makes a key for imported material that alice may do everything with.
func (w *readWorld) toImport() *kmsapi.ImportKeyMaterialInput {
	w.imported, _ = w.keyToImport(kmsapi.SpecSymmetric, kmsapi.UsageEncrypt)
	w.setPolicy(w.imported, w.policyFor(rootStatement, statement("Allow", aliceARN, "kms:*")))
	in := w.symmetric(w.imported, 1)
	tok, private, err := w.first.vault.OpenImportToken(in.ImportToken)
	if err != nil {
		w.t.Fatal(err)
	}
	private.Destroy()
	w.token = tok.ID[:]
	return in
}

func (w *readWorld) deny(id string) {
	w.setPolicy(id, w.policyFor(rootStatement))
}

func (w *readWorld) disable() {
	w.mangle(w.id, func(k *fsmpb.Key) { k.State = fsmpb.KeyState_KEY_STATE_DISABLED })
}

func (w *readWorld) moveAlias(to string) {
	k := w.keyID(to)
	w.cluster.change(&fsmpb.Change{Change: &fsmpb.Change_PutAlias{PutAlias: &fsmpb.Alias{Account: uint64(testAccountNumber), Name: "alias/app", Region: testRegion, Key: k.ID[:]}}})
}

func (w *readWorld) revoke(id iam.Identity) {
	c, _ := w.cluster.state().Credential(testAccountNumber, id.Credential())
	c = proto.CloneOf(c)
	c.Active = false
	w.cluster.change(&fsmpb.Change{Change: &fsmpb.Change_PutCredential{PutCredential: c}})
}

func (w *readWorld) fillTags(n int) {
	k := w.keyID(w.id)
	tags := &fsmpb.KeyTags{Account: uint64(testAccountNumber), Key: k.ID[:], Region: k.Region}
	for i := range n {
		tags.Tags = append(tags.Tags, &fsmpb.Tag{Key: fmt.Sprintf("t%02d", i)})
	}
	w.cluster.change(&fsmpb.Change{Change: &fsmpb.Change_PutKeyTags{PutKeyTags: tags}})
}

func (w *readWorld) fillAliases(n int) {
	k := w.keyID(w.id)
	for i := range n {
		w.cluster.change(&fsmpb.Change{Change: &fsmpb.Change_PutAlias{PutAlias: &fsmpb.Alias{Account: uint64(testAccountNumber), Name: fmt.Sprintf("alias/f%02d", i), Region: testRegion, Key: k.ID[:]}}})
	}
}

func (w *readWorld) deleteKey() { w.deleteIn(testRegion, w.id) }

func readCases() []readCase {
	encrypt := func(w *readWorld) any { return &kmsapi.EncryptInput{KeyId: &w.id, Plaintext: []byte("x")} }
	byAlias := func(w *readWorld) any { return &kmsapi.EncryptInput{KeyId: new("alias/app"), Plaintext: []byte("x")} }
	decrypt := func(w *readWorld) any { return &kmsapi.DecryptInput{CiphertextBlob: w.blob} }
	reEncrypt := func(w *readWorld) any {
		return &kmsapi.ReEncryptInput{CiphertextBlob: w.blob, DestinationKeyId: &w.other}
	}
	key := func(w *readWorld) []byte { return w.keyBytes(w.id) }
	other := func(w *readWorld) []byte { return w.keyBytes(w.other) }
	alias := func(*readWorld) []byte { return fsm.AliasID(testAccountNumber, testRegion, "alias/app") }
	credential := func(w *readWorld) []byte { return fsm.CredentialID(testAccountNumber, w.alice.Credential()) }
	const (
		kindKey    = fsmpb.Kind_KIND_KEY
		kindPolicy = fsmpb.Kind_KIND_KEY_POLICY
		kindTags   = fsmpb.Kind_KIND_KEY_TAGS
		kindAlias  = fsmpb.Kind_KIND_ALIAS
		kindCred   = fsmpb.Kind_KIND_CREDENTIAL
	)
	return []readCase{
		{"encrypt, key disabled", "Encrypt", encrypt, kindKey, key, (*readWorld).disable, "ok", "DisabledException", "KEY KEY_POLICY CREDENTIAL", false, false},
		{"encrypt, permission withdrawn", "Encrypt", encrypt, kindPolicy, key, func(w *readWorld) { w.deny(w.id) }, "ok", "AccessDeniedException", "KEY KEY_POLICY CREDENTIAL", false, false},
		{"encrypt, credential revoked", "Encrypt", encrypt, kindCred, credential, func(w *readWorld) { w.revoke(w.alice) }, "ok", "UnrecognizedClientException", "KEY KEY_POLICY CREDENTIAL", false, false},
		{"encrypt by alias, alias moved", "Encrypt", byAlias, kindAlias, alias, func(w *readWorld) { w.moveAlias(w.other) }, "ok", "ok other", "KEY KEY_POLICY ALIAS CREDENTIAL", false, false},
		{"encrypt by alias, alias deleted", "Encrypt", byAlias, kindAlias, alias, func(w *readWorld) {
			w.cluster.change(&fsmpb.Change{Change: &fsmpb.Change_DeleteAlias{DeleteAlias: &fsmpb.AliasName{Account: uint64(testAccountNumber), Name: "alias/app", Region: testRegion}}})
		}, "ok", "NotFoundException", "KEY KEY_POLICY ALIAS CREDENTIAL", false, false},
		{"decrypt, key disabled", "Decrypt", decrypt, kindKey, key, (*readWorld).disable, "ok", "DisabledException", "KEY KEY_POLICY CREDENTIAL", false, false},
		{"decrypt, permission withdrawn", "Decrypt", decrypt, kindPolicy, key, func(w *readWorld) { w.deny(w.id) }, "ok", "AccessDeniedException", "KEY KEY_POLICY CREDENTIAL", false, false},
		{"decrypt, key deleted", "Decrypt", decrypt, kindKey, key, (*readWorld).deleteKey, "ok", "AccessDeniedException", "KEY KEY_POLICY CREDENTIAL", false, true},
		{"re-encrypt, source disabled", "ReEncrypt", reEncrypt, kindKey, key, (*readWorld).disable, "ok", "DisabledException", "KEY KEY KEY_POLICY KEY_POLICY CREDENTIAL", false, false},
		{"re-encrypt, no permission on the source", "ReEncrypt", reEncrypt, kindPolicy, key, func(w *readWorld) { w.deny(w.id) }, "ok", "AccessDeniedException", "KEY KEY KEY_POLICY KEY_POLICY CREDENTIAL", false, false},
		{"re-encrypt, no permission on the destination", "ReEncrypt", reEncrypt, kindPolicy, other, func(w *readWorld) { w.deny(w.other) }, "ok", "AccessDeniedException", "KEY KEY KEY_POLICY KEY_POLICY CREDENTIAL", false, false},
		{"re-encrypt, destination disabled", "ReEncrypt", reEncrypt, kindKey, other, func(w *readWorld) {
			w.mangle(w.other, func(k *fsmpb.Key) { k.State = fsmpb.KeyState_KEY_STATE_DISABLED })
		}, "ok", "DisabledException", "KEY KEY KEY_POLICY KEY_POLICY CREDENTIAL", false, false},
		{"describe, description changed", "DescribeKey", func(w *readWorld) any { return &kmsapi.DescribeKeyInput{KeyId: &w.id} }, kindKey, key, func(w *readWorld) {
			w.mangle(w.id, func(k *fsmpb.Key) { k.Description = "changed" })
		}, "ok", "okchanged", "KEY KEY_POLICY CREDENTIAL", false, false},
		{"policy read, policy changed", "GetKeyPolicy", func(w *readWorld) any { return &kmsapi.GetKeyPolicyInput{KeyId: &w.id} }, kindPolicy, key, func(w *readWorld) {
			w.setPolicy(w.id, w.policyFor(rootStatement, statement("Allow", aliceARN, "kms:Get*")))
		}, "ok", "ok changed", "KEY KEY_POLICY CREDENTIAL", false, false},
		{"tags read, tags changed", "ListResourceTags", func(w *readWorld) any { return &kmsapi.ListResourceTagsInput{KeyId: &w.id} }, kindTags, key, func(w *readWorld) { w.fillTags(2) },
			"ok 1", "ok 2", "KEY KEY_POLICY KEY_TAGS CREDENTIAL", false, false},
		{"tags added, tags full", "TagResource", func(w *readWorld) any {
			return &kmsapi.TagResourceInput{KeyId: &w.id, Tags: []kmsapi.Tag{{TagKey: new("new"), TagValue: new("")}}}
		}, kindTags, key, func(w *readWorld) { w.fillTags(50) },
			"ok", "TagException", "KEY KEY_POLICY KEY_TAGS CREDENTIAL", false, false},
		{"state changed, deletion scheduled", "EnableKey", func(w *readWorld) any { return &kmsapi.EnableKeyInput{KeyId: &w.id} }, kindKey, key, func(w *readWorld) {
			w.doom(testRegion, w.id)
		}, "ok", "KMSInvalidStateException", "KEY KEY_POLICY CREDENTIAL", false, false},
		{"policy put, permission withdrawn", "PutKeyPolicy", func(w *readWorld) any {
			return &kmsapi.PutKeyPolicyInput{KeyId: &w.id, Policy: new(w.policyFor(rootStatement)), BypassPolicyLockoutSafetyCheck: new(true)}
		}, kindPolicy, key, func(w *readWorld) { w.deny(w.id) }, "ok", "AccessDeniedException", "KEY KEY_POLICY CREDENTIAL", false, false},
	}
}

// materialReadCases are those of operations on key material.
func materialReadCases() []readCase {
	key := func(w *readWorld) []byte { return w.keyBytes(w.id) }
	imported := func(w *readWorld) []byte { return w.keyBytes(w.imported) }
	const (
		kindKey    = fsmpb.Kind_KIND_KEY
		kindPolicy = fsmpb.Kind_KIND_KEY_POLICY
		all        = "KEY KEY_POLICY CREDENTIAL"
	)
	enable := func(w *readWorld) any { return &kmsapi.EnableKeyRotationInput{KeyId: &w.id} }
	rotate := func(w *readWorld) any { return &kmsapi.RotateKeyOnDemandInput{KeyId: &w.id} }
	status := func(w *readWorld) any { return &kmsapi.GetKeyRotationStatusInput{KeyId: &w.id} }
	list := func(w *readWorld) any {
		return &kmsapi.ListKeyRotationsInput{KeyId: &w.id, IncludeKeyMaterial: new(ops.AllMaterial)}
	}
	bring := func(w *readWorld) any { return w.toImport() }
	// Of two materials the newer one has never been used, so that it can be gone.
	remove := func(w *readWorld) any {
		w.imports(w.toImport())
		in := w.symmetric(w.imported, 2)
		in.ImportType = new(ops.ImportNew)
		return &kmsapi.DeleteImportedKeyMaterialInput{KeyId: &w.imported, KeyMaterialId: new(w.imports(in))}
	}
	parameters := func(w *readWorld) any {
		w.toImport()
		return &kmsapi.GetParametersForImportInput{KeyId: &w.imported, WrappingAlgorithm: new("RSAES_OAEP_SHA_256"), WrappingKeySpec: new("RSA_2048")}
	}
	denied := func(w *readWorld) { w.deny(w.imported) }
	pending := func(w *readWorld) {
		w.doom(testRegion, w.imported)
	}
	return []readCase{
		{"rotation enabled, key disabled", "EnableKeyRotation", enable, kindKey, key, (*readWorld).disable, "ok", "DisabledException", all, false, false},
		{"rotation enabled, permission withdrawn", "EnableKeyRotation", enable, kindPolicy, key, func(w *readWorld) { w.deny(w.id) }, "ok", "AccessDeniedException", all, false, false},
		{"rotation disabled, permission withdrawn", "DisableKeyRotation", func(w *readWorld) any { return &kmsapi.DisableKeyRotationInput{KeyId: &w.id} }, kindPolicy, key,
			func(w *readWorld) { w.deny(w.id) }, "ok", "AccessDeniedException", all, false, false},
		{"rotated, limit reached", "RotateKeyOnDemand", rotate, kindKey, key, func(w *readWorld) {
			w.mangle(w.id, func(k *fsmpb.Key) { k.RotationsOnDemand = uint32(request.DefaultQuotas.Rotations) })
		}, "ok", "LimitExceededException", all, false, false},
		{"status read, rotation enabled", "GetKeyRotationStatus", status, kindKey, key, func(w *readWorld) {
			w.mangle(w.id, func(k *fsmpb.Key) { k.Rotation = &fsmpb.Rotation{Enabled: true, PeriodDays: 90, Next: 2e18} })
		}, "ok false", "ok true", all, false, false},
		{"rotations read, key rotated", "ListKeyRotations", list, kindKey, key, func(w *readWorld) {
			w.mangle(w.id, func(k *fsmpb.Key) {
				m := proto.CloneOf(k.Materials[0])
				m.Id = []byte("another material")
				k.Materials = append(k.Materials, m)
			})
		}, "ok 1", "ok 2", all, false, false},
		{"imported, token used", "ImportKeyMaterial", bring, kindKey, imported, func(w *readWorld) {
			w.mangle(w.imported, func(k *fsmpb.Key) {
				k.UsedTokens = []*fsmpb.UsedToken{{Id: w.token, Expires: 2e18}}
			})
		}, "ok", "InvalidImportTokenException", all, false, false},
		{"imported, permission withdrawn", "ImportKeyMaterial", bring, kindPolicy, imported, denied, "ok", "AccessDeniedException", all, false, false},
		{"parameters, deletion scheduled", "GetParametersForImport", parameters, kindKey, imported, pending, "ok", "KMSInvalidStateException", all, false, false},
		{"parameters, permission withdrawn", "GetParametersForImport", parameters, kindPolicy, imported, denied, "ok", "AccessDeniedException", all, false, false},
		{"material deleted, permission withdrawn", "DeleteImportedKeyMaterial", remove, kindPolicy, imported, denied, "ok", "AccessDeniedException", all, false, false},
		{"material deleted, deleted by another", "DeleteImportedKeyMaterial", remove, kindKey, imported, func(w *readWorld) {
			w.mangle(w.imported, func(k *fsmpb.Key) { k.Materials = k.Materials[:1] })
		}, "ok", "NotFoundException", all, false, false},
	}
}

// rootReadCases are those of operations that only the account's root user may do.
func rootReadCases() []readCase {
	key := func(w *readWorld) []byte { return w.keyBytes(w.id) }
	other := func(w *readWorld) []byte { return w.keyBytes(w.other) }
	alias := func(name string) func(*readWorld) []byte {
		return func(*readWorld) []byte { return fsm.AliasID(testAccountNumber, testRegion, name) }
	}
	create := func(w *readWorld) any {
		return &kmsapi.CreateAliasInput{AliasName: new("alias/new"), TargetKeyId: &w.id}
	}
	update := func(w *readWorld) any {
		return &kmsapi.UpdateAliasInput{AliasName: new("alias/app"), TargetKeyId: &w.other}
	}
	remove := func(*readWorld) any { return &kmsapi.DeleteAliasInput{AliasName: new("alias/app")} }
	const (
		kindKey     = fsmpb.Kind_KIND_KEY
		kindPolicy  = fsmpb.Kind_KIND_KEY_POLICY
		kindAlias   = fsmpb.Kind_KIND_ALIAS
		kindAliases = fsmpb.Kind_KIND_KEY_ALIASES
		all         = "KEY KEY_POLICY ALIAS KEY_ALIASES CREDENTIAL"
		both        = "KEY KEY KEY_POLICY KEY_POLICY ALIAS KEY_ALIASES CREDENTIAL"
	)
	nobody := func(id func(*readWorld) string) func(*readWorld) {
		return func(w *readWorld) { w.setPolicy(id(w), w.policyFor(statement("Allow", testAccount, "kms:Encrypt"))) }
	}
	taken := func(w *readWorld) {
		k := w.keyID(w.other)
		w.cluster.change(&fsmpb.Change{Change: &fsmpb.Change_PutAlias{PutAlias: &fsmpb.Alias{Account: uint64(testAccountNumber), Name: "alias/new", Region: testRegion, Key: k.ID[:]}}})
	}
	gone := func(w *readWorld) {
		w.cluster.change(&fsmpb.Change{Change: &fsmpb.Change_DeleteAlias{DeleteAlias: &fsmpb.AliasName{Account: uint64(testAccountNumber), Name: "alias/app", Region: testRegion}}})
	}
	return []readCase{
		{"alias made, name taken", "CreateAlias", create, kindAlias, alias("alias/new"), taken, "ok", "AlreadyExistsException", all, true, false},
		{"alias made, key full", "CreateAlias", create, kindAliases, key, func(w *readWorld) { w.fillAliases(49) }, "ok", "LimitExceededException", all, true, false},
		{"alias made, key deleted", "CreateAlias", create, kindKey, key, (*readWorld).deleteKey, "ok", "NotFoundException", all, true, true},
		{"alias made, permission withdrawn", "CreateAlias", create, kindPolicy, key, nobody(func(w *readWorld) string { return w.id }), "ok", "AccessDeniedException", all, true, false},
		{"alias moved, alias deleted", "UpdateAlias", update, kindAlias, alias("alias/app"), gone, "ok", "NotFoundException", both, true, false},
		{"alias moved, no permission on the old key", "UpdateAlias", update, kindPolicy, key, nobody(func(w *readWorld) string { return w.id }), "ok", "AccessDeniedException", both, true, false},
		{"alias moved, no permission on the new key", "UpdateAlias", update, kindPolicy, other, nobody(func(w *readWorld) string { return w.other }), "ok", "AccessDeniedException", both, true, false},
		{"alias deleted, no permission on the key", "DeleteAlias", remove, kindPolicy, key, nobody(func(w *readWorld) string { return w.id }), "ok", "AccessDeniedException", "KEY KEY_POLICY ALIAS CREDENTIAL", true, false},
		{"key made", "CreateKey", func(*readWorld) any { return &kmsapi.CreateKeyInput{} }, 0, nil, nil, "ok", "", "KEY CREDENTIAL", true, false},
		{"keys listed", "ListKeys", func(*readWorld) any { return &kmsapi.ListKeysInput{} }, 0, nil, nil, "ok", "", "CREDENTIAL", true, false},
		{"describe, key deleted", "DescribeKey", func(w *readWorld) any { return &kmsapi.DescribeKeyInput{KeyId: &w.id} }, kindKey, key, (*readWorld).deleteKey, "ok", "NotFoundException", "KEY KEY_POLICY CREDENTIAL", true, true},
	}
}

// regionReadCases are those of multi-Region keys.
func regionReadCases() []readCase {
	multi := func(w *readWorld) []byte { return w.keyBytes(w.multi) }
	lone := func(w *readWorld) []byte { return w.keyBytes(w.lone) }
	replica := func(w *readWorld) []byte { return w.replicaBytes(w.multi) }
	none := func(w *readWorld) []byte { return w.replicaBytes(w.lone) }
	replicate := func(w *readWorld) any {
		return &kmsapi.ReplicateKeyInput{KeyId: &w.lone, ReplicaRegion: new(secondRegion)}
	}
	update := func(w *readWorld) any {
		return &kmsapi.UpdatePrimaryRegionInput{KeyId: &w.multi, PrimaryRegion: new(secondRegion)}
	}
	describe := func(id func(*readWorld) *string) func(*readWorld) any {
		return func(w *readWorld) any { return &kmsapi.DescribeKeyInput{KeyId: id(w)} }
	}
	disable := func(region string, id func(*readWorld) string) func(*readWorld) {
		return func(w *readWorld) {
			w.mangleIn(region, id(w), func(k *fsmpb.Key) { k.State = fsmpb.KeyState_KEY_STATE_DISABLED })
		}
	}
	ofMulti, ofLone := func(w *readWorld) string { return w.multi }, func(w *readWorld) string { return w.lone }
	nobody := func(region string, id func(*readWorld) string) func(*readWorld) {
		return func(w *readWorld) {
			k := cloneOf(w.keyIn(region, id(w)))
			c := defaultPolicyChange(k)
			c.GetPutKeyPolicy().Document = w.policyFor(statement("Allow", testAccount, "kms:Encrypt"))
			w.cluster.change(c)
		}
	}
	const (
		kindKey    = fsmpb.Kind_KIND_KEY
		kindPolicy = fsmpb.Kind_KIND_KEY_POLICY
		all        = "KEY KEY KEY_POLICY CREDENTIAL"
		both       = "KEY KEY KEY_POLICY KEY_POLICY CREDENTIAL"
	)
	return []readCase{
		{"describe, replica deleted", "DescribeKey", describe(func(w *readWorld) *string { return &w.multi }), kindKey, replica,
			func(w *readWorld) { w.deleteIn(secondRegion, w.multi) }, "ok 1 replicas", "ok 0 replicas", all, true, true},
		{"describe, replica made", "DescribeKey", describe(func(w *readWorld) *string { return &w.lone }), kindKey, none,
			(*readWorld).putReplica, "ok 0 replicas", "ok 1 replicas", all, true, false},
		{"replicated, replica made", "ReplicateKey", replicate, kindKey, none, (*readWorld).putReplica, "ok", "AlreadyExistsException", all, true, false},
		{"replicated, primary disabled", "ReplicateKey", replicate, kindKey, lone, disable(testRegion, ofLone), "ok", "DisabledException", all, true, false},
		{"replicated, permission withdrawn", "ReplicateKey", replicate, kindPolicy, lone, nobody(testRegion, ofLone), "ok", "AccessDeniedException", all, true, false},
		{"primary moved, primary disabled", "UpdatePrimaryRegion", update, kindKey, multi, disable(testRegion, ofMulti), "ok", "DisabledException", both, true, false},
		{"primary moved, replica disabled", "UpdatePrimaryRegion", update, kindKey, replica, disable(secondRegion, ofMulti), "ok", "DisabledException", both, true, false},
		{"primary moved, no permission on the primary", "UpdatePrimaryRegion", update, kindPolicy, multi, nobody(testRegion, ofMulti), "ok", "AccessDeniedException", both, true, false},
		{"primary moved, no permission on the replica", "UpdatePrimaryRegion", update, kindPolicy, replica, nobody(secondRegion, ofMulti), "ok", "AccessDeniedException", both, true, false},
		{"primary on its way out, replica made", "ScheduleKeyDeletion", func(w *readWorld) any { return &kmsapi.ScheduleKeyDeletionInput{KeyId: &w.lone} }, kindKey, none,
			(*readWorld).putReplica, "ok PendingDeletion", "ok PendingReplicaDeletion", all, true, false},
		{"primary on its way out, replica deleted", "ScheduleKeyDeletion", func(w *readWorld) any { return &kmsapi.ScheduleKeyDeletionInput{KeyId: &w.multi} }, kindKey, replica,
			func(w *readWorld) { w.deleteIn(secondRegion, w.multi) }, "ok PendingReplicaDeletion", "ok PendingDeletion", all, true, true},
		{"last usage, permission withdrawn", "GetKeyLastUsage", func(w *readWorld) any { return &kmsapi.GetKeyLastUsageInput{KeyId: &w.id} }, kindPolicy,
			func(w *readWorld) []byte { return w.keyBytes(w.id) }, func(w *readWorld) { w.deny(w.id) }, "ok", "AccessDeniedException", "KEY KEY_POLICY CREDENTIAL", false, false},
		{"multi-Region key made", "CreateKey", func(*readWorld) any { return &kmsapi.CreateKeyInput{MultiRegion: new(true)} }, 0, nil, nil, "ok", "", "KEY KEY CREDENTIAL", true, false},
		{"decrypt of another Region's key", "Decrypt", func(w *readWorld) any { return &kmsapi.DecryptInput{CiphertextBlob: w.elsewhere} }, 0, nil, nil,
			"AccessDeniedException", "", "KEY KEY CREDENTIAL TOMBSTONE TOMBSTONE", false, false},
	}
}

// denials become answers when authority is added.
func denialCases() []readCase {
	key := func(w *readWorld) []byte { return w.keyBytes(w.id) }
	absent := "alias/later"
	return []readCase{
		{"denied, then allowed", "Encrypt", func(w *readWorld) any {
			w.deny(w.id)
			return &kmsapi.EncryptInput{KeyId: &w.id, Plaintext: []byte("x")}
		}, fsmpb.Kind_KIND_KEY_POLICY, key, func(w *readWorld) {
			w.setPolicy(w.id, w.policyFor(rootStatement, statement("Allow", aliceARN, "kms:*")))
		}, "AccessDeniedException", "ok", "KEY KEY_POLICY CREDENTIAL KEY_GRANTS", false, false},
		{"disabled, then enabled", "Encrypt", func(w *readWorld) any {
			w.disable()
			return &kmsapi.EncryptInput{KeyId: &w.id, Plaintext: []byte("x")}
		}, fsmpb.Kind_KIND_KEY, key, func(w *readWorld) {
			w.mangle(w.id, func(k *fsmpb.Key) { k.State = fsmpb.KeyState_KEY_STATE_ENABLED })
		}, "DisabledException", "ok", "KEY KEY_POLICY CREDENTIAL", false, false},
		{"no such alias, then made", "Encrypt", func(*readWorld) any { return &kmsapi.EncryptInput{KeyId: &absent, Plaintext: []byte("x")} },
			fsmpb.Kind_KIND_ALIAS, func(*readWorld) []byte { return fsm.AliasID(testAccountNumber, testRegion, absent) }, func(w *readWorld) {
				k := w.keyID(w.id)
				w.cluster.change(&fsmpb.Change{Change: &fsmpb.Change_PutAlias{PutAlias: &fsmpb.Alias{Account: uint64(testAccountNumber), Name: absent, Region: testRegion, Key: k.ID[:]}}})
			}, "NotFoundException", "ok", "ALIAS CREDENTIAL", false, false},
		{"decrypt of a deleted key", "Decrypt", func(w *readWorld) any {
			w.deleteKey()
			return &kmsapi.DecryptInput{CiphertextBlob: w.blob}
		}, 0, nil, nil, "AccessDeniedException", "", "KEY CREDENTIAL TOMBSTONE", false, false},
		{"decrypt of something else", "Decrypt", func(*readWorld) any { return &kmsapi.DecryptInput{CiphertextBlob: []byte("x")} }, 0, nil, nil, "InvalidCiphertextException", "", "CREDENTIAL", false, false},
		{"invalid input", "Encrypt", func(*readWorld) any { return &kmsapi.EncryptInput{} }, 0, nil, nil, "ValidationException", "", "CREDENTIAL", false, false},
		{"random", "GenerateRandom", func(*readWorld) any { return &kmsapi.GenerateRandomInput{NumberOfBytes: new(int32(1))} }, 0, nil, nil, "AccessDeniedException", "", "CREDENTIAL", false, false},
	}
}

// TestReadSets shows for each object that an outcome depends on that the read
// set has it: a change between evaluation and commit changes the answer. And that
// it must: with that one read taken out of the record, the outdated answer gets
// through, unless the state machine refuses the record, since it changes what it did
// not read, or has become impossible. The whole read set is compared too, so that
// nothing is in it in vain.
func TestReadSets(t *testing.T) {
	for _, tt := range slices.Concat(readCases(), materialReadCases(), rootReadCases(), regionReadCases(), storeReadCases(), denialCases(), asymmetricReadCases(), grantReadCases()) {
		t.Run(tt.name, func(t *testing.T) {
			got, reads, _ := tt.run(t, false, false)
			if got != tt.before {
				t.Fatalf("undisturbed: %s, want %s", got, tt.before)
			}
			if reads != tt.reads {
				t.Errorf("read set is %s, want %s", reads, tt.reads)
			}
			if tt.mutate == nil {
				return
			}
			got, _, records := tt.run(t, true, false)
			if got != tt.after {
				t.Errorf("after the change: %s, want %s", got, tt.after)
			}
			if want := map[bool]int{true: 0, false: 1}[tt.after == "UnrecognizedClientException"]; records != want {
				t.Errorf("the request left %d records, want %d", records, want)
			}
			if got, _, _ = tt.run(t, true, true); got != tt.before && got != "refused" {
				t.Errorf("without that read in the record: %s; the case does not show that %v is needed", got, tt.kind)
			}
		})
	}
}

// run makes the request in a new world: as it is, with the change between the
// first evaluation and its commit, and with the reads of what changed taken out
// of the record too.
func (tt *readCase) run(t *testing.T, mutate, strip bool) (outcome, reads string, records int) {
	w := newReadWorld(t)
	in := tt.in(w)
	who := w.alice
	if tt.root {
		who = w.root
	}
	size := w.cluster.audit.Size()
	first := true
	w.cluster.replica("n1").before = func(rec *fsmpb.Record) {
		if !first {
			return
		}
		first = false
		reads = kindsOf(rec)
		if !mutate {
			return
		}
		if strip {
			id := tt.object(w)
			rec.Reads = slices.DeleteFunc(rec.Reads, func(r *fsmpb.Read) bool {
				return string(r.Id) == string(id) && (r.Kind == tt.kind || tt.destroys)
			})
			w.cluster.hostile = len(rec.Changes) > 0
		}
		tt.mutate(w)
		size, w.cluster.broken = w.cluster.audit.Size(), ""
	}
	out, err := w.first.Do(t.Context(), w.caller(who), OperationNamed(tt.op), in)
	if w.cluster.broken != "" && errors.Is(err, kmsapi.ErrInternal) {
		return "refused", reads, 0
	}
	return w.outcome(out, err), reads, int(w.cluster.audit.Size() - size)
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

// outcome puts what tells the cases' answers apart into a word or two.
func (w *readWorld) outcome(out any, err error) string {
	if e, ok := errors.AsType[*kmsapi.Error](err); ok {
		return string(e.Code)
	}
	switch out := out.(type) {
	case *kmsapi.EncryptOutput:
		if strings.HasSuffix(*out.KeyId, w.other) {
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
