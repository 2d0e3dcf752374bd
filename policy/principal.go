package policy

import (
	"fmt"
	"strings"
)

// PrincipalKind says what a principal is.
type PrincipalKind uint8

// The kinds of principals. The zero kind is not a principal and is always
// denied.
const (
	KindNone          PrincipalKind = iota
	KindRoot                        // an account: as a caller its root user, in a policy the whole account
	KindUser                        // an IAM user
	KindRole                        // an IAM role
	KindAssumedRole                 // a session of a role
	KindFederatedUser               // a session of a federated user
	KindService                     // a service, which belongs to no account
	KindFederated                   // an identity of an identity provider that has no session yet
)

// String returns the name of the kind, which is that of the condition key
// aws:PrincipalType if it has one.
func (k PrincipalKind) String() string {
	switch k {
	case KindRoot:
		return "Account"
	case KindUser:
		return "User"
	case KindRole:
		return "Role"
	case KindAssumedRole:
		return "AssumedRole"
	case KindFederatedUser:
		return "FederatedUser"
	case KindService:
		return "Service"
	case KindFederated:
		return "Federated"
	default:
		return "None"
	}
}

// A Principal is a caller, or is named by a policy. ParsePrincipal and
// ParseService return well-formed ones. Evaluate denies one that lacks its ARN,
// Kind, Partition or Account. Principals are comparable with ==.
type Principal struct {
	ARN       string // as written; empty for a bare account id; a service's name; of KindFederated, the provider's ARN
	Partition string // empty for a bare account id and a service
	Account   string // 12 digits; empty for a service
	Kind      PrincipalKind
	// Name is the name of the user, role or federated user without its path;
	// for a session of a role, it is the name of the role. It is empty for
	// KindRoot.
	Name string
	// Role is the ARN of the role that a session belongs to. A session's own
	// ARN does not contain the role's path, so ParsePrincipal fills in the ARN
	// of a role without a path; see WithRole.
	Role string
	// ID is the unique id of the user or role, or of the role that a session
	// belongs to. It is empty for all others, and where it is not known. What a
	// policy or a grant names with an ID is the caller with the same ID, and
	// what it names without one is the caller with the same ARN.
	ID string
}

// ParsePrincipal parses a principal as a key policy or a grant may name it: the
// ARN of an account's root user, of an IAM user, a role, an assumed-role
// session or a federated user, or a bare 12-digit account id, which means the
// same as the root user's ARN in any partition. It does not check that the
// principal exists. Names of principals have no wildcards. Errors wrap
// ErrInvalidPrincipal.
//
// A bare account id names an account in a policy, but is not a caller: as
// Request.Principal it is denied.
func ParsePrincipal(s string) (Principal, error) {
	p, err := parsePrincipal(s)
	if err != nil {
		return Principal{}, fmt.Errorf("%w: %w", ErrInvalidPrincipal, err)
	}
	return p, nil
}

// parsePrincipal is ParsePrincipal, but its errors do not wrap the sentinel.
func parsePrincipal(s string) (Principal, error) {
	if isAccountID(s) {
		return Principal{Account: s, Kind: KindRoot}, nil
	}
	a, err := ParseARN(s)
	if err != nil {
		return Principal{}, err
	}
	bad := func(why string) (Principal, error) {
		return Principal{}, fmt.Errorf("%s: %s", quoted(s), why)
	}
	if a.Partition != "aws" && !strings.HasPrefix(a.Partition, "aws-") {
		return bad("no such partition")
	}
	if a.Region != "" {
		return bad("principals have no Region")
	}
	if !isAccountID(a.Account) {
		return bad("the account is not 12 digits")
	}
	p := Principal{ARN: s, Partition: a.Partition, Account: a.Account}
	if a.Resource == "root" {
		if a.Service != "iam" {
			return bad("a root user belongs to the service iam")
		}
		p.Kind = KindRoot
		return p, nil
	}
	form, rest, _ := strings.Cut(a.Resource, "/")
	switch a.Service + ":" + form {
	case "iam:user", "iam:role":
		i := strings.LastIndexByte(rest, '/') // -1 without a path
		p.Kind, p.Name = KindUser, rest[i+1:]
		if i >= 0 && !isPath(rest[:i]) || !isName(p.Name, 1, 64) {
			return bad("not the name of a user or role")
		}
		if form == "role" {
			p.Kind = KindRole
		}
	case "sts:assumed-role":
		role, session, _ := strings.Cut(rest, "/")
		if !isName(role, 1, 64) || !isName(session, 2, 64) {
			return bad("not assumed-role/<role>/<session>")
		}
		p.Kind, p.Name = KindAssumedRole, role
		p.Role = "arn:" + a.Partition + ":iam::" + a.Account + ":role/" + role
	case "sts:federated-user":
		if !isName(rest, 2, 32) {
			return bad("not federated-user/<name>")
		}
		p.Kind, p.Name = KindFederatedUser, rest
	default:
		return bad("not an account, user, role, role session or federated user")
	}
	return p, nil
}

