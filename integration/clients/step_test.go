package clients

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"strings"
	"testing"
	"time"

	"go.step.sm/crypto/kms/apiv1"
	"go.step.sm/crypto/kms/awskms"
)

// TestStepCrypto makes keys, signs and issues certificates by the code that step-ca
// has for AWS KMS.
func TestStepCrypto(t *testing.T) {
	kinds := []struct {
		name string
		make apiv1.CreateKeyRequest
		opts crypto.SignerOpts
		// verify checks a signature over a digest; over the message for Ed25519.
		verify func(public crypto.PublicKey, digest, signature []byte) bool
	}{
		{"ecdsa", apiv1.CreateKeyRequest{SignatureAlgorithm: apiv1.ECDSAWithSHA256}, crypto.SHA256, func(public crypto.PublicKey, digest, signature []byte) bool {
			return ecdsa.VerifyASN1(public.(*ecdsa.PublicKey), digest, signature)
		}},
		{"rsa", apiv1.CreateKeyRequest{SignatureAlgorithm: apiv1.SHA256WithRSA, Bits: 2048}, crypto.SHA256, func(public crypto.PublicKey, digest, signature []byte) bool {
			return rsa.VerifyPKCS1v15(public.(*rsa.PublicKey), crypto.SHA256, digest, signature) == nil
		}},
		{"rsa-pss", apiv1.CreateKeyRequest{SignatureAlgorithm: apiv1.SHA256WithRSAPSS, Bits: 2048}, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}, func(public crypto.PublicKey, digest, signature []byte) bool {
			return rsa.VerifyPSS(public.(*rsa.PublicKey), crypto.SHA256, digest, signature, nil) == nil
		}},
		{"ed25519", apiv1.CreateKeyRequest{SignatureAlgorithm: apiv1.PureEd25519}, crypto.Hash(0), func(public crypto.PublicKey, message, signature []byte) bool {
			return ed25519.Verify(public.(ed25519.PublicKey), message, signature)
		}},
	}
	overBoth(t, func(t *testing.T, s *server) {
		s.use(t)
		c := client(t)
		manager, err := awskms.New(t.Context(), apiv1.Options{URI: "awskms:region=" + region})
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range kinds {
			t.Run(k.name, func(t *testing.T) {
				k.make.Name = "awskms:name=" + k.name
				made, err := manager.CreateKey(&k.make)
				if err != nil {
					t.Fatal(err)
				}
				signer, err := manager.CreateSigner(&made.CreateSignerRequest)
				if err != nil {
					t.Fatal(err)
				}
				if public, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(made.PublicKey) {
					t.Errorf("the signer has another public key than was made")
				}
				digest := sha256.Sum256([]byte("message"))
				signature, err := signer.Sign(rand.Reader, digest[:], k.opts)
				if err != nil {
					t.Fatal(err)
				}
				if !k.verify(signer.Public(), digest[:], signature) {
					t.Error("the signature is wrong")
				}
				certificates(t, signer)
				disable(t, c, strings.TrimPrefix(made.Name, "awskms:key-id="))
				if _, err := signer.Sign(rand.Reader, digest[:], k.opts); err == nil || !strings.Contains(err.Error(), "DisabledException") {
					t.Errorf("with a disabled key: %v, want DisabledException", err)
				}
			})
		}
	})
}

// certificates has a signer be a CA.
func certificates(t *testing.T, ca crypto.Signer) {
	t.Helper()
	now := time.Now()
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Root"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	issue := func(template, parent *x509.Certificate, public crypto.PublicKey) *x509.Certificate {
		t.Helper()
		der, err := x509.CreateCertificate(rand.Reader, template, parent, public, ca)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	rootCert := issue(root, root, ca.Public())
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := issue(&x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "leaf"}, DNSNames: []string{"leaf.test"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
	}, rootCert, public)
	roots := x509.NewCertPool()
	roots.AddCert(rootCert)
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "leaf.test"}); err != nil {
		t.Error(err)
	}
	leaf.RawTBSCertificate = bytes.Replace(leaf.RawTBSCertificate, []byte("leaf.test"), []byte("evil.test"), 1)
	if err := leaf.CheckSignatureFrom(rootCert); err == nil {
		t.Error("a certificate that was changed verifies")
	}
}
