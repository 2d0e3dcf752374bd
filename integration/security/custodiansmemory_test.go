package security

import (
	"context"
	"io"
	"runtime"
	"strings"
	"testing"

	"filippo.io/age"
	"filippo.io/age/armor"

	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/keyengine/custodian"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// TestCustodiansMemory searches the memory of a node that has encrypted shares to custodians,
// for HPKE and for age: nothing of them may be left.
func TestCustodiansMemory(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("there is no /proc")
	}
	c := harness.Start(t, 1, harness.Options{Processes: true})
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	req := &kmspb.InitRequest{Threshold: 3, Account: harness.Account, Region: harness.Region, Partition: "aws"}
	var private []*custodian.PrivateKey
	for _, name := range []string{"alice", "bob", "carol"} {
		p, err := custodian.Generate()
		if err != nil {
			t.Fatal(err)
		}
		private = append(private, p)
		req.Custodians = append(req.Custodians, &kmspb.CustodianKey{Name: name, PublicKey: []byte(p.Public())})
	}
	req.Custodians = append(req.Custodians, &kmspb.CustodianKey{Name: "dave", PublicKey: []byte(identity.Recipient().String())})
	var res *kmspb.InitResponse
	c.Eventually("initialising", func(ctx context.Context) (err error) {
		res, _, err = client.Init(ctx, c.Nodes[0].Operator(), req)
		return err
	})
	var shares secrets
	for i, s := range res.GetEncryptedShares() {
		if i < len(private) {
			text, err := private[i].Decrypt([]byte(s.GetText()))
			if err != nil {
				t.Fatal(err)
			}
			shares.AddShare(t, s.GetCustodian(), string(text))
			continue
		}
		r, err := age.Decrypt(armor.NewReader(strings.NewReader(s.GetText())), identity)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		shares.AddShare(t, s.GetCustodian(), string(text))
	}
	report(t, "after init", inMemory(t, &shares.Set, c.Nodes[0].PID()))
}
