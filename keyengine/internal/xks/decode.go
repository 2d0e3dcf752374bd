package xks

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"io"
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// maxDepth is the maximum depth of an answer. The specification needs three levels.
const maxDepth = 8

const (
	statusActive      = "ACTIVE"
	statusDegraded    = "DEGRADED"
	statusUnavailable = "UNAVAILABLE"
)

// decode decodes an answer into the structure that out points to. The answer must be one
// JSON object without repeated members and without trailing data. Unknown members are
// ignored.
func decode(answer []byte, out any) error {
	d := jsontext.NewDecoder(bytes.NewReader(answer))
	if d.PeekKind() != jsontext.KindBeginObject {
		return malformed("not a JSON object")
	}
	for {
		_, err := d.ReadToken()
		if err == io.EOF {
			break
		}
		// Do not wrap the parser's error, as it quotes the answer.
		if err != nil {
			return malformed("not valid JSON")
		}
		if d.StackDepth() > maxDepth {
			return malformed("nested too deep")
		}
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return malformed("a member has another type, or something follows the JSON object")
	}
	return nil
}

// data decodes a required member in base64 and checks its length.
func data(name string, s *string, least, most int) ([]byte, error) {
	if s == nil {
		return nil, malformed("no %s", name)
	}
	b, err := base64.StdEncoding.Strict().DecodeString(*s)
	if err != nil || base64.StdEncoding.EncodeToString(b) != *s {
		return nil, malformed("%s is not base64", name)
	}
	if len(b) < least || len(b) > most {
		return nil, malformed("%s has %d bytes", name, len(b))
	}
	return b, nil
}

// decodeFailure returns the error for an answer that is not a success.
func decodeFailure(status int, answer []byte) error {
	var a struct {
		Name string `json:"errorName"`
	}
	if err := decode(answer, &a); err != nil {
		return malformed("HTTP status %d without an error name", status)
	}
	f := Failure(a.Name)
	if want, ok := statusOf[f]; !ok || want != status {
		return malformed("HTTP status %d with an error name that does not go with it", status)
	}
	return f
}

type health struct{ statuses []string }

func decodeHealth(answer []byte) (*health, error) {
	var a struct {
		Size   int     `json:"xksProxyFleetSize"`
		Vendor *string `json:"xksProxyVendor"`
		Model  *string `json:"xksProxyModel"`
		Ekm    *string `json:"ekmVendor"`
		Fleet  []struct {
			ID     *string `json:"id"`
			Model  *string `json:"model"`
			Status string  `json:"healthStatus"`
		} `json:"ekmFleetDetails"`
	}
	if err := decode(answer, &a); err != nil {
		return nil, err
	}
	if a.Size < 1 || a.Vendor == nil || a.Model == nil || a.Ekm == nil || len(a.Fleet) < 1 || len(a.Fleet) > maxFleet {
		return nil, malformed("not the health of a proxy")
	}
	h := &health{}
	for _, m := range a.Fleet {
		if m.ID == nil || m.Model == nil || !slices.Contains([]string{statusActive, statusDegraded, statusUnavailable}, m.Status) {
			return nil, malformed("not the health of an external key manager")
		}
		h.statuses = append(h.statuses, m.Status)
	}
	return h, nil
}

func decodeKeyMetadata(answer []byte) (*KeyMetadata, error) {
	var a struct {
		Spec   string   `json:"keySpec"`
		Usages []string `json:"keyUsage"`
		Status string   `json:"keyStatus"`
	}
	if err := decode(answer, &a); err != nil {
		return nil, err
	}
	if a.Spec == "" || len(a.Usages) < 1 || len(a.Usages) > maxUsages || a.Status != "ENABLED" && a.Status != "DISABLED" {
		return nil, malformed("not the metadata of a key")
	}
	return &KeyMetadata{Spec: a.Spec, Usages: a.Usages, Enabled: a.Status == "ENABLED"}, nil
}

// decodeSealed returns the encrypted data and its integrity value.
func decodeSealed(answer []byte) (*Sealed, []byte, error) {
	var a struct {
		Ciphertext *string `json:"ciphertext"`
		IV         *string `json:"initializationVector"`
		Tag        *string `json:"authenticationTag"`
		Metadata   *string `json:"ciphertextMetadata"`
		Integrity  *string `json:"ciphertextDataIntegrityValue"`
	}
	if err := decode(answer, &a); err != nil {
		return nil, nil, err
	}
	s := &Sealed{}
	var err error
	if s.Ciphertext, err = data("ciphertext", a.Ciphertext, 1, MaxPlaintext); err != nil {
		return nil, nil, err
	}
	if s.IV, err = data("initializationVector", a.IV, 12, 16); err != nil {
		return nil, nil, err
	}
	if len(s.IV) != 12 && len(s.IV) != 16 {
		return nil, nil, malformed("initializationVector has %d bytes", len(s.IV))
	}
	if s.Tag, err = data("authenticationTag", a.Tag, tagSize, tagSize); err != nil {
		return nil, nil, err
	}
	if a.Metadata != nil {
		if s.Metadata, err = data("ciphertextMetadata", a.Metadata, 0, MaxMetadata); err != nil {
			return nil, nil, err
		}
	}
	value, err := data("ciphertextDataIntegrityValue", a.Integrity, sha256.Size, sha256.Size)
	return s, value, err
}

func decodePlaintext(answer []byte) ([]byte, error) {
	var a struct {
		Plaintext *string `json:"plaintext"`
	}
	if err := decode(answer, &a); err != nil {
		return nil, err
	}
	return data("plaintext", a.Plaintext, 1, MaxPlaintext)
}
