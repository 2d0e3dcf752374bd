package keyengine

import (
	"context"
	"errors"
	"testing"

	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/internal/ops"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// An engine plants no keys unless its configuration allows it.
func TestPlantNeedsDevelopment(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	s := ops.Seed{ID: "1234abcd-12ab-34cd-56ef-1234567890ab", Material: []byte("0123456789abcdef0123456789abcdef")}
	if made, err := c.engine.Plant(context.Background(), ceremony.Operator{Name: "root"}, s); made || !errors.Is(err, ErrNoSeeds) {
		t.Errorf("Plant: got %v, error %v; want ErrNoSeeds", made, err)
	}
	if s.Material[0] != 0 {
		t.Error("the material was not wiped")
	}
	if n := len(must[kmsapi.ListKeysOutput](c, "ListKeys", &kmsapi.ListKeysInput{}).Keys); n != 0 {
		t.Errorf("there are %d keys, want 0", n)
	}
}

func TestPlant(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withRegions(threeRegions()...))
	c.engine.cfg.Seeds = true
	op, ctx := ceremony.Operator{Name: "root"}, context.Background()
	const id = "1234abcd-12ab-34cd-56ef-1234567890ab"
	seed := func() ops.Seed {
		return ops.Seed{ID: id, Region: secondRegion, Material: []byte("0123456789abcdef0123456789abcdef"), Aliases: []string{"alias/a"}}
	}
	for _, want := range []bool{true, false} { // what is there stays
		if made, err := c.engine.Plant(ctx, op, seed()); made != want || err != nil {
			t.Fatalf("Plant: got %v, error %v; want %v", made, err, want)
		}
	}
	if rec := c.lastRecord(); rec.EventName != "PlantKey" || rec.Region != secondRegion || rec.Resources[0].Arn != multiARN(secondRegion, id) {
		t.Errorf("unexpected record: %v", rec)
	}
	m := c.describeIn(secondRegion, "alias/a")
	if *m.KeyId != id || *m.Origin != "AWS_KMS" {
		t.Errorf("unexpected key: %v", m)
	}
	blob := mustIn[kmsapi.EncryptOutput](c, secondRegion, "Encrypt", &kmsapi.EncryptInput{KeyId: new(id), Plaintext: []byte("x")}).CiphertextBlob
	if got := mustIn[kmsapi.DecryptOutput](c, secondRegion, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob}).Plaintext; string(got) != "x" {
		t.Errorf("Decrypt returned %q, want x", got)
	}
	for name, spoil := range map[string]func(*ops.Seed){
		"id":         func(s *ops.Seed) { s.ID = "x" },
		"region":     func(s *ops.Seed) { s.Region = "ap-south-1" },
		"spec":       func(s *ops.Seed) { s.Spec = "AES_512"; s.Usage = kmsapi.UsageEncrypt },
		"usage":      func(s *ops.Seed) { s.Spec = "HMAC_256"; s.Usage = kmsapi.UsageEncrypt },
		"no usage":   func(s *ops.Seed) { s.Spec = "HMAC_256" },
		"material":   func(s *ops.Seed) { s.Material = []byte("short") },
		"zeros":      func(s *ops.Seed) { s.Material = make([]byte, 32) },
		"alias":      func(s *ops.Seed) { s.Aliases = []string{"alias/aws/x"} },
		"alias used": func(s *ops.Seed) { s.Aliases = []string{"alias/a"} },
		"aliases":    func(s *ops.Seed) { s.Aliases = make([]string, ops.MaxSeedAliases+1) },
		"policy":     func(s *ops.Seed) { s.Policy = "{" },
		"tag":        func(s *ops.Seed) { s.Tags = map[string]string{"aws:x": ""} },
	} {
		s := seed()
		s.ID, s.Aliases = "2234abcd-12ab-34cd-56ef-1234567890ab", nil
		spoil(&s)
		if made, err := c.engine.Plant(ctx, op, s); made || err == nil {
			t.Errorf("Plant accepts an invalid %s", name)
		}
	}
	c.deleteKeyIn(secondRegion, id)
	if made, err := c.engine.Plant(ctx, op, seed()); made || !errors.Is(err, kmsapi.ErrInvalidState) {
		t.Errorf("Plant of a deleted key: got %v, error %v; want KMSInvalidStateException", made, err)
	}
}
