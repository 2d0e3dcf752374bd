package request

import (
	"crypto/x509"
	"log/slog"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/keystore"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
)

// Services are what evaluations use of the node that they run on. All of it is safe
// for concurrent use.
type Services struct {
	// NodeID stands in the records.
	NodeID        string
	Authenticator *iam.Authenticator
	Vault         *vault.Vault
	Clock         record.Clock
	Log           *slog.Logger
	Quotas        Quotas
	Policies      *PolicyCache
	Keys          *KeyCount
	Stores        *keystore.Backends
	// AttestationRoots are what the attestation documents of enclaves have to chain
	// to; nil refuses requests with a Recipient.
	AttestationRoots *x509.CertPool
	// ClusterOf is the cluster's record in a state, which every request asks for.
	ClusterOf func(*fsm.State) *fsmpb.Cluster
	// MayGrow reports whether the nodes' disks have room for what makes the state
	// grow; nil for not to be asked.
	MayGrow func() bool
}
