package awsapi

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// openStructures are the structures of inputs in which unknown members are ignored,
// as in AWS: nothing in them restricts what a request does or returns. A structure
// that is not listed here must have a member that is marked as narrowing, or be
// inside of one. The author of a structure decides which.
var openStructures = []string{
	"CancelKeyDeletion", "ConnectCustomKeyStore", "CreateAlias", "CreateCustomKeyStore", "CreateCustomKeyStore.XksProxyAuthenticationCredential",
	"CreateKey.Tags", "DeleteAlias", "DeleteCustomKeyStore", "DescribeKey", "DisableKey", "DisableKeyRotation", "DisconnectCustomKeyStore", "EnableKey",
	"EnableKeyRotation", "GetKeyLastUsage", "GetKeyPolicy", "GetKeyRotationStatus", "GetParametersForImport", "GetPublicKey", "ListKeyPolicies",
	"ListKeys", "ListResourceTags", "ReplicateKey.Tags", "RotateKeyOnDemand", "ScheduleKeyDeletion", "TagResource", "TagResource.Tags",
	"UntagResource", "UpdateAlias", "UpdateCustomKeyStore", "UpdateCustomKeyStore.XksProxyAuthenticationCredential", "UpdateKeyDescription",
	"UpdatePrimaryRegion",
}

// place is a structure of an operation's input.
type place struct {
	path   string
	op     *keyengine.Operation
	schema *kmsapi.Schema // of the structure
	wrap   func(body string) string
}

func places(t testing.TB) []place {
	t.Helper()
	var all []place
	var walk func(place)
	walk = func(at place) {
		all = append(all, at)
		for _, f := range at.schema.Members {
			if f.Inner == nil {
				continue
			}
			in := at
			in.path, in.schema = at.path+"."+f.Name, f.Inner
			in.wrap = func(body string) string {
				if f.Kind == kmsapi.KindStructureList {
					body = "[" + body + "]"
				}
				return at.wrap(`{"` + f.Name + `":` + body + `}`)
			}
			walk(in)
		}
	}
	for _, op := range keyengine.OperationsOf(keyengine.KMS) {
		walk(place{path: op.Name, op: op, schema: op.Input(), wrap: func(body string) string { return body }})
	}
	return all
}

// TestEveryStructureIsClassified: each structure of each input ignores or refuses
// unknown members, as was decided for it.
func TestEveryStructureIsClassified(t *testing.T) {
	var open []string
	for _, at := range places(t) {
		if !at.schema.Closed {
			open = append(open, at.path)
		}
		var d decoder
		err := d.decode(at.op.Input(), at.op.NewInput(), []byte(at.wrap(`{"NarrowedTo":{"a":["b"]}}`)))
		e, _ := errors.AsType[*kmsapi.Error](err)
		switch refused := err != nil; {
		case refused != at.schema.Closed:
			t.Errorf("%s: an unknown member is answered with %v", at.path, err)
		case refused && (e == nil || e.Code != kmsapi.ErrValidation.Code || !strings.HasPrefix(e.Message, `Unknown member "NarrowedTo"`)):
			t.Errorf("%s: refused with %v", at.path, err)
		}
		// Misspelt names of members are refused everywhere.
		for _, f := range at.schema.Members {
			for _, name := range []string{strings.ToLower(f.Name), strings.ToUpper(f.Name), f.Name + "_"} {
				if err := d.decode(at.op.Input(), at.op.NewInput(), []byte(at.wrap(`{"`+name+`":null}`))); !errors.Is(err, kmsapi.ErrValidation) {
					t.Errorf("%s: %s is answered with %v", at.path, name, err)
				}
			}
		}
	}
	if d := cmp.Diff(openStructures, open); d != "" {
		t.Errorf("open structures (-decided +are):\n%s", d)
	}
}

