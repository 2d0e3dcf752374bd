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

// grantHex is the id of a grant that a test puts into the state.
func grantHex(n byte) string { return strings.Repeat(hex.EncodeToString([]byte{n}), 32) }

func bytesOfGrant(id string) []byte {
	b, err := ops.ParseGrantID(id)
	if err != nil {
		panic(err)
	}
	return b[:]
}

// grantChange makes a grant behind the engine's back.
func (r *room) grantChange(key, id, grantee string, operations ...string) *fsmpb.Change {
	k := r.keyID(key)
	return &fsmpb.Change{Change: &fsmpb.Change_PutGrant{PutGrant: &fsmpb.Grant{
		Account: uint64(testAccountNumber), Key: k.ID[:], Region: k.Region, Id: bytesOfGrant(id), Grantee: grantee, Operations: operations, Issuer: testAccount,
	}}}
}

func (r *room) putGrant(key, id, grantee string, operations ...string) {
	r.t.Helper()
	r.cluster.change(r.grantChange(key, id, grantee, operations...))
}

func (r *room) dropGrant(key, id string) {
	r.t.Helper()
	k := r.keyID(key)
	r.cluster.change(&fsmpb.Change{Change: &fsmpb.Change_DeleteGrant{DeleteGrant: &fsmpb.GrantID{Account: uint64(testAccountNumber), Key: k.ID[:], Region: k.Region, Id: bytesOfGrant(id)}}})
}

