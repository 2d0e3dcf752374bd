package operator

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/keyengine/jointoken"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// doubtful is a server that may be a node of the cluster or not.
type doubtful struct {
	kmspb.UnimplementedJoiningServer
	shows  []byte // the CA that it says it has
	answer func(csr []byte) *kmspb.JoinClusterResponse

	mu  sync.Mutex
	got int // how many tokens it has seen
}

func (d *doubtful) GetJoinAuthority(context.Context, *kmspb.GetJoinAuthorityRequest) (*kmspb.GetJoinAuthorityResponse, error) {
	return &kmspb.GetJoinAuthorityResponse{Certificate: d.shows}, nil
}

func (d *doubtful) JoinCluster(_ context.Context, in *kmspb.JoinClusterRequest) (*kmspb.JoinClusterResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.got++
	return d.answer(in.GetCsr()), nil
}

// serve serves with a certificate and returns the address.
func (d *doubtful) serve(t *testing.T, certPEM, keyPEM []byte) string {
	t.Helper()
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13})))
	kmspb.RegisterJoiningServer(s, d)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return l.Addr().String()
}

// TestJoinTrustsOnlyTheCluster: a token is sent only to a node with a certificate of the CA that
// it names, and nothing is kept of an answer that does not fit.
func TestJoinTrustsOnlyTheCluster(t *testing.T) {
	t.Setenv("CONCLAVE_CERT", "")
	t.Setenv("CONCLAVE_KEY", "")
	newCA := func() (*pki.CA, []byte) {
		ca, err := pki.NewCA("test", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(ca.CertPEM())
		return ca, block.Bytes
	}
	ca, der := newCA()
	foreign, foreignDER := newCA()
	certify := func(csr []byte, node string) *kmspb.JoinClusterResponse {
		r, err := x509.ParseCertificateRequest(csr)
		if err != nil {
			t.Error(err)
			return nil
		}
		cert, err := ca.CertifyNode(node, nil, r.PublicKey, time.Now())
		if err != nil {
			t.Error(err)
		}
		return &kmspb.JoinClusterResponse{NodeId: node, Certificate: cert, Cas: ca.CertPEM(), GossipKey: []byte("gossip"), Peers: []*kmspb.JoinPeer{{NodeId: "n1", PeerAddress: "10.0.0.1:7602"}}}
	}
	good := func(csr []byte) *kmspb.JoinClusterResponse { return certify(csr, "node-4") }
	token := &jointoken.Token{Authority: sha256.Sum256(der), Expires: time.Now().Add(time.Hour), Node: "node-4", Address: "10.0.0.4:7602"}
	text := jointoken.Encode(token.Body(), make([]byte, jointoken.MACSize))
	for name, c := range map[string]struct {
		shows  []byte
		by     *pki.CA
		kind   pki.Kind
		who    string
		answer func([]byte) *kmspb.JoinClusterResponse
		sent   bool
		says   string // "" if it joins
	}{
		"a node":              {der, ca, pki.KindNode, "node-1", good, true, ""},
		"another cluster":     {foreignDER, foreign, pki.KindNode, "node-1", good, false, "nothing was sent to it"},
		"somebody in between": {der, foreign, pki.KindNode, "node-1", good, false, "certificate signed by unknown authority"},
		"an operator":         {der, ca, pki.KindOperator, "mallory", good, false, "certificate is of a operator, not a node"},
		"a workload":          {der, ca, pki.KindWorkload, "spiffe://example.org/web", good, false, "no conclave identity"},
		"no CA":               {nil, ca, pki.KindNode, "node-1", good, false, "nothing was sent to it"},
		"other CAs":           {der, ca, pki.KindNode, "node-1", func(csr []byte) *kmspb.JoinClusterResponse { r := good(csr); r.Cas = foreign.CertPEM(); return r }, true, "other CAs"},
		"another node's id":   {der, ca, pki.KindNode, "node-1", func(csr []byte) *kmspb.JoinClusterResponse { return certify(csr, "node-1") }, true, "it is of node node-1"},
		"another key":         {der, ca, pki.KindNode, "node-1", func([]byte) *kmspb.JoinClusterResponse { r := good(otherCSR(t)); return r }, true, "the certificate that the cluster made"},
		"a malformed answer": {der, ca, pki.KindNode, "node-1", func(csr []byte) *kmspb.JoinClusterResponse {
			r := good(csr)
			r.Certificate = r.Certificate[1:]
			return r
		}, true, "the certificate that the cluster made"},
	} {
		certPEM, keyPEM, err := c.by.Issue(pki.IssueRequest{Kind: c.kind, Name: c.who, Validity: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		d := &doubtful{shows: c.shows, answer: c.answer}
		t.Setenv("CONCLAVE_ADDRESS", d.serve(t, certPEM, keyPEM))
		dir := filepath.Join(t.TempDir(), "tls")
		var out bytes.Buffer
		a := &cli.App{Stdin: strings.NewReader(text + "\n"), Stdout: &out, Stderr: io.Discard}
		j, err := newJoiner(a, "-", dir)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		j.patience = time.Millisecond
		err = j.run(ctx)
		cancel()
		if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: got error %v, want %q", name, err, c.says)
		}
		if (d.got > 0) != c.sent {
			t.Errorf("%s: the token was sent: %v, want %v", name, d.got > 0, c.sent)
		}
		for _, file := range []string{"node-4.pem", "ca.pem", "gossip.key"} {
			if _, err := os.Stat(filepath.Join(dir, file)); (err == nil) != (c.says == "") {
				t.Errorf("%s: %s: %v", name, file, err)
			}
		}
		if c.says != "" {
			continue
		}
		if want := "--node-id node-4 --join n1=10.0.0.1:7602 --peer-advertise 10.0.0.4:7602 "; !strings.HasPrefix(out.String(), want) {
			t.Errorf("the flags are %s, want %s", out.String(), want)
		}
		if fi, err := os.Stat(filepath.Join(dir, "node-4-key.pem")); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("the key: %v, %v", fi.Mode(), err)
		}
	}
}

// otherCSR returns a request for another key.
func otherCSR(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}
