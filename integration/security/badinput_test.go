package security

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// maxGrowth is how much larger a node may be after abuse than before.
const maxGrowth = 200 << 20

// TestBadInput sends what no honest client sends to each face of a real process.
// Each gets its own answer, none of them a fault of the server's; strangers leave
// nothing in the audit log; and the node is well afterwards.
func TestBadInput(t *testing.T) {
	t.Parallel()
	c := harness.NewCluster(t, 1, harness.Options{Processes: true})
	n := c.Nodes[0]
	key, err := n.KMS().CreateKey(t.Context(), &kmspb.CreateKeyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	id := key.GetKeyMetadata().GetKeyId()
	before := harness.Metric(t, n, "process_resident_memory_bytes")

	// Bodies are judged after the signature, and before the operation.
	t.Run("bodies", func(t *testing.T) { badBodies(t, harness.NewFace(t, c, n), id) })
	t.Run("requests", func(t *testing.T) { badRequests(t, harness.NewFace(t, c, n)) })

	// From here on, all is from strangers, who may have found an old token.
	token := sessionToken(t, c, dialGRPC(t, n, harness.NewFace(t, c, n).TLS()))
	size := harness.Records(t, n)
	t.Run("signatures", func(t *testing.T) { badSignatures(t, harness.NewFace(t, c, n), id) })
	t.Run("large bodies", func(t *testing.T) { largeBodies(t, harness.NewFace(t, c, n)) })
	t.Run("tls", func(t *testing.T) { badTLS(t, harness.NewFace(t, c, n)) })
	t.Run("http2", func(t *testing.T) { badHTTP2(t, harness.NewFace(t, c, n)) })
	t.Run("grpc", func(t *testing.T) { strangersGRPC(t, c, n, token) })
	t.Run("flood", func(t *testing.T) { flood(t, harness.NewFace(t, c, n)) })
	if now := harness.Records(t, n); now != size {
		t.Errorf("strangers left %d records in the audit log", now-size)
	}

	t.Run("grpc messages", func(t *testing.T) { badMessages(t, harness.NewFace(t, c, n), token) })

	if t.Failed() {
		return
	}
	if errors := string(harness.OpsGet(t, n, "/metrics")); strings.Contains(errors, `conclave_api_errors_total{api="aws",type="KMSInternalException"}`) {
		t.Errorf("an error was answered as one of the server's")
	}
	for _, name := range []string{`conclave_api_panics_total{api="aws"}`, `conclave_api_panics_total{api="grpc"}`} {
		if v := harness.Metric(t, n, name); v != 0 {
			t.Errorf("%s is %v", name, v)
		}
	}
	harness.Usable(t, n)
	c.NoFaults()
	after := harness.Metric(t, n, "process_resident_memory_bytes")
	t.Logf("resident memory: %.0f MiB before, %.0f MiB after", before/(1<<20), after/(1<<20))
	if after > before+maxGrowth {
		t.Errorf("the node grew from %.0f to %.0f MiB", before/(1<<20), after/(1<<20))
	}
}

func badBodies(t *testing.T, f *harness.Face, key string) {
	const describe, encrypt, tag = "TrentService.DescribeKey", "TrentService.Encrypt", "TrentService.TagResource"
	good := `"KeyId":"` + key + `"`
	many := func(n int, item string) string { return strings.TrimSuffix(strings.Repeat(item+",", n), ",") }
	var names strings.Builder
	for i := range 60_000 {
		fmt.Fprintf(&names, `,"n%d":1`, i)
	}
	serialization := []struct{ name, target, body string }{
		{"cut off", describe, `{"KeyId":`},
		{"cut off in a text", describe, `{"KeyId":"a`},
		{"no JSON", describe, `KeyId=` + key},
		{"XML", describe, `<?xml version="1.0"?><!DOCTYPE x [<!ENTITY y SYSTEM "file:///etc/passwd">]><x>&y;</x>`},
		{"a list", describe, `[{` + good + `}]`},
		{"a text", describe, `"` + key + `"`},
		{"null", describe, `null`},
		{"a number", describe, `1`},
		{"two objects", describe, `{` + good + `}{` + good + `}`},
		{"something behind", describe, `{` + good + `} x`},
		{"a comment", describe, `{/*x*/` + good + `}`},
		{"a comma too many", describe, `{` + good + `,}`},
		{"single quotes", describe, `{'KeyId':'` + key + `'}`},
		{"NaN", "TrentService.GenerateRandom", `{"NumberOfBytes":NaN}`},
		{"a zero byte", describe, "{" + good + ",\x00}"},
		{"a byte order mark", describe, "\xef\xbb\xbf{" + good + "}"},
		{"no UTF-8", describe, "{\"KeyId\":\"\xff\xfe\"}"},
		{"half a surrogate pair", describe, `{"KeyId":"\ud800"}`},
		{"a control character", describe, "{\"KeyId\":\"a\nb\"}"},
		{"a member twice", describe, `{` + good + `,` + good + `}`},
		{"a member twice, once escaped", describe, `{` + good + `,"\u004beyId":"other"}`},
		{"an unknown member twice", describe, `{` + good + `,"X":1,"X":2}`},
		{"a context's name twice", encrypt, `{` + good + `,"Plaintext":"eA==","EncryptionContext":{"a":"1","a":"2"}}`},
		{"a number for a text", describe, `{"KeyId":1}`},
		{"an object for a text", describe, `{"KeyId":{}}`},
		{"a list for a text", describe, `{"KeyId":["` + key + `"]}`},
		{"a text for a number", "TrentService.GenerateRandom", `{"NumberOfBytes":"32"}`},
		{"a fraction", "TrentService.GenerateRandom", `{"NumberOfBytes":1.5}`},
		{"too large a number", "TrentService.GenerateRandom", `{"NumberOfBytes":4294967328}`},
		{"a number of 100,000 digits", "TrentService.GenerateRandom", `{"NumberOfBytes":` + strings.Repeat("9", 100_000) + `}`},
		{"an exponent of 10^9", "TrentService.GenerateRandom", `{"NumberOfBytes":1e1000000000}`},
		{"a text for a list", "TrentService.UntagResource", `{` + good + `,"TagKeys":"a"}`},
		{"null in a list", "TrentService.UntagResource", `{` + good + `,"TagKeys":[null]}`},
		{"a text for a structure", tag, `{` + good + `,"Tags":["a"]}`},
		{"a number in a context", encrypt, `{` + good + `,"Plaintext":"eA==","EncryptionContext":{"a":1}}`},
		{"no base64", encrypt, `{` + good + `,"Plaintext":"%%%"}`},
		{"base64 of another alphabet", encrypt, `{` + good + `,"Plaintext":"-_8="}`},
		{"base64 without its end", encrypt, `{` + good + `,"Plaintext":"eA"}`},
		{"base64 with a line break", encrypt, `{` + good + `,"Plaintext":"eHh4\neHh4"}`},
		{"base64 with bits too many", encrypt, `{` + good + `,"Plaintext":"eB=="}`},
		{"a million lists", describe, strings.Repeat("[", 1_000_000)},
		{"a million lists in a member", describe, `{"X":` + strings.Repeat("[", 1_000_000)},
		{"deep and whole", describe, `{` + good + `,"X":` + strings.Repeat("[", 400_000) + strings.Repeat("]", 400_000) + `}`},
		{"a thousand deep", describe, `{` + good + `,"X":` + strings.Repeat("[", 1000) + strings.Repeat("]", 1000) + `}`},
		{"deep objects", describe, `{` + good + `,"X":` + strings.Repeat(`{"a":`, 100_000) + `1` + strings.Repeat("}", 100_000) + `}`},
		{"a list for a name", describe, `{` + strings.Repeat("[", 500_000)},
		{"60,000 members", describe, `{` + good + names.String() + `}`},
		{"60,000 names in a context", encrypt, `{` + good + `,"Plaintext":"eA==","EncryptionContext":{` + names.String()[1:] + `}}`},
		{"300,000 texts", "TrentService.UntagResource", `{` + good + `,"TagKeys":[` + many(300_000, `""`) + `]}`},
		{"200,000 structures", tag, `{` + good + `,"Tags":[` + many(200_000, `{}`) + `]}`},
	}
	for _, tc := range serialization {
		f.Refuses(tc.name, f.Signed(tc.target, tc.body), http.StatusBadRequest, "SerializationException")
	}
	var zipped bytes.Buffer
	zw := gzip.NewWriter(&zipped)
	for range 1024 {
		zw.Write(make([]byte, 1<<16))
	}
	zw.Close()
	bomb := f.Request(describe, zipped.String())
	bomb.Header.Set("Content-Encoding", "gzip")
	f.Refuses("64 MiB of zeros, zipped", f.Sign(bomb, zipped.String()), http.StatusBadRequest, "SerializationException")

	// What is JSON is the operation's to judge.
	for _, tc := range []struct{ name, target, body, code string }{
		{"nothing", describe, ``, "ValidationException"},
		{"an empty object", describe, `{}`, "ValidationException"},
		{"null for what is needed", describe, `{"KeyId":null}`, "ValidationException"},
		{"names in another case", describe, `{"keyId":"` + key + `"}`, "ValidationException"},
		{"a long key id", describe, `{"KeyId":"` + strings.Repeat("a", 2049) + `"}`, "ValidationException"},
		{"no key's id", describe, `{"KeyId":"../../etc/passwd\u0000"}`, "NotFoundException"},
		{"an unknown key", describe, `{"KeyId":"00000000-0000-4000-8000-000000000000"}`, "NotFoundException"},
		{"an unknown alias", describe, `{"KeyId":"alias/<script>"}`, "NotFoundException"},
		{"a foreign region's ARN", describe, `{"KeyId":"arn:aws:kms:elsewhere:` + harness.Account + `:key/` + key + `"}`, "NotFoundException"},
		{"another account's ARN", describe, `{"KeyId":"arn:aws:kms:` + harness.Region + `:999999999999:key/` + key + `"}`, "AccessDeniedException"},
		{"a plaintext of 4,097 bytes", encrypt, `{` + good + `,"Plaintext":"` + strings.Repeat("A", 5464) + `"}`, "ValidationException"},
		{"no plaintext", encrypt, `{` + good + `,"Plaintext":""}`, "ValidationException"},
		{"no ciphertext", "TrentService.Decrypt", `{"CiphertextBlob":"AAAA"}`, "InvalidCiphertextException"},
		{"a negative number", "TrentService.GenerateRandom", `{"NumberOfBytes":-1}`, "ValidationException"},
		{"a policy a million deep", "TrentService.PutKeyPolicy", `{` + good + `,"Policy":"` + strings.Repeat("[", 131_072) + `"}`, "*"},
		{"a policy of controls", "TrentService.PutKeyPolicy", `{` + good + `,"Policy":"\u0001\u0002"}`, "ValidationException"},
		{"a marker of another's", "TrentService.ListKeys", `{"Marker":"` + strings.Repeat("A", 1024) + `"}`, "InvalidMarkerException"},
	} {
		if tc.code == "*" {
			a, err := f.Send(f.Signed(tc.target, tc.body))
			if err != nil || a.Status != http.StatusBadRequest {
				t.Errorf("%s: %d %s, %v, want status 400", tc.name, a.Status, a.Type, err)
			}
			continue
		}
		f.Refuses(tc.name, f.Signed(tc.target, tc.body), http.StatusBadRequest, tc.code)
	}
	for _, ok := range []string{`{` + good + `,"Unknown":{"a":[1,true,null,"x"]}}`, " {\n" + good + "\t}\r\n ", `{"\u004beyId":"` + key + `"}`} {
		if a, err := f.Send(f.Signed(describe, ok)); err != nil || a.Status != http.StatusOK {
			t.Errorf("%s: %d %s %s, %v, want 200", ok, a.Status, a.Type, a.Message, err)
		}
	}
}

// badRequests are signed well, but ask for nothing that there is.
func badRequests(t *testing.T, f *harness.Face) {
	for _, target := range []string{"", "TrentService.", "TrentService.Nonsense", "TrentService.encrypt", "Trent.Encrypt",
		"TrentService.Encrypt.Encrypt", strings.Repeat("A", 20_000), "TrentService.EncapsulateKey"} {
		f.Refuses(fmt.Sprintf("target %.40q", target), f.Signed(target, "{}"), http.StatusBadRequest, "UnknownOperationException")
	}
	for _, contentType := range []string{"application/json", "text/xml", "application/x-www-form-urlencoded", "application/x-amz-json-1.0", ""} {
		r := f.Request("TrentService.ListKeys", "{}")
		r.Header.Set("Content-Type", contentType)
		f.Refuses("Content-Type "+contentType, f.Sign(r, "{}"), http.StatusBadRequest, "UnknownOperationException")
	}
	for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodDelete, http.MethodOptions, http.MethodTrace, "NONSENSE"} {
		r := f.Request("TrentService.ListKeys", "")
		r.Method = method
		f.Refuses(method, f.Sign(r, ""), http.StatusMethodNotAllowed, "UnknownOperationException")
	}
	for _, path := range []string{"/x", "//", "/../", "/%2e%2e/", "/metrics", "/debug/pprof/", "/healthz"} {
		r := f.Request("TrentService.ListKeys", "{}")
		r.URL.Opaque = path
		f.Refuses("path "+path, f.Sign(r, "{}"), http.StatusNotFound, "UnknownOperationException")
	}
}

