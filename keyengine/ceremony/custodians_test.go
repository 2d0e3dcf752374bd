package ceremony_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/custodian"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// keepers returns custodians with new keys.
func keepers(t *testing.T, names ...string) (keys []ceremony.CustodianKey, private []*custodian.PrivateKey) {
	t.Helper()
	for _, name := range names {
		p, err := custodian.Generate()
		if err != nil {
			t.Fatal(err)
		}
		keys, private = append(keys, ceremony.CustodianKey{Name: name, Key: []byte(p.Public())}), append(private, p)
	}
	return keys, private
}

// TestEncryptedShares: with custodians, Init returns no share but encrypted ones, each of which
// its custodian alone can decrypt, and the record says who they are.
func TestEncryptedShares(t *testing.T) {
	t.Parallel()
	c := enginetest.NewCluster(t, 1)
	e := c.NewNode("n1")
	p := enginetest.InitParams(0, 2)
	var private []*custodian.PrivateKey
	p.Custodians, private = keepers(t, "alice", "bob", "Çağrı")
	res := e.Initialise(p)
	if n := e.MemoryInUse(); n != 0 {
		t.Errorf("%d slots of locked memory are in use after Init", n)
	}
	if res.Shares != nil || len(res.EncryptedShares) != 3 || len(res.ShareSet.Commitments) != 3 {
		t.Fatalf("got %d shares in the clear, %d encrypted, %d commitments", len(res.Shares), len(res.EncryptedShares), len(res.ShareSet.Commitments))
	}
	var shares []string
	for i, s := range res.EncryptedShares {
		key, err := custodian.Parse(p.Custodians[i].Key, c.Clock.Now())
		if err != nil {
			t.Fatal(err)
		}
		want := ceremony.EncryptedShare{
			Index: i + 1, Kind: custodian.HPKE, Text: s.Text,
			Custodian: ceremony.NamedCustodian{Name: p.Custodians[i].Name, KeyFingerprint: key.Fingerprint()},
		}
		if d := cmp.Diff(want, s); d != "" {
			t.Errorf("share %d (-want +got):\n%s", i+1, d)
		}
		for j, other := range private {
			text, err := other.Decrypt([]byte(s.Text))
			if (err == nil) != (i == j) {
				t.Errorf("share %d by key %d: %v", i+1, j+1, err)
			}
			if i == j {
				shares = append(shares, string(text))
			}
		}
	}
	c.SignEntries(shares)
	e.Unseal(shares[2], shares[0])
	recorded := make(map[string]string)
	for _, f := range e.Records()[0].RequestParameters {
		recorded[f.Name] = fmt.Sprint(f.GetNumber(), f.GetList().GetItems())
	}
	if recorded["shares"] != "3 []" || recorded["custodians"] != "0 [alice bob Çağrı]" || !strings.Contains(recorded["keyFingerprints"], res.EncryptedShares[2].Custodian.KeyFingerprint) {
		t.Errorf("recorded: %v", recorded)
	}
	if c.State().Level() == 1 && e.SealStatus().ShareSet.Custodians != nil {
		t.Error("names are in the state below level 2")
	}
}

// TestEncryptedSharesAndAnswerKey: what is encrypted to the answer key has no share then.
func TestEncryptedSharesAndAnswerKey(t *testing.T) {
	t.Parallel()
	e := enginetest.NewCluster(t, 1).NewNode("n1")
	p := enginetest.InitParams(2, 2)
	p.Custodians, _ = keepers(t, "alice", "bob")
	r, err := keymat.NewReceiver(e.Vault.Arena())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Destroy()
	p.AnswerKey = r.Public()
	res := e.Initialise(p)
	message, err := r.Open([]byte("conclave init v1\x00"+res.ClusterID), res.SealedSecrets)
	if err != nil {
		t.Fatal(err)
	}
	defer message.Destroy()
	_ = message.With(func(b []byte) error {
		if strings.Contains(string(b), "conclave-share") || len(b) > 60 {
			t.Errorf("the secrets have %d bytes, want those of an access key only", len(b))
		}
		return nil
	})
}

