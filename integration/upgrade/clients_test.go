package upgrade

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/smithy-go/middleware"

	"github.com/conclavekms/conclave/integration/harness"
)

// clients use the cluster through a balancer with AWS's SDK as it is by default, retries
// included. Each call must succeed.
type clients struct {
	t       *testing.T
	c       *harness.Cluster
	h       *harness.History
	stop    chan struct{}
	once    sync.Once
	workers sync.WaitGroup
	done    atomic.Int64
	failed  atomic.Int64
}

// maxFailures bounds what is reported: one cause makes many calls fail.
const maxFailures = 10

func startClients(t *testing.T, c *harness.Cluster, b *balancer, h *harness.History, workers int) *clients {
	l := &clients{t: t, c: c, h: h, stop: make(chan struct{})}
	roots := harness.RootsOf(t, c)
	for i := range workers {
		transport := awshttp.NewBuildableClient().WithTransportOptions(func(tr *http.Transport) {
			tr.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
		})
		sdk := kms.New(kms.Options{
			BaseEndpoint: aws.String("https://" + b.ln.Addr().String()), Region: harness.Region, HTTPClient: transport,
			Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
				return aws.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: c.Secret()}, nil
			}),
		})
		l.workers.Go(func() { l.work(i, sdk) })
	}
	t.Cleanup(func() { // if the test fails in between, and before the balancer ends
		l.once.Do(func() { close(l.stop) })
		l.workers.Wait()
	})
	return l
}

// call makes a call and reports a failure that the SDK's retries did not hide.
func (l *clients) call(name string, f func(context.Context) (middleware.Metadata, error)) bool {
	o := l.h.SDK(context.Background(), &harness.Node{ID: "the balancer"}, name, f)
	if o.Code != "" {
		if l.failed.Add(1) <= maxFailures {
			l.t.Errorf("a client saw a failure: %s", o)
		}
		return false
	}
	l.done.Add(1)
	return true
}

func (l *clients) work(id int, sdk *kms.Client) {
	var key *string
	for n := 0; ; n++ {
		select {
		case <-l.stop:
			return
		default:
		}
		text := fmt.Sprintf("%d-%d", id, n)
		if key == nil || n%50 == 49 {
			l.call("CreateKey", func(ctx context.Context) (middleware.Metadata, error) {
				out, err := sdk.CreateKey(ctx, &kms.CreateKeyInput{Description: &text})
				if err != nil {
					return middleware.Metadata{}, err
				}
				key = out.KeyMetadata.KeyId
				return out.ResultMetadata, nil
			})
			continue
		}
		var blob []byte
		if !l.call("Encrypt", func(ctx context.Context) (middleware.Metadata, error) {
			out, err := sdk.Encrypt(ctx, &kms.EncryptInput{KeyId: key, Plaintext: []byte(text)})
			if err != nil {
				return middleware.Metadata{}, err
			}
			blob = out.CiphertextBlob
			return out.ResultMetadata, nil
		}) {
			continue
		}
		l.call("Decrypt", func(ctx context.Context) (middleware.Metadata, error) {
			out, err := sdk.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob})
			if err != nil {
				return middleware.Metadata{}, err
			}
			if !bytes.Equal(out.Plaintext, []byte(text)) {
				l.t.Errorf("%s decrypts to %q", text, out.Plaintext)
			}
			return out.ResultMetadata, nil
		})
		l.call("UpdateKeyDescription", func(ctx context.Context) (middleware.Metadata, error) {
			out, err := sdk.UpdateKeyDescription(ctx, &kms.UpdateKeyDescriptionInput{KeyId: key, Description: &text})
			if err != nil {
				return middleware.Metadata{}, err
			}
			return out.ResultMetadata, nil
		})
	}
}

// await waits until clients got more answers.
func (l *clients) await(more int64) {
	l.t.Helper()
	want := l.done.Load() + more
	l.c.Eventually("waiting for answers", func(context.Context) error {
		if n := l.done.Load(); n < want && l.failed.Load() < maxFailures {
			return fmt.Errorf("%d are missing", want-n)
		}
		return nil
	})
}

// finish ends the load; calls that are under way end first.
func (l *clients) finish() {
	l.once.Do(func() { close(l.stop) })
	done := make(chan struct{})
	go func() { l.workers.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(harness.Patience):
		l.t.Fatal("the clients do not end")
	}
}