// badSignatures are requests of those who cannot be made out.
func badSignatures(t *testing.T, f *harness.Face, key string) {
	const target = "TrentService.DescribeKey"
	body := `{"KeyId":"` + key + `"}`
	edit := func(name, from, to string) func(*http.Request) {
		return func(r *http.Request) {
			v := r.Header.Get(name)
			if !strings.Contains(v, from) {
				t.Fatalf("%s is %q, without %q", name, v, from)
			}
			r.Header.Set(name, strings.Replace(v, from, to, 1))
		}
	}
	for _, tc := range []struct {
		name   string
		change func(*http.Request)
		code   string
	}{
		{"unsigned", func(r *http.Request) { r.Header.Del("Authorization") }, "MissingAuthenticationTokenException"},
		{"an empty header", func(r *http.Request) { r.Header.Set("Authorization", "") }, "MissingAuthenticationTokenException"},
		{"a password", func(r *http.Request) { r.SetBasicAuth("root", "secret") }, "MissingAuthenticationTokenException"},
		{"a token", func(r *http.Request) { r.Header.Set("Authorization", "Bearer abc") }, "MissingAuthenticationTokenException"},
		{"signature version 4A", edit("Authorization", "AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"), "IncompleteSignatureException"},
		{"a part missing", edit("Authorization", "SignedHeaders=", "Signed="), "IncompleteSignatureException"},
		{"no parts", func(r *http.Request) { r.Header.Set("Authorization", "AWS4-HMAC-SHA256 ") }, "IncompleteSignatureException"},
		{"a long header", func(r *http.Request) {
			r.Header.Set("Authorization", "AWS4-HMAC-SHA256 "+strings.Repeat("Credential=a,", 2000))
		}, "IncompleteSignatureException"},
		{"two headers", func(r *http.Request) { r.Header.Add("Authorization", r.Header.Get("Authorization")) }, "IncompleteSignatureException"},
		{"in the query", func(r *http.Request) {
			r.Header.Del("Authorization")
			r.URL.RawQuery = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature=00"
		}, "IncompleteSignatureException"},
		{"no date", func(r *http.Request) { r.Header.Del("X-Amz-Date") }, "IncompleteSignatureException"},
		{"another date", func(r *http.Request) { r.Header.Set("X-Amz-Date", "20150830T123600Z") }, "InvalidSignatureException"},
		{"a date of nonsense", func(r *http.Request) { r.Header.Set("X-Amz-Date", "yesterday") }, "IncompleteSignatureException"},
		{"one bit of the signature", func(r *http.Request) {
			v := []byte(r.Header.Get("Authorization"))
			last := &v[len(v)-1]
			*last = "0123456789abcdef"[(strings.IndexByte("0123456789abcdef", *last)+1)%16]
			r.Header.Set("Authorization", string(v))
		}, "InvalidSignatureException"},
		{"a short signature", func(r *http.Request) {
			v := r.Header.Get("Authorization")
			r.Header.Set("Authorization", v[:len(v)-2])
		}, "InvalidSignatureException"},
		{"an unknown access key", edit("Authorization", f.As.AccessKeyID, "AKIAIOSFODNN7EXAMPLE"), "UnrecognizedClientException"},
		{"an access key of nonsense", edit("Authorization", f.As.AccessKeyID, "'; DROP TABLE keys"), "UnrecognizedClientException"},
		{"another service", edit("Authorization", "/kms/", "/s3/"), "InvalidSignatureException"},
		{"another region", edit("Authorization", "/"+harness.Region+"/", "/elsewhere-1/"), "InvalidSignatureException"},
		{"another operation", func(r *http.Request) { r.Header.Set("X-Amz-Target", "TrentService.DisableKey") }, "InvalidSignatureException"},
		{"another host", func(r *http.Request) { r.Host = "kms.amazonaws.com" }, "InvalidSignatureException"},
		{"another body", func(r *http.Request) {
			other := strings.Replace(body, key[:1], "x", 1)
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(other)), int64(len(other))
		}, "InvalidSignatureException"},
		{"a header that means something and is not signed", func(r *http.Request) { r.Header.Set("X-Amz-Security-Token", "x") }, "InvalidSignatureException"},
		{"host not signed", edit("Authorization", ";host;", ";"), "InvalidSignatureException"},
		{"a session's token", func(r *http.Request) {
			r.Header.Del("Authorization")
			r.Header.Set("X-Amz-Security-Token", "abc")
			f.Sign(r, body)
		}, "UnrecognizedClientException"},
		{"a query", func(r *http.Request) { r.URL.RawQuery = "a=b" }, "InvalidSignatureException"},
	} {
		r := f.Signed(target, body)
		tc.change(r)
		f.Refuses(tc.name, r, http.StatusBadRequest, tc.code)
	}
	for _, at := range []time.Duration{-6 * time.Minute, 6 * time.Minute, -24 * time.Hour, 100 * 365 * 24 * time.Hour} {
		f.At = time.Now().Add(at)
		f.Refuses("signed at "+at.String(), f.Signed(target, body), http.StatusBadRequest, "InvalidSignatureException")
	}
	f.At = time.Time{}
	right := f.As
	f.As.SecretAccessKey = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
	f.Refuses("another secret", f.Signed(target, body), http.StatusBadRequest, "InvalidSignatureException")
	f.As = aws.Credentials{AccessKeyID: strings.Repeat("A", 1000), SecretAccessKey: "x"}
	f.Refuses("a long access key", f.Signed(target, body), http.StatusBadRequest, "UnrecognizedClientException")
	f.As = right

	// It is only the faults above that these are refused for.
	if a, err := f.Send(f.Signed(target, "{")); err != nil || a.Type != "SerializationException" {
		t.Errorf("the control, well signed: %s, %v", a.Type, err)
	}
}

