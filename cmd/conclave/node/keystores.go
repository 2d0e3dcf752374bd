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
	if c.XKSCA == "" {
		return k, nil
	}
	pem, err := os.ReadFile(c.XKSCA)
	if err != nil {
		return k, fmt.Errorf("CA of external key stores: %w", err)
	}
	k.Roots = x509.NewCertPool()
	if !k.Roots.AppendCertsFromPEM(pem) {
		return k, fmt.Errorf("CA of external key stores: %s has no certificate", c.XKSCA)
	}
	return k, nil
}
