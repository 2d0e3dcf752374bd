package sdk

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/conclavekms/conclave/integration/harness"
)

// The rows of sdkOperations that are about keys and what belongs to them.

func sdkCreateKey(r *sdkRound) {
	made := call(r, (*kms.Client).CreateKey, &kms.CreateKeyInput{
		Description: aws.String("of the SDK"), Policy: aws.String(harness.RootPolicy()),
		Tags: []types.Tag{{TagKey: aws.String("of"), TagValue: aws.String("sdk")}},
	}).KeyMetadata
	is(r, "ARN", *made.Arn, "arn:aws:kms:"+harness.Region+":"+harness.Account+":key/"+*made.KeyId)
	is(r, "what DescribeKey says elsewhere", r.describe(made.KeyId).Description, made.Description)
	for spec, usage := range map[types.KeySpec]types.KeyUsageType{
		types.KeySpecRsa2048: types.KeyUsageTypeEncryptDecrypt, types.KeySpecEccNistP384: types.KeyUsageTypeSignVerify,
		types.KeySpecHmac512: types.KeyUsageTypeGenerateVerifyMac, types.KeySpecEccNistP521: types.KeyUsageTypeKeyAgreement,
		types.KeySpecMlDsa65: types.KeyUsageTypeSignVerify,
	} {
		m := r.describe(r.key(spec, usage))
		is(r, "KeySpec", m.KeySpec, spec)
		is(r, "KeyUsage", m.KeyUsage, usage)
	}
	refused(r, "ValidationException", (*kms.Client).CreateKey, &kms.CreateKeyInput{KeySpec: types.KeySpecHmac256, KeyUsage: types.KeyUsageTypeSignVerify})
}

func sdkDescribeKey(r *sdkRound) {
	key := r.symmetric()
	alias := "alias/described"
	call(r, (*kms.Client).CreateAlias, &kms.CreateAliasInput{AliasName: &alias, TargetKeyId: key})
	arn := r.describe(key).Arn
	for _, name := range []string{*key, *arn, alias, strings.TrimSuffix(*arn, "key/"+*key) + alias} {
		m := r.describe(&name)
		is(r, name, *m.Arn, *arn)
		is(r, "state", m.KeyState, types.KeyStateEnabled)
	}
	refused(r, "NotFoundException", (*kms.Client).DescribeKey, &kms.DescribeKeyInput{KeyId: aws.String("alias/none")})
}

func sdkListKeys(r *sdkRound) {
	key := r.symmetric()
	var ids []string
	pages := kms.NewListKeysPaginator(r.next(), &kms.ListKeysInput{Limit: aws.Int32(3)})
	for pages.HasMorePages() {
		page, err := pages.NextPage(r.Context())
		if err != nil {
			r.Fatal(err)
		}
		for _, k := range page.Keys {
			ids = append(ids, *k.KeyId)
		}
	}
	if !slices.Contains(ids, *key) {
		r.Errorf("the pages have %d keys, but not the newest", len(ids))
	}
	all := call(r, (*kms.Client).ListKeys, &kms.ListKeysInput{Limit: aws.Int32(1000)})
	is(r, "keys in one page", len(all.Keys), len(ids))
}

func sdkUpdateKeyDescription(r *sdkRound) {
	key := r.symmetric()
	call(r, (*kms.Client).UpdateKeyDescription, &kms.UpdateKeyDescriptionInput{KeyId: key, Description: aws.String("another")})
	is(r, "description", *r.describe(key).Description, "another")
}

func sdkDisableKey(r *sdkRound) {
	key := r.symmetric()
	blob := r.encrypt(key, "kept")
	call(r, (*kms.Client).DisableKey, &kms.DisableKeyInput{KeyId: key})
	for range r.c.Nodes {
		refused(r, "DisabledException", (*kms.Client).Decrypt, &kms.DecryptInput{CiphertextBlob: blob})
	}
	is(r, "state", r.describe(key).KeyState, types.KeyStateDisabled)
}

