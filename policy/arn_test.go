package policy

import (
	"errors"
	"strings"
	"testing"
)

func TestParseARN(t *testing.T) {
	for s, want := range map[string]ARN{
		testKey: {"aws", "kms", "us-east-1", "111122223333", "key/1234abcd-12ab-34cd-56ef-1234567890ab"},
		"arn:aws-us-gov:kms:us-gov-west-1:111122223333:alias/a/b_c": {"aws-us-gov", "kms", "us-gov-west-1", "111122223333", "alias/a/b_c"},
		"arn:aws:iam::aws:policy/AdministratorAccess":               {"aws", "iam", "", "aws", "policy/AdministratorAccess"},
		"arn:aws:s3:::bucket/a:b::c":                                {"aws", "s3", "", "", "bucket/a:b::c"},
		"arn:aws:kms:us-east-1:111122223333:key/*":                  {"aws", "kms", "us-east-1", "111122223333", "key/*"},
	} {
		got, err := ParseARN(s)
		if err != nil || got != want {
			t.Errorf("ParseARN(%q) = %+v, %v; want %+v", s, got, err, want)
		}
		if got.String() != s {
			t.Errorf("String() = %q, want %q", got.String(), s)
		}
	}
	for _, s := range []string{
		"", "arn", "arn:", "arn:aws", "arn:aws:kms:us-east-1:111122223333", "arn:aws:kms:us-east-1:111122223333:",
		"ARN:aws:kms:us-east-1:111122223333:key/x", " " + testKey, testKey + " ", testKey + "\n", testKey + "\x00",
		"arn::kms:us-east-1:111122223333:key/x", "arn:aws::us-east-1:111122223333:key/x",
		"arn:AWS:kms:us-east-1:111122223333:key/x", "arn:aws:KMS:us-east-1:111122223333:key/x",
		"arn:aws:kms:us_east_1:111122223333:key/x", "arn:aws:kms:us-east-1:11112222333:key/x",
		"arn:aws:kms:us-east-1:1111222233334:key/x", "arn:aws:kms:us-east-1:11112222333x:key/x",
		"arn:aws:kms:us-east-1:١١١١٢٢٢٢٣٣٣٣:key/x", "arn:aws:kms:us-east-1:*:key/x",
		"arn:aws:kms:us-east-1:111122223333:key/é", "1234abcd-12ab-34cd-56ef-1234567890ab", "alias/x",
		testKey + strings.Repeat("a", maxARN),
	} {
		if got, err := ParseARN(s); !errors.Is(err, ErrInvalidARN) || got != (ARN{}) {
			t.Errorf("ParseARN(%q) = %+v, %v; want ErrInvalidARN", s, got, err)
		}
	}
}

func FuzzParseARN(f *testing.F) {
	f.Add(testKey)
	f.Add("arn:aws:iam::111122223333:role/a/b/c")
	f.Add("arn:aws:sts::111122223333:assumed-role/app/s1")
	f.Add("111122223333")
	f.Add("arn:aws:s3:::a:b")
	f.Add("arn:aws:iam::111122223333:oidc-provider/id.example.com/one")
	f.Add("backup.example.com")
	f.Fuzz(func(t *testing.T, s string) {
		for name, parse := range map[string]func(string) (Principal, error){"provider": ParseProvider, "service": ParseService} {
			p, err := parse(s)
			if err == nil && (p.ARN != s || strings.ContainsAny(s, "*? \x00")) || err != nil && !errors.Is(err, ErrInvalidPrincipal) {
				t.Fatalf("%q reads as the %s %+v, %v", s, name, p, err)
			}
		}
		a, err := ParseARN(s)
		if err == nil && a.String() != s {
			t.Fatalf("%q reads as %+v, which is %q", s, a, a)
		}
		if err != nil && !errors.Is(err, ErrInvalidARN) {
			t.Fatalf("error %v", err)
		}
		p, perr := ParsePrincipal(s)
		switch {
		case perr != nil:
			if !errors.Is(perr, ErrInvalidPrincipal) || p != (Principal{}) {
				t.Fatalf("got %+v and error %v", p, perr)
			}
		case p.String() != s:
			t.Fatalf("%q reads as the principal %q", s, p)
		case strings.ContainsAny(s, "*? \x00"):
			t.Fatalf("took %q", s)
		case p.ARN != "" && (err != nil || p.Account != a.Account || p.Partition != a.Partition):
			t.Fatalf("principal %+v of ARN %+v, %v", p, a, err)
		}
	})
}
