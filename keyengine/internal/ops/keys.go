package ops

import (
	"crypto/rand"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/cryptops"
	"github.com/conclavekms/conclave/keyengine/internal/primitive"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

func createKey(ev *request.Evaluation, in *kmsapi.CreateKeyInput) (*kmsapi.CreateKeyOutput, error) {
	if err := keyKind(in); err != nil {
		return nil, err
	}
	k := newKey(ev, in)
	if err := ev.AuthoriseResource(ev.Op.Action(), "*", &request.Conditions{New: k}); err != nil {
		return nil, err
	}
	if len(in.Tags) > 0 {
		if err := ev.AuthoriseResource(actionTagResource, "*", &request.Conditions{New: k}); err != nil {
			return nil, err
		}
	}
	if err := supportedKey(in); err != nil {
		return nil, err
	}
	tags, err := mergeTags(ev, nil, in.Tags)
	if err != nil {
		return nil, err
	}
	c := ev.Cluster()
	id := fsm.KeyID{Account: request.AccountOf(ev), Region: ev.Region(), ID: newKeyID()}
	k.Id = id.ID[:]
	t := &request.Target{ID: id, Key: k, ARN: request.KeyARN(c, id.Account, id.Region, request.FormatKeyID(id.ID, k.MultiRegion))}
	doc := policy.DefaultKeyPolicy(c.Partition, id.Account.String())
	var bindings []*fsmpb.Binding
	if in.Policy != nil {
		doc = *in.Policy
		if bindings, err = request.CheckPolicy(ev, doc, t, nil, request.IsSet(in.BypassPolicyLockoutSafetyCheck)); err != nil {
			return nil, err
		}
	}
	if err := roomForKey(ev, id.Region); err != nil {
		return nil, err
	}
	if in.Description != nil {
		k.Description = *in.Description
	}
	if err := putInStore(ev, k, in); err != nil {
		return nil, err
	}
	if err := firstMaterial(ev, k); err != nil {
		return nil, err
	}
	ev.Key(id) // the record requires that the id is not in use
	PutKey(ev, k)
	putPolicy(ev, id, doc, bindings)
	if len(tags) > 0 {
		PutTags(ev, id, tags)
	}
	ev.Resource("AWS::KMS::Key", t.ARN)
	return &kmsapi.CreateKeyOutput{KeyMetadata: metadataOf(ev, t)}, nil
}

// newKey returns the requested key, without an id and material.
func newKey(ev *request.Evaluation, in *kmsapi.CreateKeyInput) *fsmpb.Key {
	k := &fsmpb.Key{
		Account: uint64(request.AccountOf(ev)), Region: ev.Region(), Created: ev.Now().UnixNano(),
		Spec: specOf(in), Usage: usageOf(in), Origin: originOf(in), State: fsmpb.KeyState_KEY_STATE_ENABLED,
	}
	if request.IsSet(in.MultiRegion) {
		k.MultiRegion, k.PrimaryRegion = true, k.Region
	}
	return k
}

// newKeyID returns a random key id. It is a UUID of version 4, because some clients check it.
func newKeyID() (id [16]byte) {
	_, _ = rand.Read(id[:]) // never fails: crypto/rand ends the process instead
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return id
}

// keyKind validates the requested kind of key, whether or not this version supports it.
func keyKind(in *kmsapi.CreateKeyInput) error {
	if in.KeySpec != nil && in.CustomerMasterKeySpec != nil {
		return kmsapi.Errorf(kmsapi.ErrValidation, "You cannot specify KeySpec and CustomerMasterKeySpec in the same request. CustomerMasterKeySpec is deprecated.")
	}
	if err := storeKeyMembers(in); err != nil {
		return err
	}
	spec := specOf(in)
	if in.KeyUsage == nil {
		if spec != kmsapi.SpecSymmetric {
			return kmsapi.Errorf(kmsapi.ErrValidation, "You must specify a KeyUsage value for all KMS keys except for symmetric encryption keys.")
		}
		return nil
	}
	if !slices.Contains(UsagesOf[spec], *in.KeyUsage) {
		return kmsapi.Errorf(kmsapi.ErrValidation, "KeyUsage %s is not compatible with KeySpec %s", *in.KeyUsage, spec)
	}
	return nil
}

func specOf(in *kmsapi.CreateKeyInput) string {
	switch {
	case in.KeySpec != nil:
		return *in.KeySpec
	case in.CustomerMasterKeySpec != nil:
		return *in.CustomerMasterKeySpec
	}
	return kmsapi.SpecSymmetric
}

func usageOf(in *kmsapi.CreateKeyInput) string {
	if in.KeyUsage != nil {
		return *in.KeyUsage
	}
	return kmsapi.UsageEncrypt
}

// makeMaterial creates a material for a key whose origin is AWS_KMS.
func makeMaterial(ev *request.Evaluation, k *fsmpb.Key) (*fsmpb.Material, error) {
	now := ev.Now().UnixNano()
	if k.Spec == kmsapi.SpecSymmetric {
		return ev.Vault.NewMaterial(k, now)
	}
	b, err := ev.Once(func() ([]byte, error) { return primitive.Generate(k.Spec) })
	if err != nil {
		return nil, cryptops.RefusedByFIPS(err)
	}
	return wrapPrivate(ev, k, now, b)
}

// wrapPrivate creates a material from a key that is not a symmetric encryption key, with
// its public key if it has one. It wipes b.
func wrapPrivate(ev *request.Evaluation, k *fsmpb.Key, created int64, b []byte) (*fsmpb.Material, error) {
	defer clear(b)
	var public []byte
	if k.Usage != kmsapi.UsageMac {
		var err error
		if public, err = primitive.Public(k.Spec, b); err != nil {
			return nil, cryptops.RefusedByFIPS(err)
		}
	}
	m, err := ev.Vault.GivenMaterial(k, created, b)
	if err != nil {
		return nil, err
	}
	m.PublicKey = public
	return m, nil
}

// supportedKey refuses kinds of keys that this version does not support.
func supportedKey(in *kmsapi.CreateKeyInput) error {
	switch {
	case request.IsSet(in.MultiRegion) && (in.CustomKeyStoreId != nil || in.Origin != nil && (*in.Origin == kmsapi.OriginHSM || *in.Origin == kmsapi.OriginXKS)):
		return kmsapi.Errorf(kmsapi.ErrUnsupported, "Multi-Region keys cannot be in a custom key store.")
	case in.CustomKeyStoreId != nil && specOf(in) != kmsapi.SpecSymmetric:
		return kmsapi.Errorf(kmsapi.ErrUnsupported, "Keys in a custom key store have KeySpec %s.", kmsapi.SpecSymmetric)
	case specOf(in) == kmsapi.SpecSM2:
		return kmsapi.Errorf(kmsapi.ErrUnsupported, "KeySpec %s is not supported in this Region", kmsapi.SpecSM2)
	case originOf(in) == kmsapi.OriginImported:
		return Importable(specOf(in))
	}
	return nil
}

func describeKey(ev *request.Evaluation, in *kmsapi.DescribeKeyInput) (*kmsapi.DescribeKeyOutput, error) {
	if err := request.CheckTokens(ev, in.GrantTokens); err != nil {
		return nil, err
	}
	t, err := ev.Authorised(*in.KeyId, request.AnyForm, ev.Op.Action(), nil)
	if err != nil {
		return nil, err
	}
	return &kmsapi.DescribeKeyOutput{KeyMetadata: metadataOf(ev, t)}, ev.Op.States.Check(t.ARN, t.Key.State)
}

func metadataOf(ev *request.Evaluation, t *request.Target) *kmsapi.KeyMetadata {
	d := ownMetadata(ev, t)
	if t.Key.MultiRegion {
		d.MultiRegionConfiguration = configuration(ev, t)
	}
	return d
}

// ownMetadata returns the metadata that does not depend on other keys.
func ownMetadata(ev *request.Evaluation, t *request.Target) *kmsapi.KeyMetadata {
	k := t.Key
	d := &kmsapi.KeyMetadata{
		AWSAccountId: new(t.ID.Account.String()),
		KeyId:        new(t.Name()),
		Arn:          new(t.ARN),
		CreationDate: TimeOf(k.Created),
		Enabled:      new(k.State == fsmpb.KeyState_KEY_STATE_ENABLED),
		Description:  new(k.Description),
		KeyUsage:     new(k.Usage),
		KeyState:     new(shownState(ev, k)),
		Origin:       new(k.Origin),
		KeyManager:   new(kmsapi.ManagerCustomer),
		KeySpec:      new(k.Spec),
		MultiRegion:  new(k.MultiRegion),
	}
	if slices.Contains(kmsapi.EnumOf("CustomerMasterKeySpec").Values(), k.Spec) {
		d.CustomerMasterKeySpec = d.KeySpec
	}
	switch list := cryptops.Algorithms(k); k.Usage {
	case kmsapi.UsageEncrypt:
		d.EncryptionAlgorithms = list
	case kmsapi.UsageSign:
		d.SigningAlgorithms = list
	case kmsapi.UsageMac:
		d.MacAlgorithms = list
	case kmsapi.UsageAgree:
		d.KeyAgreementAlgorithms = list
	case kmsapi.UsageEncapsulate:
		d.EncapsulationAlgorithms = list
	}
	if k.State == fsmpb.KeyState_KEY_STATE_PENDING_DELETION {
		d.DeletionDate = TimeOf(k.DeletionTime)
	}
	if k.Origin == kmsapi.OriginImported && request.Complete(k, ev.State.Time()) {
		d.ExpirationModel, d.ValidTo = expiration(request.Expires(k))
	}
	if k.State == fsmpb.KeyState_KEY_STATE_PENDING_REPLICA_DELETION {
		d.PendingDeletionWindowInDays = new(k.DeletionDays)
	}
	if k.KeyStore != "" {
		d.CustomKeyStoreId = new(k.KeyStore)
		if s := ev.KeyStore(k.KeyStore); s != nil && s.Type == kmsapi.OriginHSM {
			d.CloudHsmClusterId = new(s.Endpoint)
		}
		d.Enabled = new(*d.KeyState == KeyStates[fsmpb.KeyState_KEY_STATE_ENABLED])
	}
	if k.XksKey != "" {
		d.XksKeyConfiguration = &kmsapi.XksKeyConfiguration{Id: new(k.XksKey)}
	}
	d.CurrentKeyMaterialId = request.ShownMaterial(t, request.CurrentMaterial(k))
	return d
}

// recordMetadata returns what the record has of CreateKey's answer.
func recordMetadata(out *kmsapi.CreateKeyOutput, _ []*auditpb.Resource) []*auditpb.Field {
	return []*auditpb.Field{metadataField("keyMetadata", out.KeyMetadata)}
}

func metadataField(name string, d *kmsapi.KeyMetadata) *auditpb.Field {
	elements := map[string]string{
		"aWSAccountId": *d.AWSAccountId, "keyId": *d.KeyId, "arn": *d.Arn, "creationDate": auditfield.FormatTime(*d.CreationDate),
		"enabled": strconv.FormatBool(*d.Enabled), "description": *d.Description, "keyUsage": *d.KeyUsage, "keyState": *d.KeyState,
		"origin": *d.Origin, "keyManager": *d.KeyManager, "keySpec": *d.KeySpec, "multiRegion": strconv.FormatBool(*d.MultiRegion),
	}
	if d.CustomerMasterKeySpec != nil {
		elements["customerMasterKeySpec"] = *d.CustomerMasterKeySpec
	}
	if d.CurrentKeyMaterialId != nil {
		elements["currentKeyMaterialId"] = *d.CurrentKeyMaterialId
	}
	if d.CustomKeyStoreId != nil {
		elements["customKeyStoreId"] = *d.CustomKeyStoreId
	}
	if d.XksKeyConfiguration != nil {
		elements["xksKeyConfiguration.id"] = *d.XksKeyConfiguration.Id
	}
	if c := d.MultiRegionConfiguration; c != nil {
		elements["multiRegionConfiguration.multiRegionKeyType"] = *c.MultiRegionKeyType
		elements["multiRegionConfiguration.primaryKey.arn"] = *c.PrimaryKey.Arn
		for _, r := range c.ReplicaKeys {
			elements["multiRegionConfiguration.replicaKeys."+*r.Region+".arn"] = *r.Arn
		}
	}
	return auditfield.TextMap(name, elements)
}

func updateKeyDescription(ev *request.Evaluation, in *kmsapi.UpdateKeyDescriptionInput) (*request.None, error) {
	return updateKey(ev, *in.KeyId, func(k *fsmpb.Key) { k.Description = *in.Description })
}

func enableKey(ev *request.Evaluation, in *kmsapi.EnableKeyInput) (*request.None, error) {
	return updateKey(ev, *in.KeyId, func(k *fsmpb.Key) { k.State = fsmpb.KeyState_KEY_STATE_ENABLED })
}

func disableKey(ev *request.Evaluation, in *kmsapi.DisableKeyInput) (*request.None, error) {
	return updateKey(ev, *in.KeyId, func(k *fsmpb.Key) { k.State = fsmpb.KeyState_KEY_STATE_DISABLED })
}

// updateKey applies update to a key and adds the change to the record, if there is one.
func updateKey(ev *request.Evaluation, keyID string, update func(*fsmpb.Key)) (*request.None, error) {
	t, err := ev.Managed(keyID)
	if err != nil {
		return nil, err
	}
	k := proto.CloneOf(t.Key)
	if update(k); !proto.Equal(k, t.Key) {
		PutKey(ev, k)
	}
	return &request.None{}, nil
}

// scheduleKeyDeletion sets when a key is deleted. The waiting period of a primary with
// replicas begins when the last replica is gone, so only its length is stored. Otherwise
// the period is counted from the next whole second, and the record is rejected if cluster
// time has passed that second by then. A key is thus never deleted early with respect to
// cluster time.
func scheduleKeyDeletion(ev *request.Evaluation, in *kmsapi.ScheduleKeyDeletionInput) (*kmsapi.ScheduleKeyDeletionOutput, error) {
	t, err := ev.Managed(*in.KeyId)
	if err != nil {
		return nil, err
	}
	days := int32(30)
	if in.PendingWindowInDays != nil {
		days = *in.PendingWindowInDays
	}
	k := proto.CloneOf(t.Key)
	if waitsForReplicas(ev, t) {
		k.State, k.DeletionDays = fsmpb.KeyState_KEY_STATE_PENDING_REPLICA_DELETION, days
	} else {
		base := ev.Now().Add(time.Second - 1).Truncate(time.Second)
		ev.Within(0, base.UnixNano()+1)
		k.State, k.DeletionTime = fsmpb.KeyState_KEY_STATE_PENDING_DELETION, base.Add(time.Duration(days)*24*time.Hour).UnixNano()
	}
	PutKey(ev, k)
	out := &kmsapi.ScheduleKeyDeletionOutput{KeyId: &t.ARN, KeyState: new(KeyStates[k.State]), PendingWindowInDays: &days}
	if k.DeletionTime != 0 {
		out.DeletionDate = TimeOf(k.DeletionTime)
	}
	return out, nil
}

func recordDeletion(out *kmsapi.ScheduleKeyDeletionOutput, _ []*auditpb.Resource) []*auditpb.Field {
	fields := []*auditpb.Field{auditfield.Text("keyId", *out.KeyId), auditfield.Text("keyState", *out.KeyState)}
	if out.DeletionDate != nil {
		fields = append(fields, auditfield.Text("deletionDate", auditfield.FormatTime(*out.DeletionDate)))
	}
	return append(fields, auditfield.Number("pendingWindowInDays", int(*out.PendingWindowInDays)))
}

func cancelKeyDeletion(ev *request.Evaluation, in *kmsapi.CancelKeyDeletionInput) (*kmsapi.CancelKeyDeletionOutput, error) {
	t, err := ev.Managed(*in.KeyId)
	if err != nil {
		return nil, err
	}
	k := proto.CloneOf(t.Key)
	k.State, k.DeletionTime, k.DeletionDays = fsmpb.KeyState_KEY_STATE_DISABLED, 0, 0
	if lacksMaterial(k) {
		k.State, k.DisabledBeforeImport = fsmpb.KeyState_KEY_STATE_PENDING_IMPORT, true
	}
	PutKey(ev, k)
	return &kmsapi.CancelKeyDeletionOutput{KeyId: &t.ARN}, nil
}

func recordCancel(out *kmsapi.CancelKeyDeletionOutput, _ []*auditpb.Resource) []*auditpb.Field {
	return []*auditpb.Field{auditfield.Text("keyId", *out.KeyId)}
}

// lacksMaterial reports whether a key lacks imported material that it needs to be enabled,
// because it was never imported or is gone.
func lacksMaterial(k *fsmpb.Key) bool {
	return k.Origin == kmsapi.OriginImported && (request.CurrentMaterial(k) == nil ||
		slices.ContainsFunc(k.Materials, func(m *fsmpb.Material) bool { return !m.Pending && len(m.Wrapped) == 0 }))
}

// PutKey adds a change of a key to the record.
func PutKey(ev *request.Evaluation, k *fsmpb.Key) {
	ev.Change(&fsmpb.Change{Change: &fsmpb.Change_PutKey{PutKey: k}})
}

// TimeOf converts Unix nanoseconds to a time.
func TimeOf(nanos int64) *time.Time { return new(time.Unix(0, nanos).UTC()) }

// roomForKey enforces the quota of keys in a Region.
func roomForKey(ev *request.Evaluation, region string) error {
	if most := ev.Quotas.Keys; ev.Keys.AtLeast(ev.State, ev.Clock.Now(), request.Place{Account: request.AccountOf(ev), Region: region}, most) {
		return kmsapi.Errorf(kmsapi.ErrLimitExceeded, "The account has %d KMS keys and cannot have more.", most)
	}
	return nil
}

func getPublicKey(ev *request.Evaluation, in *kmsapi.GetPublicKeyInput) (*kmsapi.GetPublicKeyOutput, error) {
	if err := request.CheckTokens(ev, in.GrantTokens); err != nil {
		return nil, err
	}
	t, err := ev.Authorised(*in.KeyId, request.AnyForm, ev.Op.Action(), nil)
	if err != nil {
		return nil, err
	}
	if err := ev.Op.States.Check(t.ARN, t.Key.State); err != nil {
		return nil, err
	}
	m := request.CurrentMaterial(t.Key)
	if m == nil || m.PublicKey == nil {
		return nil, kmsapi.Errorf(kmsapi.ErrUnsupported, "%s is not an asymmetric KMS key.", t.ARN)
	}
	d := ownMetadata(ev, t)
	return &kmsapi.GetPublicKeyOutput{
		KeyId: &t.ARN, PublicKey: m.PublicKey, CustomerMasterKeySpec: d.CustomerMasterKeySpec, KeySpec: d.KeySpec, KeyUsage: d.KeyUsage,
		EncryptionAlgorithms: d.EncryptionAlgorithms, SigningAlgorithms: d.SigningAlgorithms, KeyAgreementAlgorithms: d.KeyAgreementAlgorithms,
		EncapsulationAlgorithms: d.EncapsulationAlgorithms,
	}, nil
}
