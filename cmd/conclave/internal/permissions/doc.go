// Package permissions works out who may do what: from the policies of an account and the grants
// on a key, who may use that key, and from the audit log, what a principal needs. It does no
// I/O.
package permissions

import "encoding/json"

// Statement is a statement of a policy of a user, group or role.
type Statement struct {
	Effect   string   `json:"Effect"`
	Action   []string `json:"Action"`
	Resource []string `json:"Resource"`
}

// Document returns the policy with some statements.
func Document(statements ...Statement) (string, error) {
	raw, err := json.MarshalIndent(struct {
		Version   string
		Statement []Statement
	}{"2012-10-17", statements}, "", "    ")
	return string(raw), err
}
