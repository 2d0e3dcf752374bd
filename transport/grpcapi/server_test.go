package grpcapi

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

func protoName(s string) protoreflect.Name { return protoreflect.Name(s) }

func newResponse(m *method) any { return reflect.New(m.response).Interface() }

func formatID(id iam.RequestID) string { return transport.FormatRequestID(id) }

func diffProto(t *testing.T, want, got proto.Message) {
	t.Helper()
	if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestEncryptAndDecrypt(t *testing.T) {
	w := start(t, false, nil)
	kms := kmspb.NewKMSClient(w.dial(nil))
	var seen []byte
	w.engine.do = func(_ context.Context, _ *iam.Caller, _ *keyengine.Operation, in any) (any, error) {
		seen = in.(*kmsapi.EncryptInput).Plaintext
		if string(seen) != "attack" {
			t.Errorf("plaintext %q", seen)
		}
		return &kmsapi.EncryptOutput{CiphertextBlob: []byte{1, 2}, KeyId: new("arn")}, nil
	}
	got, err := kms.Encrypt(withToken(timed(t), "good"), &kmspb.EncryptRequest{KeyId: new("k"), Plaintext: []byte("attack"), EncryptionContext: map[string]string{"a": "b"}})
	if err != nil {
		t.Fatal(err)
	}
	diffProto(t, &kmspb.EncryptResponse{CiphertextBlob: []byte{1, 2}, KeyId: new("arn")}, got)
	if in := w.engine.in.(*kmsapi.EncryptInput); *in.KeyId != "k" || in.EncryptionContext["a"] != "b" || in.DryRun != nil {
		t.Errorf("input %+v", in)
	}
	if !bytes.Equal(seen, make([]byte, 6)) {
		t.Errorf("the plaintext of the request is left in memory: %q", seen)
	}

	plain := []byte("attack")
	w.engine.do = func(context.Context, *iam.Caller, *keyengine.Operation, any) (any, error) {
		return &kmsapi.DecryptOutput{Plaintext: plain}, nil
	}
	out, err := kms.Decrypt(withToken(timed(t), "good"), &kmspb.DecryptRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if string(out.GetPlaintext()) != "attack" {
		t.Errorf("decrypted %q", out.GetPlaintext())
	}
	if !bytes.Equal(plain, make([]byte, 6)) {
		t.Errorf("the plaintext of the answer is left in memory: %q", plain)
	}
}

// TestLongRequests: a request that is longer than a stream's window is received
// completely; one that is longer than allowed is refused.
func TestLongRequests(t *testing.T) {
	w := start(t, true, nil)
	plain := bytes.Repeat([]byte("p"), maxMessage-1024)
	w.engine.do = func(_ context.Context, _ *iam.Caller, _ *keyengine.Operation, in any) (any, error) {
		if !bytes.Equal(in.(*kmsapi.EncryptInput).Plaintext, plain) {
			t.Error("the engine got another plaintext")
		}
		return &kmsapi.EncryptOutput{}, nil
	}
	kms := kmspb.NewKMSClient(w.dial(nil))
	ctx := withToken(timed(t), "good")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := kms.Encrypt(ctx, &kmspb.EncryptRequest{Plaintext: plain}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := w.engine.count(); n != 8 {
		t.Errorf("the engine was asked %d times, want 8", n)
	}
	_, err := kms.Encrypt(ctx, &kmspb.EncryptRequest{Plaintext: make([]byte, maxMessage)})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("got %v, want ResourceExhausted", err)
	}
}

func TestErrors(t *testing.T) {
	w := start(t, false, nil)
	kms := kmspb.NewKMSClient(w.dial(nil))
	long := strings.Repeat("é", 1<<20)
	const internal = "An internal error occurred."
	for _, c := range []struct {
		err     error
		code    codes.Code
		typ     string
		message string // begins with
	}{
		{&kmsapi.Error{Code: kmsapi.ErrAccessDenied.Code, Message: "no"}, codes.PermissionDenied, "AccessDeniedException", "no"},
		{kmsapi.ErrInvalidCiphertext, codes.InvalidArgument, "InvalidCiphertextException", "The ciphertext cannot be opened"},
		{fmt.Errorf("at line 3: %w", kmsapi.ErrNotFound), codes.NotFound, "NotFoundException", "What the request names does not exist."},
		{kmsapi.ErrUnavailable, codes.Unavailable, "ServiceUnavailable", "The node cannot answer now."},
		{kmsapi.ErrThrottling, codes.ResourceExhausted, "ThrottlingException", "You have exceeded"},
		{&kmsapi.Error{Code: kmsapi.ErrValidation.Code, Message: long}, codes.InvalidArgument, "ValidationException", "ééé"},
		{&kmsapi.Error{Code: kmsapi.ErrValidation.Code, Message: "a\xffb\n\x00"}, codes.InvalidArgument, "ValidationException", "a\uFFFDb\n"},
		{fsm.ErrNoLeader, codes.Unavailable, "ServiceUnavailable", "The cluster"},
		{context.DeadlineExceeded, codes.Unavailable, "ServiceUnavailable", "The request"},
		{errors.New("disk at /secret/path"), codes.Internal, "KMSInternalException", internal},
		{status.Error(codes.NotFound, "peer at /secret/path"), codes.Internal, "KMSInternalException", internal},
		{&kmsapi.Error{Code: "NoSuchCode", Message: "/secret/path"}, codes.Internal, "KMSInternalException", internal},
	} {
		w.engine.do = func(context.Context, *iam.Caller, *keyengine.Operation, any) (any, error) { return nil, c.err }
		var header metadata.MD
		_, err := kms.EnableKey(withToken(timed(t), "good"), &kmspb.EnableKeyRequest{}, grpc.Header(&header))
		f, ok := client.FromError(err)
		if !ok || f.Code != c.code || f.Type != c.typ || !strings.HasPrefix(f.Message, c.message) {
			t.Errorf("%.80v: got %.200v", c.err, f)
		}
		if len(f.Message) > maxStatusMessage+8 || strings.Contains(fmt.Sprint(err), "secret") {
			t.Errorf("%.80v: message of %d bytes: %.100s", c.err, len(f.Message), err)
		}
		if id := header.Get(requestIDHeader); len(id) != 1 || id[0] != f.RequestID || id[0] == "" {
			t.Errorf("request ids %q and %q", id, f.RequestID)
		}
	}
	w.engine.do = func(context.Context, *iam.Caller, *keyengine.Operation, any) (any, error) {
		return nil, &kmsapi.Error{Code: kmsapi.ErrAccessDenied.Code, Message: long, Encoded: strings.Repeat("x", 3000)}
	}
	_, err := kms.EnableKey(withToken(timed(t), "good"), &kmspb.EnableKeyRequest{})
	if f, ok := client.FromError(err); !ok || len(f.Encoded) != 3000 || f.Type != "AccessDeniedException" {
		t.Errorf("a denial with an encoded message: got %.200v", f)
	}
	if !strings.Contains(w.log.String(), "disk at /secret/path") {
		t.Error("the log does not have what the caller is not told")
	}
}

func TestEveryErrorOfOperators(t *testing.T) {
	w := start(t, false, func(c *Config) { c.LoopbackOperators = true })
	op := kmspb.NewOperatorClient(w.dial(nil))
	for code, want := range map[kmsapi.Code]codes.Code{
		ceremony.ErrInitialised.Code:    codes.FailedPrecondition,
		ceremony.ErrNotInitialised.Code: codes.FailedPrecondition,
		ceremony.ErrNotReady.Code:       codes.Unavailable,
		ceremony.ErrShare.Code:          codes.InvalidArgument,
		ceremony.ErrUnsealed.Code:       codes.FailedPrecondition,
		ceremony.ErrChallenge.Code:      codes.FailedPrecondition,
		ceremony.ErrOwner.Code:          codes.FailedPrecondition,
	} {
		w.ceremony.err = &kmsapi.Error{Code: code, Message: "why"}
		_, err := op.Init(timed(t), &kmspb.InitRequest{AnswerKey: []byte("key")})
		if f, _ := client.FromError(err); f.Code != want || f.Type != string(code) || f.Message != "why" {
			t.Errorf("%s: got %+v", code, f)
		}
		if d := Detail(w.ceremony.err, iam.RequestID{}); d.GetType() != string(code) || d.GetMessage() != "why" {
			t.Errorf("%s: detail %v", code, d)
		}
	}
	if Detail(nil, iam.RequestID{}) != nil {
		t.Error("nil has a detail")
	}
	if d := Detail(errors.New("/secret"), iam.RequestID{}); strings.Contains(d.String(), "secret") {
		t.Errorf("a detail tells %v", d)
	}
}

func TestPanicIsSurvived(t *testing.T) {
	w := start(t, false, nil)
	kms := kmspb.NewKMSClient(w.dial(nil))
	w.engine.do = func(context.Context, *iam.Caller, *keyengine.Operation, any) (any, error) { panic("broken") }
	_, err := kms.EnableKey(withToken(timed(t), "good"), &kmspb.EnableKeyRequest{})
	if f, _ := client.FromError(err); f.Code != codes.Internal || f.Type != "KMSInternalException" || strings.Contains(err.Error(), "broken") {
		t.Errorf("got %v", err)
	}
	if log := w.log.String(); !strings.Contains(log, "broken") || !strings.Contains(log, "server_test.go") {
		t.Errorf("log:\n%s", log)
	}
	w.engine.do = nil
	if _, err := kms.EnableKey(withToken(timed(t), "good"), &kmspb.EnableKeyRequest{}); err != nil {
		t.Error(err)
	}
}

// rawCodec sends bytes as a message.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error) { return v.([]byte), nil }
func (rawCodec) Unmarshal(b []byte, v any) error {
	return proto.Unmarshal(b, v.(proto.Message))
}
func (rawCodec) Name() string { return "proto" }

// TestBadInput sends invalid requests: each is answered, and the server
// continues.
func TestBadInput(t *testing.T) {
	w := start(t, false, nil)
	conn := w.dial(nil)
	send := func(method string, b []byte, opts ...grpc.CallOption) error {
		return conn.Invoke(withToken(timed(t), "good"), method, b, &kmspb.EncryptResponse{}, append(opts, grpc.ForceCodec(rawCodec{}))...)
	}
	deep := bytes.Repeat([]byte{0x32, 0x80, 0x01}, 1000)
	for _, c := range []struct {
		name   string
		method string
		body   []byte
		code   codes.Code
		typ    string
	}{
		{"garbage", "/conclave.v1.KMS/Encrypt", []byte("\xff\xff\xff\xff"), codes.InvalidArgument, "SerializationException"},
		{"bad UTF-8", "/conclave.v1.KMS/Encrypt", []byte{0x0a, 2, 0xff, 0xfe}, codes.InvalidArgument, "SerializationException"},
		{"bad UTF-8 in the context", "/conclave.v1.KMS/Encrypt", []byte{0x1a, 6, 0x0a, 1, 0xff, 0x12, 1, 'a'}, codes.InvalidArgument, "SerializationException"},
		{"cut off", "/conclave.v1.KMS/Encrypt", []byte{0x0a, 200}, codes.InvalidArgument, "SerializationException"},
		{"nested lengths", "/conclave.v1.KMS/Decrypt", deep, codes.InvalidArgument, "SerializationException"},
		{"unknown member", "/conclave.v1.KMS/Encrypt", []byte{0xf8, 0x06, 1}, codes.InvalidArgument, "ValidationException"},
		{"empty", "/conclave.v1.KMS/Encrypt", nil, codes.OK, ""},
		{"10 MB", "/conclave.v1.KMS/Encrypt", append([]byte{0x12, 0x80, 0xad, 0xe2, 0x04}, make([]byte, 10_000_000)...), codes.ResourceExhausted, ""},
		{"unknown method", "/conclave.v1.KMS/Conjure", nil, codes.Unimplemented, "UnknownOperationException"},
		{"unknown service", "/conclave.v2.KMS/Encrypt", nil, codes.Unimplemented, "UnknownOperationException"},
		{"another case", "/conclave.v1.KMS/encrypt", nil, codes.Unimplemented, "UnknownOperationException"},
		{"two slashes", "//conclave.v1.KMS/Encrypt", nil, codes.Unimplemented, "UnknownOperationException"},
		{"garbage for an operator", "/conclave.v1.Operator/Status", []byte("\xff"), codes.InvalidArgument, "SerializationException"},
		{"garbage for a session", "/conclave.v1.Session/Create", []byte("\xff"), codes.InvalidArgument, "SerializationException"},
	} {
		var header metadata.MD
		err := send(c.method, c.body, grpc.Header(&header))
		f, _ := client.FromError(err)
		if status.Code(err) != c.code || f.Type != c.typ {
			t.Errorf("%s: %v (%s), want %v %s", c.name, err, f.Type, c.code, c.typ)
		}
		if len(header.Get(requestIDHeader)) != 1 {
			t.Errorf("%s: request id %q", c.name, header.Get(requestIDHeader))
		}
	}
	if err := send("/conclave.v1.KMS/Encrypt", nil, grpc.UseCompressor("gzip")); err == nil {
		t.Error("a compressed request is taken")
	}
	if n := w.engine.count(); n != 1 {
		t.Errorf("the engine was called %d times, want once, for the empty message", n)
	}
	if err := send("/conclave.v1.KMS/Encrypt", nil); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// call sends one gRPC request with any path, in hand-made frames, as client
// libraries do not send every path. It returns once the server has answered.
func callMethod(t *testing.T, addr, path string, header map[string]string) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	frame := func(kind, flags byte, id uint32, body []byte) []byte {
		b := []byte{byte(len(body) >> 16), byte(len(body) >> 8), byte(len(body)), kind, flags}
		return append(binary.BigEndian.AppendUint32(b, id), body...)
	}
	text := func(s string) []byte { return append([]byte{byte(len(s))}, s...) }
	block := slices.Concat([]byte{0x83, 0x86, 0x04}, text(path), []byte{0x01}, text("localhost")) // POST, http
	for k, v := range header {
		block = slices.Concat(block, []byte{0}, text(k), text(v))
	}
	io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	c.Write(slices.Concat(frame(4, 0, 0, nil), frame(1, 4, 1, block), frame(0, 1, 1, make([]byte, 5))))
	for {
		var h [9]byte
		if _, err := io.ReadFull(c, h[:]); err != nil {
			t.Fatalf("path %q: no answer: %v", path, err)
		}
		n := int(h[0])<<16 | int(h[1])<<8 | int(h[2])
		if _, err := io.CopyN(io.Discard, c, int64(n)); err != nil {
			t.Fatal(err)
		}
		// The end of the stream, or its reset.
		if id := binary.BigEndian.Uint32(h[5:]); id == 1 && (h[3] == 3 || h[4]&1 != 0 && h[3] <= 1) {
			return
		}
	}
}

// TestOddPaths: CVE-2026-33186 was a path without its slash, which the router
// accepted and the authorization did not recognise.
func TestOddPaths(t *testing.T) {
	w := start(t, false, nil)
	header := map[string]string{"content-type": "application/grpc", "te": "trailers"}
	for _, path := range []string{
		"/conclave.v1.KMS/ListKeys", "conclave.v1.KMS/ListKeys", "//conclave.v1.KMS/ListKeys", "/conclave.v1.KMS/ListKeys/", "/conclave.v1.KMS//ListKeys",
		"/conclave.v1.KMS/%4cistKeys", "/conclave.v1.Operator/Seal", "conclave.v1.Operator/Seal", "/x/../conclave.v1.Operator/Seal", "/", "*", "ListKeys",
	} {
		callMethod(t, w.addr, path, header)
	}
	if n := w.engine.count(); n != 0 || len(w.ceremony.done) != 0 {
		t.Errorf("without proof, the engine was called %d times and operators' calls were done: %v", n, w.ceremony.done)
	}
	// This shows that a call made like this works:
	header["authorization"] = "Bearer good"
	callMethod(t, w.addr, "/conclave.v1.KMS/ListKeys", header)
	if n := w.engine.count(); n != 1 {
		t.Errorf("with proof, the engine was called %d times", n)
	}
}

func TestGarbageConnections(t *testing.T) {
	w := start(t, false, nil)
	for _, b := range []string{"GET / HTTP/1.1\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff", "\x16\x03\x01\x02\x00", strings.Repeat("\x00", 1<<16)} {
		c, err := net.Dial("tcp", w.addr)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(10 * time.Second))
		io.WriteString(c, b)
		c.(*net.TCPConn).CloseWrite()
		io.Copy(io.Discard, c)
		c.Close()
	}
	if _, err := kmspb.NewKMSClient(w.dial(nil)).ListKeys(withToken(timed(t), "good"), &kmspb.ListKeysRequest{}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestHealth(t *testing.T) {
	w := start(t, false, nil)
	h := grpc_health_v1.NewHealthClient(w.dial(nil))
	for _, serving := range []bool{true, false} {
		w.serving(serving)
		for _, name := range []string{"", "conclave.v1.KMS"} {
			r, err := h.Check(timed(t), &grpc_health_v1.HealthCheckRequest{Service: name})
			if err != nil || (r.GetStatus() == grpc_health_v1.HealthCheckResponse_SERVING) != serving {
				t.Errorf("%q, serving %v: %v, %v", name, serving, r, err)
			}
		}
	}
	if _, err := h.Check(timed(t), &grpc_health_v1.HealthCheckRequest{Service: "x"}); status.Code(err) != codes.NotFound {
		t.Errorf("got %v", err)
	}
	watch, err := h.Watch(timed(t), &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []grpc_health_v1.HealthCheckResponse_ServingStatus{2, 1, 2} {
		r, err := watch.Recv()
		if err != nil || r.GetStatus() != want {
			t.Fatalf("watched %v, %v; want %v", r, err, want)
		}
		w.serving(want == 2)
	}
}

func TestReflection(t *testing.T) {
	w := start(t, false, nil)
	ss, err := grpc_reflection_v1.NewServerReflectionClient(w.dial(nil)).ServerReflectionInfo(timed(t))
	if err != nil {
		t.Fatal(err)
	}
	ask := func(req *grpc_reflection_v1.ServerReflectionRequest) *grpc_reflection_v1.ServerReflectionResponse {
		t.Helper()
		if err := ss.Send(req); err != nil {
			t.Fatal(err)
		}
		r, err := ss.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := ask(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}})
	have := map[string]bool{}
	for _, s := range r.GetListServicesResponse().GetService() {
		have[s.GetName()] = true
	}
	for _, s := range []string{"KMS", "Operator", "Session", "Audit", "Cluster"} {
		if !have["conclave.v1."+s] {
			t.Errorf("%s is not listed in %v", s, have)
		}
	}
	r = ask(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: "conclave.v1.KMS.Encrypt"}})
	if len(r.GetFileDescriptorResponse().GetFileDescriptorProto()) == 0 {
		t.Errorf("got %v", r)
	}
}

// TestSessionWithTheRealClient: the client and the server work together.
func TestSessionWithTheRealClient(t *testing.T) {
	w := start(t, false, nil)
	c, err := client.Dial(t.Context(), client.Config{
		Address: w.addr, Plaintext: true, AccessKeyID: "AKIAABCDEFGHIJKLMNOP", SecretAccessKey: client.Secret("x"), SessionToken: "t", UserAgent: "conclave-cli/1", Region: "us-east-1",
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.KMS().ListKeys(timed(t), &kmspb.ListKeysRequest{}); err != nil {
		t.Fatal(err)
	}
	p := w.engine.proof
	if p.AccessKeyID != "AKIAABCDEFGHIJKLMNOP" || p.SessionToken != "t" || len(p.Nonce) != 32 || len(p.MAC) != 32 || p.SourceIP != "127.0.0.1" || !strings.HasPrefix(p.UserAgent, "conclave-cli/1") || p.RequestID == (iam.RequestID{}) {
		t.Errorf("proof %+v", p)
	}
	if w.engine.caller.Region != "us-east-1" {
		t.Errorf("region %q", w.engine.caller.Region)
	}
}

func TestTimeout(t *testing.T) {
	w := start(t, false, func(c *Config) { c.Timeout = 50 * time.Millisecond })
	w.engine.do = func(ctx context.Context, _ *iam.Caller, _ *keyengine.Operation, _ any) (any, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	_, err := kmspb.NewKMSClient(w.dial(nil)).ListKeys(withToken(timed(t), "good"), &kmspb.ListKeysRequest{})
	if f, _ := client.FromError(err); f.Code != codes.Unavailable || f.Type != "ServiceUnavailable" {
		t.Errorf("got %v", err)
	}
}

func TestStopEndsStreams(t *testing.T) {
	w := start(t, false, nil)
	watch, err := grpc_health_v1.NewHealthClient(w.dial(nil)).Watch(timed(t), &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	w.server.Stop(ctx)
	if d := time.Since(began); d > 3*time.Second {
		t.Errorf("stopping took %v", d)
	}
	if _, err := watch.Recv(); status.Code(err) != codes.Unavailable || detailOf(err).GetMessage() != errStopping.Message {
		t.Errorf("got %v", err)
	}
}

// TestStopCutsOff: a call that does not end is cancelled, and Stop waits until
// its handler returns.
func TestStopCutsOff(t *testing.T) {
	w := start(t, false, nil)
	inside, left := make(chan struct{}), make(chan struct{})
	w.engine.do = func(ctx context.Context, _ *iam.Caller, _ *keyengine.Operation, _ any) (any, error) {
		close(inside)
		<-ctx.Done()
		time.Sleep(200 * time.Millisecond) // it takes a while to notice
		close(left)
		return nil, ctx.Err()
	}
	go kmspb.NewKMSClient(w.dial(nil)).ListKeys(withToken(timed(t), "good"), &kmspb.ListKeysRequest{})
	<-inside
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	w.server.Stop(ctx)
	select {
	case <-left:
	default:
		t.Error("Stop returned while the engine was at work")
	}
}

func TestUnauthenticatedCallsAreSummed(t *testing.T) {
	w := start(t, false, func(c *Config) { c.RefusalPeriod = 200 * time.Millisecond })
	kms := kmspb.NewKMSClient(w.dial(nil))
	for range 51 {
		kms.ListKeys(timed(t), &kmspb.ListKeysRequest{})
	}
	total, lines := 0, 0
	number := regexp.MustCompile(`requests refused before authentication.* api=grpc total=(\d+) reasons.MissingAuthenticationTokenException=`)
	for deadline := time.Now().Add(10 * time.Second); total < 51 && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		total, lines = 0, 0
		for _, m := range number.FindAllStringSubmatch(w.log.String(), -1) {
			n, err := strconv.Atoi(m[1])
			if err != nil {
				t.Fatal(err)
			}
			total, lines = total+n, lines+1
		}
	}
	if total != 51 || lines > 50 {
		t.Errorf("%d calls in %d lines, want 51:\n%s", total, lines, w.log.String())
	}
	const want = `
		# HELP conclave_api_unauthenticated_total Requests that were refused because they did not prove who sent them, by reason.
		# TYPE conclave_api_unauthenticated_total counter
		conclave_api_unauthenticated_total{api="grpc",reason="MissingAuthenticationTokenException"} 51
	`
	if err := testutil.GatherAndCompare(w.metrics, strings.NewReader(want), "conclave_api_unauthenticated_total"); err != nil {
		t.Error(err)
	}
}
