package diagnose

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/conclavekms/conclave/cluster/gossip"
	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
	"github.com/conclavekms/conclave/cmd/conclave/node"
)

const (
	// soon is how long before its end a certificate should be replaced; the server warns
	// from then on.
	soon = 30 * 24 * time.Hour
	// maxPEM bounds the files with certificates.
	maxPEM = 1 << 20
)

// issueAgain returns the command that makes a node's certificate.
func issueAgain(s *subject) string { return "issue another: conclave cert issue node " + s.cfg.NodeID }

func certificates(_ context.Context, s *subject, r *report) {
	const check = "certificates"
	cfg := s.cfg
	if cfg.TLSCert == "" || cfg.TLSKey == "" || cfg.TLSCA == "" {
		return // the configuration says so
	}
	if s.identity == nil {
		_, err := pki.LoadIdentity(cfg.TLSCert, cfg.TLSKey, cfg.TLSCA)
		r.add(check, Problem, "give the node's certificate, its key and the CA's certificate in PEM, readable by the user that the server runs as", "%v", err)
		return
	}
	if id := s.identity.NodeID(); id != cfg.NodeID {
		r.add(check, Problem, issueAgain(s), "the certificate is of node %s, and this is node %s", id, cfg.NodeID)
	}
	leaf, chain, err := chainOf(cfg)
	if err != nil {
		r.add(check, Problem, "give files that can be read", "%v", err)
		return
	}
	before := len(r.list)
	roots, ends := chain.roots, []ending{{"the node's certificate", leaf, issueAgain(s)}}
	for _, ca := range chain.cas {
		ends = append(ends, ending{"the CA's certificate", ca, "make a new CA, and give nodes and clients both until all have certificates of the new one"})
	}
	for _, e := range ends {
		e.check(s.now, r, check)
	}
	for _, usage := range []struct {
		key  x509.ExtKeyUsage
		name string
	}{{x509.ExtKeyUsageServerAuth, "a server"}, {x509.ExtKeyUsageClientAuth, "a client"}} {
		_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: chain.intermediates, KeyUsages: []x509.ExtKeyUsage{usage.key}, CurrentTime: within(s.now, leaf)})
		if err != nil {
			r.add(check, Problem, issueAgain(s)+", with the CA that all nodes have", "other nodes refuse this one as %s: %v", usage.name, err)
		}
	}
	for _, host := range hosts(cfg) {
		if err := leaf.VerifyHostname(host); err != nil {
			r.add(check, Warning, issueAgain(s)+" --dns or --ip "+host, "clients that connect to %s refuse this node: %v", host, err)
		}
	}
	if st, err := os.Stat(cfg.TLSKey); err == nil && st.Mode().Perm()&0o007 != 0 {
		r.add(check, Warning, "chmod 640 "+cfg.TLSKey, "everybody may read the node's key in %s (mode %#o)", cfg.TLSKey, st.Mode().Perm())
	}
	if len(r.list) == before {
		r.ok(check, "node %s, until %s; the CA until %s; the key is that of the certificate", s.identity.NodeID(),
			s.identity.NotAfter().UTC().Format(time.DateOnly), s.identity.CANotAfter().UTC().Format(time.DateOnly))
	}
}

// ending is a certificate that ends some day.
type ending struct {
	what string
	cert *x509.Certificate
	next string
}

func (e ending) check(now time.Time, r *report, check string) {
	from, to := e.cert.NotBefore.UTC().Format(time.RFC3339), e.cert.NotAfter.UTC().Format(time.RFC3339)
	switch {
	case now.Before(e.cert.NotBefore):
		r.add(check, Problem, "compare this machine's clock with that of the one that issued it", "%s is valid only from %s", e.what, from)
	case now.After(e.cert.NotAfter):
		r.add(check, Problem, e.next, "%s has expired at %s", e.what, to)
	case e.cert.NotAfter.Sub(now) < soon:
		r.add(check, Warning, e.next, "%s expires at %s", e.what, to)
	}
}

// within returns a time at which a certificate is valid, and now if it is: that it has
// expired is a finding of its own.
func within(now time.Time, c *x509.Certificate) time.Time {
	if now.Before(c.NotBefore) || now.After(c.NotAfter) {
		return c.NotBefore
	}
	return now
}