// largeBodies are refused as soon as they are known to be too large. The sender
// may be cut off before it has read so.
func largeBodies(t *testing.T, f *harness.Face) {
	const size = 10 << 20
	for _, tc := range []struct {
		name   string
		length int64
	}{{"announced", size}, {"in chunks", -1}} {
		for _, sign := range []bool{false, true} {
			r := f.Request("TrentService.ListKeys", "")
			r.Body, r.ContentLength, r.GetBody = io.NopCloser(io.LimitReader(spaces{}, size)), tc.length, nil
			if sign {
				f.Sign(r, "of another body, but nobody gets to compare")
				r.ContentLength = tc.length
			}
			a, err := f.Send(r)
			want := "RequestEntityTooLargeException"
			if !sign {
				want = "MissingAuthenticationTokenException"
			}
			if err == nil && a.Type != want {
				t.Errorf("10 MiB, %s, signed %t: %d %s, want %s", tc.name, sign, a.Status, a.Type, want)
			}
		}
	}
	// One header of 64 KiB is answered by the HTTP server itself.
	r := f.Request("TrentService.ListKeys", "{}")
	r.Header.Set("X-Long", strings.Repeat("x", 64<<10))
	resp, err := f.HTTP.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("64 KiB of headers: %s, want 431", resp.Status)
	}
}