// ParseService parses the name of a service principal, such as
// "backup.example.com": three or more labels of letters, digits and hyphens.
// ParsePrincipal accepts no such name. Names are case-sensitive. Errors wrap
// ErrInvalidPrincipal.
func ParseService(s string) (Principal, error) {
	labels := strings.Split(s, ".")
	if len(s) > 128 || len(labels) < 3 {
		return Principal{}, fmt.Errorf("%w: %s is not the name of a service", ErrInvalidPrincipal, quoted(s))
	}
	for _, l := range labels {
		if l == "" || !only(l, func(c byte) bool {
			return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-'
		}) {
			return Principal{}, fmt.Errorf("%w: %s is not the name of a service", ErrInvalidPrincipal, quoted(s))
		}
	}
	return Principal{ARN: s, Kind: KindService, Name: s}, nil
}

// ParseCaller parses any principal that can call and have a grant: one that
// ParsePrincipal accepts, or a service.
func ParseCaller(s string) (Principal, error) {
	if p, err := ParseService(s); err == nil {
		return p, nil
	}
	return ParsePrincipal(s)
}

// ParseProvider parses the ARN of an identity provider, which stands for all
// identities that it vouches for:
// "arn:aws:iam::<account>:oidc-provider/<host and path>" or
// "arn:aws:iam::<account>:saml-provider/<name>", or that of a certificate
// mapping of Conclave, "arn:aws:iam::<account>:certificate-mapping/<URI>",
// which stands for the clients whose certificates it maps. Errors wrap
// ErrInvalidPrincipal.
func ParseProvider(s string) (Principal, error) {
	p, err := parseProvider(s)
	if err != nil {
		return Principal{}, fmt.Errorf("%w: %w", ErrInvalidPrincipal, err)
	}
	return p, nil
}

// parseProvider is ParseProvider, but its errors do not wrap the sentinel.
func parseProvider(s string) (Principal, error) {
	a, err := ParseARN(s)
	if err != nil {
		return Principal{}, err
	}
	form, name, _ := strings.Cut(a.Resource, "/")
	if a.Service != "iam" || a.Region != "" || !isAccountID(a.Account) || a.Partition != "aws" && !strings.HasPrefix(a.Partition, "aws-") ||
		form != "oidc-provider" && form != "saml-provider" && form != "certificate-mapping" || name == "" || strings.ContainsAny(name, "*?") {
		return Principal{}, fmt.Errorf("%s is not the ARN of an identity provider", quoted(s))
	}
	return Principal{ARN: s, Partition: a.Partition, Account: a.Account, Kind: KindFederated, Name: name}, nil
}

// WithRole returns the session p with the ARN of its role, including the path.
// An Allow for a role with a path covers only sessions with that ARN. A Deny
// for a role covers all sessions of a role with that name, which is unique in
// an account, so forgetting WithRole never widens access. Errors wrap
// ErrInvalidPrincipal.
func (p Principal) WithRole(roleARN string) (Principal, error) {
	role, err := ParsePrincipal(roleARN)
	if err != nil {
		return Principal{}, err
	}
	if p.Kind != KindAssumedRole || role.Kind != KindRole ||
		role.Partition != p.Partition || role.Account != p.Account || role.Name != p.Name {
		return Principal{}, fmt.Errorf("%w: %s is not a session of %s", ErrInvalidPrincipal, quoted(p.String()), quoted(roleARN))
	}
	p.Role = role.ARN
	return p, nil
}

// String returns the ARN, or the account id if there is no ARN.
func (p Principal) String() string {
	if p.ARN == "" {
		return p.Account
	}
	return p.ARN
}

// mayCall reports whether p is complete enough to be a caller.
func (p *Principal) mayCall() bool {
	return p.Kind != KindNone && p.ARN != "" && (p.Kind == KindService || p.Partition != "" && p.Account != "")
}

// isName reports whether s has only characters that IAM allows in names, and
// between least and most of them.
func isName(s string, least, most int) bool {
	return least <= len(s) && len(s) <= most && only(s, func(c byte) bool {
		return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
			strings.IndexByte("_+=,.@-", c) >= 0
	})
}

// isPath reports whether s, which is without the outer slashes, can be an IAM
// path. IAM allows any visible character in a path. We allow no wildcards, so
// that nobody takes a principal for a pattern, and no empty parts.
func isPath(s string) bool {
	return s != "" && len(s) <= 510 && s[0] != '/' && s[len(s)-1] != '/' && !strings.Contains(s, "//") &&
		only(s, func(c byte) bool { return isVisible(c) && c != '*' && c != '?' })
}
