package joining

import (
	"bytes"
	"context"
	"crypto/sha256"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/level"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// receiverLife is how long a key can be encrypted to a node's answer.
const receiverLife = 5 * time.Minute

// keyPurpose is what a CA's key is encrypted for; see [Info.Receiver].
const keyPurpose = "conclave CA key v1\x00"

// Info is what is known about the CA.
type Info struct {
	NodeID    string
	ClusterID [16]byte
	// Certificate is in DER; nil if the cluster has no CA.
	Certificate []byte
	Imported    time.Time
	// Receiver is the public key that the key of a CA is to be encrypted to, for Import.
	Receiver []byte
}

// Show returns the CA. Errors: ErrNotInitialised, ErrUnavailable if the node is sealed.
func (s *Service) Show() (*Info, error) {
	if _, err := s.cfg.Vault.Current(); err != nil {
		return nil, err
	}
	c, _ := s.cfg.Replica.State().Cluster()
	if c == nil {
		return nil, errNotInitialised
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Clock.Now()
	if age := now.Sub(s.made); s.receiver == nil || age < 0 || age >= receiverLife {
		s.receiver.Destroy()
		s.receiver = nil
		r, err := keymat.NewReceiver(s.cfg.Vault.Arena())
		if err != nil {
			return nil, err
		}
		s.receiver, s.made = r, now
	}
	in := &Info{NodeID: s.cfg.NodeID, ClusterID: [16]byte(c.Id), Certificate: bytes.Clone(c.GetAuthority().GetCertificate()), Receiver: s.receiver.Public()}
	if a := c.GetAuthority(); a != nil {
		in.Imported = time.Unix(0, a.Created)
	}
	return in, nil
}

// keyInfo returns the info that a CA's key is encrypted with.
func keyInfo(cluster [16]byte, node string, certificate []byte) []byte {
	sum := sha256.Sum256(certificate)
	return slices.Concat([]byte(keyPurpose), cluster[:], sum[:], []byte(node))
}

// open decrypts a CA's key. The receiver is used once.
func (s *Service) open(c *fsmpb.Cluster, certificate, sealed []byte) (*keymat.Secret, error) {
	s.mu.Lock()
	r, made := s.receiver, s.made
	s.receiver = nil
	s.mu.Unlock()
	defer r.Destroy()
	if age := s.cfg.Clock.Now().Sub(made); r == nil || age < 0 || age >= receiverLife {
		return nil, errSealedKey
	}
	key, err := r.Open(keyInfo([16]byte(c.Id), s.cfg.NodeID, certificate), sealed)
	if err == keymat.ErrReceiver {
		return nil, errSealedKey
	}
	return key, err
}

var errSealedKey = kmsapi.Errorf(kmsapi.ErrValidation, "The CA's key is not encrypted to this node, or was encrypted too long ago. Try again.")

// Import gives the cluster the CA of its nodes' certificates, or replaces it. certificate is in
// DER, and sealed is the key, as PKCS #8 in DER, encrypted to the receiver that Show returned.
// Errors: ErrNotInitialised, ErrNotUpgraded, ErrValidation, ErrUnavailable.
func (s *Service) Import(ctx context.Context, op ceremony.Operator, certificate, sealed []byte) error {
	o, err := s.cfg.Vault.Current()
	if err != nil {
		return err
	}
	state := s.cfg.Replica.State()
	c, _ := state.Cluster()
	if err := allowed(state, c); err != nil {
		return err
	}
	if len(certificate) == 0 || len(certificate) > maxCertificate {
		return kmsapi.Errorf(kmsapi.ErrValidation, "The CA's certificate must have 1 to %d bytes.", maxCertificate)
	}
	key, err := s.open(c, certificate, sealed)
	if err != nil {
		return err
	}
	defer key.Destroy()
	now := s.cfg.Clock.Now()
	a := &fsmpb.CertificateAuthority{Certificate: certificate, Created: now.UnixNano()}
	err = key.With(func(b []byte) error {
		if err := s.cfg.CA.Check(certificate, b, now); err != nil {
			return kmsapi.Errorf(kmsapi.ErrValidation, "The CA is not usable: %v.", err)
		}
		return vault.WrapAuthority(o, a, b)
	})
	if err != nil {
		return err
	}
	return s.change(ctx, op, "ImportCA", a)
}

// Remove takes the CA away from the cluster, and with it all join tokens. Errors: ErrNotFound,
// ErrNotInitialised, ErrUnavailable.
func (s *Service) Remove(ctx context.Context, op ceremony.Operator) error {
	if _, err := s.cfg.Vault.Current(); err != nil {
		return err
	}
	return s.change(ctx, op, "RemoveCA", nil)
}

// change replaces the CA, with a record.
func (s *Service) change(ctx context.Context, op ceremony.Operator, name string, a *fsmpb.CertificateAuthority) error {
	d, err := s.cfg.Events.ChangeCluster(ctx, func(state *fsm.State) (record.Event, error) {
		c, version := state.Cluster()
		if err := allowed(state, c); err != nil {
			return record.Event{}, err
		}
		was := c.GetAuthority()
		if a == nil && was == nil {
			return record.Event{}, errNoCA
		}
		ev := op.Event(name, c)
		ev.Parameters = []*auditpb.Field{}
		if a != nil {
			ev.Parameters = append(ev.Parameters, auditfield.Text("certificateSha256", fingerprint(a.Certificate)))
		}
		if was != nil {
			ev.Parameters = append(ev.Parameters, auditfield.Text("fromCertificateSha256", fingerprint(was.Certificate)))
		}
		c = proto.CloneOf(c)
		c.Authority = a
		ev.ReplaceCluster(version, c)
		return ev, nil
	})
	if err != nil {
		return err
	}
	if err := s.cfg.Replica.WaitApplied(ctx, d.Index); err != nil {
		return record.Unavailable(err)
	}
	s.cfg.Log.Warn("the cluster's CA was changed", "operator", op.Name, "call", name)
	return nil
}

var (
	errNotInitialised = kmsapi.Errorf(ceremony.ErrNotInitialised, "The cluster is not initialised.")
	errNoCA           = kmsapi.Errorf(kmsapi.ErrNotFound, "The cluster has no CA. `conclave cluster ca import` gives it one.")
)

// allowed returns an error if the cluster cannot have a CA.
func allowed(s *fsm.State, c *fsmpb.Cluster) error {
	if c == nil {
		return errNotInitialised
	}
	if err := level.Allows(s.Level(), neededLevel); err != nil {
		return kmsapi.Errorf(ceremony.ErrNotUpgraded, "The cluster cannot have a CA: %v.", err)
	}
	return nil
}
