package harness

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"

	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// callTimeout bounds a client's call.
const callTimeout = 15 * time.Second

// sdkClient is AWS's SDK, with the connections that it keeps.
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
			panic(err) // the configuration is ours
		}
		*as = cl
		n.clients = append(n.clients, cl)
	}
	return *as
}

// closeClients makes the next calls connect anew. Clients that calls are still
// made with are closed with the cluster.
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

func (n *Node) asRoot() *client.Client {
	c := n.cluster
	return n.dial(&n.root, client.Config{
		TLS:         &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: c.roots},
		AccessKeyID: c.AccessKeyID, SecretAccessKey: client.Secret(c.secret), UserAgent: "conclave-integration",
	})
}

// KMS is the gRPC API, as the account's root.
func (n *Node) KMS() kmspb.KMSClient { return n.asRoot().KMS() }

// Audit reads the audit log, as the account's root.
func (n *Node) Audit() kmspb.AuditClient { return n.asRoot().Audit() }

func (n *Node) asOperator() *client.Client {
	c := n.cluster
	return n.dial(&n.ops, client.Config{
		TLS: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: c.roots, Certificates: []tls.Certificate{c.opsCert}},
	})
}

// Operator is the operator's API, with an operator's certificate.
func (n *Node) Operator() kmspb.OperatorClient { return n.asOperator().Operator() }

// Status is what the node says of itself to an operator.
func (n *Node) Status(ctx context.Context) (*kmspb.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return n.Operator().Status(ctx, &kmspb.StatusRequest{})
}

// Secret is the secret of the account's root access key.
func (c *Cluster) Secret() string { return c.secret }

// SDK is AWS's own client on the AWS API. It does not try again by itself.
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

// sdkOutcome is a call of the SDK as a history has it.
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
