package kmsapi

// MissingMember returns the error for an absent member that only some requests need.
func MissingMember(member string) error { return notNull("Value null", member) }

// MissingSensitiveMember is MissingMember for members whose values are never shown, not
// even that they are null.
func MissingSensitiveMember(member string) error { return notNull("Value", member) }

func notNull(shown, member string) error {
	return Errorf(ErrValidation, "1 validation error detected: %s at '%s' failed to satisfy constraint: Member must not be null", shown, member)
}
