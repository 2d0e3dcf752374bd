package backup

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/snapfile"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
)

// A backup can be restored in place of a cluster that still exists: docs/adr/0005. The
// objects are those of the backup. The cluster's record, with the share set and the keyring,
// the time, the index and the audit log go on from the cluster, so that no record of what
// happened since is lost, no time runs backwards, and the shares are those of today.

// Over is the cluster in whose place a backup is restored.
type Over struct {
	// Node is the node whose state is used.
	Node string
	// State is the newest state of the cluster.
	State *fsm.State
	// ValidAgain is what the backup brings back, as Revoked returned it.
	ValidAgain []string

	header *fsmpb.SnapshotHeader
}

// maxValidAgain bounds what the record of a restore names of what is valid again.
const maxValidAgain = 200

func (o *Over) fields() []*auditpb.Field {
	frontier, _ := o.State.Audit()
	return []*auditpb.Field{
		auditfield.Text("over", o.Node), auditfield.Text("replacedIndex", strconv.FormatUint(o.State.Index(), 10)),
		auditfield.Text("replacedAuditRecords", strconv.FormatUint(frontier.Size(), 10)),
		auditfield.Number("validAgainCount", len(o.ValidAgain)), auditfield.TextList("validAgain", o.ValidAgain[:min(len(o.ValidAgain), maxValidAgain)]),
	}
}

// For returns the same keys, for a backup of the same cluster. The backup may be older than
// the newest generation of the keyring, and than the share set.
func (k *Keys) For(h *Header) (*Keys, error) {
	if !bytes.Equal(h.Cluster.GetId(), k.header.Cluster.GetId()) {
		return nil, ErrForeignBackup
	}
	return &Keys{header: h, vault: k.vault, custodians: k.custodians}, nil
}

// CheckHistory returns an error unless an audit log that goes on from the backup's begins with
// it. Otherwise the backup is of another history of the cluster.
func (h *Header) CheckHistory(log AuditLog) error {
	var tree auditlog.Frontier
	for tree.Size() < h.AuditSize {
		entries, err := log.Read(tree.Size(), int(min(auditBatch, h.AuditSize-tree.Size())), auditBytes)
		if err != nil {
			return err
		}
		if len(entries) == 0 {
			return fmt.Errorf("the backup covers %d records of the audit log, and the cluster has %d: it is newer, or of another history", h.AuditSize, tree.Size())
		}
		for i := range entries {
			tree.Append(entries[i].LeafHash())
		}
	}
	if root := tree.Root(); !bytes.Equal(root[:], h.AuditRoot) {
		return errors.New("the backup is of another history of the cluster: its audit log is not the beginning of the cluster's")
	}
	return nil
}

// Begin reads the header of the snapshot of the newest state.
func (o *Over) Begin(snapshot io.Reader) error {
	in, err := snapfile.NewReader(snapshot)
	if err != nil {
		return err
	}
	defer in.Close()
	item, err := in.Next()
	if err != nil {
		return err
	}
	if o.header = item.GetHeader(); o.header.GetIndex() != o.State.Index() {
		return errors.New("the snapshot is not of the newest state")
	}
	return nil
}

// object is an object of a state, for comparison.
type object struct {
	name  string
	state fsmpb.KeyState // of a key
	hash  [32]byte
}

// Revoked compares the state of a backup with the newest one, both as snapshots. It returns
// what a restore of the backup would make valid again, or change back: what was deleted since,
// disabled, or changed in any way that decides who may do what. The lines are in ascending
// order. What follows from other objects is left out, and so are aliases.
func (k *Keys) Revoked(was, now io.Reader) (list []string, err error) {
	newest := make(map[string]object)
	if err := k.objects(now, func(id string, o object) { newest[id] = o }); err != nil {
		return nil, err
	}
	err = k.objects(was, func(id string, o object) {
		n, there := newest[id]
		switch {
		case !there:
			list = append(list, o.name+": was deleted")
		case o.state != n.state:
			list = append(list, fmt.Sprintf("%s: was %s, is %s again", o.name, keyState(n.state), keyState(o.state)))
		case o.hash != n.hash:
			list = append(list, o.name+": was changed")
		}
	})
	slices.Sort(list)
	return list, err
}

