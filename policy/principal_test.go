package policy

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParsePrincipal(t *testing.T) {
	const acc = "111122223333"
	for s, want := range map[string]Principal{
		acc:                                 {Account: acc, Kind: KindRoot},
		"arn:aws:iam::111122223333:root":    {Partition: "aws", Kind: KindRoot},
		"arn:aws-cn:iam::111122223333:root": {Partition: "aws-cn", Kind: KindRoot},
		"arn:aws:iam::111122223333:user/a":  {Partition: "aws", Kind: KindUser, Name: "a"},
		"arn:aws:iam::111122223333:user/div:x/t!m/b+o=b,@.-_": {Partition: "aws", Kind: KindUser, Name: "b+o=b,@.-_"},
		"arn:aws:iam::111122223333:role/root":                 {Partition: "aws", Kind: KindRole, Name: "root"},
		"arn:aws:iam::111122223333:role/a/b/c":                {Partition: "aws", Kind: KindRole, Name: "c"},
		"arn:aws:sts::111122223333:assumed-role/app/s@1": {Partition: "aws", Kind: KindAssumedRole, Name: "app",
			Role: "arn:aws:iam::111122223333:role/app"},
		"arn:aws:sts::111122223333:federated-user/carol": {Partition: "aws", Kind: KindFederatedUser, Name: "carol"},
	} {
		want.Account = acc
		if s != acc {
			want.ARN = s
		}
		got, err := ParsePrincipal(s)
		if err != nil {
			t.Errorf("ParsePrincipal(%q): %v", s, err)
			continue
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("ParsePrincipal(%q) (-want +got):\n%s", s, diff)
		}
		if got.String() != s {
			t.Errorf("String() = %q, want %q", got.String(), s)
		}
	}
	const iam, sts = "arn:aws:iam::111122223333:", "arn:aws:sts::111122223333:"
	for _, s := range []string{
		"", "*", "root", "11112222333", "1111222233334", "11112222333x", " 111122223333", "１１１１２２２２３３３３",
		iam, iam + "root/", iam + "Root", iam + "root ", sts + "root", "arn:aws:iam:us-east-1:111122223333:root",
		"arn:aws:iam:::root", "arn:aws:iam::aws:root", "arn:aws:iam::*:root", "arn:other:iam::111122223333:root", "arn:aw*:iam::111122223333:root",
		iam + "user", iam + "user/", iam + "user//a", iam + "user/a/", iam + "user/a//b", iam + "user/*", iam + "user/a*/b", iam + "user/a?/b",
		iam + "user/é", iam + "user/a b", iam + "user/a$", iam + "User/a", iam + "user/" + strings.Repeat("a", 65),
		iam + "user/" + strings.Repeat("p", 511) + "/a",
		iam + "group/g", iam + "policy/p", iam + "instance-profile/p", iam + "oidc-provider/p", iam + "assumed-role/app/s1",
		sts + "user/a", sts + "role/a", sts + "assumed-role/app", sts + "assumed-role/app/", sts + "assumed-role//s1", sts + "assumed-role/app/s",
		sts + "assumed-role/app/s1/x", sts + "assumed-role/app/*", sts + "federated-user/", sts + "federated-user/a", sts + "federated-user/a/b",
		sts + "federated-user/" + strings.Repeat("a", 33),
		testKey, "AIDACKCEVSQ6C2EXAMPLE", "s3.amazonaws.com",
	} {
		if got, err := ParsePrincipal(s); !errors.Is(err, ErrInvalidPrincipal) || got != (Principal{}) {
			t.Errorf("ParsePrincipal(%q) = %+v, %v; want ErrInvalidPrincipal", s, got, err)
		}
	}
}

func TestWithRole(t *testing.T) {
	session := mustPrincipal(t, "arn:aws:sts::111122223333:assumed-role/app/s1")
	got, err := session.WithRole("arn:aws:iam::111122223333:role/svc/app")
	if err != nil {
		t.Fatal(err)
	}
	want := session
	want.Role = "arn:aws:iam::111122223333:role/svc/app"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, role := range []string{
		"", "arn:aws:iam::111122223333:role/App", "arn:aws:iam::111122223333:role/app/other", "arn:aws:iam::444455556666:role/app",
		"arn:aws-cn:iam::111122223333:role/app", "arn:aws:iam::111122223333:user/app", "arn:aws:iam::111122223333:root",
	} {
		if got, err := session.WithRole(role); !errors.Is(err, ErrInvalidPrincipal) || got != (Principal{}) {
			t.Errorf("WithRole(%q) = %+v, %v; want ErrInvalidPrincipal", role, got, err)
		}
	}
	user := mustPrincipal(t, "arn:aws:iam::111122223333:user/app")
	if _, err := user.WithRole("arn:aws:iam::111122223333:role/app"); !errors.Is(err, ErrInvalidPrincipal) {
		t.Errorf("a user took a role: %v", err)
	}
}

func TestParseService(t *testing.T) {
	long := strings.Repeat("a", 60) + "." + strings.Repeat("b", 65) + ".cde"
	for _, s := range []string{"s3.amazonaws.com", "backup.eu-central-1.example.com", "A-9.-.x", long[2:]} {
		want := Principal{ARN: s, Kind: KindService, Name: s}
		if got, err := ParseService(s); err != nil || got != want {
			t.Errorf("ParseService(%q) = %+v, %v", s, got, err)
		}
		if got, err := ParseCaller(s); err != nil || got != want {
			t.Errorf("ParseCaller(%q) = %+v, %v", s, got, err)
		}
		if _, err := ParsePrincipal(s); !errors.Is(err, ErrInvalidPrincipal) {
			t.Errorf("ParsePrincipal(%q): %v", s, err)
		}
	}
	for _, s := range []string{
		"", "s3", "amazonaws.com", ".amazonaws.com", "s3..com", "s3.amazonaws.", "s3.amazonaws.com ", "s3.amazonaws.com\n", "s3.amazonaws.c*m", "s3_.amazonaws.com",
		"s3.amazonaws.com/x", "é.amazonaws.com", "111122223333", testRoot, testKey, "*", long,
	} {
		if got, err := ParseService(s); !errors.Is(err, ErrInvalidPrincipal) || got != (Principal{}) {
			t.Errorf("ParseService(%q) = %+v, %v; want ErrInvalidPrincipal", s, got, err)
		}
	}
	if got, err := ParseCaller(testUser); err != nil || got != mustPrincipal(t, testUser) {
		t.Errorf("ParseCaller of a user: %+v, %v", got, err)
	}
}

func TestPrincipalKindString(t *testing.T) {
	var got []string
	for k := KindNone; k <= KindFederated+1; k++ {
		got = append(got, k.String())
	}
	want := []string{"None", "Account", "User", "Role", "AssumedRole", "FederatedUser", "Service", "Federated", "None"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
