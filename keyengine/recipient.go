package keyengine

// recipient is the enclave that an answer is for.
type recipient struct{}

// recipient checks a request's attestation document; it is nil without one.
func (ev *eval) recipient(in *RecipientInfo) (*recipient, error) {
	if in != nil {
		return nil, fault(ErrUnsupported, "Recipient is not supported.")
	}
	return nil, nil
}

// deliver returns what an answer shows of a plaintext: itself, or only an envelope.
func (r *recipient) deliver(plaintext []byte) (plain, ciphertext []byte, err error) {
	return plaintext, nil, nil
}
