package kmsapi

// MissingMember says that a member that only some requests need is not there.
func MissingMember(member string) error { return notNull("Value null", member) }

// MissingSensitiveMember is missing for members whose values are never shown, not even
// that there is none.
func MissingSensitiveMember(member string) error { return notNull("Value", member) }

func notNull(shown, member string) error {
	return Errorf(ErrValidation, "1 validation error detected: %s at '%s' failed to satisfy constraint: Member must not be null", shown, member)
}
