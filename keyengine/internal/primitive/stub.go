// Package primitive: stub while the real one is written.
package primitive

import "errors"

var (
	ErrMaterial     = errors.New("material")
	ErrDigestLength = errors.New("digest length")
	ErrMessageType  = errors.New("message type")
	ErrSignature    = errors.New("signature")
	ErrMac          = errors.New("mac")
	ErrCiphertext   = errors.New("ciphertext")
	ErrPublicKey    = errors.New("public key")
	ErrFIPS         = errors.New("fips")
	errStub         = errors.New("stub")
)

func Generate(spec string) ([]byte, error)                                          { return nil, errStub }
func Check(spec string, material []byte) error                                      { return errStub }
func Public(spec string, material []byte) ([]byte, error)                           { return nil, errStub }
func SigningAlgorithms(spec string) []string                                        { return nil }
func EncryptionAlgorithms(spec string) []string                                     { return nil }
func MacAlgorithms(spec string) []string                                            { return nil }
func KeyAgreementAlgorithms(spec string) []string                                   { return nil }
func CheckMessage(alg, messageType string, message []byte) error                    { return errStub }
func Mac(spec string, m []byte, alg string, b []byte) ([]byte, error)               { return nil, errStub }
func MaxPlaintext(spec, alg string) int                                             { return 0 }
func CheckPeer(spec string, spki []byte) error                                      { return errStub }
func VerifyMac(spec string, material []byte, alg string, message, mac []byte) error { return errStub }
func Sign(spec string, material []byte, alg, messageType string, message []byte) ([]byte, error) {
	return nil, errStub
}
func Verify(spec string, spki []byte, alg, messageType string, message, sig []byte) error {
	return errStub
}
func DecryptRSA(spec string, material []byte, alg string, ciphertext []byte) ([]byte, error) {
	return nil, errStub
}
func EncryptRSA(spec string, spki []byte, alg string, plaintext []byte) ([]byte, error) {
	return nil, errStub
}
func SharedSecret(spec string, material, peer []byte) ([]byte, error) { return nil, errStub }
