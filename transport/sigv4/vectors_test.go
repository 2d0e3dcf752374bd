package sigv4

import (
	"bufio"
	"encoding/hex"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

var suiteTime = time.Date(2015, 8, 30, 12, 36, 0, 0, time.UTC)

// Requests of AWS's published Signature Version 4 test suite, with their
// signatures, which are verified and made: 20150830T123600Z, us-east-1, service
// "service".
func TestPublishedVectors(t *testing.T) {
	for _, tc := range []struct{ name, request, signed, want string }{
		{"get-vanilla", "GET / HTTP/1.1\r\nHost:example.amazonaws.com\r\nX-Amz-Date:20150830T123600Z\r\n\r\n",
			"host;x-amz-date", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"},
		{"post-vanilla", "POST / HTTP/1.1\r\nHost:example.amazonaws.com\r\nX-Amz-Date:20150830T123600Z\r\n\r\n",
			"host;x-amz-date", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"},
		{"get-header-value-trim", "GET / HTTP/1.1\r\nHost:example.amazonaws.com\r\nMy-Header1: value1\r\nMy-Header2: \"a   b   c\"\r\nX-Amz-Date:20150830T123600Z\r\n\r\n",
			"host;my-header1;my-header2;x-amz-date", "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736"},
		{"get-header-key-duplicate", "GET / HTTP/1.1\r\nHost:example.amazonaws.com\r\nMy-Header1:value2\r\nMy-Header1:value2\r\nMy-Header1:value1\r\nX-Amz-Date:20150830T123600Z\r\n\r\n",
			"host;my-header1;x-amz-date", "c9d5ea9f3f72853aea855b47ea873832890dbdd183b4468f858259531a5138ea"},
		{"get-header-value-order", "GET / HTTP/1.1\r\nHost:example.amazonaws.com\r\nMy-Header1:value4\r\nMy-Header1:value1\r\nMy-Header1:value3\r\nMy-Header1:value2\r\nX-Amz-Date:20150830T123600Z\r\n\r\n",
			"host;my-header1;x-amz-date", "08c7e5a9acfcfeb3ab6b2185e75ce8b1deb5e634ec47601a50643f830c755c01"},
		{"post-header-key-sort", "POST / HTTP/1.1\r\nHost:example.amazonaws.com\r\nMy-Header1:value1\r\nX-Amz-Date:20150830T123600Z\r\n\r\n",
			"host;my-header1;x-amz-date", "c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c"},
		{"post-header-value-case", "POST / HTTP/1.1\r\nHost:example.amazonaws.com\r\nMy-Header1:VALUE1\r\nX-Amz-Date:20150830T123600Z\r\n\r\n",
			"host;my-header1;x-amz-date", "cdbc9802e29d2942e5e10b5bccfdd67c5f22c7c4e8ae67b53629efa58b974b7d"},
		{"get-unreserved", "GET /-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz HTTP/1.1\r\nHost:example.amazonaws.com\r\nX-Amz-Date:20150830T123600Z\r\n\r\n",
			"host;x-amz-date", "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f"},
		{"post-x-www-form-urlencoded", "POST / HTTP/1.1\r\nContent-Type:application/x-www-form-urlencoded\r\nHost:example.amazonaws.com\r\nX-Amz-Date:20150830T123600Z\r\nContent-Length: 13\r\n\r\nParam1=value1",
			"content-type;host;x-amz-date", "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, body := parseRequest(t, tc.request)
			r.Header.Set("Authorization", Algorithm+" Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders="+tc.signed+", Signature="+tc.want)
			if err := verify(NewVerifier("service"), r, body, testSecret, suiteTime); err != nil {
				t.Error(err)
			}
			want := r.Header.Get("Authorization")
			s := Signer{AccessKeyID: testKeyID, Region: "us-east-1", Service: "service", SignedHeaders: tc.signed, SigningKey: Secret(testSecret)}
			if err := s.Sign(r, body, suiteTime); err != nil {
				t.Fatal(err)
			}
			if got := r.Header.Get("Authorization"); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

// TestPublishedPresigned has requests of the same suite that are signed in the query
// string, as in aws-c-auth. The suite adds an X-Amz-Date header that is not signed;
// it is left out, because a presigned request has its date in the query string.
func TestPublishedPresigned(t *testing.T) {
	const parameters = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIDEXAMPLE%2F20150830%2Fus-east-1%2Fservice%2Faws4_request&X-Amz-Date=20150830T123600Z&X-Amz-Expires=3600"
	const unreserved = "-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	for _, tc := range []struct{ name, uri, signed, headers, signature string }{
		{"get-header-key-duplicate", "/?", "host%3Bmy-header1", "My-Header1:value2\r\nMy-Header1:value2\r\nMy-Header1:value1\r\n",
			"3349ee0b81b4b589da0ff28a395c3591e04de515651dd74f298fa992d1507a97"},
		{"get-unreserved", "/" + unreserved + "?", "host", "", "95968482db1b9e0fadef6efc1bd24689f77c77d9ef56919c96a28cc92e0d6005"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, body := parseRequest(t, "GET "+tc.uri+parameters+"&X-Amz-SignedHeaders="+tc.signed+"&X-Amz-Signature="+tc.signature+
				" HTTP/1.1\r\nHost:example.amazonaws.com\r\n"+tc.headers+"\r\n")
			if err := verify(NewVerifier("service"), r, body, testSecret, suiteTime.Add(time.Hour)); err != nil {
				t.Error(err)
			}
		})
	}
}

func parseRequest(t *testing.T, text string) (*http.Request, []byte) {
	t.Helper()
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r, body
}

// TestDerive is the example of AWS's General Reference ("Examples of how to derive
// a signing key").
func TestDerive(t *testing.T) {
	key := make([]byte, KeySize)
	Derive(key, []byte("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"), "20150830", "us-east-1", "iam")
	if got, want := hex.EncodeToString(key), "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
