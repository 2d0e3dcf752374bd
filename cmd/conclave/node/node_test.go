package node_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/cmd/conclave/node"
	"github.com/conclavekms/conclave/keyengine/ceremony"
)

// single is the configuration of a development node.
func single(t testing.TB, data string) node.Config {
	t.Helper()
	ca, err := pki.NewCA("test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.Issue(pki.IssueRequest{Kind: pki.KindNode, Name: "dev", Validity: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	return node.Config{
		NodeID: "dev", Data: data, BootstrapExpect: 1, Insecure: true,
		AWSListen: "127.0.0.1:0", GRPCListen: "127.0.0.1:0", PeerListen: "127.0.0.1:0", OpsListen: "127.0.0.1:0",
		Identity: &node.Identity{Cert: cert, Key: key, CA: ca.CertPEM()},
		LogLevel: slog.LevelWarn, LogOutput: t.Output(),
	}
}

func start(t testing.TB, cfg node.Config) *node.Node {
	t.Helper()
	n, err := node.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return n
}

func found(t testing.TB, n *node.Node) *ceremony.InitResult {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for {
		r, err := n.Engine().Init(ctx, ceremony.Operator{Name: "conclave://operator/test"}, ceremony.InitParams{
			Shares: 1, Threshold: 1, Account: "000000000000", Region: "us-east-1", Partition: "aws", AnyRegion: true, KeepUnsealed: true,
		})
		if err == nil {
			return r
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func sdk(n *node.Node, r *ceremony.InitResult) *kms.Client {
	return kms.New(kms.Options{
		BaseEndpoint: aws.String("http://" + n.Addresses().AWS), Region: "us-east-1",
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: r.AccessKeyID, SecretAccessKey: r.SecretAccessKey}, nil
		}),
	})
}

func TestSingleNodeSurvivesRestart(t *testing.T) {
	data := t.TempDir()
	cfg := single(t, data)
	n, err := node.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	r := found(t, n)
	c := sdk(n, r)
	key, err := c.CreateKey(t.Context(), &kms.CreateKeyInput{})
	if err != nil {
		t.Fatal(err)
	}
	ct, err := c.Encrypt(t.Context(), &kms.EncryptInput{KeyId: key.KeyMetadata.KeyId, Plaintext: []byte("hello")})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}

	n = start(t, cfg)
	c = sdk(n, r)
	if _, err := c.Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: ct.CiphertextBlob}, func(o *kms.Options) { o.RetryMaxAttempts = 1 }); err == nil || !strings.Contains(err.Error(), "sealed") {
		t.Errorf("a sealed node answered %v", err)
	}
	if st, err := n.Engine().SubmitShare(t.Context(), ceremony.Operator{Name: "conclave://operator/test"}, r.Shares[0]); err != nil || st.Sealed {
		t.Fatalf("unsealing: %+v, %v", st, err)
	}
	pt, err := c.Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: ct.CiphertextBlob})
	if err != nil || string(pt.Plaintext) != "hello" {
		t.Fatalf("after the restart: %+v, %v", pt, err)
	}
	for path, want := range map[string]int{"/livez": 200, "/readyz": 200, "/healthz": 200, "/metrics": 200} {
		resp, err := http.Get("http://" + n.Addresses().Ops + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s answers %d: %s", path, resp.StatusCode, body)
		}
		if path == "/metrics" && !strings.Contains(string(body), `conclave_requests_total{operation="Decrypt"`) {
			t.Errorf("no requests in the metrics")
		}
	}
}

func TestConfigReportsEveryFault(t *testing.T) {
	cfg := node.Config{NodeID: "Bad_Name", Peers: map[string]string{"a": "x"}, BootstrapExpect: 2, TrustedProxies: []string{"0.0.0.0/0"}}
	err := cfg.Validate()
	for _, want := range []string{"node id", "data directory", "AWS API", "gRPC API", "peer listen", "peers", "bootstrap-expect", "TLS certificate", "TLS key", "TLS CA", "trusted proxies"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("nothing is said of %s in:\n%v", want, err)
		}
	}
	good := single(t, t.TempDir())
	if err := good.Validate(); err != nil {
		t.Errorf("a good configuration: %v", err)
	}
	good.AWSListen = "0.0.0.0:7600"
	if err := good.Validate(); err == nil || !strings.Contains(err.Error(), "loopback") {
		t.Errorf("plain HTTP to the world: %v", err)
	}
}
