package keyengine

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/ops"
	"github.com/conclavekms/conclave/keyengine/internal/primitive"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

// This file has the methods of testCluster with which tests make keys, look at them, and
// change them in the state without a request.

const (
	secondRegion = "eu-central-1"
	thirdRegion  = "us-east-2"
)

// threeRegions returns Regions for withRegions. They are not in ascending order.
func threeRegions() []string { return []string{testRegion, thirdRegion, secondRegion} }

const (
	aliceARN = "arn:aws:iam::" + testAccount + ":user/alice"
	bobARN   = "arn:aws:iam::" + testAccount + ":user/bob"
	carolARN = "arn:aws:iam::" + testAccount + ":user/carol"
)

// newKey creates a symmetric key.
func (c *testCluster) newKey() (id, arn string) {
	c.t.Helper()
	m := must[kmsapi.CreateKeyOutput](c, "CreateKey", &kmsapi.CreateKeyInput{}).KeyMetadata
	return *m.KeyId, *m.Arn
}

// newKeyOf creates a key of a spec for a usage.
func (c *testCluster) newKeyOf(spec, usage string) (id, arn string) {
	c.t.Helper()
	m := must[kmsapi.CreateKeyOutput](c, "CreateKey", &kmsapi.CreateKeyInput{KeySpec: &spec, KeyUsage: &usage}).KeyMetadata
	return *m.KeyId, *m.Arn
}

// newKeyForImport creates a key whose material is to be imported.
func (c *testCluster) newKeyForImport(spec, usage string) (id, arn string) {
	c.t.Helper()
	m := must[kmsapi.CreateKeyOutput](c, "CreateKey", &kmsapi.CreateKeyInput{KeySpec: &spec, KeyUsage: &usage, Origin: new(kmsapi.OriginImported)}).KeyMetadata
	return *m.KeyId, *m.Arn
}

// newKeyWithMaterial creates a key for imported material and gives it some.
func (c *testCluster) newKeyWithMaterial(spec, usage string, material []byte) (id, arn string) {
	c.t.Helper()
	id, arn = c.newKeyForImport(spec, usage)
	c.setMaterial(id, material)
	return id, arn
}

// newMultiKey creates a multi-Region key with replicas in the given Regions.
func (c *testCluster) newMultiKey(in kmsapi.CreateKeyInput, replicas ...string) string {
	c.t.Helper()
	in.MultiRegion = new(true)
	id := *must[kmsapi.CreateKeyOutput](c, "CreateKey", &in).KeyMetadata.KeyId
	for _, region := range replicas {
		must[kmsapi.ReplicateKeyOutput](c, "ReplicateKey", &kmsapi.ReplicateKeyInput{KeyId: &id, ReplicaRegion: new(region)})
	}
	return id
}

// keyID parses the id of a key in testRegion.
func (c *testCluster) keyID(id string) fsm.KeyID {
	c.t.Helper()
	b, _, ok := request.ParseKeyID(id)
	if !ok {
		c.t.Fatalf("invalid key id %q", id)
	}
	return fsm.KeyID{Account: testAccountNumber, Region: testRegion, ID: b}
}

// keyIn returns a key of a Region from the state, or nil if it does not exist.
func (c *testCluster) keyIn(region, id string) *fsmpb.Key {
	c.t.Helper()
	k, _ := c.State().Key(fsm.KeyID{Account: testAccountNumber, Region: region, ID: c.keyID(id).ID})
	return k
}

// storedKey returns a key of testRegion from the state. It fails the test if the key does not
// exist.
func (c *testCluster) storedKey(id string) *fsmpb.Key {
	c.t.Helper()
	k := c.keyIn(testRegion, id)
	if k == nil {
		c.t.Fatalf("key %s does not exist", id)
	}
	return k
}

// describe returns the answer of DescribeKey.
func (c *testCluster) describe(id string) *kmsapi.KeyMetadata {
	c.t.Helper()
	return c.describeIn(testRegion, id)
}

func (c *testCluster) describeIn(region, id string) *kmsapi.KeyMetadata {
	c.t.Helper()
	return mustIn[kmsapi.DescribeKeyOutput](c, region, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &id}).KeyMetadata
}

