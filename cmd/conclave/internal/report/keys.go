package report

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/conclavekms/conclave/policy"
	"github.com/conclavekms/conclave/policy/lint"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// key is what the checks know about a key.
type key struct {
	meta     *kmspb.KeyMetadata
	policy   string
	rotation *kmspb.GetKeyRotationStatusResponse // nil for keys that cannot rotate automatically
	use      *kmspb.GetKeyLastUsageResponse
	lacks    need
	// records are the indexes of the newest records of the audit log about the key, by event.
	records map[string]uint64

	doc *document // of policy, once it is needed
}

func (k *key) id() string { return k.meta.GetKeyId() }

// deleted reports whether the key is on its way to be deleted.
func (k *key) deleted() bool {
	return k.meta.GetKeyState() == "PendingDeletion" || k.meta.GetKeyState() == "PendingReplicaDeletion"
}

// rotates reports whether the key could be rotated automatically: it is symmetric and its material
// was made here.
func (k *key) rotates() bool {
	return k.meta.GetKeySpec() == "SYMMETRIC_DEFAULT" && k.meta.GetOrigin() == "AWS_KMS"
}

// describe returns the evidence of the key's own record.
func (k *key) describe() *Evidence {
	m := k.meta
	text := map[string]any{
		"key_id": m.GetKeyId(), "arn": m.GetArn(), "description": m.GetDescription(), "state": m.GetKeyState(), "spec": m.GetKeySpec(), "usage": m.GetKeyUsage(),
		"origin": m.GetOrigin(), "created": m.GetCreationDate().AsTime().Format(time.RFC3339), "multi_region": m.GetMultiRegion(),
	}
	if m.GetDeletionDate() != nil {
		text["deletion_date"] = m.GetDeletionDate().AsTime().Format(time.RFC3339)
	}
	if m.GetValidTo() != nil {
		text["valid_to"] = m.GetValidTo().AsTime().Format(time.RFC3339)
	}
	if k.rotation != nil {
		text["rotation_enabled"], text["rotation_period_in_days"] = k.rotation.GetKeyRotationEnabled(), k.rotation.GetRotationPeriodInDays()
	}
	if t := k.use.GetKeyLastUsage().GetTimestamp(); t != nil {
		text["last_used"], text["last_used_for"] = t.AsTime().Format(time.RFC3339), k.use.GetKeyLastUsage().GetOperation()
	}
	return &Evidence{of: "key-" + k.id(), Title: "key " + k.id(), Command: command("key", "describe", k.id()), Text: indented(text)}
}

// finding returns a finding about the key's own record, and about the newest record of the audit
// log for one of the events.
func (k *key) finding(events []string, format string, args ...any) []Finding {
	f := Finding{Resource: k.meta.GetArn(), Message: fmt.Sprintf(format, args...), evidence: k.describe()}
	for _, e := range events {
		if i, ok := k.records[e]; ok && (f.Record == nil || i > *f.Record) {
			f.Record = &i
		}
	}
	return []Finding{f}
}

// document is a policy that findings are about.
type document struct {
	kind     policy.Kind
	text     string
	of       string // the resource
	id       string // of the evidence
	title    string
	command  string
	account  string
	record   *uint64
	findings []lint.Finding // nil until it is linted
	linted   bool
}

// document returns the key's policy.
func (k *key) document() *document {
	if k.doc != nil {
		return k.doc
	}
	d := &document{
		kind: policy.KeyPolicy, text: k.policy, of: k.meta.GetArn(), id: "policy-of-key-" + k.id(), title: "policy of key " + k.id(),
		command: command("key", "policy", "get", k.id()), account: k.meta.GetAwsAccountId(),
	}
	if i, ok := k.records["PutKeyPolicy"]; ok {
		d.record = &i
	} else if i, ok := k.records["CreateKey"]; ok {
		d.record = &i
	}
	k.doc = d
	return d
}

// evidence returns the whole document as evidence.
func (d *document) evidence() *Evidence {
	text := d.text
	if out, err := policy.Format([]byte(d.text)); err == nil {
		text = string(out)
	}
	return &Evidence{of: d.id, Title: d.title, Command: d.command, Text: text}
}

