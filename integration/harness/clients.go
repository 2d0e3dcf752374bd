package harness

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"

	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/iampb"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// callTimeout bounds a client's call.
const callTimeout = 15 * time.Second

// sdkClient is a client of AWS's SDK with its connections.
type sdkClient struct {
	*kms.Client
	transport *http.Transport
}

func (n *Node) dial(as **client.Client, cfg client.Config) *client.Client {
	n.mu.Lock()
	defer n.mu.Unlock()
	if *as == nil {
		cfg.Address = n.GRPC
		cl, err := client.Dial(context.Background(), cfg)
		if err != nil {
			panic(err) // the configuration is constant
		}
		*as = cl
		n.clients = append(n.clients, cl)
	}
	return *as
}

// closeClients makes the next calls connect anew. Clients that are still in use are closed
// with the cluster.
func (n *Node) closeClients() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, cl := range n.clients {
		cl.Close()
	}
	if n.sdk.transport != nil {
		n.sdk.transport.CloseIdleConnections()
	}
	n.clients, n.root, n.ops, n.sdk = nil, nil, nil, sdkClient{}
}

// Root returns a client of the gRPC API, as the account's root.
func (n *Node) Root() *client.Client {
	c := n.cluster
	return n.dial(&n.root, client.Config{
		TLS:         &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: c.roots},
		AccessKeyID: c.AccessKeyID, SecretAccessKey: client.Secret(c.secret), UserAgent: "conclave-integration",
	})
}

// KMS returns a client of the gRPC API, as the account's root.
func (n *Node) KMS() kmspb.KMSClient { return n.Root().KMS() }

// MakePrincipals makes users and roles of the account, given as their ARNs end: "user/alice".
// Roles can be assumed by the account.
func (c *Cluster) MakePrincipals(names ...string) {
	c.T.Helper()
	client := c.Nodes[0].Root().IAM()
	for _, name := range names {
		kind, name, _ := strings.Cut(name, "/")
		var err error
		if kind == "user" {
			_, err = client.CreateUser(c.T.Context(), &iampb.CreateUserRequest{UserName: &name})
		} else {
			trust := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"` + Account + `"},"Action":"sts:AssumeRole"}]}`
			_, err = client.CreateRole(c.T.Context(), &iampb.CreateRoleRequest{RoleName: &name, AssumeRolePolicyDocument: &trust})
		}
		if err != nil {
			c.T.Fatalf("making %s %s: %v", kind, name, err)
		}
	}
}

// Audit returns a client of the audit log, as the account's root.
func (n *Node) Audit() kmspb.AuditClient { return n.Root().Audit() }

func (n *Node) asOperator() *client.Client {
	c := n.cluster
	return n.dial(&n.ops, client.Config{
		TLS: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: c.roots, Certificates: []tls.Certificate{c.opsCert}},
	})
}

// Operator returns a client of the operator API, with an operator certificate.
func (n *Node) Operator() kmspb.OperatorClient { return n.asOperator().Operator() }

// Administration returns a client of n for what operators can ask about the cluster and do with it.
func Administration(n *Node) kmspb.ClusterClient { return n.asOperator().Cluster() }

// Status returns the node's answer to an operator's status request.
func (n *Node) Status(ctx context.Context) (*kmspb.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return n.Operator().Status(ctx, &kmspb.StatusRequest{})
}

// Secret returns the secret access key of the account's root.
func (c *Cluster) Secret() string { return c.secret }

// SDK returns a client of AWS's own SDK. It does not retry by itself.
func (n *Node) SDK() *kms.Client {
	c := n.cluster
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.sdk.Client == nil {
		transport := &http.Transport{
			TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: c.roots}, MaxIdleConnsPerHost: 64, ForceAttemptHTTP2: true,
		}
		n.sdk = sdkClient{transport: transport, Client: kms.New(kms.Options{
			BaseEndpoint: aws.String("https://" + n.AWS),
			Region:       Region,
			Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
				return aws.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: c.secret}, nil
			}),
			HTTPClient: &http.Client{Transport: transport, Timeout: callTimeout},
			Retryer:    aws.NopRetryer{},
		})}
	}
	return n.sdk.Client
}

// sdkOutcome returns the outcome of an SDK call as a history records it.
func sdkOutcome(meta middleware.Metadata, err error) (requestID, code string) {
	if err == nil {
		requestID, _ = awsmiddleware.GetRequestIDMetadata(meta)
		return requestID, ""
	}
	code = unanswered
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		code = api.ErrorCode()
	}
	if r, ok := errors.AsType[*awshttp.ResponseError](err); ok {
		requestID = r.ServiceRequestID()
	}
	return requestID, code
}