// grantReadCases are those of grants: the operations on them, and what they allow.
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
	key := func(w *readWorld) []byte { return w.keyBytes(w.id) }
	other := func(w *readWorld) []byte { return w.keyBytes(w.other) }
	grant := func(w *readWorld) []byte { return fsm.GrantID(w.keyID(w.id), bytesOfGrant(grantHex(1))) }
	otherGrant := func(w *readWorld) []byte { return fsm.GrantID(w.keyID(w.other), bytesOfGrant(grantHex(1))) }
	revoked := func(w *readWorld) { w.dropGrant(w.id, grantHex(1)) }
	denied := func(w *readWorld) {
		w.setPolicy(w.id, w.policyFor(rootStatement, statement("Deny", aliceARN, "kms:*")))
	}
	// granted leaves alice the grant alone, beside one that does not concern her.
	granted := func(operations string, in func(*readWorld) any) func(*readWorld) any {
		return func(w *readWorld) any {
			for _, id := range []string{w.id, w.other} {
				w.deny(id)
				w.putGrant(id, grantHex(1), aliceARN, strings.Fields(operations)...)
				w.putGrant(id, grantHex(0), "arn:aws:iam::"+testAccount+":user/carol", "Encrypt")
			}
			return in(w)
		}
	}
	encrypt := func(w *readWorld) any { return &kmsapi.EncryptInput{KeyId: &w.id, Plaintext: []byte("x")} }
	decrypt := func(w *readWorld) any { return &kmsapi.DecryptInput{CiphertextBlob: w.blob} }
	reEncrypt := func(w *readWorld) any {
		return &kmsapi.ReEncryptInput{CiphertextBlob: w.blob, DestinationKeyId: &w.other}
	}
	ungranted := func(w *readWorld) any {
		w.deny(w.id)
		return encrypt(w)
	}
	create := func(name *string) func(*readWorld) any {
		return func(w *readWorld) any {
			return &kmsapi.CreateGrantInput{KeyId: &w.id, GranteePrincipal: new(aliceARN), Operations: []string{"Encrypt"}, Name: name}
		}
	}
	named := func(w *readWorld) {
		c := w.grantChange(w.id, grantHex(1), aliceARN, "Encrypt")
		c.GetPutGrant().Name = "n"
		w.cluster.change(c)
	}
	retire := func(dry *bool) func(*readWorld) any {
		return func(w *readWorld) any {
			return &kmsapi.RetireGrantInput{KeyId: &w.id, GrantId: new(grantHex(1)), DryRun: dry}
		}
	}
	revoke := func(dry *bool) func(*readWorld) any {
		return func(w *readWorld) any {
			return &kmsapi.RevokeGrantInput{KeyId: &w.id, GrantId: new(grantHex(1)), DryRun: dry}
		}
	}
	withGrant := func(in func(*readWorld) any) func(*readWorld) any {
		return func(w *readWorld) any {
			w.putGrant(w.id, grantHex(1), "arn:aws:iam::"+testAccount+":user/carol", "Encrypt")
			return in(w)
		}
	}
	dry := new(true)
	return []readCase{
		{"encrypt by grant, grant revoked", "Encrypt", granted("Encrypt", encrypt), kindGrant, grant, revoked, "ok", "AccessDeniedException", byGrant, false, false},
		{"encrypt by grant, denied by policy since", "Encrypt", granted("Encrypt", encrypt), kindPolicy, key, denied, "ok", "AccessDeniedException", byGrant, false, false},
		{"encrypt by grant, key disabled", "Encrypt", granted("Encrypt", encrypt), kindKey, key, (*readWorld).disable, "ok", "DisabledException", byGrant, false, false},
		{"decrypt by grant, grant revoked", "Decrypt", granted("Decrypt", decrypt), kindGrant, grant, revoked, "ok", "AccessDeniedException", byGrant, false, false},
		{"re-encrypt by grants, source's revoked", "ReEncrypt", granted("ReEncryptFrom ReEncryptTo", reEncrypt), kindGrant, grant, revoked,
			"ok", "AccessDeniedException", "KEY KEY KEY_POLICY KEY_POLICY CREDENTIAL GRANT GRANT", false, false},
		{"re-encrypt by grants, destination's revoked", "ReEncrypt", granted("ReEncryptFrom ReEncryptTo", reEncrypt), kindGrant, otherGrant,
			func(w *readWorld) { w.dropGrant(w.other, grantHex(1)) }, "ok", "AccessDeniedException", "KEY KEY KEY_POLICY KEY_POLICY CREDENTIAL GRANT GRANT", false, false},
		{"re-encrypt without grant, then granted", "ReEncrypt", func(w *readWorld) any {
			w.deny(w.other)
			return reEncrypt(w)
		}, kindGrants, other, func(w *readWorld) { w.putGrant(w.other, grantHex(1), aliceARN, "ReEncryptTo") },
			"AccessDeniedException", "ok", "KEY KEY KEY_POLICY KEY_POLICY CREDENTIAL KEY_GRANTS", false, false},
		{"denied, then granted", "Encrypt", ungranted, kindGrants, key, func(w *readWorld) { w.putGrant(w.id, grantHex(1), aliceARN, "Encrypt") },
			"AccessDeniedException", "ok", byNone, false, false},
		{"granted something else, then this", "Encrypt", granted("Decrypt DescribeKey", encrypt), kindGrants, key,
			func(w *readWorld) { w.putGrant(w.id, grantHex(2), aliceARN, "Encrypt") }, "AccessDeniedException", "ok", byNone, false, false},
		{"explicit deny does not look at grants", "Encrypt", granted("Encrypt", func(w *readWorld) any {
			denied(w)
			return encrypt(w)
		}), kindPolicy, key, func(w *readWorld) { w.deny(w.id) }, "AccessDeniedException", "ok", byPolicy, false, false},
		{"what no grant can allow does not look at grants", "GetKeyPolicy", granted("Encrypt", func(w *readWorld) any { return &kmsapi.GetKeyPolicyInput{KeyId: &w.id} }),
			0, nil, nil, "AccessDeniedException", "", byPolicy, false, false},
		{"allowed by policy does not look at grants", "Encrypt", func(w *readWorld) any {
			w.putGrant(w.id, grantHex(1), aliceARN, "Encrypt")
			return encrypt(w)
		}, 0, nil, nil, "ok", "", byPolicy, false, false},

		{"grant made, permission withdrawn", "CreateGrant", create(nil), kindPolicy, key, func(w *readWorld) { w.deny(w.id) }, "ok", "AccessDeniedException", byPolicy, false, false},
		{"grant made, key disabled", "CreateGrant", create(nil), kindKey, key, (*readWorld).disable, "ok", "DisabledException", byPolicy, false, false},
		{"grant made by grant, parent revoked", "CreateGrant", granted("CreateGrant Encrypt", create(nil)), kindGrant, grant, revoked, "ok", "AccessDeniedException", byGrant, false, false},
		{"grant refused, then parent made", "CreateGrant", func(w *readWorld) any {
			w.deny(w.id)
			return create(nil)(w)
		}, kindGrants, key, func(w *readWorld) { w.putGrant(w.id, grantHex(2), aliceARN, "CreateGrant", "Encrypt") }, "AccessDeniedException", "ok", byNone, false, false},
		{"named grant made, namesake made", "CreateGrant", create(new("n")), kindGrants, key, named, "ok", "ok same", byNone, false, false},
		{"named grant found, revoked", "CreateGrant", func(w *readWorld) any {
			named(w)
			return create(new("n"))(w)
		}, kindGrant, grant, revoked, "ok same", "ok", byGrant, false, false},

		{"retirement tried, grant revoked", "RetireGrant", granted("RetireGrant", retire(dry)), kindGrant, grant, revoked,
			"DryRunOperationException", "NotFoundException", "KEY CREDENTIAL GRANT", false, false},
		{"retirement refused, grant revoked", "RetireGrant", withGrant(retire(nil)), kindGrant, grant, revoked, "AccessDeniedException", "NotFoundException", "KEY CREDENTIAL GRANT", false, false},
		{"retired", "RetireGrant", granted("RetireGrant", retire(nil)), 0, nil, nil, "ok", "", "KEY CREDENTIAL GRANT", false, false},
		{"no grant to retire, then made", "RetireGrant", retire(nil), kindGrant, grant, func(w *readWorld) { w.putGrant(w.id, grantHex(1), aliceARN, "RetireGrant") },
			"NotFoundException", "ok", "KEY CREDENTIAL GRANT", false, false},
		{"token of a grant on a key that is gone", "RetireGrant", func(w *readWorld) any {
			w.deleteKey()
			token, err := w.first.vault.GrantToken(w.keyID(w.id), [32]byte(bytesOfGrant(grantHex(1))))
			if err != nil {
				panic(err)
			}
			return &kmsapi.RetireGrantInput{GrantToken: &token}
		}, 0, nil, nil, "NotFoundException", "", "KEY CREDENTIAL GRANT", false, false},

		{"revocation tried, grant revoked", "RevokeGrant", withGrant(revoke(dry)), kindGrant, grant, revoked, "DryRunOperationException", "NotFoundException", byGrant, false, false},
		{"revoked, permission withdrawn", "RevokeGrant", withGrant(revoke(nil)), kindPolicy, key, func(w *readWorld) { w.deny(w.id) }, "ok", "AccessDeniedException", byGrant, false, false},
		{"no grant to revoke, then made", "RevokeGrant", revoke(nil), kindGrant, grant, func(w *readWorld) { w.putGrant(w.id, grantHex(1), aliceARN, "Encrypt") },
			"NotFoundException", "ok", byGrant, false, false},

		{"grants listed, permission withdrawn", "ListGrants", func(w *readWorld) any { return &kmsapi.ListGrantsInput{KeyId: &w.id} }, kindPolicy, key,
			func(w *readWorld) { w.deny(w.id) }, "ok", "AccessDeniedException", byPolicy, false, false},
		{"retirable grants listed", "ListRetirableGrants", func(*readWorld) any { return &kmsapi.ListRetirableGrantsInput{RetiringPrincipal: new(aliceARN)} },
			0, nil, nil, "ok", "", "CREDENTIAL", true, false},
	}
}

// TestOtherGrantsDoNotConflict: what one grant allows is not asked again when
// others on the key come and go, nor is what the policy allows.
func TestOtherGrantsDoNotConflict(t *testing.T) {
	for _, by := range []string{"grant", "policy"} {
		t.Run("allowed by "+by, func(t *testing.T) {
			w := newReadWorld(t)
			if by == "grant" {
				w.deny(w.id)
				w.putGrant(w.id, grantHex(1), aliceARN, "Encrypt")
			}
			n := w.cluster.replica("n1")
			n.before = func(*fsmpb.Record) {
				w.putGrant(w.id, grantHex(2), aliceARN, "Encrypt")
				w.dropGrant(w.id, grantHex(2))
			}
			before := n.proposals
			if _, err := callAs[kmsapi.EncryptOutput](w.room, w.first, w.alice, "Encrypt", &kmsapi.EncryptInput{KeyId: &w.id, Plaintext: []byte("x")}); err != nil {
				t.Fatal(err)
			}
			if got := n.proposals - before; got != 1 {
				t.Errorf("the request was proposed %d times, want 1", got)
			}
		})
	}
}
