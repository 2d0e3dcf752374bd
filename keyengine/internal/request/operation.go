package request

import (
	"cmp"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// Service is a service as it stands in the scope of a signature and before the colon in the
// names of its actions.
type Service string

// The services.
const (
	KMS Service = "kms"
	IAM Service = "iam"
	STS Service = "sts"
	// CloudTrail reads the audit log.
	CloudTrail Service = "cloudtrail"
)

// Operation is a row of the table of operations. The faces, the audit log and the
// documentation are derived from it.
type Operation struct {
	// Service is the service that AWS has the operation in. Define takes
	// KMS if it is empty.
	Service Service
	// Name is AWS's name of the operation, and the eventName of its records.
	Name string
	// Actions are the actions that a policy must allow, such as "kms:Encrypt". ReEncrypt
	// has two. Alias operations need their action on the alias and on the key.
	Actions []string
	// ReadOnly is CloudTrail's readOnly. It is true for everything that does not change a
	// key, including cryptographic operations.
	ReadOnly bool

	// States says what the operation does with a key in each state. It is empty for
	// operations without an existing key.
	States StateRules
	// Slow is set for operations that may take long; see Results.
	Slow bool
	// Costly is set for an operation that reads much. Each account may call it only so often.
	Costly bool
	// Unsigned is set for an operation whose requests carry no signature, as the input
	// proves who sends it.
	Unsigned bool
	// Prove establishes the caller of an operation that is Unsigned, from its input, which is
	// valid. Until it succeeds, nothing is recorded. What else it finds out is in
	// Evaluation.Proved. See MayBeBehind for its errors.
	Prove func(ev *Evaluation, in any) (iam.Entity, error)
	// CrossAccount is set if the key may belong to another account than the caller.
	CrossAccount bool
	// Object is set if AWS answers with an empty object, and not with an empty body, when
	// there is no output.
	Object bool
	// RecordKey is the member that records show resolved to the key's ARN, even if the
	// request does not have it.
	RecordKey string

	// Set by Define.
	input    *kmsapi.Schema
	output   *kmsapi.Schema
	recorded auditfield.Members
	// requestKeys says where condition keys have their values in the input.
	requestKeys map[actionKey]valueOf
	newInput    func() any
	newOutput   func() any
	empty       bool // no output
	run         func(*Evaluation, any) (any, error)
	respond     func(out any, r []*auditpb.Resource) []*auditpb.Field
}

// NewInput returns a pointer to a new input of the operation.
func (op *Operation) NewInput() any { return op.newInput() }

// NewOutput returns a pointer to an empty output of the operation.
func (op *Operation) NewOutput() any { return op.newOutput() }

// Input returns the schema of the operation's input.
func (op *Operation) Input() *kmsapi.Schema { return op.input }

// Output returns the schema of the operation's output.
func (op *Operation) Output() *kmsapi.Schema { return op.output }

// HasOutput reports whether a successful answer has a body.
func (op *Operation) HasOutput() bool { return !op.empty }

// Action returns the action of an operation that has a single one.
func (op *Operation) Action() string { return op.Actions[0] }

// None is the output of operations without output.
type None struct{}

// Define creates a row. If the operation has no actions, it needs the action of its own
// name. Tags of In determine which members of the input are recorded; respond, if not nil,
// returns the responseElements of a successful answer, given the record's resources.
func Define[In, Out any](op Operation, run func(*Evaluation, *In) (*Out, error), respond func(*Out, []*auditpb.Resource) []*auditpb.Field) *Operation {
	op.Service = cmp.Or(op.Service, KMS)
	if op.Actions == nil {
		op.Actions = []string{string(op.Service) + ":" + op.Name}
	}
	op.input, op.output = kmsapi.InputSchema[In](), kmsapi.OutputSchema[Out]()
	op.recorded = auditfield.NewMembers(op.input)
	op.requestKeys = requestKeysOf(&op)
	op.newInput = func() any { return new(In) }
	op.newOutput = func() any { return new(Out) }
	_, op.empty = any(new(Out)).(*None)
	op.empty = op.empty && !op.Object
	op.run = func(ev *Evaluation, in any) (any, error) {
		out, err := run(ev, in.(*In))
		if err != nil {
			return nil, err
		}
		return out, nil
	}
	if respond != nil {
		op.respond = func(out any, r []*auditpb.Resource) []*auditpb.Field { return respond(out.(*Out), r) }
	}
	return &op
}

// IsSet reports whether an optional boolean member is present and true.
func IsSet(b *bool) bool { return b != nil && *b }

// ErrDryRun is the outcome of a request with DryRun that would have succeeded.
var ErrDryRun = kmsapi.Errorf(kmsapi.ErrDryRun, "The request would have succeeded, but the DryRun option is set.")
