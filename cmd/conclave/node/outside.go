package node

import (
	"crypto/x509"
	"fmt"
	"os"

	"github.com/conclavekms/conclave/keyengine"
)

// keyStores returns the engine's configuration for custom key stores.
func (c *Config) keyStores() (keyengine.KeyStoreConfig, error) {
	k := keyengine.KeyStoreConfig{
		AllowPrivateEndpoints: c.XKSAllowPrivateEndpoints, Timeout: c.Test.XKSTimeout,
		PKCS11Module: c.PKCS11Module, PKCS11Tokens: c.PKCS11Tokens,
	}
	var err error
	k.Roots, err = readRoots("CA of external key stores", c.XKSCA)
	return k, err
}

// webIdentities returns the engine's configuration for identity providers.
func (c *Config) webIdentities() (keyengine.WebIdentityConfig, error) {
	roots, err := readRoots("CA of identity providers", c.WebIdentityCA)
	return keyengine.WebIdentityConfig{AllowPrivate: c.WebIdentityAllowPrivate, Roots: roots}, err
}

// readRoots reads a PEM file of certificates. It returns nil, which stands for the system's
// CAs, only if no file is given.
func readRoots(what, file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: %s has no certificate", what, file)
	}
	return roots, nil
}
