package kmsapi

import "strconv"

// maxShownName is how many bytes of an unknown member's name an answer repeats.
const maxShownName = 64

// Unknown returns the error for a member that the structure does not have, or nil if it can
// be ignored: if the structure restricts nothing and no member is similar, see Similar. The
// structure is the value of the member within, or the whole input if that is "".
func (s *Schema) Unknown(name, within string) error {
	meant := ""
	if len(name) <= maxShownName {
		meant = s.Similar(name)
	}
	if !s.Closed && meant == "" {
		return nil
	}
	if len(name) > maxShownName {
		name = name[:maxShownName] + "…"
	}
	where := strconv.QuoteToASCII(name)
	if within != "" {
		where += " in " + within
	}
	hint := "Members that this version does not know are not passed over here, as they could restrict the request. Leave it out if it does not."
	if meant != "" {
		hint = "Did you mean " + meant + "?"
	}
	return &Error{Code: ErrValidation.Code, Message: "Unknown member " + where + ". " + hint}
}