type spaces struct{}

func (spaces) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

// closes checks that the node ends a connection after what it is sent.
func closes(t *testing.T, what, addr string, send []byte) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(15 * time.Second))
	conn.Write(send) // which it may not read to the end
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
		t.Errorf("%s: the connection is still open", what)
	}
}

func isTimeout(err error) bool {
	n, ok := errors.AsType[net.Error](err)
	return ok && n.Timeout()
}

func badTLS(t *testing.T, f *harness.Face) {
	seed := harness.NewSeed(t)
	rng := mathrand.NewChaCha8([32]byte(binaryKey(seed)))
	noise := make([]byte, 64<<10)
	rng.Read(noise)
	record := append([]byte{22, 3, 1, 0x40, 0}, noise[:0x4000]...)
	var all sync.WaitGroup
	for name, addr := range map[string]string{"AWS": f.Node.AWS, "gRPC": f.Node.GRPC, "peer": f.Node.Peer} {
		for what, send := range map[string][]byte{
			"noise":                   noise,
			"a handshake of noise":    record,
			"a record of 64 KiB":      append([]byte{22, 3, 3, 0xff, 0xff}, noise...),
			"an alert":                {21, 3, 3, 0, 2, 2, 40},
			"HTTP in the clear":       []byte("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"),
			"HTTP/2 in the clear":     []byte(http2.ClientPreface),
			"SSL 2":                   {0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10},
			"an unfinished handshake": record[:100],
			"zeros":                   make([]byte, 4096),
		} {
			all.Go(func() { closes(t, what+" to the "+name+" port", addr, send) })
		}
	}
	all.Wait()
	for version, addrs := range map[uint16][]string{tls.VersionTLS10: {f.Node.AWS, f.Node.GRPC, f.Node.Peer}, tls.VersionTLS11: {f.Node.AWS, f.Node.GRPC, f.Node.Peer}, tls.VersionTLS12: {f.Node.GRPC, f.Node.Peer}} {
		for _, addr := range addrs {
			cfg := f.TLS()
			cfg.MinVersion, cfg.MaxVersion = version, version
			if conn, err := tls.Dial("tcp", addr, cfg); err == nil {
				conn.Close()
				t.Errorf("%s takes %s", addr, tls.VersionName(version))
			}
		}
	}
	// Nodes talk to nodes of their own CA only.
	foreign := foreignCertificate(t, pki.KindNode, "a")
	for name, certs := range map[string][]tls.Certificate{"no certificate": nil, "a foreign CA's certificate": {foreign}} {
		cfg := f.TLS()
		cfg.Certificates = certs
		conn, err := tls.Dial("tcp", f.Node.Peer, cfg)
		if err == nil {
			conn.SetDeadline(time.Now().Add(5 * time.Second))
			_, err = conn.Read(make([]byte, 1)) // in TLS 1.3 the client learns of it later
			conn.Close()
		}
		if err == nil || isTimeout(err) {
			t.Errorf("the peer port takes %s: %v", name, err)
		}
	}
}

