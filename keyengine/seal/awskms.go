package seal

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/conclavekms/conclave/keyengine/internal/keymat"
)

// awsKMS is a seal whose key is in a KMS that speaks AWS's protocol: AWS's, or that of another
// Conclave cluster.
type awsKMS struct {
	key string
	kms *kms.Client
}

// kmsTimeout bounds one call, including its retries.
const kmsTimeout = 20 * time.Second

func openKMS(ctx context.Context, key, region, endpoint, ca string) (Seal, error) {
	if key == "" {
		return nil, errors.New("seal awskms: the key is missing")
	}
	var options []func(*config.LoadOptions) error
	if region != "" {
		options = append(options, config.WithRegion(region))
	}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, fmt.Errorf("seal awskms: %w", err)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("seal awskms: %s has no certificate", ca)
		}
		options = append(options, config.WithHTTPClient(awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
			t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
		})))
	}
	cfg, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("seal awskms: %w", err)
	}
	if cfg.Region == "" {
		return nil, errors.New("seal awskms: the region is missing: add ?region=, or set AWS_REGION")
	}
	return &awsKMS{key: key, kms: kms.NewFromConfig(cfg, func(o *kms.Options) {
		if endpoint != "" {
			o.BaseEndpoint = aws.String(endpoint)
		}
	})}, nil
}

// Name implements Seal.
func (s *awsKMS) Name() string { return "awskms:" + s.key }

func encryptionContext(about Context) map[string]string {
	return map[string]string{"conclave:cluster": about.Cluster, "conclave:seal": about.Seal}
}

// Wrap implements Seal. AWS's SDK has the key in its own buffers while it sends it.
func (s *awsKMS) Wrap(ctx context.Context, _ *keymat.Arena, key *keymat.Secret, about Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, kmsTimeout)
	defer cancel()
	var out *kms.EncryptOutput
	err := key.With(func(b []byte) (err error) {
		plain := append(make([]byte, 0, len(b)), b...) // the SDK may keep it for longer than the call
		defer clear(plain)
		out, err = s.kms.Encrypt(ctx, &kms.EncryptInput{KeyId: &s.key, Plaintext: plain, EncryptionContext: encryptionContext(about)})
		return err
	})
	if err != nil {
		return nil, err
	}
	return out.CiphertextBlob, nil
}

// Unwrap implements Seal.
func (s *awsKMS) Unwrap(ctx context.Context, arena *keymat.Arena, wrapped []byte, about Context) (*keymat.Secret, error) {
	ctx, cancel := context.WithTimeout(ctx, kmsTimeout)
	defer cancel()
	out, err := s.kms.Decrypt(ctx, &kms.DecryptInput{KeyId: &s.key, CiphertextBlob: wrapped, EncryptionContext: encryptionContext(about)})
	if err != nil {
		return nil, err
	}
	if len(out.Plaintext) != keymat.KeySize {
		clear(out.Plaintext)
		return nil, errors.New("the seal answers with something that is not a key")
	}
	return arena.Store(out.Plaintext) // wipes it
}
