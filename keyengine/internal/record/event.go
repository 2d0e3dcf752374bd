package record

import (
	"encoding/hex"
	"time"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/accesskey"
	"github.com/conclavekms/conclave/policy"
)

// Values of an audit record's eventType.
const (
	KindCall     = "AwsApiCall"            // an operation of a service of AWS
	KindService  = "AwsServiceEvent"       // done by the service itself
	KindOperator = "ConclaveOperatorEvent" // done by an operator
	KindConclave = "ConclaveApiCall"       // requested by a caller, with a call that AWS does not have
)

// Values of an audit record's eventSource, besides those of other services; see Event.Service.
const (
	sourceKMS      = "kms.amazonaws.com"
	sourceConclave = "conclave"
)

// Event describes what is recorded: the outcome of an operation, an action of an operator,
// or something that the service itself did. [Build] makes a record of it.
type Event struct {
	Name, Kind string
	Service    string    // of a KindCall, such as "iam"; default: "kms"
	Account    string    // whose request it is; default: the account that the cluster was initialised with
	Region     string    // default: the cluster's default Region
	RequestID  [16]byte  // default: random
	At         time.Time // default: now
	Identity   *auditpb.Identity
	SourceIP   string
	UserAgent  string
	Transport  string
	TLS        *auditpb.Tls // nil without TLS
	Err        error
	ReadOnly   bool

	Parameters, Response, Additional, Details []*auditpb.Field
	Resources                                 []*auditpb.Resource

	Reads   []*fsmpb.Read
	Changes []*fsmpb.Change
	Uses    []*fsmpb.Use
	// The event may happen only in this range of cluster time. 0 means no limit.
	NotBefore, NotAfter int64

	// A summary stands for Times events of its kind, the last of them at last.
	Summary bool
	Times   int
	last    time.Time
}

// ReplaceCluster makes the event replace the cluster's record, if that still has the given
// version.
func (ev *Event) ReplaceCluster(version fsm.Version, c *fsmpb.Cluster) {
	ev.Reads = append(ev.Reads, &fsmpb.Read{Kind: fsmpb.Kind_KIND_CLUSTER, Version: uint64(version)})
	ev.Changes = append(ev.Changes, &fsmpb.Change{Change: &fsmpb.Change_PutCluster{PutCluster: c}})
}

// IdentityOf returns the identity that records have for a principal and its credential.
func IdentityOf(p policy.Principal, credential string) *auditpb.Identity {
	id := new(auditpb.Identity)
	FillIdentity(id, p, credential)
	return id
}

// FillIdentity sets the fields of a record's identity that follow from the principal and its
// credential.
func FillIdentity(id *auditpb.Identity, p policy.Principal, credential string) {
	id.Arn, id.AccountId, id.PrincipalId = p.ARN, p.Account, p.Account
	switch p.Kind {
	case policy.KindRoot:
		id.Type = "Root"
	case policy.KindUser:
		id.Type, id.UserName = "IAMUser", p.Name
	case policy.KindFederated:
		id.Type = "WebIdentityUser"
	case policy.KindService:
		id.Type, id.UserName, id.InvokedBy, id.Arn = "AWSService", p.Name, p.Name, ""
	default:
		id.Type = p.Kind.String()
	}
	if _, _, ok := accesskey.Parse(credential); ok {
		id.AccessKeyId = credential
	} else {
		id.Certificate = credential
	}
}

// ServiceEvent returns an event of the service itself.
func ServiceEvent(name string, at time.Time, details ...*auditpb.Field) Event {
	return Event{
		Name: name, Kind: KindService, At: at,
		Identity: &auditpb.Identity{Type: "AWSService", InvokedBy: "Conclave"}, Details: details,
	}
}

// OperatorType is the type of identity that records have for operators.
const OperatorType = "ConclaveOperator"

// InternalCaller is what AWS records as the source of requests that a service makes itself.
const InternalCaller = "AWS Internal"

// UUID formats 16 bytes as a UUID.
func UUID(id [16]byte) string {
	var b [36]byte
	hex.Encode(b[0:8], id[0:4])
	hex.Encode(b[9:13], id[4:6])
	hex.Encode(b[14:18], id[6:8])
	hex.Encode(b[19:23], id[8:10])
	hex.Encode(b[24:36], id[10:16])
	b[8], b[13], b[18], b[23] = '-', '-', '-', '-'
	return string(b[:])
}
