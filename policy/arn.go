package policy

import (
	"fmt"
	"strings"
)

// maxARN is the length of the longest ARN, in bytes, that AWS accepts as a
// KeyId or principal.
const maxARN = 2048

// An ARN is a parsed Amazon Resource Name,
// "arn:partition:service:region:account:resource". ARNs are comparable with ==,
// which compares them byte by byte.
type ARN struct {
	Partition string // "aws", "aws-cn", ...; never empty
	Service   string // "kms", "iam", "sts", ...; never empty
	Region    string // empty for services without Regions, such as iam
	Account   string // 12 digits, "aws" for resources of AWS itself, or empty
	Resource  string // the rest, such as "key/<id>"; may contain ':' and '/'; never empty
}

// ParseARN splits an ARN and checks the characters of each part: lower-case
// letters, digits and hyphens in the first four, printable ASCII without spaces
// in the resource. It checks neither that the resource exists nor that the
// service could give it that name; '*' and '?' are ordinary characters. The
// parts are substrings of s, and String returns s again. Errors wrap
// ErrInvalidARN.
func ParseARN(s string) (ARN, error) {
	if len(s) > maxARN {
		return ARN{}, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrInvalidARN, len(s), maxARN)
	}
	a, ok := splitARN(s)
	if !ok {
		return ARN{}, fmt.Errorf("%w: %s is not of the form arn:partition:service:region:account:resource", ErrInvalidARN, quoted(s))
	}
	switch {
	case a.Partition == "" || !only(a.Partition, isLabel):
		return ARN{}, fmt.Errorf("%w: partition of %s", ErrInvalidARN, quoted(s))
	case a.Service == "" || !only(a.Service, isLabel):
		return ARN{}, fmt.Errorf("%w: service of %s", ErrInvalidARN, quoted(s))
	case !only(a.Region, isLabel):
		return ARN{}, fmt.Errorf("%w: Region of %s", ErrInvalidARN, quoted(s))
	case a.Account != "" && a.Account != "aws" && !isAccountID(a.Account):
		return ARN{}, fmt.Errorf("%w: account of %s is not 12 digits", ErrInvalidARN, quoted(s))
	case a.Resource == "" || !only(a.Resource, isVisible):
		return ARN{}, fmt.Errorf("%w: resource of %s", ErrInvalidARN, quoted(s))
	}
	return a, nil
}

// String returns the ARN in its usual form.
func (a ARN) String() string {
	return "arn:" + a.Partition + ":" + a.Service + ":" + a.Region + ":" + a.Account + ":" + a.Resource
}

// splitARN cuts s at its colons without checking the parts. Evaluate needs no
// more, as it compares the parts with those of a principal, which are known to
// be well formed.
func splitARN(s string) (a ARN, ok bool) {
	rest, ok := strings.CutPrefix(s, "arn:")
	if !ok {
		return ARN{}, false
	}
	for _, part := range [...]*string{&a.Partition, &a.Service, &a.Region, &a.Account} {
		if *part, rest, ok = strings.Cut(rest, ":"); !ok {
			return ARN{}, false
		}
	}
	a.Resource = rest
	return a, true
}

// isAccountID reports whether s is an AWS account id: 12 ASCII digits.
func isAccountID(s string) bool {
	return len(s) == 12 && only(s, func(c byte) bool { return '0' <= c && c <= '9' })
}

// only reports whether every byte of s is in class. The empty string passes.
func only(s string, class func(byte) bool) bool {
	for i := range len(s) {
		if !class(s[i]) {
			return false
		}
	}
	return true
}

func isLabel(c byte) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-'
}

func isVisible(c byte) bool { return '!' <= c && c <= '~' }
