package iam

import (
	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/policy"
)

// RequestID is given to every request before anything else is known of it. It
// stands in the answer and in the audit record.
type RequestID [16]byte

// Caller is who asks, with what a record says of the asking.
type Caller struct {
	RequestID RequestID
	Identity  Identity
	// Region that the request is for; "" for the cluster's own.
	Region    string
	SourceIP  string
	UserAgent string
	// Transport is the face that took the request: "aws" or "grpc".
	Transport string
	TLS       TLS
	// SourceArn is the resource that a service makes the request for; "" where none
	// is said. Only a service principal's own credential may say one: whoever else
	// does is refused (see internal/request).
	SourceArn string

	hold hold // of the answer that Do gave
}

// MaxSourceARN is how long a source ARN may be.
const MaxSourceARN = 512

// TLS describes the caller's connection; zero without TLS.
type TLS struct {
	Version string
	Cipher  string
}

// Recorded is what records say of a connection; nil for nothing.
func (t TLS) Recorded() *auditpb.Tls {
	if t == (TLS{}) {
		return nil
	}
	return &auditpb.Tls{Version: t.Version, Cipher: t.Cipher}
}

// Identity is a principal, with the credential that proved it. Only this package
// makes one, from a proof. It stays good only while the credential does: every
// evaluation looks again.
type Identity struct {
	principal  policy.Principal
	credential string   // id of the credential in the state
	proof      [32]byte // names the credential's secret, or its sessions, at the time of the proof
	session    string   // id of the session, where one stood for the credential
}

// ForwardedIdentity is an identity that another unsealed node made of a proof, of what
// that node sent of it: see Proof and Session.
func ForwardedIdentity(principal policy.Principal, credential string, proof [32]byte, session string) Identity {
	return Identity{principal: principal, credential: credential, proof: proof, session: session}
}

// Proof names the credential's secret, or its sessions, at the time of the proof.
func (id Identity) Proof() []byte { return id.proof[:] }

// Session is the id of the session that stood for the credential; "" for none.
func (id Identity) Session() string { return id.session }

// Principal is whom the identity stands for.
func (id Identity) Principal() policy.Principal { return id.principal }

// Credential is the id of the access key or certificate behind the identity.
func (id Identity) Credential() string { return id.credential }

// hold says until when the answer to a request may be given.
type hold struct {
	by        *record.Withheld
	operation string
	late      func() bool // nil for no bound
}

// Bound says when it is too late to give the answer that this caller gets: from when
// late, which may be nil, reports so. Overdue asks it, and w hears of answers that are
// withheld.
func (c *Caller) Bound(w *record.Withheld, operation string, late func() bool) {
	c.hold = hold{w, operation, late}
}

// Overdue refuses the answer that Do gave when it has been held up for too long since
// its record was committed: the authority behind it may have been withdrawn. A face
// calls it when all that is left to do is to write the answer. nil means that the
// answer may be given now.
func (c *Caller) Overdue() error {
	if c.hold.late == nil || !c.hold.late() {
		return nil
	}
	return c.hold.by.Withhold(c.RequestID, c.hold.operation)
}
