package metering

import (
	"cmp"
	"strings"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/keyengine/internal/auditfeed"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/localfile"
)

// The kinds of requests, as AWS KMS charges for them.
const (
	Symmetric  = "symmetric" // and all others that are not of the kinds below
	RSA2048    = "rsa-2048"
	Asymmetric = "asymmetric"
	PairECC    = "key-pair-ecc"
	PairRSA    = "key-pair-rsa"
	// Uncharged are requests of other services, and the second half of those that concern two
	// keys.
	Uncharged = "uncharged"
)

// withKey are the operations whose price depends on the spec of the key.
var withKey = map[string]bool{
	"Sign": true, "Verify": true, "Encrypt": true, "Decrypt": true, "ReEncrypt": true, "GetPublicKey": true, "DeriveSharedSecret": true, "Encapsulate": true, "Decapsulate": true,
}

// kindOf returns the kind of a request of KMS with a key of the given spec.
func kindOf(operation, spec, pairSpec string) string {
	switch {
	case strings.HasPrefix(operation, "GenerateDataKeyPair"):
		if strings.HasPrefix(pairSpec, "RSA_") {
			return PairRSA
		}
		return PairECC
	case !withKey[operation] || spec == "" || spec == "SYMMETRIC_DEFAULT" || strings.HasPrefix(spec, "HMAC_"):
		return Symmetric
	case spec == "RSA_2048":
		return RSA2048
	default:
		return Asymmetric
	}
}

// lives are the keys that records are about.
type lives struct {
	tx    *localfile.Tx
	known map[string]*Life // by ARN; those without Key are not known
}

func (l *lives) place(arn string) ([]byte, error) {
	tokens, err := l.tx.Tokens([]localfile.Term{{Field: "key", Value: arn}})
	if err != nil {
		return nil, err
	}
	return tokens[0][:16], nil
}

// of returns a key, whose Key is empty if it is not known.
func (l *lives) of(arn string) (*Life, error) {
	if k := l.known[arn]; k != nil {
		return k, nil
	}
	at, err := l.place(arn)
	if err != nil {
		return nil, err
	}
	k := new(Life)
	if _, err := get(l.tx, lifeBucket, at, k); err != nil {
		return nil, err
	}
	l.known[arn] = k
	return k, nil
}

// write stores the keys.
func (l *lives) write() error {
	for arn, k := range l.known {
		if k.Key == "" {
			continue
		}
		at, err := l.place(arn)
		if err != nil {
			return err
		}
		if err := put(l.tx, lifeBucket, at, k); err != nil {
			return err
		}
	}
	return nil
}

// rows returns what a record counts for, and follows the lives of keys.
func (l *lives) rows(it *auditfeed.Item) ([]Row, error) {
	rec := it.Record
	var keys []*auditpb.Resource
	for _, r := range rec.GetResources() {
		if strings.Contains(r.GetArn(), ":key/") {
			keys = append(keys, r)
		}
	}
	if rec.GetErrorCode() == "" {
		if err := l.event(rec, it.Entry.Time, keys); err != nil {
			return nil, err
		}
	}
	if rec.GetEventType() != "AwsApiCall" {
		return nil, nil // nobody's request to a service of AWS
	}
	row := Row{Account: cmp.Or(rec.GetIdentity().GetAccountId(), rec.GetRecipientAccountId()), Principal: it.Principal(), Operation: rec.GetEventName(), Kind: Uncharged}
	if rec.GetErrorCode() == "" {
		row.Requests = 1
	} else {
		row.Errors = 1
	}
	spec := ""
	if len(keys) > 0 {
		k, err := l.of(keys[0].GetArn())
		if err != nil {
			return nil, err
		}
		row.Key, spec = keys[0].GetArn(), k.Spec
	}
	if rec.GetEventSource() == "kms.amazonaws.com" {
		row.Kind = kindOf(row.Operation, spec, auditfield.TextOf(rec.GetRequestParameters(), "keyPairSpec"))
	}
	rows := []Row{row}
	if row.Operation == "ReEncrypt" && len(keys) > 1 {
		rows[0].Operation = "ReEncryptFrom"
		row.Operation, row.Key, row.Kind = "ReEncryptTo", keys[len(keys)-1].GetArn(), Uncharged
		rows = append(rows, row)
	}
	return rows, nil
}

// event follows the life of keys by a record of what succeeded.
func (l *lives) event(rec *auditpb.Record, at int64, keys []*auditpb.Resource) error {
	if len(keys) == 0 {
		return nil
	}
	name, which := rec.GetEventName(), keys[0]
	metadata := "keyMetadata"
	if name == "ReplicateKey" {
		which, metadata = keys[len(keys)-1], "replicaKeyMetadata"
	}
	switch name {
	case "CreateKey", "ReplicateKey", "ScheduleKeyDeletion", "CancelKeyDeletion", "DeleteKey", "RotateKey", "RotateKeyOnDemand":
	default:
		return nil
	}
	k, err := l.of(which.GetArn())
	if err != nil {
		return err
	}
	switch {
	case name == "CreateKey" || name == "ReplicateKey":
		_, rest, _ := strings.Cut(which.GetArn(), ":kms:")
		_, rest, _ = strings.Cut(rest, ":")
		account, _, _ := strings.Cut(rest, ":")
		*k = Life{Key: which.GetArn(), Account: account, Spec: auditfield.TextIn(rec.GetResponseElements(), metadata, "keySpec"), Created: at}
	case k.Key == "":
		// It was made before the first record, and is not known.
	case name == "ScheduleKeyDeletion":
		k.Pending = at
	case name == "CancelKeyDeletion":
		k.Pending = 0
	case name == "DeleteKey":
		k.Ended = at
	case len(k.Rotations) < MaxRotations:
		k.Rotations = append(k.Rotations, at)
	}
	return nil
}
