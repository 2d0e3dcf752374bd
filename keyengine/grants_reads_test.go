package keyengine

import (
	"encoding/hex"
	"strings"
	"testing"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/ops"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// grantHex returns the id of a grant that a test puts into the state.
func grantHex(n byte) string { return strings.Repeat(hex.EncodeToString([]byte{n}), 32) }

func bytesOfGrant(id string) []byte {
	b, err := ops.ParseGrantID(id)
	if err != nil {
		panic(err)
	}
	return b[:]
}

// grantChange returns the change that makes a grant.
func (c *testCluster) grantChange(key, id, grantee string, operations ...string) *fsmpb.Change {
	k := c.keyID(key)
	who, account := c.party(grantee)
	return &fsmpb.Change{Change: &fsmpb.Change_PutGrant{PutGrant: &fsmpb.Grant{
		Account: uint64(testAccountNumber), Key: k.ID[:], Region: k.Region, Id: bytesOfGrant(id), Grantee: who, GranteeAccount: account, Operations: operations, Issuer: testAccount,
	}}}
}

func (c *testCluster) putGrant(key, id, grantee string, operations ...string) {
	c.t.Helper()
	c.Change(c.grantChange(key, id, grantee, operations...))
}

func (c *testCluster) deleteGrant(key, id string) {
	c.t.Helper()
	k := c.keyID(key)
	c.Change(&fsmpb.Change{Change: &fsmpb.Change_DeleteGrant{DeleteGrant: &fsmpb.GrantID{Account: uint64(testAccountNumber), Key: k.ID[:], Region: k.Region, Id: bytesOfGrant(id)}}})
}

// grantReadCases are the cases of operations on grants, and of what grants allow.
func grantReadCases() []readCase {
	const (
		kindKey    = fsmpb.Kind_KIND_KEY
		kindPolicy = fsmpb.Kind_KIND_KEY_POLICY
		kindGrant  = fsmpb.Kind_KIND_GRANT
		kindGrants = fsmpb.Kind_KIND_KEY_GRANTS
		byPolicy   = "KEY KEY_POLICY CREDENTIAL"
		byGrant    = "KEY KEY_POLICY CREDENTIAL GRANT"
		byNone     = "KEY KEY_POLICY CREDENTIAL KEY_GRANTS"
	)
	key := func(f *readFixture) []byte { return f.keyBytes(f.id) }
	other := func(f *readFixture) []byte { return f.keyBytes(f.other) }
	grant := func(f *readFixture) []byte { return fsm.GrantID(f.keyID(f.id), bytesOfGrant(grantHex(1))) }
	otherGrant := func(f *readFixture) []byte { return fsm.GrantID(f.keyID(f.other), bytesOfGrant(grantHex(1))) }
	revoked := func(f *readFixture) { f.deleteGrant(f.id, grantHex(1)) }
	denied := func(f *readFixture) {
		f.setPolicy(f.id, policyDocument(rootStatement, statement("Deny", aliceARN, "kms:*")))
	}
	// granted gives alice nothing but a grant. The key also has a grant to somebody else.
	granted := func(operations string, in func(*readFixture) any) func(*readFixture) any {
		return func(f *readFixture) any {
			for _, id := range []string{f.id, f.other} {
				f.deny(id)
				f.putGrant(id, grantHex(1), aliceARN, strings.Fields(operations)...)
				f.putGrant(id, grantHex(0), "arn:aws:iam::"+testAccount+":user/carol", "Encrypt")
			}
			return in(f)
		}
	}
	encrypt := func(f *readFixture) any { return &kmsapi.EncryptInput{KeyId: &f.id, Plaintext: []byte("x")} }
	decrypt := func(f *readFixture) any { return &kmsapi.DecryptInput{CiphertextBlob: f.blob} }
	reEncrypt := func(f *readFixture) any {
		return &kmsapi.ReEncryptInput{CiphertextBlob: f.blob, DestinationKeyId: &f.other}
	}
	ungranted := func(f *readFixture) any {
		f.deny(f.id)
		return encrypt(f)
	}
	create := func(name *string) func(*readFixture) any {
		return func(f *readFixture) any {
			return &kmsapi.CreateGrantInput{KeyId: &f.id, GranteePrincipal: new(aliceARN), Operations: []string{"Encrypt"}, Name: name}
		}
	}
	named := func(f *readFixture) {
		c := f.grantChange(f.id, grantHex(1), aliceARN, "Encrypt")
		c.GetPutGrant().Name = "n"
		f.Change(c)
	}
	retire := func(dry *bool) func(*readFixture) any {
		return func(f *readFixture) any {
			return &kmsapi.RetireGrantInput{KeyId: &f.id, GrantId: new(grantHex(1)), DryRun: dry}
		}
	}
	revoke := func(dry *bool) func(*readFixture) any {
		return func(f *readFixture) any {
			return &kmsapi.RevokeGrantInput{KeyId: &f.id, GrantId: new(grantHex(1)), DryRun: dry}
		}
	}
	withGrant := func(in func(*readFixture) any) func(*readFixture) any {
		return func(f *readFixture) any {
			f.putGrant(f.id, grantHex(1), "arn:aws:iam::"+testAccount+":user/carol", "Encrypt")
			return in(f)
		}
	}
	dry := new(true)
	toBob := func(f *readFixture) any {
		f.exist(bobARN)
		return &kmsapi.CreateGrantInput{KeyId: &f.id, GranteePrincipal: new(bobARN), Operations: []string{"Encrypt"}}
	}
	return []readCase{
		{"grant made, grantee deleted", "CreateGrant", toBob, fsmpb.Kind_KIND_USER, bob, deleteBob, "ok", "InvalidArnException", byPolicy + " USER", false, false},
		{"grant made, grantee renamed", "CreateGrant", toBob, fsmpb.Kind_KIND_USER, bob, renameBob, "ok", "InvalidArnException", byPolicy + " USER", false, false},
		{"encrypt by grant, grant revoked", "Encrypt", granted("Encrypt", encrypt), kindGrant, grant, revoked, "ok", "AccessDeniedException", byGrant, false, false},
		{"encrypt by grant, denied by policy since", "Encrypt", granted("Encrypt", encrypt), kindPolicy, key, denied, "ok", "AccessDeniedException", byGrant, false, false},
		{"encrypt by grant, key disabled", "Encrypt", granted("Encrypt", encrypt), kindKey, key, (*readFixture).disable, "ok", "DisabledException", byGrant, false, false},
		{"decrypt by grant, grant revoked", "Decrypt", granted("Decrypt", decrypt), kindGrant, grant, revoked, "ok", "AccessDeniedException", byGrant, false, false},
		{"re-encrypt by grants, source's revoked", "ReEncrypt", granted("ReEncryptFrom ReEncryptTo", reEncrypt), kindGrant, grant, revoked,
			"ok", "AccessDeniedException", "KEY KEY KEY_POLICY KEY_POLICY CREDENTIAL GRANT GRANT", false, false},
		{"re-encrypt by grants, destination's revoked", "ReEncrypt", granted("ReEncryptFrom ReEncryptTo", reEncrypt), kindGrant, otherGrant,
			func(f *readFixture) { f.deleteGrant(f.other, grantHex(1)) }, "ok", "AccessDeniedException", "KEY KEY KEY_POLICY KEY_POLICY CREDENTIAL GRANT GRANT", false, false},
		{"re-encrypt without grant, then granted", "ReEncrypt", func(f *readFixture) any {
			f.deny(f.other)
			return reEncrypt(f)
		}, kindGrants, other, func(f *readFixture) { f.putGrant(f.other, grantHex(1), aliceARN, "ReEncryptTo") },
			"AccessDeniedException", "ok", "KEY KEY KEY_POLICY KEY_POLICY CREDENTIAL KEY_GRANTS", false, false},
		{"denied, then granted", "Encrypt", ungranted, kindGrants, key, func(f *readFixture) { f.putGrant(f.id, grantHex(1), aliceARN, "Encrypt") },
			"AccessDeniedException", "ok", byNone, false, false},
		{"granted something else, then this", "Encrypt", granted("Decrypt DescribeKey", encrypt), kindGrants, key,
			func(f *readFixture) { f.putGrant(f.id, grantHex(2), aliceARN, "Encrypt") }, "AccessDeniedException", "ok", byNone, false, false},
		{"explicit deny does not look at grants", "Encrypt", granted("Encrypt", func(f *readFixture) any {
			denied(f)
			return encrypt(f)
		}), kindPolicy, key, func(f *readFixture) { f.deny(f.id) }, "AccessDeniedException", "ok", byPolicy, false, false},
		{"what no grant can allow does not look at grants", "GetKeyPolicy", granted("Encrypt", func(f *readFixture) any { return &kmsapi.GetKeyPolicyInput{KeyId: &f.id} }),
			0, nil, nil, "AccessDeniedException", "", byPolicy, false, false},
		{"allowed by policy does not look at grants", "Encrypt", func(f *readFixture) any {
			f.putGrant(f.id, grantHex(1), aliceARN, "Encrypt")
			return encrypt(f)
		}, 0, nil, nil, "ok", "", byPolicy, false, false},

		{"grant made, permission withdrawn", "CreateGrant", create(nil), kindPolicy, key, func(f *readFixture) { f.deny(f.id) }, "ok", "AccessDeniedException", byPolicy, false, false},
		{"grant made, key disabled", "CreateGrant", create(nil), kindKey, key, (*readFixture).disable, "ok", "DisabledException", byPolicy, false, false},
		{"grant made by grant, parent revoked", "CreateGrant", granted("CreateGrant Encrypt", create(nil)), kindGrant, grant, revoked, "ok", "AccessDeniedException", byGrant, false, false},
		{"grant refused, then parent made", "CreateGrant", func(f *readFixture) any {
			f.deny(f.id)
			return create(nil)(f)
		}, kindGrants, key, func(f *readFixture) { f.putGrant(f.id, grantHex(2), aliceARN, "CreateGrant", "Encrypt") }, "AccessDeniedException", "ok", byNone, false, false},
		{"named grant made, namesake made", "CreateGrant", create(new("n")), kindGrants, key, named, "ok", "ok same", byNone, false, false},
		{"named grant found, revoked", "CreateGrant", func(f *readFixture) any {
			named(f)
			return create(new("n"))(f)
		}, kindGrant, grant, revoked, "ok same", "ok", byGrant, false, false},

		{"retirement tried, grant revoked", "RetireGrant", granted("RetireGrant", retire(dry)), kindGrant, grant, revoked,
			"DryRunOperationException", "NotFoundException", "KEY CREDENTIAL GRANT", false, false},
		{"retirement refused, grant revoked", "RetireGrant", withGrant(retire(nil)), kindGrant, grant, revoked, "AccessDeniedException", "NotFoundException", "KEY CREDENTIAL GRANT", false, false},
		{"retired", "RetireGrant", granted("RetireGrant", retire(nil)), 0, nil, nil, "ok", "", "KEY CREDENTIAL GRANT", false, false},
		{"no grant to retire, then made", "RetireGrant", retire(nil), kindGrant, grant, func(f *readFixture) { f.putGrant(f.id, grantHex(1), aliceARN, "RetireGrant") },
			"NotFoundException", "ok", "KEY CREDENTIAL GRANT", false, false},
		{"token of a grant on a key that is gone", "RetireGrant", func(f *readFixture) any {
			f.deleteKey()
			token, err := f.engine.vault.GrantToken(f.keyID(f.id), [32]byte(bytesOfGrant(grantHex(1))))
			if err != nil {
				panic(err)
			}
			return &kmsapi.RetireGrantInput{GrantToken: &token}
		}, 0, nil, nil, "NotFoundException", "", "KEY CREDENTIAL GRANT", false, false},

		{"revocation tried, grant revoked", "RevokeGrant", withGrant(revoke(dry)), kindGrant, grant, revoked, "DryRunOperationException", "NotFoundException", byGrant, false, false},
		{"revoked, permission withdrawn", "RevokeGrant", withGrant(revoke(nil)), kindPolicy, key, func(f *readFixture) { f.deny(f.id) }, "ok", "AccessDeniedException", byGrant, false, false},
		{"no grant to revoke, then made", "RevokeGrant", revoke(nil), kindGrant, grant, func(f *readFixture) { f.putGrant(f.id, grantHex(1), aliceARN, "Encrypt") },
			"NotFoundException", "ok", byGrant, false, false},

		{"grants listed, permission withdrawn", "ListGrants", func(f *readFixture) any { return &kmsapi.ListGrantsInput{KeyId: &f.id} }, kindPolicy, key,
			func(f *readFixture) { f.deny(f.id) }, "ok", "AccessDeniedException", byPolicy, false, false},
		{"retirable grants listed", "ListRetirableGrants", func(*readFixture) any { return &kmsapi.ListRetirableGrantsInput{RetiringPrincipal: new(aliceARN)} },
			0, nil, nil, "ok", "", "CREDENTIAL", true, false},
	}
}

// A request that is allowed by a grant or by the policy does not conflict with changes of other
// grants on the key.
func TestOtherGrantsDoNotConflict(t *testing.T) {
	t.Parallel()
	for _, by := range []string{"grant", "policy"} {
		t.Run("allowed by "+by, func(t *testing.T) {
			f := newReadFixture(t)
			if by == "grant" {
				f.deny(f.id)
				f.putGrant(f.id, grantHex(1), aliceARN, "Encrypt")
			}
			n := f.Replica("n1")
			n.BeforeCommit = func(*fsmpb.Record) {
				f.putGrant(f.id, grantHex(2), aliceARN, "Encrypt")
				f.deleteGrant(f.id, grantHex(2))
			}
			before := n.Proposals.Load()
			if _, err := callAs[kmsapi.EncryptOutput](f.testCluster, f.engine, f.alice, "Encrypt", &kmsapi.EncryptInput{KeyId: &f.id, Plaintext: []byte("x")}); err != nil {
				t.Fatal(err)
			}
			if got := n.Proposals.Load() - before; got != 1 {
				t.Errorf("the request was proposed %d times, want 1", got)
			}
		})
	}
}