// TestUnknownMemberIsNotServed: a request that could be restricted by an unknown
// member does not reach the engine.
func TestUnknownMemberIsNotServed(t *testing.T) {
	f := newFixture(t, nil)
	for _, tc := range []struct{ op, body, message string }{
		{"CreateGrant", `{"KeyId":"k","GranteePrincipal":"a","Operations":["Decrypt"],"Constraints":{"SourceAccount":"111122223333"}}`, `Unknown member "SourceAccount" in Constraints.`},
		{"CreateGrant", `{"KeyId":"k","GranteePrincipal":"a","Operations":["Decrypt"],"Constraint":{"SourceArn":"a"}}`, `Unknown member "Constraint".`},
		{"CreateGrant", `{"KeyId":"k","GranteePrincipal":"a","Operations":["Decrypt"],"SourceArn":"a"}`, `Unknown member "SourceArn".`},
		{"ListGrants", `{"KeyId":"k","RetiringPrincipal":"a"}`, `Unknown member "RetiringPrincipal".`},
		{"Decrypt", `{"CiphertextBlob":"AA==","DryRunn":true}`, `Unknown member "DryRunn".`},
		{"Decrypt", `{"CiphertextBlob":"AA==","Recipient":{"AttestationDocument":"AA==","PublicKey":"AA=="}}`, `Unknown member "PublicKey" in Recipient.`},
		{"GenerateDataKey", `{"KeyId":"k","recipient":{}}`, `Unknown member "recipient". Did you mean Recipient?`},
	} {
		w := f.call(t, tc.op, tc.body)
		var answer struct {
			Type    string `json:"__type"`
			Message string `json:"message"`
		}
		err := json.Unmarshal(w.Body.Bytes(), &answer)
		if err != nil || w.Code != http.StatusBadRequest || answer.Type != string(kmsapi.ErrValidation.Code) || !strings.HasPrefix(answer.Message, tc.message) {
			t.Errorf("%s %s: got %d %s, want %q", tc.op, tc.body, w.Code, w.Body, tc.message)
		}
	}
	if n := f.engine.dos.Load(); n != 0 {
		t.Errorf("the engine was asked %d times", n)
	}
}

// FuzzUnknownMembers: a structure that restricts a request accepts no unknown
// member, whatever its name and value, wherever the structure is and whatever else
// it contains.
func FuzzUnknownMembers(f *testing.F) {
	all := places(f)
	for i, at := range all {
		if strings.Contains(at.path, ".") || i%7 == 0 {
			f.Add(uint16(i), "SourceAccount", `{"a":[1]}`, true)
		}
	}
	f.Add(uint16(0), "", "null", false)
	f.Add(uint16(3), "Dry\x00Run", `""`, true)
	f.Add(uint16(3), "dryRun", `true`, true)
	f.Fuzz(func(t *testing.T, which uint16, name, value string, behind bool) {
		at := all[int(which)%len(all)]
		quoted, err := json.Marshal(name)
		if err != nil || !json.Valid([]byte(value)) {
			return
		}
		var told string
		_ = json.Unmarshal(quoted, &told) // invalid UTF-8 has another error
		if _, known := at.schema.Index([]byte(told)); known {
			return
		}
		body := "{" + string(quoted) + ":" + value + "}"
		if n := len(at.schema.Members); n > 0 {
			beside := `"` + at.schema.Members[int(which)%n].Name + `":null`
			if behind {
				body = "{" + beside + "," + body[1:]
			} else {
				body = body[:len(body)-1] + "," + beside + "}"
			}
		}
		err = new(decoder).decode(at.op.Input(), at.op.NewInput(), []byte(at.wrap(body)))
		e, ok := errors.AsType[*kmsapi.Error](err)
		misspelt := at.schema.Similar(told) != ""
		switch {
		case at.schema.Closed && err == nil, misspelt && err == nil:
			t.Fatalf("%s: %s was passed over", at.path, body)
		case err != nil && !ok:
			t.Fatalf("%s: %s: %v", at.path, body, err)
		case err != nil && !at.schema.Closed && !misspelt && e.Code == kmsapi.ErrValidation.Code:
			t.Fatalf("%s: %s: refused with %v", at.path, body, err)
		}
	})
}
