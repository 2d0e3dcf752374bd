package sigv4_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/conclavekms/conclave/transport/sigv4"
)

// A client signs a request for which it has a secret.
func ExampleSigner_Sign() {
	const body = `{"KeyId":"alias/example"}`
	r, err := http.NewRequest(http.MethodPost, "https://kms.example.com/", strings.NewReader(body))
	if err != nil {
		panic(err)
	}
	r.Header.Set("Content-Type", "application/x-amz-json-1.1")
	r.Header.Set("X-Amz-Target", "TrentService.DescribeKey")
	s := sigv4.Signer{
		AccessKeyID: "AKIDEXAMPLE", Region: "eu-west-1", Service: "kms",
		SignedHeaders: "content-type;host;x-amz-date;x-amz-target",
		SigningKey:    sigv4.Secret("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
	}
	if err := s.Sign(r, []byte(body), time.Date(2026, 11, 23, 12, 36, 0, 0, time.UTC)); err != nil {
		panic(err)
	}
	fmt.Println(r.Header.Get("X-Amz-Date"))
	fmt.Println(strings.ReplaceAll(r.Header.Get("Authorization"), ", ", "\n"))
	// Output:
	// 20261123T123600Z
	// AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261123/eu-west-1/kms/aws4_request
	// SignedHeaders=content-type;host;x-amz-date;x-amz-target
	// Signature=58aabe017bf6f8e6d7798f6fd7761b69c3b67ab01c1374ee72d22616a983e53b
}

// A server reads which access key is said to have signed a request, and verifies the
// signature with its secret.
func ExampleVerifier() {
	verifier := sigv4.NewVerifier("service")
	secrets := map[string]string{"AKIDEXAMPLE": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"}
	check := func(r *http.Request, body []byte, now time.Time) error {
		var claim sigv4.Claim
		if err := verifier.Read(&claim, r, now); err != nil {
			return err
		}
		proof, canonical, err := claim.Proof(nil, r, body)
		if err != nil {
			return err
		}
		secret, ok := secrets[claim.AccessKeyID]
		if !ok {
			return sigv4.UnknownKey()
		}
		var key [sigv4.KeySize]byte
		defer clear(key[:])
		proof.Derive(key[:], []byte(secret))
		if !proof.SignedBy(key[:]) {
			return sigv4.Mismatch(canonical, &proof)
		}
		return nil
	}

	r, err := http.NewRequest(http.MethodGet, "https://example.amazonaws.com/", nil)
	if err != nil {
		panic(err)
	}
	r.Header.Set("X-Amz-Date", "20150830T123600Z")
	r.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, "+
		"SignedHeaders=host;x-amz-date, Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31")
	now := time.Date(2015, 8, 30, 12, 36, 0, 0, time.UTC)
	fmt.Println(check(r, nil, now))

	var refused *sigv4.Error
	if err := check(r, []byte("another body"), now); errors.As(err, &refused) {
		fmt.Println(refused.Code, refused.Reason)
	}
	if err := check(r, nil, now.Add(time.Hour)); errors.As(err, &refused) {
		fmt.Println(refused.Message)
	}
	// Output:
	// <nil>
	// InvalidSignatureException signature
	// Signature expired: 20150830T123600Z is now earlier than 20150830T133100Z (20150830T133600Z - 5 min.)
}
