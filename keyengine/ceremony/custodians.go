package ceremony

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/custodian"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/shamir"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// CustodianKey is a custodian whose share shall be encrypted. Key is a public key in a form
// that [custodian.Parse] reads.
type CustodianKey struct {
	Name string
	Key  []byte
}

// NamedCustodian is who keeps a share, and the fingerprint of the key that the share was
// encrypted to, or "".
type NamedCustodian struct {
	Name           string
	KeyFingerprint string
}

// EncryptedShare is a share that is encrypted to the key of its custodian.
type EncryptedShare struct {
	Index     int
	Custodian NamedCustodian
	Kind      custodian.Kind
	// Text is what [custodian.Key.Encrypt] returned.
	Text string
}

// parseCustodians reads the keys of the custodians of a new share set, and returns the number
// of shares, which is shares if there are no custodians.
func parseCustodians(given []CustodianKey, shares int, clock record.Clock) (keepers []custodian.Custodian, count int, bad []string) {
	switch n := len(given); {
	case n == 0:
		return nil, shares, nil
	case n > maxShares: // before their keys are read
		return nil, n, []string{fmt.Sprintf("there can be %d custodians at most", maxShares)}
	case shares != 0 && shares != n:
		return nil, shares, []string{"the number of shares must be that of the custodians"}
	}
	for _, c := range given {
		key, err := custodian.Parse(c.Key, clock.Now())
		if err != nil {
			bad = append(bad, fmt.Sprintf("the key of custodian %q: %v", c.Name, err))
			continue
		}
		keepers = append(keepers, custodian.Custodian{Name: c.Name, Key: key})
	}
	if bad == nil {
		if err := custodian.Check(keepers); err != nil {
			bad = append(bad, err.Error())
		}
	}
	return keepers, len(given), bad
}

// encryptShares encrypts each share, whose texts are concatenated, to the key of its custodian.
func encryptShares(shares *keymat.Secret, keepers []custodian.Custodian) (encrypted []EncryptedShare, err error) {
	err = shares.With(func(texts []byte) error {
		for t := range slices.Chunk(texts, shamir.TextSize) {
			c := keepers[len(encrypted)]
			text, err := c.Key.Encrypt(t)
			if err != nil {
				return fmt.Errorf("the share of %q: %w", c.Name, err)
			}
			encrypted = append(encrypted, EncryptedShare{
				Index: len(encrypted) + 1, Custodian: NamedCustodian{c.Name, c.Key.Fingerprint()}, Kind: c.Key.Kind(), Text: text,
			})
		}
		return nil
	})
	return encrypted, err
}

// custodianFields returns the names of custodians, and the fingerprints of their keys, as
// fields of a record.
func custodianFields(custodians []NamedCustodian) []*auditpb.Field {
	var names, keys []string
	for _, c := range custodians {
		names, keys = append(names, c.Name), append(keys, c.KeyFingerprint)
	}
	return []*auditpb.Field{auditfield.TextList("custodians", names), auditfield.TextList("keyFingerprints", keys)}
}

// printable reports whether a text can be shown and recorded as it is.
func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(c rune) bool { return !unicode.IsPrint(c) })
}

// maxFingerprint is longer than any fingerprint of a key.
const maxFingerprint = 128

// NameCustodians says who keeps which share of the cluster, in the order of the shares. It
// reports whether that was new, and is recorded then. Nothing depends on the names: they tell
// people who must still come to a ceremony. Errors: ErrValidation, ErrUnsupported below feature
// level 2, ErrUnavailable if the node is sealed or the log does not accept records.
func (r *Ceremonies) NameCustodians(ctx context.Context, op Operator, custodians []NamedCustodian) (changed bool, err error) {
	if _, _, err := r.unsealedCluster(); err != nil {
		return false, err
	}
	if _, err := r.cfg.Fresh(ctx); err != nil {
		return false, err
	}
	var given []*fsmpb.ShareCustodian
	seen := make(map[string]bool)
	for i, c := range custodians {
		if i == maxShares {
			break // more than there are shares
		}
		if err := custodian.CheckName(c.Name); err != nil {
			return false, kmsapi.Errorf(kmsapi.ErrValidation, "Custodian %d: %v.", i+1, err)
		}
		if seen[c.Name] || len(c.KeyFingerprint) > maxFingerprint || !printable(c.KeyFingerprint) {
			return false, kmsapi.Errorf(kmsapi.ErrValidation, "Custodian %d has the name of another, or a malformed fingerprint.", i+1)
		}
		seen[c.Name] = true
		given = append(given, &fsmpb.ShareCustodian{Name: c.Name, KeyFingerprint: c.KeyFingerprint})
	}
	d, err := r.cfg.Events.ChangeCluster(ctx, func(s *fsm.State) (record.Event, error) {
		c, version := s.Cluster()
		if len(custodians) != int(c.GetShares().GetCount()) {
			return record.Event{}, kmsapi.Errorf(kmsapi.ErrValidation, "There are %d custodians, and the cluster has %d shares.", len(custodians), c.GetShares().GetCount())
		}
		if slices.Equal(namedCustodians(c.GetShares()), custodians) {
			return record.Event{}, errSameCustodians
		}
		c = proto.CloneOf(c)
		c.Shares.Custodians = given
		ev := op.Event("NameCustodians", c)
		ev.Parameters = custodianFields(custodians)
		ev.ReplaceCluster(version, c)
		if err := s.Allows(ev.Changes[0]); err != nil {
			return record.Event{}, kmsapi.Errorf(kmsapi.ErrUnsupported, "The custodians cannot be named yet: %v.", err)
		}
		return ev, nil
	})
	if errors.Is(err, errSameCustodians) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := r.cfg.Replica.WaitApplied(ctx, d.Index); err != nil {
		r.cfg.Log.Warn("the custodians are named, but this node is behind", "err", err)
	}
	return true, nil
}

var errSameCustodians = errors.New("the custodians are named already")
