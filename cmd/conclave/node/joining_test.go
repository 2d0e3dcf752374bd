package node

import (
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/cluster/pki"
)

// TestImportedCA: the cluster takes only a CA that its nodes trust, that is valid, and whose key
// is the one that belongs to it. Another one would sign certificates that every node refuses.
func TestImportedCA(t *testing.T) {
	newCA := func() (ca *pki.CA, cert, key []byte) {
		ca, err := pki.NewCA("test", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if cert, key, err = ca.DER(); err != nil {
			t.Fatal(err)
		}
		return ca, cert, key
	}
	ca, cert, key := newCA()
	_, foreign, foreignKey := newCA()
	leaf, leafKey, err := ca.Issue(pki.IssueRequest{Kind: pki.KindNode, Name: "n1", Validity: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	id, err := pki.NewIdentity(leaf, leafKey, ca.CertPEM())
	if err != nil {
		t.Fatal(err)
	}
	c := nodeCA{id}
	for name, v := range map[string]struct {
		cert, key []byte
		now       time.Time
		says      string
	}{
		"its own":     {cert, key, time.Now(), ""},
		"a foreign":   {foreign, foreignKey, time.Now(), "--tls-ca"},
		"another key": {cert, foreignKey, time.Now(), "does not belong"},
		"expired":     {cert, key, time.Now().Add(2 * time.Hour), "expired"},
		"no key":      {cert, cert, time.Now(), "CA key"},
	} {
		err := c.Check(v.cert, v.key, v.now)
		if v.says == "" && err != nil || v.says != "" && (err == nil || !strings.Contains(err.Error(), v.says)) {
			t.Errorf("%s CA: got error %v, want %q", name, err, v.says)
		}
	}
	if _, err := c.Certify(cert, key, "Node 4", nil, nil, time.Now()); err == nil {
		t.Error("a malformed id was certified")
	}
	if _, err := c.Certify(cert, key, "node-4", nil, "key", time.Now()); err == nil {
		t.Error("something that is no key was certified")
	}
}
