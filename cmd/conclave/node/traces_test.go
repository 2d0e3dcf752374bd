package node_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/cmd/conclave/node"
	"github.com/conclavekms/conclave/integration/canary"
	"github.com/conclavekms/conclave/keyengine/traceexport"
)

// collector is a collector of OpenTelemetry that keeps what it gets.
type collector struct {
	mu       sync.Mutex
	raw      bytes.Buffer // all requests, decompressed
	spans    []*tracepb.Span
	resource map[string]string
	token    string
}

func (c *collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		var err error
		if body, err = gzip.NewReader(body); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
	}
	raw, err := io.ReadAll(body)
	var req collectorpb.ExportTraceServiceRequest
	if err != nil || proto.Unmarshal(raw, &req) != nil || r.URL.Path != "/v1/traces" {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.raw.Write(raw)
	c.token = r.Header.Get("Authorization")
	c.resource = make(map[string]string)
	for _, of := range req.ResourceSpans {
		for _, a := range of.Resource.Attributes {
			c.resource[a.Key] = a.Value.GetStringValue()
		}
		for _, scope := range of.ScopeSpans {
			c.spans = append(c.spans, scope.Spans...)
		}
	}
}

// request waits for the span of a request by its name, which has not been asked for before, and
// returns it with its parts by name.
func (c *collector) request(t *testing.T, id string) (of *tracepb.Span, parts map[string]*tracepb.Span) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c.mu.Lock()
		spans := slices.Clone(c.spans)
		c.mu.Unlock()
		for _, s := range spans {
			if attribute(s, "conclave.request_id") != id {
				continue
			}
			parts = make(map[string]*tracepb.Span)
			for _, p := range spans {
				if bytes.Equal(p.ParentSpanId, s.SpanId) {
					parts[p.Name] = p
				}
			}
			return s, parts
		}
		if time.Now().After(end) {
			t.Fatalf("there is no span of the request %s among %d", id, len(spans))
		}
	}
}

func attribute(s *tracepb.Span, name string) string {
	for _, a := range s.Attributes {
		if a.Key == name {
			return a.Value.GetStringValue()
		}
	}
	return ""
}

