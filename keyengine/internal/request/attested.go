package request

import (
	"errors"

	"github.com/conclavekms/conclave/keyengine/internal/attest"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// attestation is the attestation document of a request, and what became of it.
type attestation struct {
	document []byte
	verified bool
	*attest.Attested
	err error
}

// ForRecipient says that the answer is for the sender of an attestation document. It does not
// verify the document; see Attested.
func ForRecipient(ev *Evaluation, document []byte) {
	ev.attestation = attestation{document: document}
}

// Attested verifies the attestation document of the request, once, and returns what it
// attests; nil if the request has none. The record of the outcome is not accepted after the
// document has expired.
//
// That takes some milliseconds. So it happens only once the caller is authorised, or earlier
// if the decision depends on the document: a statement of a policy that applies to the caller,
// the action and the key then has a condition on its measurements.
func Attested(ev *Evaluation) (*attest.Attested, error) {
	a := &ev.attestation
	if a.document == nil || a.verified {
		return a.Attested, a.err
	}
	a.verified = true
	a.Attested, a.err = attest.Verify(a.document, ev.AttestationRoots, ev.Now())
	if bad, ok := errors.AsType[*attest.Error](a.err); ok {
		a.err = kmsapi.Errorf(kmsapi.ErrValidation, "The attestation document cannot be used: %s.", bad)
	}
	if a.err == nil {
		ev.Within(0, a.Until.UnixNano())
	}
	return a.Attested, a.err
}
