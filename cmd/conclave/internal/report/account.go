package report

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/conclavekms/conclave/auditlog/verify"
	"github.com/conclavekms/conclave/policy"
	"github.com/conclavekms/conclave/transport/iampb"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// account is what the checks know besides keys.
type account struct {
	number string
	// identities has the principals and policies of the account.
	identities *iampb.GetAccountAuthorizationDetailsResponse
	accessKeys []accessKey
	summary    map[string]int32
	shares     *Custody
	files      *verify.Report
	log        *records
	lacks      []lack
	whyKeys    string // why keys could not be read
}

// A lack is something that was not read.
type lack struct {
	what   need
	status Status
	why    string
}

// accessKey is an access key of a user.
type accessKey struct {
	user, id string
	active   bool
	created  time.Time
	used     time.Time // zero if it never was
}

// records is what was read from the audit log's records.
type records struct {
	first      time.Time
	from, to   uint64 // indexes: the first record and the one after the last
	unopenable int
	firstBad   uint64
	gaps       int
	keys       map[string]map[string]uint64
	erasures   []Erasure
	omitted    int
}

// An Erasure is a key that was deleted, with everything that only it could decrypt.
type Erasure struct {
	Key    string `json:"key"`
	Time   string `json:"time"`
	Record uint64 `json:"audit_record"`
}

// AuditState is what is known about the audit log.
type AuditState struct {
	// From and To are the indexes of the first record that was read and of the one after the
	// last. Oldest is the time of the first.
	From       uint64 `json:"from"`
	To         uint64 `json:"to"`
	Oldest     string `json:"oldest,omitempty"`
	Unopenable int    `json:"unopenable"`
	// Verified is set if the files were verified.
	Verified *Verification `json:"verification,omitempty"`
}

// A Verification is the outcome of the verification of the log's files.
type Verification struct {
	OK         bool     `json:"ok"`
	Origin     string   `json:"origin"`
	Records    uint64   `json:"records"`
	Root       string   `json:"root"`
	Checkpoint uint64   `json:"checkpoint_records"`
	Problems   []string `json:"problems"`
}

// Custody says who holds the shares that unseal the cluster.
type Custody struct {
	Threshold  int         `json:"threshold"`
	Shares     int         `json:"shares"`
	Custodians []Custodian `json:"custodians"`
}

// A Custodian holds a share.
type Custodian struct {
	Share       int    `json:"share"`
	Name        string `json:"name,omitempty"`
	Fingerprint string `json:"key_fingerprint,omitempty"`
}

// custodyOf returns what a node says about the shares.
func custodyOf(s *kmspb.SealState) *Custody {
	c := &Custody{Threshold: int(s.GetThreshold()), Shares: int(s.GetShares()), Custodians: []Custodian{}}
	for i, n := range s.GetShareSet().GetCustodians() {
		c.Custodians = append(c.Custodians, Custodian{i + 1, n.GetName(), n.GetKeyFingerprint()})
	}
	return c
}

// policies calls each with the policies of the account: customer managed ones in force, and
// inline ones.
func (a *account) policies(each func(d *document, inline bool)) {
	d := a.identities
	for _, p := range d.GetPolicies() {
		for _, v := range p.GetPolicyVersionList() {
			if v.GetIsDefaultVersion() && !strings.Contains(p.GetArn(), ":iam::aws:policy/") {
				each(&document{
					kind: policy.IdentityPolicy, text: v.GetDocument(), of: p.GetArn(), id: "policy-" + p.GetArn(), title: "policy " + p.GetPolicyName(),
					command: command("iam", "policy", "show", p.GetPolicyName()), account: a.number,
				}, false)
			}
		}
	}
	inline := func(kind, name, arn string, list []*iampb.PolicyDetail) {
		for _, p := range list {
			each(&document{
				kind: policy.IdentityPolicy, text: p.GetPolicyDocument(), of: arn, id: "policy-" + arn + "-" + p.GetPolicyName(), title: "policy " + p.GetPolicyName() + " of " + kind + " " + name,
				command: command("iam", kind, "get-policy", name, p.GetPolicyName()), account: a.number,
			}, true)
		}
	}
	for _, u := range d.GetUserDetailList() {
		inline("user", u.GetUserName(), u.GetArn(), u.GetUserPolicyList())
	}
	for _, g := range d.GetGroupDetailList() {
		inline("group", g.GetGroupName(), g.GetArn(), g.GetGroupPolicyList())
	}
	for _, r := range d.GetRoleDetailList() {
		inline("role", r.GetRoleName(), r.GetArn(), r.GetRolePolicyList())
	}
}

