// Package vectors reads published test vectors, from Project Wycheproof and from NIST. It
// is imported by tests only.
package vectors

import (
	"compress/gzip"
	"embed"
	"encoding/hex"
	"encoding/json"
	"testing"
)

//go:embed testdata/*/*.json.gz
var files embed.FS

// Hex is a byte string in hexadecimal.
type Hex []byte

// UnmarshalText decodes hexadecimal digits.
func (h *Hex) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

// Group is a group of vectors with a common key or size. Its fields are set as far as the
// kind of file has them.
type Group struct {
	KeySize         int
	TagSize         int
	PublicKeyDer    Hex
	PrivateKeyPkcs8 Hex
	PrivateSeed     Hex
	PublicKey       Hex
	Tests           []Vector
}

// Vector is one vector of Wycheproof, with the members of all kinds of files.
type Vector struct {
	TcID    int `json:"tcId"`
	Comment string
	Flags   []string
	Msg     Hex
	Sig     Hex
	Key     Hex
	Tag     Hex
	Ct      Hex
	Label   Hex
	Public  Hex
	Private string
	Shared  Hex
	Mu      Hex
	Ctx     Hex
	Seed    Hex
	EK      Hex
	M       Hex
	C       Hex
	K       Hex
	// Result is "valid", "invalid" or "acceptable".
	Result string
}

// Judge compares an outcome with the expected result. An "acceptable" vector may pass or
// fail; the tests decide which of them must be refused.
func (v *Vector) Judge(t testing.TB, err error) {
	t.Helper()
	if v.Result == "valid" && err != nil || v.Result == "invalid" && err == nil {
		t.Errorf("vector %d (%s, %v) is %s, got error %v", v.TcID, v.Comment, v.Flags, v.Result, err)
	}
}

// Wycheproof returns the groups in one of Wycheproof's files. The name is without
// extension.
func Wycheproof(t testing.TB, name string) (groups []Group) {
	t.Helper()
	read(t, "testdata/wycheproof/"+name+".json.gz", &groups)
	return groups
}

// NIST decodes one of NIST's files into v. The name is without extension.
func NIST(t testing.TB, name string, v any) {
	t.Helper()
	read(t, "testdata/nist/"+name+".json.gz", v)
}

func read(t testing.TB, name string, v any) {
	t.Helper()
	f, err := files.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.NewDecoder(z).Decode(v); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}