// finding returns a finding about a statement, or about the whole document for
// policy.NoStatement.
func (d *document) finding(statement int, sid, message string) Finding {
	f := Finding{Resource: d.of, Message: message, Sid: sid, Record: d.record, evidence: d.evidence()}
	if statement != policy.NoStatement {
		f.Statement = &statement
	}
	return f
}

// lint returns the findings of package lint with one of the codes. A document that cannot be
// parsed fails every check: what it allows is not known.
func (d *document) lint(codes ...string) (found []Finding) {
	if !d.linted {
		d.findings, d.linted = lint.Lint(d.kind, []byte(d.text), lint.Known{Account: d.account}), true
	}
	_, err := policy.Parse(d.kind, []byte(d.text))
	for _, f := range d.findings {
		if err != nil || slices.Contains(codes, f.Code) {
			found = append(found, d.finding(f.Statement, f.Sid, f.Message))
		}
	}
	return found
}

// A statement has the elements of a policy's statement that checks look at beyond package lint.
type statement struct {
	Sid       string
	Effect    string
	Principal struct{ AWS, Service, Federated many }
	Action    many
	Condition map[string]map[string]many
}

// many is a text or a list of texts.
type many []string

// UnmarshalJSON implements json.Unmarshaler. Numbers and truth values, which conditions may have,
// are texts.
func (m *many) UnmarshalJSON(raw []byte) error {
	var list []any
	if len(raw) > 0 && raw[0] == '[' {
		if err := json.Unmarshal(raw, &list); err != nil {
			return err
		}
	} else {
		var one any
		if err := json.Unmarshal(raw, &one); err != nil {
			return err
		}
		list = []any{one}
	}
	for _, v := range list {
		*m = append(*m, fmt.Sprint(v))
	}
	return nil
}