func traced(t *testing.T, url string) node.Config {
	t.Helper()
	dir := t.TempDir()
	headers := filepath.Join(dir, "headers")
	if err := os.WriteFile(headers, []byte("Authorization: Bearer token-of-the-collector\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := single(t, filepath.Join(dir, "data"))
	cfg.TraceTo, cfg.TraceSample = traceexport.Collector{URL: url + "/v1/traces", HeadersFile: headers}, 1
	return cfg
}

// with adds a header to a request, and returns where its id will be.
func with(traceparent string) (option func(*kms.Options), id *string) {
	id = new(string)
	return func(o *kms.Options) {
		o.RetryMaxAttempts = 1
		o.APIOptions = append(o.APIOptions, smithyhttp.AddHeaderValue("traceparent", traceparent), func(s *middleware.Stack) error {
			return s.Deserialize.Add(middleware.DeserializeMiddlewareFunc("id", func(ctx context.Context, in middleware.DeserializeInput, next middleware.DeserializeHandler) (middleware.DeserializeOutput, middleware.Metadata, error) {
				out, meta, err := next.HandleDeserialize(ctx, in)
				if res, ok := out.RawResponse.(*smithyhttp.Response); ok {
					*id = res.Header.Get("x-amzn-RequestId")
				}
				return out, meta, err
			}), middleware.After)
		})
	}, id
}

// TestTraces: the collector gets a span of each request, with the parts of the request as its
// children, and no secret.
func TestTraces(t *testing.T) {
	t.Parallel()
	c := new(collector)
	server := httptest.NewServer(c)
	t.Cleanup(server.Close)
	n := start(t, traced(t, server.URL))
	r := found(t, n)
	client := sdk(n, r)
	const traceID, spanID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	const parent = "00-" + traceID + "-" + spanID + "-00" // the caller does not record it
	key, err := client.CreateKey(t.Context(), &kms.CreateKeyInput{})
	if err != nil {
		t.Fatal(err)
	}
	var secrets canary.Set
	plaintext, about := []byte("the plaintext that nobody else may see"), "the value of an encryption context"
	secrets.Add("plaintext", plaintext)
	secrets.Add("context", []byte(about))
	secrets.Add("secret access key", []byte(r.SecretAccessKey))
	secrets.Add("principal", []byte("arn:aws:iam::000000000000:root"))
	secrets.Add("key", []byte(*key.KeyMetadata.KeyId))

	option, id := with(parent)
	encryptionContext := map[string]string{"about": about}
	ct, err := client.Encrypt(t.Context(), &kms.EncryptInput{KeyId: key.KeyMetadata.KeyId, Plaintext: plaintext, EncryptionContext: encryptionContext}, option)
	if err != nil {
		t.Fatal(err)
	}
	secrets.Add("ciphertext", ct.CiphertextBlob[len(ct.CiphertextBlob)-32:])
	of, parts := c.request(t, *id)
	if of.Name != "Encrypt" || of.Kind != tracepb.Span_SPAN_KIND_SERVER || attribute(of, "conclave.api") != "aws" || attribute(of, "error.type") != "" ||
		hex.EncodeToString(of.TraceId) != traceID || hex.EncodeToString(of.ParentSpanId) != spanID {
		t.Errorf("the span of the request is %v", of)
	}
	var last uint64
	for _, name := range []string{"verify", "decide", "compute", "commit"} {
		p := parts[name]
		if p == nil {
			t.Errorf("the request has no part %s", name)
			continue
		}
		if !bytes.Equal(p.TraceId, of.TraceId) || p.StartTimeUnixNano < max(of.StartTimeUnixNano, last) || p.EndTimeUnixNano < p.StartTimeUnixNano || p.EndTimeUnixNano > of.EndTimeUnixNano {
			t.Errorf("the part %s is %v, after %d, of %v", name, p, last, of)
		}
		last = p.EndTimeUnixNano
	}
	if len(parts) != 4 {
		t.Errorf("the request has the parts %v", parts)
	}

	option, id = with("00-" + traceID + "-" + spanID + "-01-" + strings.Repeat("x", 2000)) // is not valid
	if _, err := client.Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: ct.CiphertextBlob}, option); err == nil {
		t.Fatal("another context decrypts")
	}
	if of, parts = c.request(t, *id); attribute(of, "error.type") != "InvalidCiphertextException" || of.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR ||
		hex.EncodeToString(of.TraceId) == traceID || len(of.ParentSpanId) != 0 || parts["commit"] == nil {
		t.Errorf("the span of a request that failed is %v, with the parts %v", of, parts)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if found := secrets.In(c.raw.Bytes()); len(found) != 0 {
		t.Errorf("the collector has got %v", found)
	}
	if c.resource["service.name"] != "conclave" || c.resource["service.instance.id"] != "dev" || c.token != "Bearer token-of-the-collector" {
		t.Errorf("the resource is %v, the token %q", c.resource, c.token)
	}
}

// TestTracesOfStrangers: a request whose sender is not known leaves no span, whatever it says.
func TestTracesOfStrangers(t *testing.T) {
	t.Parallel()
	c := new(collector)
	server := httptest.NewServer(c)
	t.Cleanup(server.Close)
	n := start(t, traced(t, server.URL))
	good := found(t, n)
	forged := *good
	forged.SecretAccessKey = strings.Repeat("a", 40)
	option, id := with("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	if _, err := sdk(n, &forged).ListKeys(t.Context(), &kms.ListKeysInput{}, option); err == nil || *id == "" {
		t.Fatalf("a forged request is answered with %v, its id is %q", err, *id)
	}
	if _, err := sdk(n, good).ListKeys(t.Context(), &kms.ListKeysInput{}); err != nil {
		t.Fatal(err)
	}
	if err := n.Stop(context.Background()); err != nil { // which sends what is left
		t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	known := 0
	for _, s := range c.spans {
		if attribute(s, "conclave.request_id") == *id || hex.EncodeToString(s.TraceId) == "0af7651916cd43dd8448eb211c80319c" {
			t.Errorf("the collector has a span of the forged request: %v", s)
		}
		if s.Name == "ListKeys" {
			known++
		}
	}
	if known != 1 {
		t.Errorf("the collector has %d spans of the request that was not forged", known)
	}
}

// TestTracesHoldUpNothing: requests are answered as ever while the collector accepts connections
// and says nothing, and while it answers endlessly. What it does not take is counted.
func TestTracesHoldUpNothing(t *testing.T) {
	t.Parallel()
	for name, collect := range map[string]http.HandlerFunc{
		"silent": func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body) // so that the server sees the client go
			<-r.Context().Done()
		},
		"endless": func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusInternalServerError)
			for r.Context().Err() == nil {
				if _, err := w.Write(bytes.Repeat([]byte("secret\n"), 1024)); err != nil {
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			asked := make(chan struct{}, 1000)
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked <- struct{}{}
				collect(w, r)
			}))
			t.Cleanup(server.Close)
			n := start(t, traced(t, server.URL))
			client := sdk(n, found(t, n))
			use := func(times int) (slowest time.Duration) {
				for range times {
					began := time.Now()
					if _, err := client.GenerateRandom(t.Context(), &kms.GenerateRandomInput{NumberOfBytes: new(int32(8))}); err != nil {
						t.Fatal(err)
					}
					slowest = max(slowest, time.Since(began))
				}
				return slowest
			}
			use(1)
			select {
			case <-asked: // now it is busy with the collector
			case <-time.After(20 * time.Second):
				t.Fatal("the collector gets nothing")
			}
			if slowest := use(200); slowest > 5*time.Second {
				t.Errorf("the slowest request took %v", slowest)
			}
			began := time.Now()
			if err := n.Stop(context.Background()); err != nil {
				t.Error(err)
			}
			if took := time.Since(began); took > 9*time.Second {
				t.Errorf("stopping took %v", took)
			}
			if refused := metric(t, n, "conclave_trace_spans_dropped_total", "refused"); refused < 1 {
				t.Errorf("%v spans are counted as refused", refused)
			}
		})
	}
}

