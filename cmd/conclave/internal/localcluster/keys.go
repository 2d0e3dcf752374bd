package localcluster

// Keys are the secrets from the initialisation of a cluster: everything that is
// needed to unseal and use it.
type Keys struct {
	AccessKeyID     string   `json:"access_key_id,omitempty"` // of the root user
	SecretAccessKey string   `json:"secret_access_key,omitempty"`
	Shares          []string `json:"shares,omitempty"` // of the unseal key
	VerifierKey     string   `json:"verifier_key,omitempty"`
}
