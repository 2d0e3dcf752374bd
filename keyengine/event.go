package keyengine

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
	eventService  = "AwsServiceEvent"       // the service did it by itself
	eventOperator = "ConclaveOperatorEvent" // an operator did it
	eventConclave = "ConclaveApiCall"       // a caller did it with something that AWS does not have
)

const (
	sourceKMS      = "kms.amazonaws.com"
	sourceConclave = "conclave"
)

// event is a record beside those of operations: what operators and the service
// itself do.
type event struct {
	name, kind string
	region     string    // the cluster's first when empty
	requestID  [16]byte  // made up when zero
	at         time.Time // now when zero
	identity   *auditpb.Identity
	sourceIP   string
	userAgent  string
	transport  string
	tls        *auditpb.Tls // nil without TLS
	err        error
	readOnly   bool

	parameters, response, details []*auditpb.Field
	resources                     []*auditpb.Resource

	reads   []*fsmpb.Read
	changes []*fsmpb.Change
	// The cluster time in which the event may happen; 0 leaves a side open.
	notBefore, notAfter int64

	// summary stands for itself and times-1 more of its kind, up to last.
	summary bool
	times   int
	last    time.Time
}

func principalIdentity(p policy.Principal, credential string) *auditpb.Identity {
	id := new(auditpb.Identity)
	fillIdentity(id, p, credential)
	return id
}

// fillIdentity says in a record whom it is about.
func fillIdentity(id *auditpb.Identity, p policy.Principal, credential string) {
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

// serviceEvent is an event that nobody asked for.
func serviceEvent(name string, at time.Time, details ...*auditpb.Field) event {
	return event{
		name: name, kind: eventService, at: at,
		identity: &auditpb.Identity{Type: "AWSService", InvokedBy: "Conclave"}, details: details,
	}
}

// operatorType is what records call an operator.
const operatorType = "ConclaveOperator"

// internalCaller is what AWS writes for what a service does by itself.
const internalCaller = "AWS Internal"

// formatUUID writes 16 bytes as ids are written.
func formatUUID(id [16]byte) string {
	var b [36]byte
	hex.Encode(b[0:8], id[0:4])
	hex.Encode(b[9:13], id[4:6])
	hex.Encode(b[14:18], id[6:8])
	hex.Encode(b[19:23], id[8:10])
	hex.Encode(b[24:36], id[10:16])
	b[8], b[13], b[18], b[23] = '-', '-', '-', '-'
	return string(b[:])
}