func sdkEnableKey(r *sdkRound) {
	key := r.symmetric()
	blob := r.encrypt(key, "kept")
	call(r, (*kms.Client).DisableKey, &kms.DisableKeyInput{KeyId: key})
	call(r, (*kms.Client).EnableKey, &kms.EnableKeyInput{KeyId: key})
	for range r.c.Nodes {
		r.decrypts(blob, "kept")
	}
}

func sdkScheduleKeyDeletion(r *sdkRound) {
	key := r.symmetric()
	blob := r.encrypt(key, "gone")
	out := call(r, (*kms.Client).ScheduleKeyDeletion, &kms.ScheduleKeyDeletionInput{KeyId: key, PendingWindowInDays: aws.Int32(7)})
	is(r, "state", out.KeyState, types.KeyStatePendingDeletion)
	if d := time.Until(*out.DeletionDate); d < 6*24*time.Hour || d > 8*24*time.Hour {
		r.Errorf("the deletion is in %v, want seven days", d)
	}
	refused(r, "KMSInvalidStateException", (*kms.Client).Decrypt, &kms.DecryptInput{CiphertextBlob: blob})
	is(r, "state", r.describe(key).KeyState, types.KeyStatePendingDeletion)
}

func sdkCancelKeyDeletion(r *sdkRound) {
	key := r.symmetric()
	blob := r.encrypt(key, "saved")
	call(r, (*kms.Client).ScheduleKeyDeletion, &kms.ScheduleKeyDeletionInput{KeyId: key})
	call(r, (*kms.Client).CancelKeyDeletion, &kms.CancelKeyDeletionInput{KeyId: key})
	is(r, "state", r.describe(key).KeyState, types.KeyStateDisabled)
	call(r, (*kms.Client).EnableKey, &kms.EnableKeyInput{KeyId: key})
	r.decrypts(blob, "saved")
}

func sdkGetKeyLastUsage(r *sdkRound) {
	key := r.symmetric()
	if u := call(r, (*kms.Client).GetKeyLastUsage, &kms.GetKeyLastUsageInput{KeyId: key}).KeyLastUsage; u != nil && u.Timestamp != nil {
		r.Errorf("a new key was used at %v", u.Timestamp)
	}
	r.encrypt(key, "used")
	u := call(r, (*kms.Client).GetKeyLastUsage, &kms.GetKeyLastUsageInput{KeyId: key}).KeyLastUsage
	is(r, "operation", string(u.Operation), "Encrypt")
	if u.Timestamp == nil || time.Since(*u.Timestamp).Abs() > time.Hour {
		r.Errorf("it was used at %v", u.Timestamp)
	}
}

func (r *sdkRound) alias(name string, key *string) *string {
	r.Helper()
	call(r, (*kms.Client).CreateAlias, &kms.CreateAliasInput{AliasName: &name, TargetKeyId: key})
	return &name
}

func sdkCreateAlias(r *sdkRound) {
	key := r.symmetric()
	alias := r.alias("alias/made", key)
	r.decrypts(r.encrypt(alias, "by its name"), "by its name")
	is(r, "target", *r.describe(alias).KeyId, *key)
	refused(r, "AlreadyExistsException", (*kms.Client).CreateAlias, &kms.CreateAliasInput{AliasName: alias, TargetKeyId: key})
}

func sdkUpdateAlias(r *sdkRound) {
	alias, other := r.alias("alias/moved", r.symmetric()), r.symmetric()
	call(r, (*kms.Client).UpdateAlias, &kms.UpdateAliasInput{AliasName: alias, TargetKeyId: other})
	is(r, "target", *r.describe(alias).KeyId, *other)
}

func sdkDeleteAlias(r *sdkRound) {
	alias := r.alias("alias/removed", r.symmetric())
	call(r, (*kms.Client).DeleteAlias, &kms.DeleteAliasInput{AliasName: alias})
	refused(r, "NotFoundException", (*kms.Client).DescribeKey, &kms.DescribeKeyInput{KeyId: alias})
}

