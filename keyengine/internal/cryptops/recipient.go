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

// recipient is the enclave that an answer is encrypted to. A nil recipient stands for the
// caller itself.
type recipient struct {
	attested *attest.Attested // set once the document is verified
}

// RecipientOf returns the recipient of a request's answer. It does not verify the
// attestation document; AttestTo does.
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
	request.ForRecipient(ev, in.AttestationDocument)
	return &recipient{}, nil
}

// AttestTo verifies the document of a recipient, if there is one. Operations call it after
// authorisation, because it takes some milliseconds, and before anything is generated or
// decrypted.
func AttestTo(ev *request.Evaluation, r *recipient) error {
	if r == nil {
		return nil
	}
	a, err := request.Attested(ev)
	if err != nil {
		return err
	}
	r.attested, ev.Recipient = a, attestedField(a)
	return nil
}

// Deliver returns the members of an answer for a plaintext: the plaintext itself, or an
// envelope that only the enclave can open. In that case it wipes the plaintext.
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

// recordedPCRs are the measurements besides the image's that CloudTrail always has. It has
// others if they are set.
var recordedPCRs = []int{1, 2, 3, 4, 8}

// attestedField describes the enclave for the record, as in CloudTrail except that
// measurements are hexadecimal, as in condition keys. Those of a NitroTPM are there if they are
// set.
func attestedField(a *attest.Attested) *auditpb.Field {
	const prefix = "attestationDocument"
	shown := map[string]string{prefix + "ModuleId": a.ModuleID}
	for n, value := range a.PCRs {
		switch {
		case n == 0:
			shown[prefix+"EnclaveImageDigest"] = hex.EncodeToString(value)
		case isSet(value) || slices.Contains(recordedPCRs, n):
			shown[prefix+"EnclavePCR"+strconv.Itoa(n)] = hex.EncodeToString(value)
		}
	}
	for n, value := range a.TPM {
		if isSet(value) {
			shown[prefix+"NitroTPMPCR"+strconv.Itoa(n)] = hex.EncodeToString(value)
		}
	}
	return auditfield.TextMap("recipient", shown)
}

func isSet(measurement []byte) bool {
	return slices.ContainsFunc(measurement, func(b byte) bool { return b != 0 })
}
