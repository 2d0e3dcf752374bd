package client

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"
)

// maxPEM is larger than any file of certificates.
const maxPEM = 4 << 20

// readPEM reads a file that must have a PEM block of a kind. Its error says
// what the file has instead.
func readPEM(name, want string) ([]byte, error) {
	fi, err := os.Stat(name)
	if err == nil && (!fi.Mode().IsRegular() || fi.Size() > maxPEM) {
		err = fmt.Errorf("%s is not a file of certificates or keys", name)
	}
	if err != nil {
		return nil, err
	}
	raw, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	found := ""
	for block, rest := pem.Decode(raw); block != nil; block, rest = pem.Decode(rest) {
		kind := strings.ToLower(block.Type)
		if strings.HasSuffix(kind, "private key") {
			kind = "private key"
		}
		if kind == want {
			return raw, nil
		}
		found = kind
	}
	clear(raw)
	if found == "" {
		return nil, fmt.Errorf("%s is not a PEM file; a %s in PEM is needed", name, want)
	}
	return nil, fmt.Errorf("%s has a %s, where a %s is needed", name, found, want)
}

// readCA reads the CA certificates for those of servers.
func readCA(name string) (*x509.CertPool, error) {
	raw, err := readPEM(name, "certificate")
	if err != nil {
		return nil, fmt.Errorf("reading the CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(raw) {
		return nil, fmt.Errorf("reading the CA: the certificate in %s cannot be read", name)
	}
	return pool, nil
}

// readPair reads the client's certificate and its key.
func readPair(certFile, keyFile string) (tls.Certificate, error) {
	cert, err := readPEM(certFile, "certificate")
	key, kerr := readPEM(keyFile, "private key")
	defer clear(key)
	if err := errors.Join(err, kerr); err != nil {
		return tls.Certificate{}, fmt.Errorf("reading the client's certificate and key: %w", err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("the client's certificate %s and key %s: %w", certFile, keyFile, err)
	}
	return pair, nil
}