func sdkListAliases(r *sdkRound) {
	key := r.symmetric()
	r.alias("alias/listed", key)
	r.alias("alias/listed-too", key)
	list := call(r, (*kms.Client).ListAliases, &kms.ListAliasesInput{KeyId: key}).Aliases
	var names []string
	for _, a := range list {
		names = append(names, *a.AliasName)
		is(r, "target", *a.TargetKeyId, *key)
	}
	slices.Sort(names)
	is(r, "aliases", names, []string{"alias/listed", "alias/listed-too"})
}

// tags are the tags that a key has, as NAME=VALUE.
func (r *sdkRound) tags(key *string) []string {
	r.Helper()
	var tags []string
	for _, t := range call(r, (*kms.Client).ListResourceTags, &kms.ListResourceTagsInput{KeyId: key}).Tags {
		tags = append(tags, *t.TagKey+"="+*t.TagValue)
	}
	slices.Sort(tags)
	return tags
}

func (r *sdkRound) tag(key *string, name, value string) {
	r.Helper()
	call(r, (*kms.Client).TagResource, &kms.TagResourceInput{KeyId: key, Tags: []types.Tag{{TagKey: &name, TagValue: &value}}})
}

func sdkTagResource(r *sdkRound) {
	key := r.symmetric()
	r.tag(key, "a", "1")
	r.tag(key, "a", "2")
	is(r, "tags", r.tags(key), []string{"a=2"})
}

func sdkUntagResource(r *sdkRound) {
	key := r.symmetric()
	r.tag(key, "a", "1")
	r.tag(key, "b", "2")
	call(r, (*kms.Client).UntagResource, &kms.UntagResourceInput{KeyId: key, TagKeys: []string{"a"}})
	is(r, "tags", r.tags(key), []string{"b=2"})
}

func sdkListResourceTags(r *sdkRound) {
	key := r.symmetric()
	is(r, "tags of a new key", len(r.tags(key)), 0)
	r.tag(key, "b", "2")
	r.tag(key, "a", "1")
	is(r, "tags", r.tags(key), []string{"a=1", "b=2"})
}

func sdkGetKeyPolicy(r *sdkRound) {
	key := r.symmetric()
	out := call(r, (*kms.Client).GetKeyPolicy, &kms.GetKeyPolicyInput{KeyId: key})
	is(r, "name", *out.PolicyName, "default")
	if !strings.Contains(*out.Policy, "arn:aws:iam::"+harness.Account+":root") {
		r.Errorf("the default policy is %s", *out.Policy)
	}
}

func sdkPutKeyPolicy(r *sdkRound) {
	key := r.symmetric()
	blob := r.encrypt(key, "behind a policy")
	call(r, (*kms.Client).PutKeyPolicy, &kms.PutKeyPolicyInput{KeyId: key, Policy: aws.String(harness.RootPolicy(harness.DenyRoot("kms:Decrypt")))})
	for range r.c.Nodes {
		refused(r, "AccessDeniedException", (*kms.Client).Decrypt, &kms.DecryptInput{CiphertextBlob: blob})
	}
	call(r, (*kms.Client).PutKeyPolicy, &kms.PutKeyPolicyInput{KeyId: key, PolicyName: aws.String("default"), Policy: aws.String(harness.RootPolicy())})
	r.decrypts(blob, "behind a policy")
}

func sdkListKeyPolicies(r *sdkRound) {
	is(r, "policies", call(r, (*kms.Client).ListKeyPolicies, &kms.ListKeyPoliciesInput{KeyId: r.symmetric()}).PolicyNames, []string{"default"})
}

func (r *sdkRound) rotation(key *string) *kms.GetKeyRotationStatusOutput {
	r.Helper()
	return call(r, (*kms.Client).GetKeyRotationStatus, &kms.GetKeyRotationStatusInput{KeyId: key})
}

