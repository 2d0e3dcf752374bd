package keyengine

import "github.com/conclavekms/conclave/keyengine/kmsapi"

// missing says that a member that only some requests need is not there.
func missing(member string) error { return notNull("Value null", member) }

// missingSensitive is missing for members whose values are never shown, not even
// that there is none.
func missingSensitive(member string) error { return notNull("Value", member) }

func notNull(shown, member string) error {
	return kmsapi.Errorf(kmsapi.ErrValidation, "1 validation error detected: %s at '%s' failed to satisfy constraint: Member must not be null", shown, member)
}
