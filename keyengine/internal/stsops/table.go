package stsops

import (
	"github.com/conclavekms/conclave/keyengine/internal/request"
)

// Table has all operations of STS by name.
var Table = rows(
	request.Define(request.Operation{Service: request.STS, Name: "GetCallerIdentity", ReadOnly: true}, getCallerIdentity, nil),
	request.Define(request.Operation{Service: request.STS, Name: "GetAccessKeyInfo", ReadOnly: true}, getAccessKeyInfo, nil),
	request.Define(request.Operation{Service: request.STS, Name: "GetSessionToken", ReadOnly: true}, getSessionToken, recordGetSessionToken),
	request.Define(request.Operation{Service: request.STS, Name: "DecodeAuthorizationMessage", ReadOnly: true}, decodeAuthorizationMessage, nil),
	request.Define(request.Operation{Service: request.STS, Name: "AssumeRole", ReadOnly: true, CrossAccount: true}, assumeRole, recordAssumeRole),
	request.Define(request.Operation{Service: request.STS, Name: "AssumeRoleWithWebIdentity", ReadOnly: true, CrossAccount: true,
		Unsigned: true, Prove: proveWebIdentity}, assumeRoleWithWebIdentity, recordWebIdentity),
)

func rows(ops ...*request.Operation) map[string]*request.Operation {
	t := make(map[string]*request.Operation, len(ops))
	for _, op := range ops {
		t[op.Name] = op
	}
	return t
}