// metric returns the value of a counter with one label.
func metric(t *testing.T, n *node.Node, name, label string) float64 {
	t.Helper()
	families, err := n.Metrics().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && len(m.GetLabel()) == 1 && m.GetLabel()[0].GetValue() == label {
				return m.GetCounter().GetValue()
			}
		}
	}
	t.Fatalf("there is no %s with the label %s", name, label)
	return 0
}

// TestTracesConfig: what is wrong with the configuration keeps a node from starting.
func TestTracesConfig(t *testing.T) {
	t.Parallel()
	for what, edit := range map[string]func(*node.Config){
		"no URL":             func(c *node.Config) { c.TraceTo.URL = "collector:4318" },
		"a missing file":     func(c *node.Config) { c.TraceTo.HeadersFile = "/nonexistent" },
		"no CA":              func(c *node.Config) { c.TraceTo.TLS = &traceexport.TLS{CA: os.DevNull} },
		"a share beyond all": func(c *node.Config) { c.TraceSample = 1.5 },
		"no collector":       func(c *node.Config) { c.TraceTo.URL = "" },
	} {
		cfg := traced(t, "http://127.0.0.1:1")
		if err := cfg.Validate(); err != nil {
			t.Fatal(err)
		}
		edit(&cfg)
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "traces: ") {
			t.Errorf("%s: the configuration is %v", what, fmt.Sprint(err))
		}
	}
}
