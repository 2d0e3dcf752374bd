// Package certs makes and reads the files of a cluster's certificates: a directory
// with the CA, a certificate for each node and for operators, and the gossip key.
package certs

import (
	"cmp"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
)

const day = 24 * time.Hour

// How long certificates are valid unless a Plan says otherwise.
const (
	CAValidity = 10 * 365 * day
	Validity   = 365 * day
)

// Names of files in a Plan's directory. The certificate of NAME is in NAME.pem and
// its key in NAME-key.pem. OperatorFile is the NAME for the operator that Bootstrap
// makes.
const (
	CAFile       = "ca.pem"
	caKeyFile    = "ca-key.pem"
	GossipFile   = "gossip.key"
	OperatorFile = "operator"
)

// MaxFile bounds files with certificates.
const MaxFile = 2 * pki.MaxCRL

// Plan says which certificates a directory is to have.
type Plan struct {
	Dir      string
	Split    string        // "" for none
	Validity time.Duration // of certificates; 0 for a year
	CALife   time.Duration // of a CA; 0 for ten years
	Nodes    []string
	Operator string
	DNS      []string
	IPs      []net.IP
}

// Bootstrap makes the files that are missing and returns their names.
func (p *Plan) Bootstrap() (made []string, err error) {
	if err := os.MkdirAll(p.Dir, 0o755); err != nil {
		return nil, err
	}
	var ca *pki.CA
	complete, err := p.complete()
	if err != nil {
		return nil, err
	}
	if !complete {
		// Only now, as the CA's key may be kept elsewhere.
		if ca, err = p.LoadCA(); err != nil {
			return nil, err
		}
		if ca == nil {
			if ca, err = p.newCA(); err != nil {
				return nil, fmt.Errorf("making the CA: %w", err)
			}
			made = append(made, CAFile, caKeyFile)
		}
	}
	want := func(kind pki.Kind, name, file string) error {
		there, err := p.PairExists(file)
		if err != nil || there {
			return err
		}
		if err := p.Issue(ca, kind, name, file); err != nil {
			return err
		}
		made = append(made, file+".pem", file+"-key.pem")
		return nil
	}
	for _, id := range p.Nodes {
		if err := want(pki.KindNode, id, id); err != nil {
			return made, err
		}
	}
	if err := want(pki.KindOperator, p.Operator, OperatorFile); err != nil {
		return made, err
	}
	key := filepath.Join(p.Dir, GossipFile)
	there, err := files.Exists(key)
	if err != nil || there {
		return made, err
	}
	secret := make([]byte, 32)
	rand.Read(secret)
	if err := files.Write(key, []byte(base64.StdEncoding.EncodeToString(secret)+"\n")); err != nil {
		return made, err
	}
	return append(made, GossipFile), nil
}

// HandOut copies the files that each node, and the operator, needs to a directory
// of its own.
func (p *Plan) HandOut() error {
	for _, who := range append([]string{OperatorFile}, p.Nodes...) {
		to := filepath.Join(p.Split, who)
		if err := os.MkdirAll(to, 0o700); err != nil {
			return err
		}
		names := []string{CAFile, who + ".pem", who + "-key.pem"}
		if who != OperatorFile {
			names = append(names, GossipFile)
		}
		for _, name := range names {
			content, err := os.ReadFile(filepath.Join(p.Dir, name))
			if err != nil {
				return err
			}
			if err := files.Write(filepath.Join(to, name), content); err != nil {
				return err
			}
		}
	}
	return nil
}

// LoadCA reads the CA; nil if there is none yet.
func (p *Plan) LoadCA() (*pki.CA, error) {
	cert, err := os.ReadFile(filepath.Join(p.Dir, CAFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	key, err := os.ReadFile(filepath.Join(p.Dir, caKeyFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s has %s but not %s, which is needed to issue certificates: restore it while certificates are issued", p.Dir, CAFile, caKeyFile)
	}
	if err != nil {
		return nil, err
	}
	return pki.LoadCA(cert, key)
}

// complete reports whether no certificate is missing.
func (p *Plan) complete() (bool, error) {
	if there, err := files.Exists(filepath.Join(p.Dir, CAFile)); err != nil || !there {
		return false, err
	}
	for _, file := range append([]string{OperatorFile}, p.Nodes...) {
		if there, err := p.PairExists(file); err != nil || !there {
			return false, err
		}
	}
	return true, nil
}

// newCA writes the key first, because a certificate without a key would prevent
// the next attempt.
func (p *Plan) newCA() (*pki.CA, error) {
	ca, err := pki.NewCA("conclave cluster CA", cmp.Or(p.CALife, CAValidity))
	if err != nil {
		return nil, err
	}
	key, err := ca.KeyPEM()
	if err != nil {
		return nil, err
	}
	if err := files.Write(filepath.Join(p.Dir, caKeyFile), key); err != nil {
		return nil, err
	}
	return ca, files.WritePublic(filepath.Join(p.Dir, CAFile), ca.CertPEM())
}

// PairExists reports whether both file.pem and file-key.pem exist.
func (p *Plan) PairExists(file string) (bool, error) {
	for _, name := range []string{file + ".pem", file + "-key.pem"} {
		if there, err := files.Exists(filepath.Join(p.Dir, name)); err != nil || !there {
			return false, err
		}
	}
	return true, nil
}

// Issue issues a certificate for a node or an operator, and writes it to file.pem and
// its key to file-key.pem. It fails if the certificate would outlive that of the CA.
func (p *Plan) Issue(ca *pki.CA, kind pki.Kind, name, file string) error {
	left := time.Until(ca.NotAfter())
	r := pki.IssueRequest{Kind: kind, Name: name, Validity: min(Validity, left)}
	if p.Validity != 0 {
		r.Validity = p.Validity
	}
	switch {
	case left <= 0:
		return fmt.Errorf("the CA's certificate expired on %s; make a new CA in another directory", ca.NotAfter().Format(time.DateOnly))
	case r.Validity > left:
		return fmt.Errorf("a certificate for %s %s cannot be valid for %d days: that of the CA expires on %s", kind, name, r.Validity/day, ca.NotAfter().Format(time.DateOnly))
	}
	if kind == pki.KindNode {
		r.DNS = append([]string{name}, p.DNS...)
		r.IPs = p.IPs
	}
	cert, key, err := ca.Issue(r)
	if err != nil {
		return fmt.Errorf("issuing the certificate for %s %s: %w", kind, name, err)
	}
	if err := files.Write(filepath.Join(p.Dir, file+"-key.pem"), key); err != nil {
		return err
	}
	return files.Write(filepath.Join(p.Dir, file+".pem"), cert)
}

// Read reads the first certificate in a PEM file.
func Read(file string) (*x509.Certificate, error) {
	raw, err := files.Read(file, MaxFile)
	if err != nil {
		return nil, err
	}
	b, _ := pem.Decode(raw)
	if b == nil || b.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s has no certificate", file)
	}
	cert, err := x509.ParseCertificate(b.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return cert, nil
}
