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

// revocations are the revoked certificates that an identity knows, and the open
// connections, which are closed when the certificate of their other end is revoked.
type revocations struct {
	// replacing is held while the lists are replaced in memory and on disk.
	replacing sync.Mutex
	file      string // where the lists are kept; "" in memory only
	stored    *CRLs  // the content of the file

	mu    sync.Mutex
	lists *CRLs
	held  map[*holding]struct{}
}

// holding is an open connection with the verified chains of its certificate.
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

// hold registers conn to be closed when a certificate in the chains is revoked. It returns
// ErrRevoked if one already is. The caller calls release when the connection is closed.
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

// enforce puts lists into force. New connections with a revoked certificate are refused,
// and open ones are closed. It returns how many were closed.
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
	for _, h := range gone { // without the lock, which closing acquires too
		h.conn.Close()
	}
	return len(gone)
}

// KeepCRLs reads the certificate revocation lists in a file and stores later ones there. It
// is called before the identity is used. A missing file means no lists. A file that cannot
// be read in full is an error, since it might contain the list that revokes a stolen
// certificate.
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
		return fmt.Errorf("%s, which says which certificates are revoked, cannot be used: %w; "+
			"put another node's copy in its place, or remove it and deliver the newest list again", file, err)
	}
	r.file, r.stored = file, lists
	r.enforce(lists)
	return nil
}

// ReadCRLFile reads a file of lists in PEM, at most one for each CA, that were signed by
// CAs of the cluster. It does not put them into force; see InstallCRL. It returns ErrCRL if
// there is anything else in the file, or if the file is longer than all lists that a node
// may keep.
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

// readCRLFile returns the content of a file of lists. It reads no more of an overlong file
// than DecodeCRLs needs to refuse it.
func readCRLFile(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, MaxCRLFile+1))
}

// InstallCRL puts a list in DER into force. The list must be signed by one of the cluster's
// CAs (otherwise the error is ErrCRL) and must not make a revoked certificate valid again
// (ErrOldCRL). When InstallCRL returns, no new connection can be made with a certificate on
// the list, open ones have been closed, and the list is on disk. If only writing it to disk
// fails, InstallCRL returns an error, but the list is in force until the node stops, and
// can be installed again. closed is the number of connections that were closed.
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

// CRLs returns the lists in force.
func (id *Identity) CRLs() []*CRL { return id.revoked.current().All() }

// Watched returns the number of open connections that would be checked against a new list.
func (id *Identity) Watched() int {
	id.revoked.mu.Lock()
	defer id.revoked.mu.Unlock()
	return len(id.revoked.held)
}

// Revoked returns ErrRevoked if this node's own certificate is revoked.
func (id *Identity) Revoked() error {
	l := id.loaded.Load()
	lists := id.revoked.current()
	for _, ca := range l.cas {
		// Only the signature is checked: an expired certificate counts too.
		if l.cert.Leaf.CheckSignatureFrom(ca) == nil {
			if err := lists.check([][]*x509.Certificate{{l.cert.Leaf, ca}}); err != nil {
				return err
			}
		}
	}
	return nil
}

// Watch registers conn to be closed when the certificate of its other end is revoked. It
// returns ErrRevoked if it already is. The caller calls release when the connection is
// closed.
func (id *Identity) Watch(cs tls.ConnectionState, conn io.Closer) (release func(), err error) {
	chains := cs.VerifiedChains
	if len(chains) == 0 { // verifyPeer has verified the certificate
		if chains, err = id.loaded.Load().chains(cs, x509.ExtKeyUsageAny); err != nil {
			return nil, err
		}
	}
	return id.revoked.hold(chains, conn)
}

// watchClient does the same as Watch for a client's connection to a face, if the client
// shows a certificate.
func (id *Identity) watchClient(cs tls.ConnectionState, conn net.Conn) error {
	if len(cs.PeerCertificates) == 0 {
		return nil
	}
	c, ok := conn.(*admission.Conn)
	if !ok {
		return fmt.Errorf("connection %T does not count towards a connection budget", conn)
	}
	release, err := id.Watch(cs, c)
	if err == nil {
		c.OnClose(release)
	}
	return err
}
