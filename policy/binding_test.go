package policy

import (
	"errors"
	"testing"
)

// A document is bound as a whole, or not at all.
func TestBind(t *testing.T) {
	t.Parallel()
	const alice, role, session = "arn:aws:iam::111122223333:user/alice", "arn:aws:iam::111122223333:role/app", "arn:aws:sts::111122223333:assumed-role/app/s1"
	doc := mustParse(t, `{"Statement":[
		{"Effect":"Allow","Principal":{"AWS":["`+alice+`","111122223333","AROAAAAAAAAAAAAAAAA9"],"Service":"backup.example.com"},"Action":"kms:*","Resource":"*"},
		{"Effect":"Deny","NotPrincipal":{"AWS":["`+role+`","`+session+`"]},"Action":"kms:*","Resource":"*"}]}`)
	ids := map[string]string{alice: "AIDAAAAAAAAAAAAAAAA1", role: "AROAAAAAAAAAAAAAAAA1", session: "AROAAAAAAAAAAAAAAAA1"}
	bound, err := doc.Bind(ids)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"AIDAAAAAAAAAAAAAAAA1", "", "AROAAAAAAAAAAAAAAAA9", "AROAAAAAAAAAAAAAAAA1", "AROAAAAAAAAAAAAAAAA1:s1"} {
		p := bound.Principals()[i]
		if got := p.UniqueID(); got != want {
			t.Errorf("%s: got the unique id %q, want %q", p, got, want)
		}
	}
	for i, p := range doc.Principals() {
		if i != 2 && p.ID != "" {
			t.Errorf("the document that was bound has got an id for %s", p)
		}
	}
	for name := range ids {
		delete(ids, name)
		if _, err := doc.Bind(ids); !errors.Is(err, ErrInvalidPrincipal) {
			t.Errorf("without the id of %s: got error %v, want ErrInvalidPrincipal", name, err)
		}
		ids[name] = "AIDAAAAAAAAAAAAAAAA1"
	}
}

func TestRenamePrincipals(t *testing.T) {
	t.Parallel()
	names := map[string]string{"arn:aws:iam::111122223333:user/alice": "arn:aws:iam::111122223333:user/bob", "arn:aws:iam::111122223333:role/x": "AROAAAAAAAAAAAAAAAA1", "AWS": "no", "Statement": "no"}
	const alice, bob, role, id = `"arn:aws:iam::111122223333:user/alice"`, `"arn:aws:iam::111122223333:user/bob"`, `"arn:aws:iam::111122223333:role/x"`, `"AROAAAAAAAAAAAAAAAA1"`
	for name, tt := range map[string]struct{ doc, want string }{
		"nothing":   {` {"Statement" : []} `, ` {"Statement" : []} `},
		"a list":    {`{"Statement":[{"Principal":{"AWS":[` + alice + `, "*", ` + role + `]}}]}`, `{"Statement":[{"Principal":{"AWS":[` + bob + `, "*", ` + id + `]}}]}`},
		"no list":   {`{ "Statement": {"NotPrincipal": {"AWS": ` + alice + ` } } } `, `{ "Statement": {"NotPrincipal": {"AWS": ` + bob + ` } } } `},
		"escapes":   {`{"Statement":[{"Principal":{"A\u0057S":"arn:aws:iam::111122223333:user\/\u0061lice"}}]}`, `{"Statement":[{"Principal":{"A\u0057S":` + bob + `}}]}`},
		"elsewhere": {`{"Id":` + alice + `,"Statement":[{"Sid":` + alice + `,"Principal":{"Federated":` + alice + `,"Service":[` + role + `]},"Resource":` + alice + `,"Condition":{"ArnEquals":{"aws:PrincipalArn":` + alice + `,"AWS":[` + role + `]}}}]}`, ""},
		"last":      {"{\"Statement\":[{},{\"Principal\":{\"Federated\":\"x\",\"AWS\":" + role + "},\"Id\":1}]}\n", "{\"Statement\":[{},{\"Principal\":{\"Federated\":\"x\",\"AWS\":" + id + "},\"Id\":1}]}\n"},
	} {
		if tt.want == "" {
			tt.want = tt.doc
		}
		if got := RenamePrincipals(tt.doc, names); got != tt.want {
			t.Errorf("%s: got  %s\nwant %s", name, got, tt.want)
		}
	}
	for _, broken := range []string{"", `{"Statement":[`, `{"Statement":[{"Principal":{"AWS":"x]`, `{"Statement":{"Principal":{"AWS":` + role + `}}`} {
		if got := RenamePrincipals(broken, names); got != broken {
			t.Errorf("got %s for %s", got, broken)
		}
	}
}
