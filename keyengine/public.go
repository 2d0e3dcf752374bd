package keyengine

import (
	"github.com/conclavekms/conclave/keyengine/internal/keystore"
	"github.com/conclavekms/conclave/keyengine/internal/ops"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/internal/webidentity"
)

// These types of internal packages are part of the engine's API.
type (
	// Operation is a row of the table of operations.
	Operation = request.Operation
	// Service is a service of AWS that has operations.
	Service = request.Service
	// Quotas limit the number of objects in an account.
	Quotas = request.Quotas
	// KeyStoreConfig is the operator's configuration of custom key stores.
	KeyStoreConfig = keystore.Config
	// WebIdentityConfig is the operator's configuration of the issuers of web identities.
	WebIdentityConfig = webidentity.Config
	// Seed describes a key with known material, for tests and development.
	Seed = ops.Seed
)

// The services.
const (
	KMS = request.KMS
	IAM = request.IAM
	STS = request.STS
	// CloudTrail has LookupEvents.
	CloudTrail = request.CloudTrail
)
