package awsapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// strangersFrom is how many requests that are not authenticated a source may have in
// flight.
const strangersFrom = 128

// halfBody returns the first half of a body, and then blocks until it is
// closed.
type halfBody struct {
	io.Reader
	ended chan struct{}
	once  sync.Once
	reads *atomic.Int64
}

func (b *halfBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err != io.EOF {
		return n, nil
	}
	b.reads.Add(1)
	<-b.ended
	return 0, io.ErrUnexpectedEOF
}

func (b *halfBody) Close() error {
	b.once.Do(func() { close(b.ended) })
	return nil
}

// TestSlowBodiesStarveNobody: strangers open 18 HTTP/2 connections and send
// thirty halves of large bodies on each, over and over. Meanwhile clients are
// answered, including new ones with a large body.
func TestSlowBodiesStarveNobody(t *testing.T) {
	f := newFixture(t, nil)
	f.cfg.Now = time.Now
	f.engine.does(answer(&kmsapi.GenerateRandomOutput{Plaintext: []byte("hi")}, nil))
	endpoint, roots, _ := f.serveTLS(t)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)

	stop, cancel := context.WithCancel(t.Context())
	defer cancel()
	var strangers sync.WaitGroup
	var stalled, let atomic.Int64
	body := []byte(`{"X":"` + strings.Repeat("x", 100_000) + `"}`)
	for range 18 {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}
		defer tr.CloseIdleConnections()
		for range 30 {
			strangers.Go(func() {
				for stop.Err() == nil {
					r, err := http.NewRequestWithContext(stop, "POST", endpoint+"/", nil)
					if err != nil {
						t.Error(err)
						return
					}
					r.Header.Set("Content-Type", contentType)
					r.Header.Set("X-Amz-Target", "TrentService.Encrypt")
					r.ContentLength = int64(len(body))
					sign(t, r, body, time.Now())
					r.Body = &halfBody{Reader: bytes.NewReader(body[:50_000]), ended: make(chan struct{}), reads: &stalled}
					if resp, err := tr.RoundTrip(r); err == nil {
						let.Add(1)
						io.Copy(io.Discard, resp.Body)
						resp.Body.Close()
					}
					select {
					case <-stop.Done():
					case <-time.After(200 * time.Millisecond):
					}
				}
			})
		}
	}
	for deadline := time.Now().Add(time.Minute); f.api.Strangers.Used() < strangersFrom; {
		if time.Now().After(deadline) {
			t.Fatalf("void: strangers have %d places", f.api.Strangers.Used())
		}
		time.Sleep(10 * time.Millisecond)
	}
	client := newSDKClientAt(endpoint, roots, true)
	var slowest time.Duration
	peak := uint64(0)
	for i := range 30 {
		if i%10 == 0 {
			client = newSDKClientAt(endpoint, roots, i%20 == 0) // a client that is not known yet
		}
		began := time.Now()
		ctx, end := context.WithTimeout(t.Context(), 30*time.Second)
		_, err := client.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: aws.String("x"), Policy: aws.String(strings.Repeat("y", 30_000))})
		end()
		if err != nil {
			t.Errorf("request %d: %v", i, err)
		}
		slowest = max(slowest, time.Since(began))
		runtime.ReadMemStats(&after)
		peak = max(peak, after.HeapInuse)
		if n := f.api.Strangers.Used(); n > strangersFrom {
			t.Errorf("strangers at one address have %d requests in flight", n)
		}
		if n := f.face.StrangersBodies.Used(); n > (64<<20)/16 {
			t.Errorf("strangers at one address hold %d bytes", n)
		}
		if n := f.api.Calls.Inside(); n > 1 {
			t.Errorf("%d requests are being worked on", n)
		}
	}
	cancel()
	strangers.Wait()
	t.Logf("540 slow requests at a time: %d stalled, %d were evicted; clients waited %v at most; the heap grew by %d MiB, both ends",
		stalled.Load(), let.Load(), slowest.Round(time.Millisecond), (int64(peak)-int64(before.HeapInuse))>>20)
	if stalled.Load() < strangersFrom {
		t.Errorf("void: %d requests stalled", stalled.Load())
	}
	for deadline := time.Now().Add(10 * time.Second); f.api.Strangers.Used()+f.face.StrangersBodies.Used() > 0; {
		if time.Now().After(deadline) {
			t.Fatalf("%d places and %d bytes are not given back", f.api.Strangers.Used(), f.face.StrangersBodies.Used())
		}
		time.Sleep(10 * time.Millisecond)
	}
}
