package security

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"google.golang.org/grpc/metadata"

	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// hammer makes a call again and again on each node, until stop, and then returns how
// many of those that began after end was set succeeded, and how many before.
type hammer struct {
	end  atomic.Int64 // Unix nanoseconds; 0 before
	stop chan struct{}
	all  sync.WaitGroup

	before, after atomic.Int64
}

func newHammer() *hammer { return &hammer{stop: make(chan struct{})} }

func (h *hammer) call(do func(context.Context) error) {
	h.all.Go(func() {
		for {
			select {
			case <-h.stop:
				return
			default:
			}
			// Looked at before the call begins.
			ended := h.end.Load() != 0
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			err := do(ctx)
			cancel()
			switch {
			case err == nil && ended:
				h.after.Add(1)
			case err == nil:
				h.before.Add(1)
			}
			time.Sleep(2 * time.Millisecond) // there are other users of the machine
		}
	})
}

// warm waits until calls succeed.
func (h *hammer) warm(c *harness.Cluster, calls int64) {
	c.T.Helper()
	c.Eventually("calls that succeed", func(context.Context) error {
		if n := h.before.Load(); n < calls {
			return fmt.Errorf("%d calls", n)
		}
		return nil
	})
}

// ended notes that authority was taken away, lets the calls go on for a while, and
// fails the test if one of them succeeds.
func (h *hammer) ended(t *testing.T, what string) {
	t.Helper()
	h.end.Store(time.Now().UnixNano())
	time.Sleep(time.Second)
	close(h.stop)
	h.all.Wait()
	if n := h.after.Load(); n != 0 {
		t.Errorf("%s: %d calls succeeded that began after it was revoked; %d before", what, n, h.before.Load())
	}
}

// TestRotateRoot takes root's sessions and then its access key away while they are in
// use on three nodes and both APIs: what begins after the call has returned is
// refused everywhere, and what replaces them works everywhere.
func TestRotateRoot(t *testing.T) {
	t.Parallel()
	c := harness.NewCluster(t, 3, harness.Options{})
	ctx := t.Context()
	k, err := c.Nodes[0].KMS().CreateKey(ctx, &kmspb.CreateKeyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	key := k.GetKeyMetadata().GetKeyId()
	old, secret := c.AccessKeyID, c.Secret()

	// A stolen token, which is used without the access key behind it.
	token := sessionToken(t, c, dialGRPC(t, c.Nodes[0], harness.NewFace(t, c, c.Nodes[0]).TLS()))
	stolen := newHammer()
	for _, nd := range c.Nodes {
		conn := dialGRPC(t, nd, harness.NewFace(t, c, nd).TLS())
		stolen.call(func(ctx context.Context) error {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
			_, err := kmspb.NewKMSClient(conn).Encrypt(ctx, &kmspb.EncryptRequest{KeyId: &key, Plaintext: []byte("x")})
			return err
		})
	}
	signed := newHammer()
	signedErr := make(chan error, 1)
	for _, nd := range c.Nodes {
		sdk := nd.SDK()
		signed.call(func(ctx context.Context) error {
			_, err := sdk.Encrypt(ctx, &kms.EncryptInput{KeyId: aws.String(key), Plaintext: []byte("x")})
			if err != nil && signed.end.Load() == 0 {
				select {
				case signedErr <- err:
				default:
				}
			}
			return err
		})
	}
	stolen.warm(c, 30)
	signed.warm(c, 30)
	if _, err := c.Nodes[1].As(old, secret).Credentials().RevokeSessions(ctx, &kmspb.RevokeSessionsRequest{}); err != nil {
		t.Fatal(err)
	}
	stolen.ended(t, "a session")
	for _, nd := range c.Nodes {
		if _, err := nd.As(old, secret).KMS().ListKeys(ctx, &kmspb.ListKeysRequest{}); err != nil {
			t.Errorf("%s: a new session: %v", nd.ID, err)
		}
	}
	select {
	case err := <-signedErr:
		t.Errorf("the access key itself was refused when its sessions ended: %v", err)
	default:
	}

	id, made, err := client.CreateAccessKey(ctx, c.Nodes[2].As(old, secret).Credentials())
	if err != nil {
		t.Fatal(err)
	}
	for _, nd := range c.Nodes {
		if _, err := nd.As(id, string(made)).KMS().ListKeys(ctx, &kmspb.ListKeysRequest{}); err != nil {
			t.Errorf("%s: the new access key: %v", nd.ID, err)
		}
	}
	if _, err := c.Nodes[0].As(id, string(made)).Credentials().Delete(ctx, &kmspb.DeleteCredentialRequest{Id: old}); err != nil {
		t.Fatal(err)
	}
	signed.ended(t, "the access key")
	c.UseAccessKey(id, string(made))
	var names []string
	for _, r := range harness.ReadAudit(t, c.Nodes[1], 0) {
		switch r.EventName {
		case "RevokeSessions", "CreateAccessKey", "DeleteCredential":
			names = append(names, r.EventName)
		}
	}
	if want := []string{"RevokeSessions", "CreateAccessKey", "DeleteCredential"}; !slices.Equal(names, want) {
		t.Errorf("recorded are %v, want %v", names, want)
	}
	// From a snapshot and the log too.
	for _, nd := range c.Nodes {
		nd.Stop()
	}
	for _, nd := range c.Nodes {
		nd.Start()
	}
	c.Unseal()
	c.WaitReady()
	for _, nd := range c.Nodes {
		if _, err := nd.As(old, secret).KMS().ListKeys(ctx, &kmspb.ListKeysRequest{}); err == nil {
			t.Errorf("%s takes the old access key after a restart", nd.ID)
		}
	}
	c.Converged()
	c.NoFaults()
}
