package record

import (
	"encoding/hex"
	"time"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/accesskey"
	"github.com/conclavekms/conclave/policy"
)

// Kinds of events that are no operation of Do, as eventType has them.
const (
	KindService  = "AwsServiceEvent"       // the service did it by itself
	KindOperator = "ConclaveOperatorEvent" // an operator did it
	KindConclave = "ConclaveApiCall"       // a caller did it with something that AWS does not have
)

const (
	SourceKMS      = "kms.amazonaws.com"
	sourceConclave = "conclave"
)

// Event is a record beside those of operations: what operators and the service
// itself do.
type Event struct {
	Name, Kind string
	Region     string    // the cluster's first when empty
	RequestID  [16]byte  // made up when zero
	At         time.Time // now when zero
	Identity   *auditpb.Identity
	SourceIP   string
	UserAgent  string
	Transport  string
	TLS        *auditpb.Tls // nil without TLS
	Err        error
	ReadOnly   bool

	Parameters, Response, Details []*auditpb.Field
	Resources                     []*auditpb.Resource

	Reads   []*fsmpb.Read
	Changes []*fsmpb.Change
	// The cluster time in which the event may happen; 0 leaves a side open.
	NotBefore, NotAfter int64

	// Summary stands for itself and times-1 more of its kind, up to last.
	Summary bool
	Times   int
	last    time.Time
}

func IdentityOf(p policy.Principal, credential string) *auditpb.Identity {
	id := new(auditpb.Identity)
	FillIdentity(id, p, credential)
	return id
}

// FillIdentity says in a record whom it is about.
func FillIdentity(id *auditpb.Identity, p policy.Principal, credential string) {
	id.Arn, id.AccountId, id.PrincipalId, id.UserName = p.ARN, p.Account, p.Account, p.Name
	switch p.Kind {
	case policy.KindRoot:
		id.Type = "Root"
	case policy.KindUser:
		id.Type = "IAMUser"
	case policy.KindService:
		id.Type, id.InvokedBy, id.Arn = "AWSService", p.Name, ""
	default:
		id.Type = p.Kind.String()
	}
	if kind, _, ok := accesskey.Parse(credential); ok && kind == accesskey.LongTerm {
		id.AccessKeyId = credential
	} else {
		id.Certificate = credential
	}
}

// ServiceEvent is an event that nobody asked for.
func ServiceEvent(name string, at time.Time, details ...*auditpb.Field) Event {
	return Event{
		Name: name, Kind: KindService, At: at,
		Identity: &auditpb.Identity{Type: "AWSService", InvokedBy: "Conclave"}, Details: details,
	}
}

// OperatorType is what records call an operator.
const OperatorType = "ConclaveOperator"

// InternalCaller is what AWS writes for what a service does by itself.
const InternalCaller = "AWS Internal"

// UUID writes 16 bytes as ids are written.
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
