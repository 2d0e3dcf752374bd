package form

import (
	"strings"
	"testing"
)

func TestNames(t *testing.T) {
	for name, want := range map[string]bool{
		"Ann": true, "a_b+c=d,e.f@g-0": true, "a b": false, "a/b": false, "a:b": false, "a*": false, "a\x00": false, "\x00": false, "ä": false, "a\xff": false, "a\n": false,
	} {
		if IsName(name) != want {
			t.Errorf("%q is a name: %v", name, !want)
		}
		if inside := "a" + name + "a"; IsName(inside) != want {
			t.Errorf("%q is a name: %v", inside, !want)
		}
	}
}

func TestPolicies(t *testing.T) {
	for doc, want := range map[string]bool{
		"{}": true, " \t\r\n{\"a\":1} ": true, "": false, " ": false, "[]": false, "{": false, "{}{}": false, "\v{}": false, strings.Repeat(" ", 99) + "{}": false,
	} {
		if IsPolicy(doc, 100) != want {
			t.Errorf("%q is a policy: %v", doc, !want)
		}
	}
}

func TestPolicyARNs(t *testing.T) {
	for arn, want := range map[string][3]string{
		"arn:aws:iam::111122223333:policy/p":        {"111122223333", "p", "p"},
		"arn:aws:iam::111122223333:policy/a/b:c/p":  {"111122223333", "a/b:c/p", "p"},
		"arn:aws-cn:iam::aws:policy/service-role/P": {"aws", "service-role/P", "P"},
	} {
		if account, path, name, ok := CutPolicyARN(arn); !ok || [3]string{account, path, name} != want {
			t.Errorf("%s is %q, %q, %q, %v", arn, account, path, name, ok)
		}
	}
	for _, bad := range []string{
		"", "p", "arn:aws:iam::111122223333", "arn:aws:iam::111122223333:role/p", "arn:aws:kms::111122223333:policy/p", "arn:aws:iam:eu:111122223333:policy/p",
		"urn:aws:iam::111122223333:policy/p", "arn:aws:iam::111122223333:policy/a b/p", "arn:aws:iam::111122223333:policy/" + strings.Repeat("a", 700),
	} {
		if _, _, _, ok := CutPolicyARN(bad); ok {
			t.Errorf("%q is the ARN of a policy", bad)
		}
	}
}
