package integration

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/iampb"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// install delivers a list to a node and returns the error that the node tells.
func install(t *testing.T, nd *harness.Node, c *pki.CRL) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	r, err := nd.Operator().InstallCRL(ctx, &kmspb.InstallCRLRequest{Crl: c.DER()})
	if err != nil {
		t.Fatalf("%s: %v", nd.ID, err)
	}
	return r.GetNode().GetError().GetMessage()
}

// TestRevokedCertificates revokes an operator's certificate and then a node's, on
// nodes of which one is sealed. Connections that are open end, new ones are refused,
// on every port and in both directions; a restart and older lists change nothing.
func TestRevokedCertificates(t *testing.T) {
	t.Parallel()
	c := harness.NewCluster(t, 3, harness.Options{})
	ctx := t.Context()
	sealed := c.Nodes[1]
	if _, err := sealed.Operator().Seal(ctx, &kmspb.SealRequest{}); err != nil {
		t.Fatal(err)
	}

	mallory := c.IssueOperator("mallory")
	open := make(map[string]<-chan error) // what ends when a connection does
	watch := func(what string, next func() error) {
		ended := make(chan error, 1)
		go func() {
			for {
				if err := next(); err != nil {
					ended <- err
					return
				}
			}
		}()
		open[what] = ended
	}
	for _, nd := range c.Nodes {
		cl := nd.DialAs(mallory)
		if st, err := cl.Operator().Status(ctx, &kmspb.StatusRequest{}); err != nil || st.GetNodeId() != nd.ID {
			t.Fatalf("before, on %s: %v, %v", nd.ID, st, err)
		}
		stream, err := grpc_health_v1.NewHealthClient(cl.Conn()).Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		watch(nd.ID+" gRPC", func() error { _, err := stream.Recv(); return err })
		conn, err := tls.Dial("tcp", nd.AWS, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{mallory}})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		watch(nd.ID+" AWS", func() error { _, err := conn.Read(make([]byte, 512)); return err })
	}
	leaf, err := x509.ParseCertificate(mallory.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	first := c.Revoke(nil, leaf)
	for _, nd := range c.Nodes {
		if said := install(t, nd, first); said != "" {
			t.Fatalf("%s: %s", nd.ID, said)
		}
	}
	for what, ended := range open {
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Errorf("%s: a connection with a revoked certificate stays open", what)
		}
	}
	refuses := func(nd *harness.Node) {
		t.Helper()
		cl := nd.DialAs(mallory)
		defer cl.Close()
		ctx, cancel := context.WithTimeout(ctx, harness.Patience)
		defer cancel()
		// The handshake fails, as at a port where nobody is; nothing tells a stranger more.
		if _, err := cl.Operator().Seal(ctx, &kmspb.SealRequest{}); status.Code(err) != codes.Unavailable {
			t.Errorf("%s took a call of a revoked certificate: %v", nd.ID, err)
		}
		conn, err := tls.Dial("tcp", nd.AWS, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{mallory}})
		if err == nil {
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(harness.Patience))
			// In TLS 1.3 the client learns of a refusal with its first read.
			if _, err = conn.Read(make([]byte, 1)); err == nil {
				t.Errorf("%s answers a revoked certificate on the AWS API", nd.ID)
			}
		}
	}
	for _, nd := range c.Nodes {
		refuses(nd)
		st, err := nd.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if l := st.GetCrls(); len(l) != 1 || l[0].GetNumber() != 1 || l[0].GetRevoked() != 1 {
			t.Errorf("%s says of its lists: %v", nd.ID, l)
		}
		if st.GetSeal().GetSealed() != (nd == sealed) {
			t.Errorf("%s: sealed is %v", nd.ID, st.GetSeal().GetSealed())
		}
	}

	sealed.Unseal()
	c.WaitReady()
	recorded := func() (by []string) {
		for _, r := range harness.ReadAudit(t, c.Nodes[0], 0) {
			if r.EventName == "InstallCRL" && r.ErrorCode == "" {
				// One of each API.
				if n := fmt.Sprint(r.RequestParameters["connectionsClosed"]); n != "2" {
					t.Errorf("connections closed: %s: %s", n, r.Raw)
				}
				by = append(by, fmt.Sprint(r.RequestParameters["number"]))
			}
		}
		return by
	}
	c.Eventually("the records of three nodes", func(context.Context) error {
		if by := recorded(); !slices.Equal(by, []string{"1", "1", "1"}) {
			return fmt.Errorf("recorded are %v", by)
		}
		return nil
	})

	// A node is stolen while it leads.
	stolen := c.Leader()
	honest := slices.DeleteFunc(slices.Clone(c.Nodes), func(nd *harness.Node) bool { return nd == stolen })
	second := c.Revoke(first, stolen.Certificate())
	for _, nd := range honest {
		if said := install(t, nd, second); said != "" {
			t.Fatalf("%s: %s", nd.ID, said)
		}
	}
	out := func() {
		t.Helper()
		c.WaitReady(honest...)
		c.Eventually("the stolen node to know no leader", func(ctx context.Context) error {
			st, err := stolen.Status(ctx)
			if err == nil && st.GetHasLeader() {
				err = errors.New("it knows one")
			}
			return err
		})
		k, err := honest[0].KMS().CreateKey(ctx, &kmspb.CreateKeyRequest{})
		if err != nil {
			t.Fatal(err)
		}
		id := k.GetKeyMetadata().GetKeyId()
		if _, err := honest[1].KMS().DescribeKey(ctx, &kmspb.DescribeKeyRequest{KeyId: &id}); err != nil {
			t.Error(err)
		}
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, err := stolen.KMS().DescribeKey(short, &kmspb.DescribeKeyRequest{KeyId: &id}); err == nil {
			t.Error("a node whose certificate is revoked has what was written since")
		}
	}
	out()
	for _, nd := range honest {
		nd.Stop()
	}
	for _, nd := range honest {
		nd.Start()
	}
	for _, nd := range honest {
		nd.Unseal()
	}
	out()
	for _, nd := range honest {
		if said := install(t, nd, first); said == "" {
			t.Errorf("%s took an older list", nd.ID)
		}
		refuses(nd)
	}
	out()

	// With another certificate the node belongs to the cluster again.
	stolen.Reissue()
	stolen.Stop()
	stolen.Start()
	stolen.Unseal()
	c.WaitReady()
	c.NoFaults()
	c.Converged()
}