func sdkEnableKeyRotation(r *sdkRound) {
	key := r.symmetric()
	call(r, (*kms.Client).EnableKeyRotation, &kms.EnableKeyRotationInput{KeyId: key, RotationPeriodInDays: aws.Int32(100)})
	s := r.rotation(key)
	is(r, "enabled", s.KeyRotationEnabled, true)
	is(r, "period", *s.RotationPeriodInDays, 100)
	if d := time.Until(*s.NextRotationDate); d < 99*24*time.Hour || d > 101*24*time.Hour {
		r.Errorf("the next rotation is in %v, want a hundred days", d)
	}
}

func sdkDisableKeyRotation(r *sdkRound) {
	key := r.symmetric()
	call(r, (*kms.Client).EnableKeyRotation, &kms.EnableKeyRotationInput{KeyId: key})
	call(r, (*kms.Client).DisableKeyRotation, &kms.DisableKeyRotationInput{KeyId: key})
	is(r, "enabled", r.rotation(key).KeyRotationEnabled, false)
}

func sdkGetKeyRotationStatus(r *sdkRound) {
	key := r.symmetric()
	s := r.rotation(key)
	is(r, "enabled", s.KeyRotationEnabled, false)
	is(r, "the key's ARN", *s.KeyId, *r.describe(key).Arn)
	mac := r.key(types.KeySpecHmac256, types.KeyUsageTypeGenerateVerifyMac)
	is(r, "of a kind that does not rotate: enabled", r.rotation(mac).KeyRotationEnabled, false)
}

// rotates rotates a key and returns the rotation, once it is over.
func (r *sdkRound) rotates(key *string) types.RotationsListEntry {
	r.Helper()
	call(r, (*kms.Client).RotateKeyOnDemand, &kms.RotateKeyOnDemandInput{KeyId: key})
	var list []types.RotationsListEntry
	r.c.Eventually("rotating a key", func(context.Context) error {
		list = call(r, (*kms.Client).ListKeyRotations, &kms.ListKeyRotationsInput{KeyId: key}).Rotations
		if len(list) == 0 {
			return errors.New("no rotation is listed")
		}
		return nil
	})
	return list[len(list)-1]
}

func sdkRotateKeyOnDemand(r *sdkRound) {
	key := r.symmetric()
	before, first := r.describe(key).CurrentKeyMaterialId, r.encrypt(key, "before")
	r.rotates(key)
	after, second := r.describe(key).CurrentKeyMaterialId, r.encrypt(key, "after")
	if *before == *after {
		r.Error("the material is the same after a rotation")
	}
	for blob, want := range map[string]struct {
		text     string
		material *string
	}{string(first): {"before", before}, string(second): {"after", after}} {
		dec := call(r, (*kms.Client).Decrypt, &kms.DecryptInput{CiphertextBlob: []byte(blob)})
		is(r, "plaintext", string(dec.Plaintext), want.text)
		is(r, "material", *dec.KeyMaterialId, *want.material)
	}
}

func sdkListKeyRotations(r *sdkRound) {
	key := r.symmetric()
	is(r, "rotations of a new key", len(call(r, (*kms.Client).ListKeyRotations, &kms.ListKeyRotationsInput{KeyId: key}).Rotations), 0)
	e := r.rotates(key)
	is(r, "type", e.RotationType, types.RotationTypeOnDemand)
	all := call(r, (*kms.Client).ListKeyRotations, &kms.ListKeyRotationsInput{KeyId: key, IncludeKeyMaterial: types.IncludeKeyMaterialAllKeyMaterial})
	is(r, "materials", len(all.Rotations), 2)
}

// multiRegion makes a primary key and a replica of it, and returns their id.
func (r *sdkRound) multiRegion() *string {
	r.Helper()
	key := call(r, (*kms.Client).CreateKey, &kms.CreateKeyInput{MultiRegion: aws.Bool(true)}).KeyMetadata.KeyId
	out := call(r, (*kms.Client).ReplicateKey, &kms.ReplicateKeyInput{KeyId: key, ReplicaRegion: aws.String(otherRegion)})
	is(r, "id of the replica", *out.ReplicaKeyMetadata.KeyId, *key)
	return key
}

