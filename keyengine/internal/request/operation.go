package request

import (
	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// Operation is a row of the table of everything that a caller can ask of a key.
// Both faces, the audit log and the documentation are driven by it.
type Operation struct {
	// Name as AWS has it; also the eventName of its records.
	Name string
	// Actions that a policy must allow, "kms:…". ReEncrypt has two; the alias
	// operations ask for theirs on the alias and on the key.
	Actions []string
	// ReadOnly is CloudTrail's: true for everything that changes no key,
	// cryptography included.
	ReadOnly bool

	// States says what the operation does to a key in each state; no rules for
	// operations that concern no key that exists.
	States StateRules
	// Slow operations may take long, see Results.
	Slow bool
	// Object says that an answer without members is an object, as AWS has it for
	// some operations, and not an empty body.
	Object bool
	// RecordKey is the member that records show resolved to the ARN of the key,
	// also when the request left it out.
	RecordKey string

	// The typed parts, filled in by define.
	input     *kmsapi.Schema
	output    *kmsapi.Schema
	recorded  auditfield.Members
	newInput  func() any
	newOutput func() any
	empty     bool // has no output
	run       func(*Evaluation, any) (any, error)
	respond   func(out any, rec *auditpb.Record)
}

// NewInput returns a pointer to a new input of the operation.
func (op *Operation) NewInput() any { return op.newInput() }

// NewOutput returns a pointer to an empty output of the operation.
func (op *Operation) NewOutput() any { return op.newOutput() }

// Input is the schema of what NewInput returns.
func (op *Operation) Input() *kmsapi.Schema { return op.input }

// Output is the schema of what NewOutput returns.
func (op *Operation) Output() *kmsapi.Schema { return op.output }

// HasOutput reports whether a successful answer has a body.
func (op *Operation) HasOutput() bool { return !op.empty }

// Action is the one action of operations that have one.
func (op *Operation) Action() string { return op.Actions[0] }

// None is the output of operations that have none.
type None struct{}

// Define makes a row from typed parts. A row without actions is allowed by the
// action of its own name. What records say of a request is in the tags of In;
// respond, if there is one, adds what they say of a successful answer.
func Define[In, Out any](op Operation, run func(*Evaluation, *In) (*Out, error), respond func(*Out, *auditpb.Record)) *Operation {
	if op.Actions == nil {
		op.Actions = []string{"kms:" + op.Name}
	}
	op.input, op.output = kmsapi.InputSchema[In](), kmsapi.OutputSchema[Out]()
	op.recorded = auditfield.NewMembers(op.input)
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
		op.respond = func(out any, rec *auditpb.Record) { respond(out.(*Out), rec) }
	}
	return &op
}

// IsSet is whether a member that is true or false, or left out, is true.
func IsSet(b *bool) bool { return b != nil && *b }

var ErrDryRun = kmsapi.Errorf(kmsapi.ErrDryRun, "The request would have succeeded, but the DryRun option is set.")
