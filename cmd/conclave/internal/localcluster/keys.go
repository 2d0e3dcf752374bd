package localcluster

// Keys are what founding a cluster gives: all that it takes to open and use it.
type Keys struct {
	AccessKeyID     string   `json:"access_key_id,omitempty"` // of the root user
	SecretAccessKey string   `json:"secret_access_key,omitempty"`
	Shares          []string `json:"shares,omitempty"` // of the unseal key
	VerifierKey     string   `json:"verifier_key,omitempty"`
}
