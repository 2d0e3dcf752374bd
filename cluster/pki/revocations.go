package pki

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"sync"

	"github.com/conclavekms/conclave/cluster/internal/durable"
	"github.com/conclavekms/conclave/transport/admission"
)

// revocations are what an identity knows of revoked certificates, and the
// connections that end when the certificate of their other end is revoked.
type revocations struct {
	// replacing is held by whoever replaces the lists, disk included.
	replacing sync.Mutex
	file      string // where the lists are kept; "" in memory only
	stored    *CRLs  // what the file has

	mu    sync.Mutex
	lists *CRLs
	held  map[*holding]struct{}
}

// holding is an open connection with the ways in which its certificate was verified.
type holding struct {
	chains [][]*x509.Certificate
	conn   io.Closer
}

func newRevocations() *revocations {
	return &revocations{lists: new(CRLs), held: make(map[*holding]struct{})}
}

func (r *revocations) current() *CRLs {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lists
}

// hold closes conn when one of the certificates is revoked. If one is already, the
// error is ErrRevoked. release is called when the connection is closed.
func (r *revocations) hold(chains [][]*x509.Certificate, conn io.Closer) (release func(), err error) {
	h := &holding{chains, conn}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.lists.check(chains); err != nil {
		return nil, err
	}
	r.held[h] = struct{}{}
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.held, h)
	}, nil
}

// enforce puts lists into force: no connection is opened any more with a certificate
// that is on them, and those that are open are closed. It returns how many.
func (r *revocations) enforce(lists *CRLs) (closed int) {
	r.mu.Lock()
	r.lists = lists
	var gone []*holding
	for h := range r.held {
		if lists.check(h.chains) != nil {
			gone = append(gone, h)
			delete(r.held, h)
		}
	}
	r.mu.Unlock()
	for _, h := range gone { // without the lock, which closing takes too
		h.conn.Close()
	}
	return len(gone)
}

// KeepCRLs takes the certificate revocation lists in a file, and keeps later ones
// there. It is called before the identity is used. A file that is not there has
// none. One that cannot be read in full is an error: it might be what keeps a stolen
// certificate out.
func (id *Identity) KeepCRLs(file string) error {
	r := id.revoked
	r.replacing.Lock()
	defer r.replacing.Unlock()
	data, err := readCRLFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		r.file, r.stored = file, new(CRLs)
		return nil
	case err != nil:
		return err
	}
	lists, err := readCRLs(data, id.loaded.Load().cas)
	if err != nil {
		return fmt.Errorf("%s, without which it is not known which certificates are revoked: %w; "+
			"put another node's copy in its place, or remove it and deliver the newest list again", file, err)
	}
	r.file, r.stored = file, lists
	r.enforce(lists)
	return nil
}

// ReadCRLFile reads a file of lists in PEM, one for each CA at the most, that CAs of the
// cluster signed. It puts none into force; see InstallCRL. Anything else in the file is
// ErrCRL, and so is a file that is longer than all lists that a node may keep.
func (id *Identity) ReadCRLFile(file string) (*CRLs, error) {
	data, err := readCRLFile(file)
	if err != nil {
		return nil, err
	}
	lists, err := readCRLs(data, id.loaded.Load().cas)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return lists, nil
}

// readCRLFile returns the content of a file of lists. Of one that is too long it reads no
// more than DecodeCRLs needs to refuse it.
func readCRLFile(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, MaxCRLFile+1))
}

// InstallCRL puts a list in DER into force. One of the cluster's CAs must have signed
// it, and no certificate that is revoked may be good again by it, which is
// ErrOldCRL; see also ErrCRL. When it returns, nobody can connect any more with a
// certificate on the list, and the connections of those are closed. The list is on
// disk then. If that alone fails, there is an error, and the list is in force all the
// same, until the node ends; it can be given again. closed is how many connections
// were ended.
func (id *Identity) InstallCRL(der []byte) (c *CRL, closed int, err error) {
	c, err = parseCRL(der)
	if err != nil {
		return nil, 0, err
	}
	key, err := c.issuedBy(id.loaded.Load().cas)
	if err != nil {
		return nil, 0, err
	}
	r := id.revoked
	r.replacing.Lock()
	defer r.replacing.Unlock()
	lists := r.current()
	old := lists.of[key]
	if old != nil {
		if err := c.after(old); err != nil {
			return nil, 0, err
		}
	}
	if old == nil && len(lists.of) >= maxCRLs {
		return nil, 0, fmt.Errorf("%w: there are lists of %d CAs already", ErrCRL, maxCRLs)
	}
	if old == nil || !bytes.Equal(c.DER(), old.DER()) {
		lists = lists.with(key, c)
		closed = r.enforce(lists)
	}
	if r.file != "" && r.stored != lists {
		if err := durable.Replace(r.file, lists.pem()); err != nil {
			return c, closed, fmt.Errorf("the list is in force, but could not be stored, and would be lost if this node stopped: %w", err)
		}
		r.stored = lists
	}
	return c, closed, nil
}

// CRLs are the lists in force.
func (id *Identity) CRLs() []*CRL { return id.revoked.current().All() }

// Watched is how many connections are open that a new list would be held against.
func (id *Identity) Watched() int {
	id.revoked.mu.Lock()
	defer id.revoked.mu.Unlock()
	return len(id.revoked.held)
}

// Revoked is ErrRevoked if this node's own certificate is revoked.
func (id *Identity) Revoked() error {
	l := id.loaded.Load()
	lists := id.revoked.current()
	for _, ca := range l.cas {
		// Whether it has expired is another matter.
		if l.cert.Leaf.CheckSignatureFrom(ca) == nil {
			if err := lists.check([][]*x509.Certificate{{l.cert.Leaf, ca}}); err != nil {
				return err
			}
		}
	}
	return nil
}

// Watch closes a connection when the certificate that its other end has shown is
// revoked; ErrRevoked says that it is already. release is called when the connection
// is closed.
func (id *Identity) Watch(cs tls.ConnectionState, conn io.Closer) (release func(), err error) {
	chains := cs.VerifiedChains
	if len(chains) == 0 { // verified by verifyPeer
		if chains, err = id.loaded.Load().chains(cs, x509.ExtKeyUsageAny); err != nil {
			return nil, err
		}
	}
	return id.revoked.hold(chains, conn)
}

// watchClient does that for a connection to a face, if its client shows a
// certificate.
func (id *Identity) watchClient(cs tls.ConnectionState, conn net.Conn) error {
	if len(cs.PeerCertificates) == 0 {
		return nil
	}
	c, ok := conn.(*admission.Conn)
	if !ok {
		return fmt.Errorf("connection %T is of no budget", conn)
	}
	release, err := id.Watch(cs, c)
	if err == nil {
		c.OnClose(release)
	}
	return err
}