func (c *testCluster) wantKeyState(id, state string) {
	c.t.Helper()
	if got := *c.describe(id).KeyState; got != state {
		c.t.Errorf("key %s is %s, want %s", id, got, state)
	}
}

func (c *testCluster) currentMaterialID(id string) string {
	c.t.Helper()
	return *c.describe(id).CurrentKeyMaterialId
}

func (c *testCluster) publicKey(id string) []byte {
	c.t.Helper()
	return must[kmsapi.GetPublicKeyOutput](c, "GetPublicKey", &kmsapi.GetPublicKeyInput{KeyId: &id}).PublicKey
}

// encrypt encrypts with a symmetric key.
func (c *testCluster) encrypt(id, plaintext string) []byte {
	c.t.Helper()
	return must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte(plaintext)}).CiphertextBlob
}

// wantDecrypt decrypts a ciphertext, checks the plaintext, and returns the id of the material
// that Decrypt used.
func (c *testCluster) wantDecrypt(blob []byte, plaintext string) (materialID string) {
	c.t.Helper()
	out := must[kmsapi.DecryptOutput](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob})
	if string(out.Plaintext) != plaintext {
		c.t.Errorf("Decrypt returned plaintext %q, want %q", out.Plaintext, plaintext)
	}
	return *out.KeyMaterialId
}

// signInput returns a request to sign with a key of ECC_NIST_P256.
func (c *testCluster) signInput(id string) *kmsapi.SignInput {
	return &kmsapi.SignInput{KeyId: &id, Message: []byte("m"), SigningAlgorithm: new("ECDSA_SHA_256")}
}

// macInput returns a request to make a MAC with a key of HMAC_256.
func (c *testCluster) macInput(id string) *kmsapi.GenerateMacInput {
	return &kmsapi.GenerateMacInput{KeyId: &id, Message: []byte("m"), MacAlgorithm: new("HMAC_SHA_256")}
}

func putKeyChange(k *fsmpb.Key) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_PutKey{PutKey: k}}
}

func defaultPolicyChange(k *fsmpb.Key) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_PutKeyPolicy{
		PutKeyPolicy: &fsmpb.KeyPolicy{Account: uint64(testAccountNumber), Key: k.Id, Region: k.Region, Document: policy.DefaultKeyPolicy("aws", testAccount)},
	}}
}

// modifyKey changes a key of testRegion in the state.
func (c *testCluster) modifyKey(id string, f func(*fsmpb.Key)) {
	c.t.Helper()
	c.modifyKeyIn(testRegion, id, f)
}

// modifyKeyIn changes a key of a Region in the state.
func (c *testCluster) modifyKeyIn(region, id string, f func(*fsmpb.Key)) {
	c.t.Helper()
	k := proto.CloneOf(c.keyIn(region, id))
	f(k)
	c.Change(putKeyChange(k))
}

// copyKey adds a copy of a key to the state, with a new id and with what edit changes.
func (c *testCluster) copyKey(id string, edit func(*fsmpb.Key)) string {
	c.t.Helper()
	k := proto.CloneOf(c.storedKey(id))
	k.Id = make([]byte, 16)
	rand.Read(k.Id)
	edit(k)
	c.Change(putKeyChange(k), defaultPolicyChange(k))
	return request.FormatKeyID([16]byte(k.Id), k.MultiRegion)
}

// copyKeyWithMaterial adds a copy of a key with other material to the state. It is for kinds
// of keys whose material cannot be imported.
func (c *testCluster) copyKeyWithMaterial(id string, material []byte) string {
	c.t.Helper()
	return c.copyKey(id, func(k *fsmpb.Key) {
		m := c.wrapMaterial(k, material)
		if err := c.engine.vault.WrapAgain(k, m, material); err != nil {
			c.t.Fatalf("wrapping: %v", err)
		}
		k.Materials = []*fsmpb.Material{m}
	})
}

