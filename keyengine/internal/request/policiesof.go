package request

import (
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/policy"
)

// Attached is a policy of a user, group or role.
type Attached struct {
	Document *policy.Document
	Text     string // "" if it does not exist
	// ARN is that of a managed policy. An inline one has none, but a name and an owner, which
	// is of a kind such as "user".
	ARN, Name, Kind, Owner string
}

// PoliciesOf returns the policies of a user or role, or of a group if g is not nil, in the
// order in which evaluations have them, and the permissions boundary, nil if there is none.
// They, and everything that says which they are, are added to the read set.
func PoliciesOf(ev *Evaluation, who *iam.Entity, g *fsmpb.Group) (identity []Attached, boundary *Attached, err error) {
	r, err := rulesOf(ev, who)
	if err == nil && g != nil {
		err = r.add(ev, g, "group", g.Policies, g.Inline)
	}
	if err != nil {
		return nil, nil, err
	}
	for i := range r.identity {
		a, err := r.identityFrom[i].attached(ev, r.identity[i])
		if err != nil {
			return nil, nil, err
		}
		identity = append(identity, a)
	}
	if r.boundary != nil {
		a, err := r.boundaryFrom.attached(ev, r.boundary)
		if err != nil {
			return nil, nil, err
		}
		boundary = &a
	}
	return identity, boundary, nil
}

func (o *origin) attached(ev *Evaluation, d *policy.Document) (a Attached, err error) {
	a = Attached{Document: d, ARN: o.arn, Name: o.inline, Kind: o.kind}
	if o.owner == nil {
		a.Text, err = managedText(ev, o.arn)
		return a, err
	}
	a.Owner = o.owner.GetName()
	for _, p := range o.owner.GetInline() {
		if p.Name == o.inline {
			a.Text = p.Document
		}
	}
	return a, nil
}