// trust is what a node's certificate is verified with.
type trust struct {
	roots, intermediates *x509.CertPool
	cas                  []*x509.Certificate
}

// chainOf reads the certificates of the node and of its CA.
func chainOf(cfg *node.Config) (*x509.Certificate, *trust, error) {
	t := &trust{roots: x509.NewCertPool(), intermediates: x509.NewCertPool()}
	own, err := readCertificates(cfg.TLSCert)
	if err != nil {
		return nil, nil, err
	}
	if t.cas, err = readCertificates(cfg.TLSCA); err != nil {
		return nil, nil, err
	}
	for _, c := range own[1:] {
		t.intermediates.AddCert(c)
	}
	for _, c := range t.cas {
		t.roots.AddCert(c)
	}
	return own[0], t, nil
}

func readCertificates(name string) (list []*x509.Certificate, err error) {
	raw, err := files.Read(name, maxPEM)
	if err != nil {
		return nil, err
	}
	for {
		var b *pem.Block
		if b, raw = pem.Decode(raw); b == nil {
			break
		}
		if b.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		list = append(list, c)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%s has no certificate", name)
	}
	return list, nil
}

// hosts are the names and addresses at which clients reach the node, as far as the
// configuration says.
func hosts(cfg *node.Config) (list []string) {
	for _, face := range [][2]string{{cfg.AWSAdvertise, cfg.AWSListen}, {cfg.GRPCAdvertise, cfg.GRPCListen}} {
		addr := face[0]
		if addr == "" {
			addr = face[1]
		}
		host, _, err := net.SplitHostPort(addr)
		if ip := net.ParseIP(host); err != nil || host == "" || ip != nil && ip.IsUnspecified() || slices.Contains(list, host) {
			continue
		}
		list = append(list, host)
	}
	return list
}

func revocationLists(_ context.Context, s *subject, r *report) {
	const check = "revocation lists"
	if s.identity == nil {
		return
	}
	leaf, chain, err := chainOf(s.cfg)
	if err != nil {
		return // the check of the certificates says so
	}
	chains, _ := leaf.Verify(x509.VerifyOptions{Roots: chain.roots, Intermediates: chain.intermediates, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, CurrentTime: within(s.now, leaf)})
	names := []string{s.cfg.CRL}
	if s.cfg.Data != "" {
		names = append(names, node.CRLFile(s.cfg.Data))
	}
	var found []string
	for _, name := range names {
		if name == "" {
			continue
		}
		lists, err := s.identity.ReadCRLFile(name)
		switch {
		case errors.Is(err, fs.ErrNotExist) && name != s.cfg.CRL:
		case err != nil:
			r.add(check, Problem, "put another node's copy in its place, or the newest list of the CA", "%v", err)
			return
		case lists.VerifyConnection(tls.ConnectionState{VerifiedChains: chains, PeerCertificates: []*x509.Certificate{leaf}}) != nil:
			r.add(check, Problem, issueAgain(s), "this node's certificate is revoked, by the list in %s", name)
			return
		default:
			for _, l := range lists.All() {
				found = append(found, fmt.Sprintf("%s has number %d with %d certificates", name, l.Number(), len(l.Entries())))
			}
		}
	}
	if len(found) == 0 {
		found = append(found, "none yet")
	}
	r.ok(check, "%s", strings.Join(found, "; "))
}

func gossipKey(_ context.Context, s *subject, r *report) {
	const check = "gossip key"
	if s.cfg.GossipListen == "" || s.cfg.BootstrapExpect == 1 || s.cfg.GossipKeyFile == "" {
		return
	}
	secret, err := files.Read(s.cfg.GossipKeyFile, maxPEM)
	if err == nil {
		_, err = gossip.DeriveKey(secret)
		clear(secret)
	}
	if err != nil {
		r.add(check, Problem, "copy the file of another node: it is the same on all", "%v", err)
		return
	}
	if st, err := os.Stat(s.cfg.GossipKeyFile); err == nil && st.Mode().Perm()&0o007 != 0 {
		r.add(check, Warning, "chmod 640 "+s.cfg.GossipKeyFile, "everybody may read %s (mode %#o)", s.cfg.GossipKeyFile, st.Mode().Perm())
		return
	}
	r.ok(check, "%s can be used", s.cfg.GossipKeyFile)
}