// setMaterial gives material to a key for imported material, in each Region that has the key,
// as if it had been imported.
func (c *testCluster) setMaterial(id string, material []byte) {
	c.t.Helper()
	var first *fsmpb.Material
	for _, region := range threeRegions() {
		was := c.keyIn(region, id)
		if was == nil {
			continue
		}
		k := proto.CloneOf(was)
		if first == nil {
			first = c.wrapMaterial(k, material)
		}
		m := ops.SameMaterial(k, first)
		if m == nil {
			m = proto.CloneOf(first)
			m.Pending = len(k.Materials) > 0
			k.Materials = append(k.Materials, m)
		}
		if known := ops.SameMaterial(was, first); known == nil || len(known.Wrapped) == 0 {
			if err := c.engine.vault.WrapAgain(k, m, material); err != nil {
				c.t.Fatalf("wrapping: %v", err)
			}
		}
		k.State = fsmpb.KeyState_KEY_STATE_ENABLED
		c.Change(putKeyChange(k))
	}
}

// wrapMaterial returns wrapped material for a key, with its public key if it has one.
func (c *testCluster) wrapMaterial(k *fsmpb.Key, material []byte) *fsmpb.Material {
	c.t.Helper()
	m, err := c.engine.vault.GivenMaterial(k, c.Clock.Now().UnixNano(), bytes.Clone(material))
	if err == nil && k.Spec != kmsapi.SpecSymmetric {
		m.PublicKey, err = primitive.Public(k.Spec, material)
	}
	if err != nil {
		c.t.Fatalf("wrapping: %v", err)
	}
	return m
}

const week = 7 * 24 * time.Hour

// inAWeek returns the earliest time for which the deletion of a key can be scheduled now.
func (c *testCluster) inAWeek() int64 { return c.Clock.Now().Add(week).UnixNano() }

// scheduleDeletionIn schedules the deletion of a key of a Region in a week.
func (c *testCluster) scheduleDeletionIn(region, id string) {
	c.t.Helper()
	c.modifyKeyIn(region, id, func(k *fsmpb.Key) {
		k.State, k.DeletionTime, k.DeletionDays = fsmpb.KeyState_KEY_STATE_PENDING_DELETION, c.inAWeek(), 0
	})
}

// deleteKeyIn deletes a key of a Region. It moves the clock to the time for which the deletion
// is scheduled, which is in a week if it is not scheduled yet.
func (c *testCluster) deleteKeyIn(region, id string) {
	c.t.Helper()
	if c.keyIn(region, id).State != fsmpb.KeyState_KEY_STATE_PENDING_DELETION {
		c.scheduleDeletionIn(region, id)
	}
	due := c.keyIn(region, id).DeletionTime
	c.Advance(max(0, time.Duration(due-c.State().Time())))
	k := c.keyID(id)
	c.Change(&fsmpb.Change{Change: &fsmpb.Change_DeleteKey{DeleteKey: &fsmpb.DeleteKey{Account: uint64(testAccountNumber), Key: k.ID[:], Region: region}}})
}

// rootStatement is a statement of a key policy that allows the root user everything.
const rootStatement = `{"Sid":"root","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::` + testAccount + `:root"},"Action":"kms:*","Resource":"*"}`

// statement returns a statement of a key policy. PutKeyPolicy refuses policies that name
// principals who do not exist; setPolicy does not.
func statement(effect, principal, action string) string {
	return fmt.Sprintf(`{"Effect":%q,"Principal":{"AWS":%q},"Action":%q,"Resource":"*"}`, effect, principal, action)
}

func policyDocument(statements ...string) string {
	return `{"Version":"2012-10-17","Statement":[` + strings.Join(statements, ",") + `]}`
}

// brokenPolicy is a policy that cannot be parsed.
const brokenPolicy = "{}"

// setPolicy sets the policy of a key of testRegion in the state.
func (c *testCluster) setPolicy(id string, doc string) {
	c.t.Helper()
	c.setPolicyIn(testRegion, id, doc)
}

func (c *testCluster) setPolicyIn(region, id string, doc string) {
	c.t.Helper()
	p, k := &fsmpb.KeyPolicy{Region: region, Document: doc}, c.keyID(id)
	p.Account, p.Key = uint64(testAccountNumber), k.ID[:]
	if doc != brokenPolicy {
		p.Bindings = c.bindings(policy.KeyPolicy, doc)
	}
	c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutKeyPolicy{PutKeyPolicy: p}})
}