// linted finds what package lint says of the account's policies.
func (a *account) linted(inline, managed bool, codes ...string) (found []Finding) {
	a.policies(func(d *document, is bool) {
		if is && inline || !is && managed {
			found = append(found, d.lint(codes...)...)
		}
	})
	return found
}

// trusts are the trust policies of roles.
func (a *account) trusts(codes ...string) (found []Finding) {
	for _, r := range a.identities.GetRoleDetailList() {
		d := &document{
			kind: policy.TrustPolicy, text: r.GetAssumeRolePolicyDocument(), of: r.GetArn(), id: "trust-" + r.GetArn(), title: "trust policy of role " + r.GetRoleName(),
			command: command("iam", "role", "show", r.GetRoleName()), account: a.number,
		}
		found = append(found, d.lint(codes...)...)
	}
	return found
}

func (k *accessKey) finding(a *account, format string, args ...any) Finding {
	user, cmd := "user "+k.user, command("iam", "key", "list", "--user", k.user)
	text := map[string]any{"access_key": k.id, "user": k.user, "active": k.active, "created": k.created.Format(time.RFC3339)}
	if !k.used.IsZero() {
		text["last_used"] = k.used.Format(time.RFC3339)
	}
	return Finding{
		Resource: k.id + " of " + user, Message: fmt.Sprintf(format, args...),
		evidence: &Evidence{of: "access-key-" + k.id, Title: "access key " + k.id + " of " + user, Command: cmd, Text: indented(text)},
	}
}

