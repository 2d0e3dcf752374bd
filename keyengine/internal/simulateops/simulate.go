package simulateops

import (
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

// simulation is what a simulation is about.
type simulation struct {
	caller    policy.Principal
	context   *context
	identity  []*named
	boundary  *named // nil if there is none
	resource  *named // nil if the input has no policy of the resource
	delegates *policy.Document
	actions   []string
	resources []string
}

func simulateCustomPolicy(ev *request.Evaluation, in *iamapi.SimulateCustomPolicyInput) (*iamapi.SimulateCustomPolicyOutput, error) {
	if err := ev.AuthoriseAccount(ev.Op.Action(), "*"); err != nil {
		return nil, err
	}
	s := new(simulation)
	var err error
	if s.identity, err = parse(policy.IdentityPolicy, "PolicyInputList", in.PolicyInputList); err != nil {
		return nil, err
	}
	if err := s.take(ev, in, nil); err != nil {
		return nil, err
	}
	p, err := request.PageOf(ev, in.MaxItems, 100, 1000, in.Marker)
	if err != nil {
		return nil, err
	}
	ev.Later = func(*fsm.State) (any, error) { return s.run(ev, p) }
	return nil, nil
}

func simulatePrincipalPolicy(ev *request.Evaluation, in *iamapi.SimulatePrincipalPolicyInput) (*iamapi.SimulatePrincipalPolicyOutput, error) {
	if err := ev.AuthoriseAccount(ev.Op.Action(), *in.PolicySourceArn); err != nil {
		return nil, err
	}
	from, err := sourceOf(ev, *in.PolicySourceArn)
	if err != nil {
		return nil, err
	}
	s := new(simulation)
	if s.identity, s.boundary, err = from.policies(ev); err != nil {
		return nil, err
	}
	more, err := parse(policy.IdentityPolicy, "PolicyInputList", in.PolicyInputList)
	if err != nil {
		return nil, err
	}
	s.identity = append(s.identity, more...)
	if err := s.take(ev, &iamapi.SimulateCustomPolicyInput{
		PermissionsBoundaryPolicyInputList: in.PermissionsBoundaryPolicyInputList, ActionNames: in.ActionNames, ResourceArns: in.ResourceArns,
		ResourcePolicy: in.ResourcePolicy, ResourceOwner: in.ResourceOwner, CallerArn: in.CallerArn, ContextEntries: in.ContextEntries,
	}, from); err != nil {
		return nil, err
	}
	p, err := request.PageOf(ev, in.MaxItems, 100, 1000, in.Marker, *in.PolicySourceArn)
	if err != nil {
		return nil, err
	}
	ev.Later = func(*fsm.State) (any, error) {
		out, err := s.run(ev, p)
		return (*iamapi.SimulatePrincipalPolicyOutput)(out), err
	}
	return nil, nil
}

// take sets what both operations have in their inputs. from is nil for policies without a
// principal.
func (s *simulation) take(ev *request.Evaluation, in *iamapi.SimulateCustomPolicyInput, from *source) error {
	for _, a := range in.ActionNames {
		service, name, ok := strings.Cut(a, ":")
		if !ok || service == "" || name == "" || strings.ContainsAny(a, "*? ") {
			return kmsapi.Errorf(iamapi.ErrInvalidInput, "Invalid action name: %s", a)
		}
	}
	if s.actions, s.resources = in.ActionNames, in.ResourceArns; len(s.resources) == 0 {
		s.resources = []string{"*"}
	}
	for _, r := range s.resources {
		if _, err := policy.ParseARN(r); err != nil && r != "*" {
			return kmsapi.Errorf(iamapi.ErrInvalidInput, "Invalid resource ARN: %s", r)
		}
	}
	limits, err := parse(policy.IdentityPolicy, "PermissionsBoundaryPolicyInputList", in.PermissionsBoundaryPolicyInputList)
	switch {
	case err != nil:
		return err
	case len(limits) > 1:
		return kmsapi.Errorf(iamapi.ErrInvalidInput, "There is at most one permissions boundary.")
	case len(limits) == 1: // in place of the principal's own
		s.boundary = limits[0]
	}
	var who *iam.Entity
	if from != nil && from.group == nil {
		who = from.who
	}
	if err := s.setCaller(ev, in, who); err != nil {
		return err
	}
	if err := s.setResourcePolicy(in); err != nil {
		return err
	}
	s.context, err = contextOf(in.ContextEntries, who, ev.Now())
	return err
}

// setCaller sets the principal of the simulated requests: that of CallerArn, or the user or
// role whose policies they are. It makes a difference to policies of resources only. For
// others, any user will do.
func (s *simulation) setCaller(ev *request.Evaluation, in *iamapi.SimulateCustomPolicyInput, who *iam.Entity) (err error) {
	switch {
	case in.CallerArn != nil:
		s.caller, err = policy.ParsePrincipal(*in.CallerArn)
		if err != nil || s.caller.ARN == "" || s.caller.Kind == policy.KindRoot {
			return kmsapi.Errorf(iamapi.ErrInvalidInput, "Invalid CallerArn: %s", *in.CallerArn)
		}
		return nil
	case who != nil:
		s.caller = who.Principal
		return nil
	case in.ResourcePolicy != nil:
		return kmsapi.Errorf(iamapi.ErrInvalidInput, "A ResourcePolicy needs a CallerArn.")
	}
	account := request.AccountOf(ev)
	s.caller, err = policy.ParsePrincipal(iam.EntityARN(ev.Cluster().GetPartition(), uint64(account), "user", "/", "simulated"))
	return err
}

// setResourcePolicy sets the policy that each resource has. Without one in the input, it
// leaves the decision to the policies of the caller, as if the resource delegated it.
func (s *simulation) setResourcePolicy(in *iamapi.SimulateCustomPolicyInput) error {
	if in.ResourcePolicy == nil {
		var err error
		s.delegates, err = policy.Parse(policy.KeyPolicy, fmt.Appendf(nil,
			`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":%q},"Action":"*","Resource":"*"}]}`, s.caller.Account))
		return err
	}
	kind := policy.KeyPolicy
	if !slices.ContainsFunc(s.actions, func(a string) bool { return !strings.HasPrefix(fsm.EntityName(a), "sts:") }) {
		kind = policy.TrustPolicy
	}
	d, err := policy.Parse(kind, []byte(*in.ResourcePolicy))
	if err != nil {
		return kmsapi.Errorf(iamapi.ErrInvalidInput, "ResourcePolicy: %s", err)
	}
	s.resource = &named{document: d, id: "ResourcePolicy", kind: "resource", text: *in.ResourcePolicy}
	return nil
}

// run simulates the requests of a page, each action with each resource.
func (s *simulation) run(ev *request.Evaluation, p *request.Page) (*iamapi.SimulateCustomPolicyOutput, error) {
	out := &iamapi.SimulateCustomPolicyOutput{EvaluationResults: []iamapi.EvaluationResult{}}
	var err error
	place := func(i int) string { return fmt.Sprintf("%08d", i) } // in ascending order
	first := 0
	if n, err := strconv.Atoi(p.After); err == nil {
		first = n + 1
	}
	var requests iter.Seq[int] = func(yield func(int) bool) {
		for i := first; i < len(s.actions)*len(s.resources) && yield(i); i++ {
		}
	}
	out.Marker, out.IsTruncated, err = request.Fill(p, requests, place, func(i int) {
		if ev.Ctx.Err() == nil {
			out.EvaluationResults = append(out.EvaluationResults, s.simulate(s.actions[i/len(s.resources)], s.resources[i%len(s.resources)]))
		}
	})
	if ctx := ev.Ctx.Err(); ctx != nil {
		return nil, record.Unavailable(ctx)
	}
	return out, err
}

// simulate decides one request.
func (s *simulation) simulate(action, resource string) iamapi.EvaluationResult {
	policies := policy.Policies{}
	for _, p := range s.identity {
		policies.Identity = append(policies.Identity, p.document)
	}
	if s.boundary != nil {
		policies.Boundary = s.boundary.document
	}
	switch {
	case s.resource != nil:
		policies.Resource = s.resource.document
	case resource != "*":
		policies.Resource = s.delegates
	}
	d, steps := policy.Trace(policy.Request{Principal: s.caller, Action: action, Resource: resource, Context: s.context}, policies)
	r := iamapi.EvaluationResult{
		EvalActionName: &action, EvalResourceName: &resource, EvalDecision: new("implicitDeny"),
		MatchedStatements: []iamapi.Statement{}, MissingContextValues: missing(steps),
	}
	decides := policy.Effect(0)
	switch d.Effect {
	case policy.Allow:
		decides, r.EvalDecision = policy.Allow, new("allowed")
	case policy.ExplicitDeny:
		decides, r.EvalDecision = policy.ExplicitDeny, new("explicitDeny")
	}
	bounds := policy.ImplicitDeny
	for i := range steps {
		step := &steps[i]
		from := s.from(step)
		if !step.Matched || from == nil {
			continue
		}
		if step.Reason == policy.ReasonBoundary && bounds != policy.ExplicitDeny {
			bounds = step.Effect
		}
		// What the boundary allows, it does not grant.
		if step.Effect == decides && !(decides == policy.Allow && step.Reason == policy.ReasonBoundary) {
			r.MatchedStatements = append(r.MatchedStatements, from.statement(step.Statement))
		}
	}
	if s.boundary != nil {
		r.PermissionsBoundaryDecisionDetail = &iamapi.PermissionsBoundaryDecisionDetail{AllowedByPermissionsBoundary: new(bounds == policy.Allow)}
	}
	return r
}

// from returns the policy that a step is about; nil for the one that stands for the policies
// of resources that the input does not give.
func (s *simulation) from(step *policy.Step) *named {
	switch step.Reason {
	case policy.ReasonIdentityPolicy:
		return s.identity[step.Policy]
	case policy.ReasonBoundary:
		return s.boundary
	}
	return s.resource
}

// missing returns the condition keys that statements asked for and that had no value, sorted,
// each once, whatever its case.
func missing(steps []policy.Step) []string {
	seen := make(map[string]bool)
	keys := []string{}
	for i := range steps {
		for _, k := range steps[i].Absent {
			if name := fsm.EntityName(k); !seen[name] {
				seen[name] = true
				keys = append(keys, k)
			}
		}
	}
	slices.SortFunc(keys, strings.Compare)
	return keys
}