func keyState(s fsmpb.KeyState) string {
	switch s {
	case fsmpb.KeyState_KEY_STATE_ENABLED:
		return "enabled"
	case fsmpb.KeyState_KEY_STATE_DISABLED:
		return "disabled"
	case fsmpb.KeyState_KEY_STATE_PENDING_DELETION:
		return "pending deletion"
	}
	return s.String()
}

// objects calls f with each object of a snapshot that decides who may do what.
func (k *Keys) objects(snapshot io.Reader, f func(id string, o object)) error {
	in, err := snapfile.NewReader(snapshot)
	if err != nil {
		return err
	}
	defer in.Close()
	for {
		item, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		id, name, m := k.identify(item)
		if m == nil {
			continue
		}
		o := object{name: name, state: item.GetKey().GetState()}
		if o.hash, err = contentHash(m); err != nil {
			return err
		}
		f(id, o)
	}
}

// contentHash returns the hash of an object without its version.
func contentHash(m proto.Message) ([32]byte, error) {
	m = proto.Clone(m)
	r := m.ProtoReflect()
	if f := r.Descriptor().Fields().ByName("version"); f != nil && f.Kind() == protoreflect.Uint64Kind {
		r.Clear(f)
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	return sha256.Sum256(b), err
}

// identify returns the identity of an object and what people call it; nil for an item that
// decides nothing by itself.
func (k *Keys) identify(item *fsmpb.SnapshotItem) (id, name string, m proto.Message) {
	key := func(account uint64, region string, id []byte) string {
		return fmt.Sprintf("%s/%s/%x", fsm.Account(account), region, id)
	}
	text := func(kind string, account uint64, name string) string {
		return fmt.Sprintf("%s %s of account %s", kind, name, fsm.Account(account))
	}
	switch i := item.Item.(type) {
	case *fsmpb.SnapshotItem_Key:
		o := i.Key
		return "key " + key(o.Account, o.Region, o.Id), "key " + k.arn(o), o
	case *fsmpb.SnapshotItem_KeyPolicy:
		o := i.KeyPolicy
		name = "policy of key " + key(o.Account, o.Region, o.Key)
		return name, name, o
	case *fsmpb.SnapshotItem_KeyTags:
		o := i.KeyTags
		name = "tags of key " + key(o.Account, o.Region, o.Key)
		return name, name, o
	case *fsmpb.SnapshotItem_Grant:
		o := i.Grant
		name = fmt.Sprintf("grant %x to %s of key %s", o.Id, o.Grantee, key(o.Account, o.Region, o.Key))
		return name, name, o
	case *fsmpb.SnapshotItem_Credential:
		o := i.Credential
		return text("credential", o.Account, o.Id), fmt.Sprintf("credential %s of %s", o.Id, o.Principal), o
	case *fsmpb.SnapshotItem_KeyStore:
		o := i.KeyStore
		name = text("key store", o.Account, o.Id)
		return name, name, o
	case *fsmpb.SnapshotItem_Account:
		name = "account " + fsm.Account(i.Account.Account).String()
		return name, name, i.Account
	case *fsmpb.SnapshotItem_User:
		name = text("user", i.User.Account, i.User.Name+" ("+i.User.Id+")")
		return name, name, i.User
	case *fsmpb.SnapshotItem_Group:
		name = text("group", i.Group.Account, i.Group.Name+" ("+i.Group.Id+")")
		return name, name, i.Group
	case *fsmpb.SnapshotItem_Role:
		name = text("role", i.Role.Account, i.Role.Name+" ("+i.Role.Id+")")
		return name, name, i.Role
	case *fsmpb.SnapshotItem_Policy:
		name = text("policy", i.Policy.Account, i.Policy.Name)
		return name, name, i.Policy
	case *fsmpb.SnapshotItem_PolicyVersion:
		name = text("policy", i.PolicyVersion.Account, fmt.Sprintf("%s, version %d,", i.PolicyVersion.Policy, i.PolicyVersion.Number))
		return name, name, i.PolicyVersion
	case *fsmpb.SnapshotItem_OidcProvider:
		name = text("identity provider", i.OidcProvider.Account, i.OidcProvider.Url)
		return name, name, i.OidcProvider
	case *fsmpb.SnapshotItem_CertificateMapping:
		name = "certificate mapping " + i.CertificateMapping.Pattern
		return name, name, i.CertificateMapping
	case *fsmpb.SnapshotItem_Setting:
		name = "setting " + i.Setting.Name
		return name, name, i.Setting
	}
	return "", "", nil
}
