package iam

import (
	"math"
	"time"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/iam/iampb"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/trace"
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
	// Record is the index in the audit log of the record of what the engine answered; nil if
	// there is no record, or its index is not known.
	Record *uint64
	// Trace measures the request; nil if it is not traced.
	Trace *trace.Request

	hold hold // until when the answer of Do may be released
}

// MaxSourceARN is the maximum length of a source ARN.
const MaxSourceARN = 512

// TLS describes the caller's connection; zero without TLS.
type TLS struct {
	Version string
	Cipher  string
	// Host is the host that the client asked for, which it chooses freely.
	Host        string
	KeyExchange string
}

// Recorded returns the connection as part of a record, or nil without TLS.
func (t TLS) Recorded() *auditpb.Tls {
	if t == (TLS{}) {
		return nil
	}
	r := new(auditpb.Tls)
	t.Fill(r)
	return r
}

// Fill sets the fields of r.
func (t TLS) Fill(r *auditpb.Tls) {
	r.Version, r.Cipher, r.Host, r.KeyExchange = t.Version, t.Cipher, t.Host, t.KeyExchange
}

// Identity is a principal, with the credential that proved it. Only this package creates
// one, from a proof. It is valid only as long as the credential is, which every evaluation
// checks again.
type Identity struct {
	principal  policy.Principal // at the time of the proof
	account    fsm.Account
	credential string         // id of the credential
	proof      [32]byte       // identifies the credential's secret, or its sessions, at the time of the proof
	session    string         // id of the session of CreateSession, if one was used
	temporary  *iampb.Session // of temporary credentials
	mapped     *Certificate   // the certificate, if a certificate mapping says who its holder is
}

// Certificate is a verified client certificate.
type Certificate struct {
	// URI is the only one of the certificate.
	URI string
	// Serial is the serial number, in hexadecimal.
	Serial string
	// NotAfter is when the certificate expires.
	NotAfter time.Time
}

// Expires returns NotAfter in nanoseconds since 1970, and the last time that there is in them for
// a later one, such as that of certificates which never expire: the end of the year 9999.
func (c *Certificate) Expires() int64 {
	switch {
	case c.NotAfter.After(time.Unix(0, math.MaxInt64)):
		return math.MaxInt64
	case c.NotAfter.Before(time.Unix(0, 1)):
		return 1
	}
	return c.NotAfter.UnixNano()
}

// ForwardedIdentity returns the identity that another unsealed node established and
// forwarded with a request. See the methods for the arguments; temporary is the encoded
// session of temporary credentials, or nil.
func ForwardedIdentity(principal policy.Principal, account fsm.Account, credential string, proof [32]byte, session string, temporary []byte, mapped *Certificate) (Identity, error) {
	id := Identity{principal: principal, account: account, credential: credential, proof: proof, session: session, mapped: mapped}
	if len(temporary) > 0 {
		t, err := decodeTemporary(temporary)
		if err != nil {
			return Identity{}, err
		}
		id.temporary = t
	}
	return id, nil
}

// Account returns the account of the credential.
func (id Identity) Account() fsm.Account { return id.account }

// Temporary returns the session of temporary credentials, or nil.
func (id Identity) Temporary() *iampb.Session { return id.temporary }

// Mapped returns the certificate of the caller if a certificate mapping says who it is, or nil.
func (id Identity) Mapped() *Certificate { return id.mapped }

// Proof identifies the credential's secret, or its sessions, at the time of the proof.
func (id Identity) Proof() []byte { return id.proof[:] }

// Session returns the id of the session that the caller used, or "".
func (id Identity) Session() string { return id.session }

// Principal returns the principal of the identity, as it was when the identity was proved.
// A user may have been renamed since; evaluations use the principal of their own state.
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