// statements returns the statements of a document that package policy accepts.
func (d *document) statements() ([]statement, error) {
	if _, err := policy.Parse(d.kind, []byte(d.text)); err != nil {
		return nil, err
	}
	var doc struct{ Statement json.RawMessage }
	if err := json.Unmarshal([]byte(d.text), &doc); err != nil {
		return nil, err
	}
	raw := []json.RawMessage{doc.Statement}
	if len(doc.Statement) > 0 && doc.Statement[0] == '[' {
		raw = nil
		if err := json.Unmarshal(doc.Statement, &raw); err != nil {
			return nil, err
		}
	}
	list := make([]statement, len(raw))
	for i, r := range raw {
		// "Principal": "*" is {"AWS": "*"}.
		var short struct{ Principal any }
		if err := json.Unmarshal(r, &short); err == nil && short.Principal == "*" {
			var members map[string]json.RawMessage
			if err := json.Unmarshal(r, &members); err != nil {
				return nil, err
			}
			members["Principal"] = json.RawMessage(`{"AWS": "*"}`)
			var err error
			if r, err = json.Marshal(members); err != nil {
				return nil, err
			}
		}
		if err := json.Unmarshal(r, &list[i]); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// condition returns the values that a statement compares a condition key with, by operators that a
// request without the key does not satisfy.
func (s *statement) condition(key string) (values []string) {
	for operator, keys := range s.Condition {
		op := strings.ToLower(operator)
		if strings.HasSuffix(op, "ifexists") || strings.Contains(op, "not") || strings.HasPrefix(op, "forallvalues:") || op == "null" {
			continue
		}
		for name, v := range keys {
			if strings.EqualFold(name, key) {
				values = append(values, v...)
			}
		}
	}
	return values
}

// keyChecks are the checks of keys.
var keyChecks = []check{
	{
		id: "key-policy-public", title: "Key policies are not open to everybody", severity: Critical, needs: needPolicy,
		sources: []string{"Security Hub KMS.5", "PCI DSS 4.0.1 3.6.1.3", "PCI DSS 4.0.1 7.2", "HIPAA 164.312(a)(1)"},
		key:     func(_ *Options, k *key) []Finding { return k.document().lint("public-principal") },
	},
	{
		id: "key-pending-deletion", title: "No key is about to be deleted", severity: Critical,
		sources: []string{"Security Hub KMS.3"},
		key: func(_ *Options, k *key) []Finding {
			if !k.deleted() {
				return nil
			}
			when := "when its replicas are gone"
			if t := k.meta.GetDeletionDate(); t != nil {
				when = "on " + t.AsTime().Format(time.RFC3339)
			}
			return k.finding([]string{"ScheduleKeyDeletion"}, "is deleted %s; what it encrypted can then never be decrypted", when)
		},
	},
	{
		id: "key-rotation", title: "Symmetric keys are rotated automatically", severity: Medium, needs: needRotation,
		sources: []string{"Security Hub KMS.4", "CIS AWS Foundations 5.0.0: rotation of symmetric customer managed keys", "Control Tower CT.KMS.PR.1", "PCI DSS 4.0.1 3.7.4"},
		key: func(_ *Options, k *key) []Finding {
			if !k.rotates() || k.deleted() || k.rotation.GetKeyRotationEnabled() {
				return nil
			}
			return k.finding([]string{"DisableKeyRotation", "CreateKey"}, "is not rotated automatically")
		},
	},
	{
		id: "key-cryptoperiod", title: "Keys are replaced or rotated within the cryptoperiod", severity: Low, needs: needRotation,
		sources: []string{"PCI DSS 4.0.1 3.7.4"},
		key: func(o *Options, k *key) []Finding {
			switch {
			case k.deleted() || k.meta.GetKeyState() == "PendingImport":
				return nil
			case k.rotation.GetKeyRotationEnabled():
				if days := int(k.rotation.GetRotationPeriodInDays()); days > o.KeyDays {
					return k.finding([]string{"EnableKeyRotation"}, "is rotated every %d days, which is longer than %d", days, o.KeyDays)
				}
			case !k.rotates() && o.olderThan(k.meta.GetCreationDate().AsTime(), o.KeyDays):
				return k.finding([]string{"CreateKey"}, "is not rotated automatically and is older than %d days", o.KeyDays)
			}
			return nil
		},
	},
	{
		id: "key-rsa-size", title: "RSA keys for encryption have more than 2048 bits", severity: Medium,
		sources: []string{"Control Tower CT.KMS.PR.2", "PCI DSS 4.0.1 3.6.1", "PCI DSS 4.0.1 3.7.1"},
		key: func(_ *Options, k *key) []Finding {
			if k.meta.GetKeySpec() != "RSA_2048" || k.meta.GetKeyUsage() != "ENCRYPT_DECRYPT" || k.deleted() {
				return nil
			}
			return k.finding([]string{"CreateKey"}, "has 2048 bits; RSA_3072 and RSA_4096 have more")
		},
	},
	{
		id: "key-quantum", title: "No key would be broken by a quantum computer", severity: Info,
		sources: []string{"PCI DSS 4.0.1 12.3.3"},
		key: func(_ *Options, k *key) []Finding {
			if a, ok := algorithms[k.meta.GetKeySpec()]; !ok || a.quantum || k.deleted() {
				return nil
			}
			return k.finding([]string{"CreateKey"}, "%s rests on a problem that quantum computers solve; ML_DSA and ML_KEM do not", k.meta.GetKeySpec())
		},
	},
	{
		id: "key-grants-limited", title: "Key policies allow grants only on behalf of AWS services", severity: Low, needs: needPolicy,
		sources: []string{"Control Tower CT.KMS.PR.3", "Control Tower CT.KMS.PV.1"},
		key:     func(_ *Options, k *key) []Finding { return grantsLimited(k.document()) },
	},
	{
		id: "key-lockout", title: "Key policies can be replaced by somebody", severity: High, needs: needPolicy,
		sources: []string{"Control Tower CT.KMS.PV.3"},
		key:     func(_ *Options, k *key) []Finding { return k.document().lint("lock-out") },
	},
	{
		id: "key-origin", title: "Keys have an allowed origin", severity: Medium,
		sources: []string{"Control Tower CT.KMS.PV.4", "Control Tower CT.KMS.PV.5", "Control Tower CT.KMS.PV.6", "PCI DSS 4.0.1 3.7.1"},
		key: func(o *Options, k *key) []Finding {
			if len(o.Origins) == 0 || slices.Contains(o.Origins, k.meta.GetOrigin()) {
				return nil
			}
			return k.finding([]string{"CreateKey"}, "has the origin %s, which is not among %s", k.meta.GetOrigin(), strings.Join(o.Origins, ", "))
		},
	},
	{
		id: "key-other-account", title: "Key policies let no other account in", severity: Medium, needs: needPolicy,
		sources: []string{"Control Tower CT.KMS.PV.7", "PCI DSS 4.0.1 3.6.1.3"},
		key:     func(_ *Options, k *key) []Finding { return otherAccounts(k.document()) },
	},
	{
		id: "key-policy-broad", title: "Key policies are not broader than they look", severity: Medium, needs: needPolicy,
		sources: []string{"PCI DSS 4.0.1 3.6.1.3", "PCI DSS 4.0.1 7.2", "HIPAA 164.312(a)(1)"},
		key: func(_ *Options, k *key) []Finding {
			return k.document().lint("allow-not-action", "allow-not-resource", "foreign-administrator", "confused-deputy", "any-subject", "any-audience", "for-all-values")
		},
	},
	{
		id: "key-unused", title: "Keys are in use", severity: Low, needs: needUse,
		sources: []string{"PCI DSS 4.0.1 3.7.5", "GDPR Article 5(1)(e)"},
		key: func(o *Options, k *key) []Finding {
			if k.deleted() {
				return nil
			}
			if t := k.use.GetKeyLastUsage().GetTimestamp(); t != nil {
				if o.olderThan(t.AsTime(), o.UnusedDays) {
					return k.finding(nil, "was last used on %s", t.AsTime().Format(time.DateOnly))
				}
				return nil
			}
			since := k.meta.GetCreationDate().AsTime()
			if t := k.use.GetTrackingStartDate(); t != nil && t.AsTime().After(since) {
				since = t.AsTime()
			}
			if !o.olderThan(since, o.UnusedDays) {
				return nil
			}
			return k.finding([]string{"CreateKey"}, "was never used since %s", since.Format(time.DateOnly))
		},
	},
	{
		id: "key-material-expires", title: "No imported key material expires within 30 days", severity: Medium,
		sources: []string{"PCI DSS 4.0.1 3.7.4"},
		key: func(o *Options, k *key) []Finding {
			if t := k.meta.GetValidTo(); t != nil && !k.deleted() && t.AsTime().Sub(o.now) < 30*24*time.Hour {
				return k.finding([]string{"ImportKeyMaterial"}, "loses its material on %s", t.AsTime().Format(time.RFC3339))
			}
			return nil
		},
	},
	{
		id: "key-disabled", title: "Disabled keys are on their way to be deleted", severity: Info,
		sources: []string{"GDPR Article 17", "PCI DSS 4.0.1 3.7.5"},
		key: func(_ *Options, k *key) []Finding {
			if k.meta.GetKeyState() != "Disabled" {
				return nil
			}
			return k.finding([]string{"DisableKey"}, "is disabled, which erases nothing: what it encrypted can be read again when it is enabled. Only its deletion erases")
		},
	},
}

// grantsLimited finds statements that name kms:CreateGrant and do not limit it to services. A
// statement that gives all of kms, such as that for the account, does not name it.
func grantsLimited(d *document) (found []Finding) {
	list, err := d.statements()
	if err != nil {
		return d.lint()
	}
	for i, s := range list {
		named := slices.ContainsFunc(s.Action, func(a string) bool {
			a = strings.ToLower(a)
			return a == "kms:creategrant" || strings.HasPrefix(a, "kms:create") && strings.HasSuffix(a, "*")
		})
		limited := slices.ContainsFunc(s.condition("kms:GrantIsForAWSResource"), func(v string) bool { return strings.EqualFold(v, "true") })
		if s.Effect == "Allow" && named && !limited {
			found = append(found, d.finding(i, s.Sid, "allows grants without the condition that kms:GrantIsForAWSResource is true"))
		}
	}
	return found
}

// otherAccounts finds statements that allow something to principals of other accounts.
func otherAccounts(d *document) (found []Finding) {
	list, err := d.statements()
	if err != nil {
		return d.lint()
	}
	for i, s := range list {
		if s.Effect != "Allow" {
			continue
		}
		for _, name := range s.Principal.AWS {
			if p, err := policy.ParsePrincipal(name); err == nil && p.Account != d.account {
				found = append(found, d.finding(i, s.Sid, "lets "+name+" in, which is not of account "+d.account))
			}
		}
	}
	return found
}