// identityChecks are the checks of principals and their policies.
var identityChecks = []check{
	{
		id: "managed-policy-decrypts-all", title: "Customer managed policies do not allow decryption with all keys", severity: Medium, needs: needIdentities,
		sources: []string{"Security Hub KMS.1", "PCI DSS 4.0.1 3.6.1.3"},
		account: func(_ *Options, a *account) []Finding {
			return a.linted(false, true, "decrypt-with-all-keys", "allow-everything")
		},
	},
	{
		id: "inline-policy-decrypts-all", title: "Inline policies do not allow decryption with all keys", severity: Medium, needs: needIdentities,
		sources: []string{"Security Hub KMS.2", "PCI DSS 4.0.1 3.6.1.3"},
		account: func(_ *Options, a *account) []Finding {
			return a.linted(true, false, "decrypt-with-all-keys", "allow-everything")
		},
	},
	{
		id: "identity-policy-broad", title: "Identity policies are not broader than they look", severity: Medium, needs: needIdentities,
		sources: []string{"PCI DSS 4.0.1 7.2", "HIPAA 164.312(a)(1)"},
		account: func(_ *Options, a *account) []Finding {
			return a.linted(true, true, "allow-not-action", "allow-not-resource", "for-all-values")
		},
	},
	{
		id: "role-trust", title: "Roles do not trust everybody", severity: Critical, needs: needIdentities,
		sources: []string{"PCI DSS 4.0.1 7.2", "HIPAA 164.312(a)(1)"},
		account: func(_ *Options, a *account) []Finding {
			return a.trusts("public-principal", "any-subject", "any-audience")
		},
	},
	{
		id: "access-key-unused", title: "Active access keys are in use", severity: Medium, needs: needAccessKeys,
		sources: []string{"CIS AWS Foundations 5.0.0: unused credentials", "PCI DSS 4.0.1 8.2.6"},
		account: func(o *Options, a *account) (found []Finding) {
			for i := range a.accessKeys {
				switch k := &a.accessKeys[i]; {
				case !k.active:
				case k.used.IsZero() && o.olderThan(k.created, o.UnusedDays):
					found = append(found, k.finding(a, "was never used since %s", k.created.Format(time.DateOnly)))
				case !k.used.IsZero() && o.olderThan(k.used, o.UnusedDays):
					found = append(found, k.finding(a, "was last used on %s", k.used.Format(time.DateOnly)))
				}
			}
			return found
		},
	},
	{
		id: "access-key-age", title: "Access keys are replaced regularly", severity: Medium, needs: needAccessKeys,
		sources: []string{"CIS AWS Foundations 5.0.0: rotation of access keys", "PCI DSS 4.0.1 8.3.9"},
		account: func(o *Options, a *account) (found []Finding) {
			for i := range a.accessKeys {
				if k := &a.accessKeys[i]; k.active && o.olderThan(k.created, o.AccessKeyDays) {
					found = append(found, k.finding(a, "is from %s, more than %d days ago", k.created.Format(time.DateOnly), o.AccessKeyDays))
				}
			}
			return found
		},
	},
	{
		id: "role-unused", title: "Roles are in use", severity: Low, needs: needIdentities,
		sources: []string{"CIS AWS Foundations 5.0.0: unused credentials", "PCI DSS 4.0.1 7.2.4"},
		account: func(o *Options, a *account) (found []Finding) {
			for _, r := range a.identities.GetRoleDetailList() {
				created, used := r.GetCreateDate().AsTime(), r.GetRoleLastUsed().GetLastUsedDate()
				message := ""
				switch {
				case used == nil && o.olderThan(created, o.UnusedDays):
					message = "was never used since " + created.Format(time.DateOnly)
				case used != nil && o.olderThan(used.AsTime(), o.UnusedDays):
					message = "was last used on " + used.AsTime().Format(time.DateOnly)
				default:
					continue
				}
				text := map[string]any{"arn": r.GetArn(), "created": created.Format(time.RFC3339)}
				if used != nil {
					text["last_used"] = used.AsTime().Format(time.RFC3339)
				}
				found = append(found, Finding{Resource: r.GetArn(), Message: message, evidence: &Evidence{
					of: "role-" + r.GetArn(), Title: "role " + r.GetRoleName(), Command: command("iam", "role", "show", r.GetRoleName()), Text: indented(text),
				}})
			}
			return found
		},
	},
	{
		id: "root-access-key", title: "The root user has no access key", severity: Medium, needs: needSummary,
		sources: []string{"CIS AWS Foundations 5.0.0: no access key of the root user", "Security Hub IAM.4"},
		account: func(_ *Options, a *account) []Finding {
			if a.summary["AccountAccessKeysPresent"] == 0 {
				return nil
			}
			return []Finding{{
				Resource: "the root user of account " + a.number, Message: "has an access key, which no policy limits",
				evidence: &Evidence{of: "summary", Title: "summary of account " + a.number, Command: command("iam", "summary"), Text: indented(a.summary)},
			}}
		},
	},
}

// auditChecks are the checks of the audit log.
var auditChecks = []check{
	{
		id: "audit-verified", title: "The audit log's files were verified", severity: Critical, needs: needFiles,
		sources: []string{"PCI DSS 4.0.1 10.3.4", "HIPAA 164.312(b)", "HIPAA 164.312(c)(1)"},
		account: func(_ *Options, a *account) (found []Finding) {
			e := &Evidence{
				of: "audit-files", Title: "verification of the audit log", Command: "conclave audit verify DIR --key KEY",
				Text: indented(verificationOf(a.files)),
			}
			for _, p := range a.files.Problems {
				f := Finding{Resource: p.File, Message: p.What, evidence: e}
				f.Record = &p.Index
				found = append(found, f)
			}
			if len(found) == 0 && !a.files.OK() {
				found = append(found, Finding{Resource: a.files.Origin, Message: "verification failed", evidence: e})
			}
			return found
		},
	},
	{
		id: "audit-readable", title: "Every record of the audit log can be read", severity: High, needs: needRecords,
		sources: []string{"PCI DSS 4.0.1 10.2", "HIPAA 164.312(b)"},
		account: func(_ *Options, a *account) (found []Finding) {
			if a.log.unopenable > 0 {
				found = append(found, a.log.finding(a.log.firstBad, "%d records cannot be decrypted, of which this is the first", a.log.unopenable))
			}
			if a.log.gaps > 0 {
				found = append(found, a.log.finding(a.log.from, "%d places where records are missing", a.log.gaps))
			}
			return found
		},
	},
	{
		id: "audit-retention", title: "The audit log goes back far enough", severity: Medium, needs: needRecords,
		sources: []string{"PCI DSS 4.0.1 10.5.1", "HIPAA 164.316(b)(2)(i)"},
		account: func(o *Options, a *account) []Finding {
			if a.log.from == 0 && a.log.to > 0 || o.olderThan(a.log.first, o.RetentionDays) {
				return nil // it begins with the cluster, or long ago
			}
			return []Finding{a.log.finding(a.log.from, "the oldest record that can be read is of %s, less than %d days ago", a.log.first.Format(time.DateOnly), o.RetentionDays)}
		},
	},
}

