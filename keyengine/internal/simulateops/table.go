package simulateops

import "github.com/conclavekms/conclave/keyengine/internal/request"

// Table has the operations by name.
var Table = map[string]*request.Operation{
	"SimulatePrincipalPolicy":          row("SimulatePrincipalPolicy", simulatePrincipalPolicy),
	"SimulateCustomPolicy":             row("SimulateCustomPolicy", simulateCustomPolicy),
	"GetContextKeysForPrincipalPolicy": row("GetContextKeysForPrincipalPolicy", getContextKeysForPrincipalPolicy),
	"GetContextKeysForCustomPolicy":    row("GetContextKeysForCustomPolicy", getContextKeysForCustomPolicy),
}

func row[In, Out any](name string, run func(*request.Evaluation, *In) (*Out, error)) *request.Operation {
	return request.Define(request.Operation{Service: request.IAM, Name: name, ReadOnly: true}, run, nil)
}
