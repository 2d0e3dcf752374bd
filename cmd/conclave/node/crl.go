package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// crlFile is the name of the file in the data directory with the certificate
// revocation lists in force, in PEM.
const crlFile = "crl.pem"

// CRLFile returns the file, within a data directory, with the certificate revocation lists
// that operators delivered.
func CRLFile(data string) string { return filepath.Join(data, crlFile) }

// loadCRLs puts the lists that the node has kept, and those that are configured,
// into force.
func (n *Node) loadCRLs() error {
	n.crlNumber = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "conclave_crl_number", Help: "Number of the certificate revocation list in force, by the key identifier of its CA.",
	}, []string{"issuer"})
	n.registry.MustRegister(n.crlNumber)
	if err := n.identity.KeepCRLs(CRLFile(n.cfg.Data)); err != nil {
		return err
	}
	n.noteCRLs()
	return n.readCRLs()
}

// readCRLs puts the lists in the configured file into force, unless the node has
// newer ones already.
func (n *Node) readCRLs() error {
	if n.cfg.CRL == "" {
		return nil
	}
	lists, err := n.identity.ReadCRLFile(n.cfg.CRL)
	if err != nil {
		return err
	}
	for _, c := range lists.All() {
		_, _, err := n.identity.InstallCRL(c.DER())
		if errors.Is(err, pki.ErrOldCRL) {
			n.log.Warn("the configured certificate revocation list is not used", "path", n.cfg.CRL, "err", err)
			continue
		}
		n.noteCRLs()
		if err != nil {
			return fmt.Errorf("%s: %w", n.cfg.CRL, err)
		}
	}
	return nil
}

// installCRL handles an operator's call. The list is in force before its audit
// record is committed: revocation takes authority away, and must not wait for a
// majority.
func (n *Node) installCRL(ctx context.Context, op ceremony.Operator, der []byte) error {
	c, closed, err := n.identity.InstallCRL(der)
	n.noteCRLs()
	if errors.Is(err, pki.ErrCRL) || errors.Is(err, pki.ErrOldCRL) {
		err = &kmsapi.Error{Code: kmsapi.ErrValidation.Code, Message: err.Error()}
	}
	r := ceremony.CRLEvent{Closed: closed, Err: err}
	if c != nil {
		r.Issuer, r.Number, r.Revoked = c.Issuer(), c.Number(), len(c.Entries())
		n.log.Info("certificate revocation list in force", "operator", op.Name, "issuer", r.Issuer, "number", r.Number, "revoked", r.Revoked, "connections_closed", closed)
	} else {
		n.log.Warn("certificate revocation list refused", "operator", op.Name, "err", err)
	}
	n.engine.RecordCRL(ctx, op, r)
	return err
}

// noteCRLs updates the metrics for the lists in force, and logs an error if
// this node's own certificate is revoked.
func (n *Node) noteCRLs() {
	for _, c := range n.identity.CRLs() {
		n.crlNumber.WithLabelValues(c.Issuer()).Set(float64(c.Number()))
	}
	if err := n.identity.Revoked(); err != nil {
		n.log.Error("this node's own certificate is revoked: other nodes and clients refuse it; issue another and send SIGHUP", "err", err)
	}
}

func (n *Node) crls() []*kmspb.CRL {
	var list []*kmspb.CRL
	for _, c := range n.identity.CRLs() {
		list = append(list, &kmspb.CRL{Issuer: c.Issuer(), Number: c.Number(), Revoked: uint32(len(c.Entries()))})
	}
	return list
}
