package iam

import (
	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/policy"
)

// RequestID is assigned to every request as soon as it arrives. It is part of the answer
// and of the audit record.
type RequestID [16]byte

// Caller describes who makes a request, over which connection and for which Region, with
// further details for its record.
type Caller struct {
	RequestID RequestID
	Identity  Identity
	// Region is the Region of the request. Empty means the cluster's default Region.
	Region    string
	SourceIP  string
	UserAgent string
	// Transport is the face that took the request: "aws", "query" or "grpc".
	Transport string
	TLS       TLS
	// SourceArn is the resource on whose behalf a service makes the request, or empty. Only
	// the credential of a service principal may set it; others are refused (see
	// internal/request).
	SourceArn string

	hold hold // until when the answer of Do may be released
}

// MaxSourceARN is the maximum length of a source ARN.
const MaxSourceARN = 512

// TLS describes the caller's connection; zero without TLS.
type TLS struct {
	Version string
	Cipher  string
}

// Recorded returns the connection as part of a record, or nil without TLS.
func (t TLS) Recorded() *auditpb.Tls {
	if t == (TLS{}) {
		return nil
	}
	return &auditpb.Tls{Version: t.Version, Cipher: t.Cipher}
}

// Identity is a principal, with the credential that proved it. Only this package creates
// one, from a proof. It is valid only as long as the credential is, which every evaluation
// checks again.
type Identity struct {
	principal  policy.Principal
	credential string   // id of the credential in the state
	proof      [32]byte // identifies the credential's secret, or its sessions, at the time of the proof
	session    string   // id of the session, if one was used
}

// ForwardedIdentity returns the identity that another unsealed node established and
// forwarded with a request. See Proof and Session for the arguments.
func ForwardedIdentity(principal policy.Principal, credential string, proof [32]byte, session string) Identity {
	return Identity{principal: principal, credential: credential, proof: proof, session: session}
}

// Proof identifies the credential's secret, or its sessions, at the time of the proof.
func (id Identity) Proof() []byte { return id.proof[:] }

// Session returns the id of the session that the caller used, or "".
func (id Identity) Session() string { return id.session }

// Principal returns the principal of the identity.
func (id Identity) Principal() policy.Principal { return id.principal }

// Credential returns the id of the access key or certificate behind the identity.
func (id Identity) Credential() string { return id.credential }

// hold determines until when the answer to a request may be released.
type hold struct {
	by        *record.Withheld
	operation string
	late      func() bool // nil if there is no limit
}

// Bound sets the function that reports when the answer is too old to be released. late may
// be nil if there is no limit. Overdue calls it and notes withheld answers in w.
func (c *Caller) Bound(w *record.Withheld, operation string, late func() bool) {
	c.hold = hold{w, operation, late}
}

// Overdue returns an error if the answer that Do returned is too old to be released, as the
// authority behind it may have been withdrawn since its record was committed. A face calls
// it right before it writes the answer.
func (c *Caller) Overdue() error {
	if c.hold.late == nil || !c.hold.late() {
		return nil
	}
	return c.hold.by.Withhold(c.RequestID, c.hold.operation)
}