func sdkReplicateKey(r *sdkRound) {
	key := r.multiRegion()
	is(r, "kind of the replica", r.describe(key, inOther).MultiRegionConfiguration.MultiRegionKeyType, types.MultiRegionKeyTypeReplica)
	r.decrypts(r.encrypt(key, "across"), "across", inOther)
	r.decrypts(r.encrypt(key, "and back", inOther), "and back")
}

func sdkUpdatePrimaryRegion(r *sdkRound) {
	key := r.multiRegion()
	call(r, (*kms.Client).UpdatePrimaryRegion, &kms.UpdatePrimaryRegionInput{KeyId: key, PrimaryRegion: aws.String(otherRegion)})
	is(r, "kind of the old primary", r.describe(key).MultiRegionConfiguration.MultiRegionKeyType, types.MultiRegionKeyTypeReplica)
	m := r.describe(key, inOther).MultiRegionConfiguration
	is(r, "kind of the new primary", m.MultiRegionKeyType, types.MultiRegionKeyTypePrimary)
	is(r, "Region of the primary", *m.PrimaryKey.Region, otherRegion)
}

const (
	grantee = "arn:aws:iam::" + harness.Account + ":user/grantee"
	retirer = "arn:aws:iam::" + harness.Account + ":user/retirer"
)

func (r *sdkRound) grant(key *string) *kms.CreateGrantOutput {
	r.Helper()
	return call(r, (*kms.Client).CreateGrant, &kms.CreateGrantInput{
		KeyId: key, GranteePrincipal: aws.String(grantee), RetiringPrincipal: aws.String(retirer), Operations: []types.GrantOperation{types.GrantOperationEncrypt},
	})
}

// granted are the ids of the grants on a key.
func (r *sdkRound) granted(key *string) []string {
	r.Helper()
	ids := []string{}
	for _, g := range call(r, (*kms.Client).ListGrants, &kms.ListGrantsInput{KeyId: key}).Grants {
		ids = append(ids, *g.GrantId)
		is(r, "grantee", *g.GranteePrincipal, grantee)
	}
	return ids
}

func sdkCreateGrant(r *sdkRound) {
	key := r.symmetric()
	g := r.grant(key)
	if *g.GrantToken == "" {
		r.Error("there is no grant token")
	}
	is(r, "grants", r.granted(key), []string{*g.GrantId})
	refused(r, "ValidationException", (*kms.Client).CreateGrant, &kms.CreateGrantInput{
		KeyId: key, GranteePrincipal: aws.String(grantee), Operations: []types.GrantOperation{types.GrantOperationSign},
	})
}

func sdkListGrants(r *sdkRound) {
	key := r.symmetric()
	is(r, "grants on a new key", r.granted(key), []string{})
	want := []string{*r.grant(key).GrantId, *r.grant(key).GrantId}
	got := r.granted(key)
	slices.Sort(want)
	slices.Sort(got)
	is(r, "grants", got, want)
}

func sdkListRetirableGrants(r *sdkRound) {
	id := *r.grant(r.symmetric()).GrantId
	list := call(r, (*kms.Client).ListRetirableGrants, &kms.ListRetirableGrantsInput{RetiringPrincipal: aws.String(retirer)}).Grants
	if !slices.ContainsFunc(list, func(g types.GrantListEntry) bool { return *g.GrantId == id }) {
		r.Errorf("%d grants are listed, but not the newest", len(list))
	}
}

func sdkRetireGrant(r *sdkRound) {
	key := r.symmetric()
	call(r, (*kms.Client).RetireGrant, &kms.RetireGrantInput{GrantToken: r.grant(key).GrantToken})
	is(r, "grants", r.granted(key), []string{})
}

func sdkRevokeGrant(r *sdkRound) {
	key := r.symmetric()
	kept := r.grant(key)
	call(r, (*kms.Client).RevokeGrant, &kms.RevokeGrantInput{KeyId: key, GrantId: r.grant(key).GrantId})
	is(r, "grants", r.granted(key), []string{*kept.GrantId})
}
