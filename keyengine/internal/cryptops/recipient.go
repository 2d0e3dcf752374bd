package cryptops

import (
	"encoding/hex"
	"errors"
	"slices"
	"strconv"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/keyengine/internal/attest"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/cms"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// recipient is the enclave that an answer is for; nil is the caller itself.
type recipient struct {
	document []byte
	attested *attest.Attested // once the document is verified
}

// RecipientOf says whom a request wants its answer for. The document is not looked
// at yet: see attest.
func RecipientOf(ev *request.Evaluation, in *kmsapi.RecipientInfo) (*recipient, error) {
	switch {
	case in == nil:
		return nil, nil
	case ev.AttestationRoots == nil:
		return nil, kmsapi.Errorf(kmsapi.ErrUnsupported, "Recipient is not supported by this node: it was started without --attestation-roots.")
	case in.KeyEncryptionAlgorithm == nil:
		return nil, kmsapi.MissingMember("recipient.keyEncryptionAlgorithm")
	case in.AttestationDocument == nil:
		return nil, kmsapi.MissingMember("recipient.attestationDocument")
	}
	return &recipient{document: in.AttestationDocument}, nil
}

// AttestTo verifies the document of a recipient, if there is one. Operations call it
// once the caller is known to be allowed to what it asks for, as it costs some
// milliseconds, and before anything is made or opened.
func AttestTo(ev *request.Evaluation, r *recipient) error {
	if r == nil {
		return nil
	}
	a, err := attest.Verify(r.document, ev.AttestationRoots, ev.Now())
	if bad, ok := errors.AsType[*attest.Error](err); ok {
		return kmsapi.Errorf(kmsapi.ErrValidation, "The attestation document cannot be used: %s.", bad)
	}
	if err != nil {
		return err
	}
	// So that a record which waits does not outlast the document.
	ev.Within(0, a.Until.UnixNano())
	r.attested, ev.Recipient = a, attestedField(a)
	return nil
}

// Deliver returns what an answer shows of a plaintext: itself, or only an envelope
// that the enclave can open. Then the plaintext is wiped.
func (r *recipient) Deliver(plaintext []byte) (plain, ciphertext []byte, err error) {
	if r == nil {
		return plaintext, nil, nil
	}
	defer clear(plaintext)
	if r.attested == nil {
		return nil, nil, errors.New("an answer is for an enclave whose document was not verified")
	}
	ciphertext, err = cms.Seal(r.attested.PublicKey, r.attested.SPKI, plaintext)
	return nil, ciphertext, err
}

// recordedPCRs are the measurements, after the image's, that CloudTrail shows
// always; others are shown where they were set.
var recordedPCRs = []int{1, 2, 3, 4, 8}

// attestedField is what a record says of the enclave, as CloudTrail does, but with
// measurements in hexadecimal, as condition keys have them.
func attestedField(a *attest.Attested) *auditpb.Field {
	const prefix = "attestationDocument"
	shown := map[string]string{prefix + "ModuleId": a.ModuleID}
	for n, value := range a.PCRs {
		switch zero := !slices.ContainsFunc(value, func(b byte) bool { return b != 0 }); {
		case n == 0:
			shown[prefix+"EnclaveImageDigest"] = hex.EncodeToString(value)
		case !zero || slices.Contains(recordedPCRs, n):
			shown[prefix+"EnclavePCR"+strconv.Itoa(n)] = hex.EncodeToString(value)
		}
	}
	return auditfield.TextMap("recipient", shown)
}
