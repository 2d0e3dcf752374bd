package keyengine

import (
	"github.com/conclavekms/conclave/keyengine/internal/keystore"
	"github.com/conclavekms/conclave/keyengine/internal/ops"
	"github.com/conclavekms/conclave/keyengine/internal/request"
)

// What packages below internal make and callers of the engine see.
type (
	// Operation is a row of the table of everything that a caller can ask of a key.
	Operation = request.Operation
	// Quotas bound what an account may have.
	Quotas = request.Quotas
	// KeyStoreConfig is what the operator says of custom key stores.
	KeyStoreConfig = keystore.Config
	// Seed is a key that tests know.
	Seed = ops.Seed
)
