package request

import (
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/iam/iampb"
	"github.com/conclavekms/conclave/policy"
)

// denialSize is the size of what an encoded message says, in bytes. All have the same, as
// the caller must not learn from the length which policy decided, nor that a role exists. It
// has to fit into the trailers of an answer of gRPC.
const denialSize = 2048

// cut returns the beginning of a text, of at most a number of bytes.
func cut(s string, most int) string {
	return strings.ToValidUTF8(s[:min(len(s), most)], "")
}

// encodeDenial returns the encoded message of the last decision, a denial. It is for those
// who may read it, and not for the caller: it says which policy decided. It returns "" if
// the node has been sealed.
func encodeDenial(ev *Evaluation) string {
	o, err := ev.Vault.Current()
	if err != nil {
		return ""
	}
	d, who := &ev.decisions[len(ev.decisions)-1], &ev.who
	m := iampb.Denial{
		RequestId: ev.Caller.RequestID[:], Time: ev.Now().UnixNano(), Account: uint64(AccountOf(ev)), ResourceAccount: uint64(AccountOf(ev)),
		Principal: cut(who.Principal.String(), 320), PrincipalId: cut(who.ID, 320), PrincipalName: cut(who.Name, 64),
		Action: cut(d.action, 128), Resource: cut(d.resource, 512),
		Explicit: d.Effect == policy.ExplicitDeny, Reason: d.Reason.String(), Policy: cut(d.policy, 320), SourceIp: cut(ev.Caller.SourceIP, 64),
	}
	if arn, err := policy.ParseARN(d.resource); err == nil {
		if a, ok := fsm.ParseAccount(arn.Account); ok {
			m.ResourceAccount = uint64(a)
		}
	}
	if d.Statement != policy.NoStatement {
		m.Statement, m.Sid = int32(d.Statement)+1, cut(d.Sid, maxSid)
	}
	const tag = 4 // bytes of the padding's number and length
	m.Padding = make([]byte, max(0, denialSize-tag-proto.Size(&m)))
	b, err := proto.Marshal(&m)
	if err != nil {
		return ""
	}
	text, err := o.SealMessage(b)
	if err != nil {
		return ""
	}
	return text
}