func binaryKey(seed uint64) []byte {
	sum := sha256.Sum256([]byte(strconv.FormatUint(seed, 10)))
	return sum[:]
}

func foreignCertificate(t *testing.T, kind pki.Kind, name string) tls.Certificate {
	t.Helper()
	ca, err := pki.NewCA("somebody else", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.Issue(pki.IssueRequest{Kind: kind, Name: name, DNS: []string{"localhost"}, Validity: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// h2 is a connection whose frames are written one by one.
type h2 struct {
	conn   net.Conn
	framer *http2.Framer
	ended  chan error // what the server's frames ended with
	goAway atomic.Uint32
	stream uint32
	head   bytes.Buffer
}

func openH2(t *testing.T, f *harness.Face, settings ...http2.Setting) *h2 {
	t.Helper()
	cfg := f.TLS()
	cfg.NextProtos = []string{"h2"}
	conn, err := tls.Dial("tcp", f.Node.AWS, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if p := conn.ConnectionState().NegotiatedProtocol; p != "h2" {
		t.Fatalf("the server chose %q, want h2", p)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	h := &h2{conn: conn, framer: http2.NewFramer(conn, conn), ended: make(chan error, 1), stream: 1}
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := h.framer.WriteSettings(settings...); err != nil {
		t.Fatal(err)
	}
	go func() {
		r := http2.NewFramer(io.Discard, conn)
		for {
			fr, err := r.ReadFrame()
			if err != nil {
				h.ended <- err
				return
			}
			if g, ok := fr.(*http2.GoAwayFrame); ok {
				h.goAway.Store(uint32(g.ErrCode) + 1)
			}
		}
	}()
	return h
}

func (h *h2) headers(f *harness.Face, end bool) []byte {
	h.head.Reset()
	enc := hpack.NewEncoder(&h.head)
	for _, kv := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":authority", f.Node.AWS}, {":path", "/"},
		{"content-type", "application/x-amz-json-1.1"}, {"x-amz-target", "TrentService.ListKeys"}} {
		enc.WriteField(hpack.HeaderField{Name: kv[0], Value: kv[1]})
	}
	return h.head.Bytes()
}

// drops sends frames until the server has had enough, or a bound is reached. It
// returns how many were taken.
func (h *h2) drops(bound int, send func(i int) error) int {
	for i := range bound {
		if err := send(i); err != nil {
			return i
		}
		if h.goAway.Load() != 0 {
			return i
		}
	}
	return bound
}

func badHTTP2(t *testing.T, f *harness.Face) {
	// Honest requests go on meanwhile.
	stop := make(chan struct{})
	var honest atomic.Int64
	var slowest atomic.Int64
	var wg sync.WaitGroup
	other := harness.NewFace(t, f.Cluster, f.Node)
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			begun := time.Now()
			// It is refused, so it leaves no record, but it is answered.
			a, err := other.Send(other.Request("TrentService.ListKeys", "{}"))
			if err != nil || a.Type != "MissingAuthenticationTokenException" {
				t.Errorf("an honest client meanwhile: %s, %v", a.Type, err)
				return
			}
			honest.Add(1)
			slowest.Store(max(slowest.Load(), int64(time.Since(begun))))
			time.Sleep(5 * time.Millisecond)
		}
	})
	attack := func(name string, wantClosed bool, bound int, settings []http2.Setting, send func(h *h2, i int) error) {
		t.Run(name, func(t *testing.T) {
			h := openH2(t, f, settings...)
			n := h.drops(bound, func(i int) error { return send(h, i) })
			if !wantClosed {
				return
			}
			select {
			case err := <-h.ended:
				if isTimeout(err) {
					t.Errorf("the connection is open after %d", n)
				}
				t.Logf("ended after %d", n)
			case <-time.After(15 * time.Second):
				t.Errorf("the connection is open after %d", n)
			}
		})
	}
	attack("rapid reset", false, 5000, nil, func(h *h2, _ int) error {
		err := h.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: h.stream, BlockFragment: h.headers(f, false), EndHeaders: true})
		if err == nil {
			err = h.framer.WriteRSTStream(h.stream, http2.ErrCodeCancel)
		}
		h.stream += 2
		return err
	})
	// Each is answered at once, for want of a signature.
	attack("streams that never end", false, 2000, nil, func(h *h2, _ int) error {
		err := h.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: h.stream, BlockFragment: h.headers(f, false), EndHeaders: true})
		h.stream += 2
		return err
	})
	attack("continuation flood", true, 100_000, nil, func(h *h2, i int) error {
		if i == 0 {
			return h.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: h.stream, BlockFragment: h.headers(f, false)})
		}
		h.head.Reset()
		hpack.NewEncoder(&h.head).WriteField(hpack.HeaderField{Name: fmt.Sprintf("x-%d", i), Value: strings.Repeat("v", 1000)})
		return h.framer.WriteContinuation(h.stream, false, h.head.Bytes())
	})
	attack("ping flood", false, 50_000, nil, func(h *h2, i int) error { return h.framer.WritePing(false, [8]byte{byte(i)}) })
	attack("settings flood", false, 20_000, nil, func(h *h2, i int) error {
		return h.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(i)})
	})
	attack("window stall", false, 200, []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 0}}, func(h *h2, _ int) error {
		err := h.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: h.stream, BlockFragment: h.headers(f, true), EndHeaders: true, EndStream: true})
		h.stream += 2
		return err
	})
	attack("stream zero", true, 1, nil, func(h *h2, _ int) error { return h.framer.WriteRawFrame(http2.FrameHeaders, 4, 0, h.headers(f, true)) })
	attack("an even stream", true, 1, nil, func(h *h2, _ int) error { return h.framer.WriteRawFrame(http2.FrameHeaders, 5, 2, h.headers(f, true)) })
	attack("a frame of 16 MiB", true, 1, nil, func(h *h2, _ int) error {
		_, err := h.conn.Write([]byte{0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1})
		return err
	})
	attack("a window beyond 2^31", true, 2, nil, func(h *h2, _ int) error { return h.framer.WriteWindowUpdate(0, 1<<31-1) })
	close(stop)
	wg.Wait()
	t.Logf("honest requests meanwhile: %d, the slowest took %v", honest.Load(), time.Duration(slowest.Load()))
	if honest.Load() == 0 {
		t.Errorf("no honest request was answered meanwhile")
	}
}

