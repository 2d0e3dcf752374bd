package seal

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/conclavekms/conclave/keyengine/internal/keymat"
)

// Seal wraps keys. Its methods may be called concurrently.
type Seal interface {
	// Name says which key the seal has. It is the same on all nodes with that key, and does
	// not change while the key cannot be reached.
	Name() string
	// Wrap encrypts a key and binds it to the context. Unwrap decrypts it. Both have secrets
	// in the arena.
	Wrap(ctx context.Context, arena *keymat.Arena, key *keymat.Secret, about Context) ([]byte, error)
	Unwrap(ctx context.Context, arena *keymat.Arena, wrapped []byte, about Context) (*keymat.Secret, error)
}

// Context says what a wrapped key is for.
type Context struct {
	Cluster string // the cluster's id in hexadecimal
	Seal    string // the seal's name
}

// Parse returns the seal that a text describes, for a node:
//
//   - file:PATH
//   - awskms:KEY?region=REGION&endpoint=URL&ca=FILE, in which everything after the key may be
//     left out. KEY is a key id or an ARN. The credentials for it are those that AWS's SDK finds.
//   - pkcs11:MODULE?token=LABEL&key=LABEL&pin=FILE&create=true, a key in a token of a PKCS #11
//     module. With create=true, the key is generated if the token has none when the seal is
//     added.
//   - tpm:DEVICE?pcrs=7+11, the TPM of this machine. Without a device it is /dev/tpmrm0. Without
//     PCRs it does not matter what the machine has booted.
//
// The last two need a binary that was built with the tag pkcs11 or tpm. Neither the module nor
// the TPM is used before the seal is, so that a node whose seal fails starts nevertheless and
// can be unsealed by the custodians.
func Parse(ctx context.Context, node, text string) (Seal, error) {
	kind, rest, _ := strings.Cut(text, ":")
	switch kind {
	case "file":
		return openFile(rest)
	case "awskms":
		key, o, err := parseOptions(kind, rest, "region", "endpoint", "ca")
		if err != nil {
			return nil, err
		}
		return openKMS(ctx, key, o.Get("region"), o.Get("endpoint"), o.Get("ca"))
	case "pkcs11":
		module, o, err := parseOptions(kind, rest, "token", "key", "pin", "create")
		if err != nil {
			return nil, err
		}
		c := tokenKey{module: module, token: o.Get("token"), key: o.Get("key"), pin: o.Get("pin"), create: o.Get("create") == "true"}
		if c.module == "" || c.token == "" || c.key == "" || c.pin == "" {
			return nil, errors.New("seal pkcs11: it is pkcs11:MODULE?token=LABEL&key=LABEL&pin=FILE, and something of that is missing")
		}
		if o.Has("create") && !c.create {
			return nil, errors.New("seal pkcs11: create is true, or is left out")
		}
		return openPKCS11(c)
	case "tpm":
		device, o, err := parseOptions(kind, rest, "pcrs")
		if err != nil {
			return nil, err
		}
		pcrs, err := parsePCRs(o.Get("pcrs"))
		if err != nil {
			return nil, err
		}
		if o.Has("pcrs") && pcrs == 0 {
			return nil, errors.New("seal tpm: pcrs is a list such as 7+11, or is left out")
		}
		if device == "" {
			device = "/dev/tpmrm0"
		}
		return openTPM(node, device, pcrs)
	}
	return nil, fmt.Errorf("%q is not a kind of seal: it is awskms, pkcs11, tpm or file", kind)
}

// parseOptions splits what follows the kind of a seal into what it names, and its options.
func parseOptions(kind, rest string, known ...string) (named string, options url.Values, err error) {
	named, query, _ := strings.Cut(rest, "?")
	options, err = url.ParseQuery(query)
	if err != nil {
		return "", nil, fmt.Errorf("seal %s: %w", kind, err)
	}
	for name, values := range options {
		if !slices.Contains(known, name) || len(values) != 1 {
			return "", nil, fmt.Errorf("seal %s has no option %q, or it is given twice", kind, name)
		}
	}
	return named, options, nil
}

// tokenKey is a key in a token of a PKCS #11 module.
type tokenKey struct {
	module     string // path of the library
	token, key string // labels
	pin        string // path of the file with the user's PIN
	create     bool   // if the token has no such key when the seal is added
}

// pcrSet is a set of PCRs, one a bit.
type pcrSet uint32

// pcrCount is the number of PCRs of a TPM of a PC.
const pcrCount = 24

// parsePCRs reads a list such as 7+11, in which the query has made a space of the plus sign.
func parsePCRs(text string) (set pcrSet, err error) {
	for _, n := range strings.Fields(text) {
		i, err := strconv.ParseUint(n, 10, 8)
		if err != nil || i >= pcrCount || set&(1<<i) != 0 {
			return 0, fmt.Errorf("seal tpm: %q is not one of the PCRs 0 to %d, or is given twice", n, pcrCount-1)
		}
		set |= 1 << i
	}
	return set, nil
}