// TestMappedCertificate: a workload with a certificate is the user that it is mapped to, on every
// node. No node answers it once the mapping is deleted, or the certificate is revoked while its
// connection is open, and it is never an operator.
func TestMappedCertificate(t *testing.T) {
	t.Parallel()
	c := harness.NewCluster(t, 3, harness.Options{})
	ctx := t.Context()
	const id = "spiffe://example.org/ns/shop/sa/web"
	c.MakePrincipals("user/web")
	user := "arn:aws:iam::" + harness.Account + ":user/web"
	mappings := c.Nodes[0].As(c.AccessKeyID, c.Secret()).CertificateMappings()
	mapIt := func() {
		t.Helper()
		if _, err := mappings.Create(ctx, &kmspb.CreateCertificateMappingRequest{Pattern: "spiffe://example.org/ns/shop/*", Principal: user}); err != nil {
			t.Fatal(err)
		}
	}
	cert := c.IssueWorkload(id)
	clients := make(map[*harness.Node]*client.Client)
	for _, nd := range c.Nodes {
		clients[nd] = nd.DialAs(cert)
	}
	calls := func(when string, want codes.Code) {
		t.Helper()
		for nd, cl := range clients {
			res, err := cl.STS().GetCallerIdentity(ctx, &iampb.GetCallerIdentityRequest{})
			if status.Code(err) != want || err == nil && res.GetArn() != user {
				t.Errorf("%s, on %s: got %v, error %v, want %v", when, nd.ID, res, err, want)
			}
		}
	}
	calls("before it is mapped", codes.Unauthenticated)
	mapIt()
	calls("mapped", codes.OK)
	if _, err := clients[c.Nodes[0]].Operator().Seal(ctx, &kmspb.SealRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a workload seals a node: %v", err)
	}
	if _, err := mappings.Delete(ctx, &kmspb.DeleteCertificateMappingRequest{Pattern: "spiffe://example.org/ns/shop/*"}); err != nil {
		t.Fatal(err)
	}
	calls("after the mapping was deleted", codes.Unauthenticated)
	mapIt()
	calls("mapped again", codes.OK)

	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	list := c.Revoke(nil, leaf)
	for _, nd := range c.Nodes {
		if said := install(t, nd, list); said != "" {
			t.Fatalf("%s: %s", nd.ID, said)
		}
		short, cancel := context.WithTimeout(ctx, harness.Patience)
		if _, err := clients[nd].STS().GetCallerIdentity(short, &iampb.GetCallerIdentityRequest{}); status.Code(err) != codes.Unavailable {
			t.Errorf("%s answers a revoked certificate: %v", nd.ID, err)
		}
		cancel()
	}
}
