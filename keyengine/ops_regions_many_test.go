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

// TestManyRegions: with as many Regions as there can be, what looks at all of them
// still fits a record, and so does a change of the largest set of keys.
func TestManyRegions(t *testing.T) {
	t.Parallel()
	regions := []string{testRegion}
	for i := 1; len(regions) < ceremony.MaxRegions; i++ {
		regions = append(regions, fmt.Sprintf("us-south-%d", i))
	}
	r := newRoomIn(t, regions)
	id := r.newMultiKey(kmsapi.CreateKeyInput{}, regions[1:ops.MaxSet]...)
	_, err := call[kmsapi.ReplicateKeyOutput](r, "ReplicateKey", &kmsapi.ReplicateKeyInput{KeyId: &id, ReplicaRegion: &regions[ops.MaxSet]})
	wantError(t, err, kmsapi.ErrLimitExceeded, *r.describeIn(testRegion, id).Arn+" has keys in 12 Regions and cannot have more.")

	blob := must[kmsapi.EncryptOutput](r, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")}).CiphertextBlob
	must[kmsapi.RotateKeyOnDemandOutput](r, "RotateKeyOnDemand", &kmsapi.RotateKeyOnDemandInput{KeyId: &id})
	must[request.None](r, "UpdatePrimaryRegion", &kmsapi.UpdatePrimaryRegionInput{KeyId: &id, PrimaryRegion: &regions[1]})
	last := regions[ops.MaxSet-1]
	if got := mustIn[kmsapi.DecryptOutput](r, last, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob}).Plaintext; !bytes.Equal(got, []byte("x")) {
		t.Errorf("decrypted %q in %s", got, last)
	}
	// Of no key: all Regions are asked.
	key := r.keyID(id).ID
	stray := bytes.Replace(blob, key[:], bytes.Repeat([]byte{7}, len(key)), 1)
	_, err = call[kmsapi.DecryptOutput](r, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: stray})
	wantError(t, err, kmsapi.ErrInvalidCiphertext, "")
	if n := len(mustIn[kmsapi.ListKeysOutput](r, regions[ceremony.MaxRegions-1], "ListKeys", &kmsapi.ListKeysInput{}).Keys); n != 0 {
		t.Errorf("%d keys in a Region that has none", n)
	}
}
