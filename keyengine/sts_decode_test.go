package keyengine

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// encoded returns the encoded message of an error.
func encoded(err error) string {
	e, ok := errors.AsType[*kmsapi.Error](err)
	if !ok {
		return ""
	}
	return e.Encoded
}

// explained is a decoded message.
type explained struct {
	Allowed, ExplicitDeny bool
	MatchedStatements     struct {
		Items []struct {
			StatementID, Effect, Policy string
			Statement                   int
		}
	}
	Context struct {
		Principal        struct{ ID, Name, ARN string }
		Action, Resource string
	}
	Reason, RequestID string
}

func (c *testCluster) decode(as iam.Identity, message string) (m explained, err error) {
	out, err := callAs[iamapi.DecodeAuthorizationMessageOutput](c, c.engine, as, "DecodeAuthorizationMessage", &iamapi.DecodeAuthorizationMessageInput{EncodedMessage: &message})
	if err == nil {
		err = json.Unmarshal([]byte(*out.DecodedMessage), &m)
	}
	return m, err
}

// The encoded message of a denial tells those who may decode it which statement decided, or
// which kind of policy would have had to allow the request.
func TestDecodeAuthorizationMessage(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2))
	key, arn := c.newKey()
	c.setPolicy(key, policyDocument(rootStatement))
	alice := c.storeUser(testAccountNumber, "alice", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"kms:Decrypt","Resource":"*"},{"Sid":"NoEncrypt","Effect":"Deny","Action":"kms:Encrypt","Resource":"*"}]}`)
	caller := c.caller(alice)
	_, err := callFor[kmsapi.EncryptOutput](c, c.engine, caller, "Encrypt", &kmsapi.EncryptInput{KeyId: &key, Plaintext: []byte("x")})
	m, err := c.decode(c.root, encoded(err))
	if err != nil {
		t.Fatal(err)
	}
	if p := m.Context.Principal; m.Allowed || !m.ExplicitDeny || p.ARN != aliceARN || p.Name != "alice" || !strings.HasPrefix(p.ID, "AIDA") ||
		m.Context.Action != "kms:Encrypt" || m.Context.Resource != arn || m.Reason != "identity-policy" || m.RequestID != record.UUID(caller.RequestID) {
		t.Errorf("got %+v", m)
	}
	if s := m.MatchedStatements.Items; len(s) != 1 || s[0].StatementID != "NoEncrypt" || s[0].Effect != "DENY" || s[0].Statement != 2 || s[0].Policy != aliceARN+" own" {
		t.Errorf("got statements %+v", s)
	}
	_, err = callAs[kmsapi.DescribeKeyOutput](c, c.engine, alice, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &key})
	message := encoded(err)
	if strings.Contains(c.lastRecord().String(), message) {
		t.Error("the record has the encoded message")
	}
	if m, err = c.decode(c.root, message); err != nil || m.ExplicitDeny || len(m.MatchedStatements.Items) > 0 || m.Reason != "identity-policy" {
		t.Errorf("got %+v and error %v", m, err)
	}
	_, err = c.decode(alice, message)
	wantError(t, err, kmsapi.ErrAccessDenied, "…")

	// The same from the leader, which carries out a request that keeps conflicting.
	n := 0
	c.Replica("n2").BeforeCommit = func(*fsmpb.Record) {
		n++
		c.setPolicy(key, policyDocument(rootStatement, strings.Repeat(" ", n)+statement("Allow", aliceARN, "kms:Sign")))
	}
	_, err = callAs[kmsapi.EncryptOutput](c, c.engines["n2"], alice, "Encrypt", &kmsapi.EncryptInput{KeyId: &key, Plaintext: []byte("x")})
	if m, err = c.decode(c.root, encoded(err)); err != nil || !m.ExplicitDeny || c.Replica("n2").Forwarded.Load() != 1 {
		t.Errorf("got %+v and error %v", m, err)
	}
}

// Only the cluster's own messages are decoded, and only in an account that they are about.
func TestForeignAuthorizationMessages(t *testing.T) {
	t.Parallel()
	c, foreign := newTestCluster(t), newTestCluster(t)
	c.putAccount(otherAccount)
	c.putAccount(otherAccount + 1)
	other, third := c.rootOf(otherAccount), c.rootOf(otherAccount+1)
	denied := func(c *testCluster, role string) string {
		alice := c.storeUser(testAccountNumber, "alice"+role[len(role)-1:], identityPolicy("Allow", "sts:*", "*"))
		_, err := callAs[iamapi.AssumeRoleOutput](c, c.engine, alice, "AssumeRole", assumeInput(role))
		if encoded(err) == "" {
			t.Fatalf("no message in %v", err)
		}
		return encoded(err)
	}
	here := denied(c, "arn:aws:iam::111122223333:role/a")
	there := denied(c, "arn:aws:iam::"+otherAccount.String()+":role/b")
	for _, tt := range []struct {
		name    string
		as      iam.Identity
		message string
		good    bool
	}{
		{"own", c.root, here, true},
		{"of a principal of another account", other, here, false},
		{"own, about another account", c.root, there, true},
		{"about a resource here", other, there, true},
		{"about others", third, there, false},
		{"another cluster's", c.root, denied(foreign, "arn:aws:iam::111122223333:role/a"), false},
		{"changed", c.root, "C" + here[1:], false},
		{"changed at the end", c.root, here[:len(here)-8] + "AAAAAAAA", false},
		{"cut", c.root, here[:100], false},
		{"white space", c.root, here + "\n", false},
		{"garbage", c.root, "garbage", false},
		{"too long", c.root, strings.Repeat("A", 10_240), false},
	} {
		if _, err := c.decode(tt.as, tt.message); tt.good && err != nil || !tt.good && !errors.Is(err, iamapi.ErrInvalidAuthorizationMessage) {
			t.Errorf("%s: got error %v, want success %v", tt.name, err, tt.good)
		}
	}
}

// Neither that there is a message nor its length says more than the error does.
func TestEncodedMessagesRevealNothing(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.allowManyRefusals()
	alice := c.storeUser(testAccountNumber, "alice", identityPolicy("Allow", "*", "*"))
	c.storeRole(testAccountNumber, "closed", `{"Version":"2012-10-17","Statement":[{"Sid":"`+strings.Repeat("S", 300)+`","Effect":"Deny","Principal":"*","Action":"sts:*"}]}`, "")
	length := 0
	for _, role := range []string{"closed", "absent", strings.Repeat("l", 64)} {
		_, err := callAs[iamapi.AssumeRoleOutput](c, c.engine, alice, "AssumeRole", assumeInput("arn:aws:iam::111122223333:role/"+role))
		n := len(encoded(err))
		if n == 0 || length != 0 && n != length {
			t.Errorf("the message about %s has %d characters, and others have %d", role, n, length)
		}
		length = n
	}

	key, _ := c.newKey()
	blob := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &key, Plaintext: []byte("x")}).CiphertextBlob
	c.setPolicy(key, policyDocument(rootStatement, statement("Deny", aliceARN, "kms:Decrypt")))
	_, err := callAs[kmsapi.DecryptOutput](c, c.engine, alice, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob})
	if m := encoded(err); m != "" && !strings.Contains(err.Error(), "explicit deny in a resource-based policy") {
		t.Errorf("there is a message with %v", err)
	}
	_, err = callAs[kmsapi.DescribeKeyOutput](c, c.engine, alice, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: new("11111111-2222-3333-4444-555555555555")})
	if encoded(err) != "" {
		t.Errorf("there is a message with %v", err)
	}
}

// BenchmarkDenial is a request that is denied, without its commit.
func BenchmarkDenial(b *testing.B) {
	c := newTestCluster(b)
	key, _ := c.newKey()
	c.setPolicy(key, policyDocument(rootStatement))
	caller, op := c.caller(c.storeUser(testAccountNumber, "alice", "")), operationNamed("DescribeKey")
	s := c.State()
	b.ReportAllocs()
	for b.Loop() {
		a := request.Evaluate(b.Context(), c.engine.services, s, caller, op, &kmsapi.DescribeKeyInput{KeyId: &key})
		if encoded(a.Err) == "" {
			b.Fatal("there is no message")
		}
	}
}