// finding returns a finding about a record.
func (l *records) finding(index uint64, format string, args ...any) Finding {
	return Finding{
		Resource: fmt.Sprintf("record %d of the audit log", index), Message: fmt.Sprintf(format, args...), Record: &index,
		evidence: &Evidence{
			of: fmt.Sprintf("record-%d", index), Title: fmt.Sprintf("record %d of the audit log", index),
			Command: command("audit", "export", "--from", fmt.Sprint(index), "--to", fmt.Sprint(index+1)),
			Text:    indented(map[string]any{"from": l.from, "to": l.to, "unopenable": l.unopenable, "missing": l.gaps}),
		},
	}
}

func verificationOf(r *verify.Report) *Verification {
	v := &Verification{OK: r.OK(), Origin: r.Origin, Records: r.Size, Root: fmt.Sprintf("%x", r.Root), Checkpoint: r.CheckpointSize, Problems: []string{}}
	for _, p := range r.Problems {
		v.Problems = append(v.Problems, fmt.Sprint(p))
	}
	return v
}

// custodyChecks are the checks of who can unseal the cluster.
var custodyChecks = []check{
	{
		id: "custody-split", title: "No single custodian can unseal the cluster", severity: High, needs: needShares,
		sources: []string{"PCI DSS 4.0.1 3.7.6", "PCI DSS 4.0.1 3.6.1.3"},
		account: func(_ *Options, a *account) (found []Finding) {
			if a.shares.Threshold < 2 {
				found = append(found, a.shares.finding("the threshold is %d", a.shares.Threshold))
			}
			held := make(map[string]int)
			for _, c := range a.shares.Custodians {
				// A person is known by the name or, without one, by the key.
				if who := cmp.Or(c.Name, c.Fingerprint); who != "" {
					held[who]++
				}
			}
			for _, n := range sorted(held) {
				if held[n] >= a.shares.Threshold && a.shares.Threshold > 1 {
					found = append(found, a.shares.finding("%s has %d shares, and %d unseal the cluster", n, held[n], a.shares.Threshold))
				}
			}
			return found
		},
	},
	{
		id: "custody-named", title: "The custodian of every share is known", severity: Low, needs: needShares,
		sources: []string{"PCI DSS 4.0.1 3.6.1.1", "PCI DSS 4.0.1 3.7.8"},
		account: func(_ *Options, a *account) (found []Finding) {
			named := make(map[int]bool)
			for _, c := range a.shares.Custodians {
				named[c.Share] = c.Name != ""
			}
			for i := 1; i <= a.shares.Shares; i++ {
				if !named[i] {
					found = append(found, a.shares.finding("nobody is named for share %d", i))
				}
			}
			return found
		},
	},
	{
		id: "custody-spare", title: "A lost share does not lose the cluster", severity: Medium, needs: needShares,
		sources: []string{"HIPAA 164.308(a)(7)"},
		account: func(_ *Options, a *account) []Finding {
			if a.shares.Shares > a.shares.Threshold {
				return nil
			}
			return []Finding{a.shares.finding("all of the %d shares are needed", a.shares.Shares)}
		},
	},
}

func (c *Custody) finding(format string, args ...any) Finding {
	return Finding{
		Resource: "the share set", Message: fmt.Sprintf(format, args...),
		evidence: &Evidence{of: "shares", Title: "the share set", Command: command("operator", "status"), Text: indented(c)},
	}
}

func sorted[V any](m map[string]V) []string {
	var all []string
	for k := range m {
		all = append(all, k)
	}
	slices.Sort(all)
	return all
}