func TestCustodiansAreChecked(t *testing.T) {
	t.Parallel()
	e := enginetest.NewCluster(t, 1).NewNode("n1")
	keys, _ := keepers(t, "alice", "bob", "carol")
	many, _ := keepers(t, strings.Split(strings.Repeat("x,", 16)+"x", ",")...)
	for want, edit := range map[string]func(*ceremony.InitParams){
		"that of the custodians":   func(p *ceremony.InitParams) { p.Shares = 4 },
		"16 custodians at most":    func(p *ceremony.InitParams) { p.Custodians = many },
		"two custodians":           func(p *ceremony.InitParams) { p.Custodians[1].Name = "alice" },
		"have the same key":        func(p *ceremony.InitParams) { p.Custodians[1].Key = keys[0].Key },
		`key of custodian "carol"`: func(p *ceremony.InitParams) { p.Custodians[2].Key = []byte("ssh-ed25519 AAAA") },
		"printable":                func(p *ceremony.InitParams) { p.Custodians[2].Name = "\x1b[2J" },
		"the threshold":            func(p *ceremony.InitParams) { p.Threshold = 4 },
	} {
		p := enginetest.InitParams(0, 2)
		p.Custodians = append([]ceremony.CustodianKey(nil), keys...)
		edit(&p)
		if _, err := e.Init(t.Context(), enginetest.Operator, p); !errors.Is(err, kmsapi.ErrValidation) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error with %q", err, want)
		}
	}
}

// TestNameCustodians: operators say who keeps the shares, once the feature level allows it. It
// is recorded, changes nothing else, and is in the status of ceremonies.
func TestNameCustodians(t *testing.T) {
	t.Parallel()
	c, e, res := unsealedNode(t)
	names := []ceremony.NamedCustodian{{Name: "alice", KeyFingerprint: "sha256:00"}, {Name: "bob"}, {Name: "carol"}}
	if _, err := e.NameCustodians(t.Context(), enginetest.Operator, names); !errors.Is(err, kmsapi.ErrUnsupported) || !strings.Contains(err.Error(), "conclave cluster upgrade finalize") {
		t.Errorf("below level 2: %v", err)
	}
	if _, _, err := e.FinalizeUpgrade(t.Context(), enginetest.Operator, func(context.Context) (uint32, []string) { return 2, nil }); err != nil {
		t.Fatal(err)
	}
	for i, bad := range [][]ceremony.NamedCustodian{
		nil, names[:2], append(names[:3:3], ceremony.NamedCustodian{Name: "dave"}), {names[0], names[0], names[2]}, {names[0], names[1], {Name: ""}},
		{names[0], names[1], {Name: "carol", KeyFingerprint: "\x00"}}, {names[0], names[1], {Name: "carol", KeyFingerprint: strings.Repeat("a", 129)}},
	} {
		if _, err := e.NameCustodians(t.Context(), enginetest.Operator, bad); !errors.Is(err, kmsapi.ErrValidation) {
			t.Errorf("case %d: %v", i, err)
		}
	}
	before := len(e.Records())
	for i, want := range []bool{true, false} {
		if changed, err := e.NameCustodians(t.Context(), enginetest.Operator, names); err != nil || changed != want {
			t.Errorf("call %d: changed %v, %v", i, changed, err)
		}
	}
	records := e.Records()
	if len(records) != before+1 || records[before].EventName != "NameCustodians" || records[before].GetIdentity().GetPrincipalId() != enginetest.Operator.Name {
		t.Errorf("recorded: %v", records[before:])
	}
	if d := cmp.Diff(names, e.SealStatus().ShareSet.Custodians); d != "" {
		t.Errorf("the status (-want +got):\n%s", d)
	}
	b, err := e.BeginBreakGlass(t.Context(), enginetest.Operator, ceremony.BreakGlassParams{Reason: "test"})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(names, b.ShareSet.Custodians); d != "" {
		t.Errorf("the break-glass ceremony (-want +got):\n%s", d)
	}
	// The shares are still those of Init.
	if err := e.Seal(t.Context(), enginetest.Operator); err != nil {
		t.Fatal(err)
	}
	if _, err := e.NameCustodians(t.Context(), enginetest.Operator, names); !errors.Is(err, kmsapi.ErrUnavailable) {
		t.Errorf("on a sealed node: %v", err)
	}
	e.Unseal(res.Shares[1], res.Shares[2])
	if d := cmp.Diff(res.ShareSet.Commitments, e.SealStatus().ShareSet.Commitments); d != "" || c.State().Level() != 2 {
		t.Errorf("the commitments (-want +got):\n%s", d)
	}
}
