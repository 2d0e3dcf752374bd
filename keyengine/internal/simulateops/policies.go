package simulateops

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

// named is a policy with what answers call it.
type named struct {
	document *policy.Document
	id, kind string // SourcePolicyId and SourcePolicyType
	text     string
	spans    []span // where its statements are, once one of them has been asked for
}

// statement returns a statement of the policy, by its position, as answers have it.
func (n *named) statement(at int) iamapi.Statement {
	s := iamapi.Statement{SourcePolicyId: &n.id, SourcePolicyType: &n.kind}
	if n.spans == nil {
		n.spans = spans(n.text)
	}
	if at < len(n.spans) {
		s.StartPosition, s.EndPosition = position(n.text, n.spans[at].begin), position(n.text, n.spans[at].end)
	}
	return s
}

// parse parses the policies of a member of an input.
func parse(kind policy.Kind, member string, texts []string) ([]*named, error) {
	list := make([]*named, 0, len(texts))
	for i, text := range texts {
		d, err := policy.Parse(kind, []byte(text))
		if err != nil {
			return nil, kmsapi.Errorf(iamapi.ErrInvalidInput, "%s.%d: %s", member, i+1, err)
		}
		list = append(list, &named{document: d, id: member + "." + strconv.Itoa(i+1), kind: "none", text: text})
	}
	return list, nil
}

// source is the user, group or role of a simulation.
type source struct {
	who   *iam.Entity // without a principal for a group
	group *fsmpb.Group
}

// authorised authorises the operation on the user, group or role with an ARN, and returns it.
func authorised(ev *request.Evaluation, arn string) (*source, error) {
	s, err := sourceOf(ev, arn)
	c := new(request.Conditions)
	if err == nil {
		c.Tags = append(s.who.User.GetTags(), s.who.Role.GetTags()...)
	}
	// A caller without permission is not told that there is no such principal.
	if denied := ev.AuthoriseNamed(ev.Op.Action(), arn, c, arn, &request.Conditions{}); denied != nil {
		return nil, denied
	}
	return s, err
}

// sourceOf returns the user, group or role with an ARN and adds it to the read set.
func sourceOf(ev *request.Evaluation, arn string) (*source, error) {
	a, err := policy.ParseARN(arn)
	account, ok := fsm.ParseAccount(a.Account)
	kind, path, found := strings.Cut(a.Resource, "/")
	partition := ev.Cluster().GetPartition()
	if err != nil || !ok || !found || a.Service != "iam" || a.Partition != partition {
		return nil, kmsapi.Errorf(iamapi.ErrInvalidInput, "Invalid Entity Arn: %s does not clearly define entity type and name.", arn)
	}
	name := path[strings.LastIndexByte(path, '/')+1:]
	id := fsm.EntityID(account, name)
	s := &source{who: &iam.Entity{Account: account}}
	own := ""
	switch kind {
	case "user":
		if u := request.Read[*fsmpb.User](ev, id); u != nil {
			own, s.who.User, s.who.ID = iam.UserARN(partition, u), u, u.Id
		}
	case "role":
		if r := request.Read[*fsmpb.Role](ev, id); r != nil {
			own, s.who.Role, s.who.ID = iam.RoleARN(partition, r), r, r.Id
		}
	case "group":
		if g := request.Read[*fsmpb.Group](ev, id); g != nil {
			own, s.group = iam.GroupARN(partition, g), g
		}
	default:
		return nil, kmsapi.Errorf(iamapi.ErrInvalidInput, "Invalid Entity Arn: %s does not clearly define entity type and name.", arn)
	}
	if own != arn {
		return nil, kmsapi.Errorf(iamapi.ErrNoSuchEntity, "The %s with name %s cannot be found.", kind, name)
	}
	if s.group == nil {
		s.who.Principal, err = policy.ParsePrincipal(arn)
		s.who.Principal.ID = s.who.ID
	}
	return s, err
}

// policies returns the policies of the source, and its permissions boundary, nil if it has
// none.
func (s *source) policies(ev *request.Evaluation) (identity []*named, boundary *named, err error) {
	list, limit, err := request.PoliciesOf(ev, s.who, s.group)
	if err != nil {
		return nil, nil, err
	}
	for i := range list {
		identity = append(identity, nameOf(&list[i]))
	}
	if limit != nil {
		boundary = nameOf(limit)
	}
	return identity, boundary, nil
}

func nameOf(a *request.Attached) *named {
	n := &named{document: a.Document, text: a.Text}
	switch {
	case a.ARN == "":
		n.id, n.kind = fmt.Sprintf("%s_%s_%s", a.Kind, a.Owner, a.Name), a.Kind
	case strings.Contains(a.ARN, ":iam::aws:policy/"):
		n.id, n.kind = a.ARN[strings.LastIndexByte(a.ARN, '/')+1:], "aws-managed"
	default:
		n.id, n.kind = a.ARN[strings.LastIndexByte(a.ARN, '/')+1:], "user-managed"
	}
	return n
}
