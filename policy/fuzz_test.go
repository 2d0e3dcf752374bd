package policy

import (
	"encoding/json"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
	"unicode/utf8"
)

// FuzzEvaluate evaluates any document that Parse accepts, as a policy of any
// kind, for callers and contexts that a seed determines.
func FuzzEvaluate(f *testing.F) {
	for i, doc := range corpusDocuments(f) {
		f.Add([]byte(doc.text), uint8(doc.kind), uint64(i))
	}
	f.Fuzz(func(t *testing.T, text []byte, kind uint8, seed uint64) {
		if len(text) > MaxKeyPolicySize {
			return
		}
		k := Kind(kind % 4)
		doc, err := Parse(k, text)
		if err != nil {
			return
		}
		rng := rand.New(rand.NewPCG(seed, 0))
		context := &corpusContext{values: make(map[string][]string), now: time.Unix(1782907200+rng.Int64N(3), 0)}
		for _, key := range doc.ContextKeys() {
			list := []string{}
			for range rng.IntN(3) {
				list = append(list, pick(rng, diffKeys[pick(rng, []string{"aws:username", "aws:SourceIp", "aws:SourceArn", "kms:ValidTo", "test:Blob"})]))
			}
			if rng.IntN(4) > 0 {
				context.values[lowerASCII(key)] = list
			}
		}
		req := Request{mustPrincipal(t, pick(rng, diffPrincipals)), pick(rng, append(diffActions, "sts:AssumeRole")), testKey, context}
		policies := Policies{Resource: doc}
		if !k.hasPrincipals() {
			policies = Policies{Identity: []*Document{doc}, Boundary: doc, Session: []*Document{doc}}
			req.Resource = pick(rng, []string{"*", diffAlias})
		}
		d := Evaluate(req, policies)
		asked := slices.Clone(context.asked)
		checkTrace(t, "the document", req, policies, d)
		if req.Context = nil; Evaluate(req, policies).Effect == Allow && len(doc.ContextKeys()) == 0 && d.Effect != Allow {
			t.Errorf("without a context, a document without condition keys decides otherwise than %s", show(d))
		}
		for i, key := range asked {
			if slices.Contains(asked[:i], key) || !slices.ContainsFunc(doc.ContextKeys(), func(k string) bool { return lowerASCII(k) == key }) {
				t.Errorf("asked for %q in %q; the document has %q", key, asked, doc.ContextKeys())
			}
		}
		if Size(text) > len(text) {
			t.Errorf("size %d of %d bytes", Size(text), len(text))
		}
	})
}

// FuzzCondition compares one operator on one value with the plain evaluator.
func FuzzCondition(f *testing.F) {
	for operator := range operators {
		for _, key := range diffKeyNames {
			if values := diffKeys[key]; values != nil {
				f.Add(operator, values[0], values[len(values)-1], values[1], len(key)%2 == 0)
			}
		}
	}
	f.Add("ForAnyValue:StringLikeIfExists", "${aws:username}*${*}?", "alice*x", "", true)
	f.Add("ForAllValues:ArnNotLike", "arn:aws:${test:Key, 'x:y'}:*:1?:*:a", "arn:aws:a:b:12:c:a", "alice", true)
	f.Add("DateLessThanIfExists", "2026-07-01T12:00:00.5+02:00", "1782907200", "", false)
	f.Add("NotIpAddress", "::ffff:10.0.0.0/104", "::ffff:a01:203", "fe80::1%eth0", false)
	f.Fuzz(func(t *testing.T, operator, want, value, second string, several bool) {
		if len(want)+len(value)+len(second) > 500 || !utf8.ValidString(value) || !utf8.ValidString(second) {
			return
		}
		values := []string{value}
		if several {
			values = append(values, second)
		}
		const key = "test:Key"
		block := map[string]any{operator: map[string]any{key: want}}
		text, err := json.Marshal(map[string]any{"Version": version2012, "Statement": []any{
			map[string]any{"Effect": "Allow", "Action": "test:Allow", "Resource": "*", "Condition": block},
			map[string]any{"Effect": "Allow", "Action": "test:Deny", "Resource": "*"},
			map[string]any{"Effect": "Deny", "Action": "test:Deny", "Resource": "*", "Condition": block},
		}})
		if err != nil {
			t.Fatal(err)
		}
		doc, err := Parse(IdentityPolicy, text)
		if err != nil {
			return
		}
		context := map[string][]string{"test:key": values, "aws:username": {"alice"}}
		user := mustPrincipal(t, testUser)
		plain := &plainCaller{plainRequest: plainRequest{values: context, now: time.Unix(1782907200, 0)}}
		for action, deny := range map[string]bool{"test:Allow": false, "test:Deny": true} {
			req := Request{user, action, "*", &corpusContext{values: context, now: plain.now}}
			d := Evaluate(req, Policies{Identity: []*Document{doc}})
			holds := d.Allowed() != deny
			if want := plain.conditionHolds(operator, key, []string{want}, true, deny); holds != want {
				t.Errorf("%s: %v, want %v; %s on %q", action, holds, want, text, values)
			}
		}
	})
}