// dialGRPC makes a connection without any of what our client adds.
func dialGRPC(t *testing.T, n *harness.Node, cfg *tls.Config, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(n.GRPC, append(opts, grpc.WithTransportCredentials(credentials.NewTLS(cfg)))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// rawCodec sends bytes as they are.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error) { return v.([]byte), nil }
func (rawCodec) Unmarshal(b []byte, v any) error {
	*v.(*[]byte) = bytes.Clone(b)
	return nil
}
func (rawCodec) Name() string { return "proto" }

// sessionToken opens a session by hand.
func sessionToken(t *testing.T, c *harness.Cluster, conn *grpc.ClientConn) string {
	t.Helper()
	r, err := newSessionProof(c.AccessKeyID, c.Secret(), time.Now()).create(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	return r.GetToken()
}

// sessionProof makes and proves a request for a session, as clients do.
type sessionProof struct {
	request *kmspb.CreateSessionRequest
	proven  *kmspb.CreateSessionRequest // what the proof is of
	secret  string
	mac     []byte // sent instead of the right one, if set
	flip    byte   // in the last byte of it
	channel []byte // proven instead of the connection's, if set
}

func newSessionProof(id, secret string, at time.Time) *sessionProof {
	nonce := make([]byte, 32)
	rand.Read(nonce)
	r := &kmspb.CreateSessionRequest{AccessKeyId: id, Time: at.Unix(), Nonce: nonce}
	return &sessionProof{request: r, proven: proto.CloneOf(r), secret: secret}
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (p *sessionProof) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	if p.mac == nil {
		mac := func(key []byte, message string) []byte {
			h := hmac.New(sha256.New, key)
			h.Write([]byte(message))
			return h.Sum(nil)
		}
		channel := p.channel
		if channel == nil {
			call, _ := credentials.RequestInfoFromContext(ctx)
			state := call.AuthInfo.(credentials.TLSInfo).State
			var err error
			if channel, err = state.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32); err != nil {
				return nil, err
			}
		}
		r := p.proven
		p.mac = mac(mac([]byte("CONCLAVE1"+p.secret), "session"),
			fmt.Sprintf("conclave session v2\n%s\n%d\n%x\n%x", r.AccessKeyId, r.Time, r.Nonce, channel))
		p.mac[len(p.mac)-1] ^= p.flip
	}
	return map[string]string{"conclave-proof-bin": string(p.mac)}, nil
}

func (*sessionProof) RequireTransportSecurity() bool { return true }

func (p *sessionProof) create(ctx context.Context, conn *grpc.ClientConn) (*kmspb.CreateSessionResponse, error) {
	return kmspb.NewSessionClient(conn).Create(ctx, p.request, grpc.PerRPCCredentials(p))
}

func grpcFails(t *testing.T, what string, err error, want ...codes.Code) {
	t.Helper()
	got := status.Code(err)
	for _, c := range want {
		if got == c {
			return
		}
	}
	t.Errorf("%s: got %v (%v), want %v", what, got, err, want)
}

// strangersGRPC are calls of those who do not say who they are.
func strangersGRPC(t *testing.T, c *harness.Cluster, n *harness.Node, token string) {
	ctx := t.Context()
	f := harness.NewFace(t, c, n)
	conn := dialGRPC(t, n, f.TLS())
	list := &kmspb.ListKeysRequest{}
	invoke := func(ctx context.Context, method string, in proto.Message) error {
		return conn.Invoke(ctx, method, in, &kmspb.ListKeysResponse{})
	}
	const listKeys = "/conclave.v1.KMS/ListKeys"
	for _, method := range []string{"/conclave.v1.KMS/Nonsense", "/conclave.v1.Nonsense/ListKeys", "/x/y", "/conclave.v1.KMS/", "/conclave.v1.KMS/listKeys", "/grpc.channelz.v1.Channelz/GetServers"} {
		grpcFails(t, method, invoke(ctx, method, list), codes.Unimplemented)
	}
	with := func(token ...string) context.Context {
		ctx := ctx
		for _, v := range token {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", v)
		}
		return ctx
	}
	for name, tokens := range map[string][]string{
		"no token": nil, "an empty one": {""}, "only the scheme": {"Bearer "}, "another scheme": {"Basic " + token}, "nonsense": {"Bearer abc"},
		"cut": {"Bearer " + token[:len(token)-4]}, "longer": {"Bearer " + token + "AAAA"}, "twice": {"Bearer " + token, "Bearer " + token},
		"long": {"Bearer " + strings.Repeat("A", 8000)}, "a space more": {"Bearer  " + token + " x"},
	} {
		grpcFails(t, "token: "+name, invoke(with(tokens...), listKeys, list), codes.Unauthenticated)
	}
	for i := range len(token) { // each character
		flipped := []byte(token)
		if flipped[i] = 'A'; token[i] == 'A' {
			flipped[i] = 'B'
		}
		if i == len(token)-1 {
			continue // of the last one, some bits may stand for nothing
		}
		grpcFails(t, fmt.Sprintf("token with character %d changed", i), invoke(with("Bearer "+string(flipped)), listKeys, list), codes.Unauthenticated)
	}
	session := func(change func(*sessionProof)) error {
		p := newSessionProof(c.AccessKeyID, c.Secret(), time.Now())
		change(p)
		_, err := p.create(ctx, conn)
		return err
	}
	for name, change := range map[string]func(*sessionProof){
		"nothing":           func(p *sessionProof) { p.request, p.mac = &kmspb.CreateSessionRequest{}, []byte{} },
		"no MAC":            func(p *sessionProof) { p.mac = []byte{} },
		"one bit":           func(p *sessionProof) { p.flip = 1 },
		"no nonce":          func(p *sessionProof) { p.request.Nonce = nil },
		"another nonce":     func(p *sessionProof) { p.request.Nonce[0] ^= 1 },
		"another time":      func(p *sessionProof) { p.request.Time++ },
		"an old time":       func(p *sessionProof) { p.request.Time -= 3600; p.proven.Time -= 3600 },
		"an unknown key":    func(p *sessionProof) { p.request.AccessKeyId = "AKIAIOSFODNN7EXAMPLE" },
		"a key of nonsense": func(p *sessionProof) { p.request.AccessKeyId = strings.Repeat("\n", 1000) },
		"another channel":   func(p *sessionProof) { p.channel = make([]byte, 32) },
		"no channel":        func(p *sessionProof) { p.channel = []byte{} },
	} {
		grpcFails(t, "session: "+name, session(change), codes.Unauthenticated, codes.InvalidArgument)
	}
	// The operators' calls.
	op := kmspb.NewOperatorClient(conn)
	_, err := op.Seal(ctx, &kmspb.SealRequest{})
	grpcFails(t, "Seal by a stranger", err, codes.PermissionDenied)
	_, err = op.SubmitShare(ctx, &kmspb.SubmitShareRequest{SealedShare: []byte("conclave")})
	grpcFails(t, "SubmitShare by a stranger", err, codes.PermissionDenied)
	_, err = op.Challenge(ctx, &kmspb.ChallengeRequest{})
	grpcFails(t, "Challenge by a stranger", err, codes.PermissionDenied)
	_, err = op.Init(ctx, &kmspb.InitRequest{})
	grpcFails(t, "Init by a stranger", err, codes.PermissionDenied)
	_, err = kmspb.NewClusterClient(conn).Members(ctx, &kmspb.MembersRequest{})
	grpcFails(t, "Members by a stranger", err, codes.PermissionDenied)
	st, err := op.Status(ctx, &kmspb.StatusRequest{})
	if err == nil && (st.GetNodeId() != "" || st.GetSeal().GetCeremony() != nil || st.GetRaft() != nil || st.GetAudit() != nil || st.GetAddresses() != nil) {
		t.Errorf("Status tells a stranger %v", st)
	}
	cfg := f.TLS()
	cfg.Certificates = []tls.Certificate{foreignCertificate(t, pki.KindOperator, "tester")}
	_, err = kmspb.NewOperatorClient(dialGRPC(t, n, cfg)).Seal(ctx, &kmspb.SealRequest{})
	grpcFails(t, "Seal by a foreign CA's operator", err, codes.Unavailable, codes.PermissionDenied)

	stream, err := kmspb.NewAuditClient(conn).Read(ctx, &kmspb.ReadAuditRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	grpcFails(t, "reading the audit log by a stranger", err, codes.Unauthenticated)
	// Messages of strangers.
	raw := dialGRPC(t, n, f.TLS(), grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{}), grpc.MaxCallSendMsgSize(64<<20)))
	for name, body := range map[string][]byte{"10 MiB": make([]byte, 10<<20), "just too much": make([]byte, 1<<20+1)} {
		var out []byte
		grpcFails(t, name, raw.Invoke(ctx, listKeys, body, &out), codes.ResourceExhausted, codes.Unauthenticated)
	}
	var out []byte
	grpcFails(t, "noise without a token", raw.Invoke(ctx, listKeys, []byte{0xff, 0xff, 0xff}, &out), codes.Unauthenticated, codes.InvalidArgument)
	grpcFails(t, "a header of 32 KiB", invoke(metadata.AppendToOutgoingContext(ctx, "x-long", strings.Repeat("x", 32<<10)), listKeys, list),
		codes.Internal, codes.Unavailable, codes.ResourceExhausted, codes.Unauthenticated)
	// The connection that all this came over still works.
	if _, err := kmspb.NewOperatorClient(conn).Status(ctx, &kmspb.StatusRequest{}); err != nil {
		t.Errorf("Status afterwards: %v", err)
	}
}

// badMessages are of an authenticated caller.
func badMessages(t *testing.T, f *harness.Face, token string) {
	ctx, n := t.Context(), f.Node
	_, err := n.KMS().DescribeKey(ctx, &kmspb.DescribeKeyRequest{KeyId: proto.String("nothing")})
	grpcFails(t, "no such key", err, codes.NotFound)
	if f, ok := client.FromError(err); !ok || f.Type != "NotFoundException" || f.RequestID == "" {
		t.Errorf("the error's details are %+v", f)
	}
	_, err = n.KMS().DescribeKey(ctx, &kmspb.DescribeKeyRequest{})
	grpcFails(t, "no key", err, codes.InvalidArgument)
	unknown := &kmspb.DescribeKeyRequest{KeyId: proto.String("x")}
	unknown.ProtoReflect().SetUnknown([]byte{0xf8, 0x3f, 1}) // field 1023
	_, err = n.KMS().DescribeKey(ctx, unknown)
	grpcFails(t, "an unknown member", err, codes.InvalidArgument)
	_, err = n.KMS().Encrypt(ctx, &kmspb.EncryptRequest{KeyId: proto.String("x"), Plaintext: make([]byte, 1<<20)})
	grpcFails(t, "1 MiB of plaintext", err, codes.ResourceExhausted, codes.InvalidArgument)
	_, err = n.KMS().Decrypt(ctx, &kmspb.DecryptRequest{CiphertextBlob: []byte("nonsense")})
	grpcFails(t, "no ciphertext", err, codes.InvalidArgument)

	raw := dialGRPC(t, n, f.TLS(), grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{}), grpc.MaxCallSendMsgSize(64<<20)))
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	send := func(body []byte) error {
		var out []byte
		return raw.Invoke(ctx, "/conclave.v1.KMS/DescribeKey", body, &out)
	}
	grpcFails(t, "the control, a message of no bytes", send(nil), codes.InvalidArgument)
	for name, body := range map[string][]byte{"10 MiB": make([]byte, 10<<20), "just too much": make([]byte, 1<<20+1)} {
		grpcFails(t, name, send(body), codes.ResourceExhausted)
	}
	for name, body := range map[string][]byte{
		"noise": {0xff, 0xff, 0xff}, "a length beyond the end": {0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f}, "an endless number": bytes.Repeat([]byte{0x80}, 1000),
		"half a million groups": bytes.Repeat([]byte{0x0b}, 500_000), "no UTF-8": {0x0a, 2, 0xff, 0xfe}, "field zero": {0x00, 0x01},
	} {
		grpcFails(t, name, send(body), codes.InvalidArgument, codes.Internal)
	}
}

// flood is many strangers at once.
func flood(t *testing.T, f *harness.Face) {
	const each, at = 100, 20
	var all sync.WaitGroup
	var answered atomic.Int64
	for i := range at {
		all.Go(func() {
			for range each {
				r := f.Request("TrentService.ListKeys", "{}")
				want := "MissingAuthenticationTokenException"
				if i%2 == 0 {
					f.Sign(r, "{ }")
					want = "InvalidSignatureException"
				}
				a, err := f.Send(r)
				if err != nil || a.Type != want {
					t.Errorf("got %d %s, %v, want %s", a.Status, a.Type, err, want)
					return
				}
				answered.Add(1)
			}
		})
	}
	all.Wait()
	t.Logf("%d strangers refused", answered.Load())
}
