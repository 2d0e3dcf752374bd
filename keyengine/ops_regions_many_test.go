package keyengine

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/internal/ops"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// With the maximum number of Regions, requests that read something of all of them still fit into a
// record, and so does a change of the largest set of keys.
func TestManyRegions(t *testing.T) {
	t.Parallel()
	regions := []string{testRegion}
	for i := 1; len(regions) < ceremony.MaxRegions; i++ {
		regions = append(regions, fmt.Sprintf("us-south-%d", i))
	}
	c := newTestCluster(t, withRegions(regions...))
	id := c.newMultiKey(kmsapi.CreateKeyInput{}, regions[1:ops.MaxSet]...)
	_, err := call[kmsapi.ReplicateKeyOutput](c, "ReplicateKey", &kmsapi.ReplicateKeyInput{KeyId: &id, ReplicaRegion: &regions[ops.MaxSet]})
	wantError(t, err, kmsapi.ErrLimitExceeded, *c.describeIn(testRegion, id).Arn+" has keys in 12 Regions and cannot have more.")

	blob := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")}).CiphertextBlob
	must[kmsapi.RotateKeyOnDemandOutput](c, "RotateKeyOnDemand", &kmsapi.RotateKeyOnDemandInput{KeyId: &id})
	must[request.None](c, "UpdatePrimaryRegion", &kmsapi.UpdatePrimaryRegionInput{KeyId: &id, PrimaryRegion: &regions[1]})
	last := regions[ops.MaxSet-1]
	if got := mustIn[kmsapi.DecryptOutput](c, last, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob}).Plaintext; !bytes.Equal(got, []byte("x")) {
		t.Errorf("Decrypt in %s returned %q, want x", last, got)
	}
	// A ciphertext of a key that does not exist, which is looked for in all Regions.
	key := c.keyID(id).ID
	stray := bytes.Replace(blob, key[:], bytes.Repeat([]byte{7}, len(key)), 1)
	_, err = call[kmsapi.DecryptOutput](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: stray})
	wantError(t, err, kmsapi.ErrInvalidCiphertext, "")
	if n := len(mustIn[kmsapi.ListKeysOutput](c, regions[ceremony.MaxRegions-1], "ListKeys", &kmsapi.ListKeysInput{}).Keys); n != 0 {
		t.Errorf("got %d keys in a Region without keys", n)
	}
}
