package request

import (
	"crypto/x509"
	"log/slog"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/auditindex"
	"github.com/conclavekms/conclave/keyengine/internal/keystore"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/internal/webidentity"
)

// Services are the parts of a node that evaluations use. All are safe for concurrent use.
type Services struct {
	// NodeID is written to records.
	NodeID        string
	Authenticator *iam.Authenticator
	Vault         *vault.Vault
	Clock         record.Clock
	Log           *slog.Logger
	Quotas        Quotas
	Policies      *PolicyCache
	Keys          *Counter // see NewKeyCount
	Users         *Counter // see NewUserCount
	Stores        *keystore.Backends
	Issuers       *webidentity.Issuers
	// Index is the index of the audit log, or nil if there is none.
	Index *auditindex.Index
	// AttestationRoots are the root certificates for attestation documents. If nil,
	// requests with a Recipient are refused.
	AttestationRoots *x509.CertPool
	// ClusterOf returns the cluster's record in a state, which every request needs.
	ClusterOf func(*fsm.State) *fsmpb.Cluster
	// MayGrow reports whether the nodes' disks have room for operations that make the state
	// grow. If nil, there is no such check.
	MayGrow func() bool
}
