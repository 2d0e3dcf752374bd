package fsm

import (
	"encoding/binary"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// pending is a change that was checked and can be made.
type pending func()

// changes makes all of a record's changes, or none: each is checked before the
// first is made. The checks are the rules that hold whatever the proposer read;
// everything else is its read set's business.
func (a *applier) changes(list []*fsmpb.Change) Verdict {
	if len(list) == 0 {
		return Accepted
	}
	todo := make([]pending, 0, len(list))
	for _, c := range list {
		p, v := a.change(c)
		if v != Accepted {
			return v
		}
		todo = append(todo, p)
	}
	for _, p := range todo {
		p()
	}
	return Accepted
}

func (a *applier) change(c *fsmpb.Change) (pending, Verdict) {
	switch c := c.Change.(type) {
	case *fsmpb.Change_PutCluster:
		return a.putCluster(c.PutCluster)
	case *fsmpb.Change_PutKey:
		return a.putKey(c.PutKey)
	case *fsmpb.Change_PutKeyPolicy:
		return a.putOfKey(fsmpb.Kind_KIND_KEY_POLICY, c.PutKeyPolicy.Region, c.PutKeyPolicy.Key, c.PutKeyPolicy)
	case *fsmpb.Change_PutKeyTags:
		return a.putOfKey(fsmpb.Kind_KIND_KEY_TAGS, c.PutKeyTags.Region, c.PutKeyTags.Key, c.PutKeyTags)
	case *fsmpb.Change_PutAlias:
		return a.putAlias(c.PutAlias)
	case *fsmpb.Change_DeleteAlias:
		return a.deleteAlias(c.DeleteAlias)
	case *fsmpb.Change_PutCredential:
		return a.putCredential(c.PutCredential)
	case *fsmpb.Change_DeleteKey:
		return a.deleteKey(c.DeleteKey)
	case *fsmpb.Change_ConfirmTime:
		return func() { a.state.confirmed = max(a.state.confirmed, c.ConfirmTime.Until) }, Accepted
	}
	return nil, Invalid
}

// putCluster founds the cluster, or replaces its seal. What clients' data and
// other nodes rely on never changes.
func (a *applier) putCluster(n *fsmpb.Cluster) (pending, Verdict) {
	if len(n.Id) != 16 || n.Account == "" || !validRegion(n.Region) || n.Partition == "" || n.Shares == nil || len(n.Keyring) == 0 {
		return nil, Invalid
	}
	if o := lookup(a.db, fsmpb.Kind_KIND_CLUSTER, nil); o != nil {
		was := o.msg.(*fsmpb.Cluster)
		if string(was.Id) != string(n.Id) || was.Account != n.Account || was.Region != n.Region || was.Partition != n.Partition {
			return nil, Invalid
		}
	}
	return func() { a.put(fsmpb.Kind_KIND_CLUSTER, nil, proto.CloneOf(n)) }, Accepted
}

// putKey creates or changes a key. An id that was a key's is never a key's
// again, and what material is for never changes.
func (a *applier) putKey(n *fsmpb.Key) (pending, Verdict) {
	id, ok := keyID(n.Region, n.Id)
	if !ok || n.Spec == "" || n.Usage == "" || n.State == fsmpb.KeyState_KEY_STATE_UNSPECIFIED ||
		(n.State == fsmpb.KeyState_KEY_STATE_PENDING_DELETION) != (n.DeletionTime != 0) {
		return nil, Invalid
	}
	if versionOf(a.db, fsmpb.Kind_KIND_TOMBSTONE, id.Bytes()) != 0 {
		return nil, Invalid
	}
	if o := lookup(a.db, fsmpb.Kind_KIND_KEY, id.Bytes()); o != nil {
		was := o.msg.(*fsmpb.Key)
		if was.Spec != n.Spec || was.Usage != n.Usage || was.Origin != n.Origin || was.MultiRegion != n.MultiRegion || was.Created != n.Created {
			return nil, Invalid
		}
	}
	return func() { a.put(fsmpb.Kind_KIND_KEY, id.Bytes(), proto.CloneOf(n)) }, Accepted
}

// putOfKey stores something that a key has one of. The key itself may be created
// by the same record, so that it exists is its proposer's business.
func (a *applier) putOfKey(kind fsmpb.Kind, region string, key []byte, n proto.Message) (pending, Verdict) {
	id, ok := keyID(region, key)
	if !ok {
		return nil, Invalid
	}
	return func() { a.put(kind, id.Bytes(), proto.Clone(n)) }, Accepted
}

func (a *applier) putAlias(n *fsmpb.Alias) (pending, Verdict) {
	id, ok := keyID(n.Region, n.Key)
	if !ok || n.Name == "" || len(n.Name) > 256 {
		return nil, Invalid
	}
	return func() {
		if o := lookup(a.db, fsmpb.Kind_KIND_ALIAS, AliasID(n.Region, n.Name)); o != nil {
			a.countAliases(o.msg.(*fsmpb.Alias), -1)
		}
		a.put(fsmpb.Kind_KIND_ALIAS, AliasID(n.Region, n.Name), proto.CloneOf(n))
		a.countAliases(&fsmpb.Alias{Region: n.Region, Key: id.ID[:]}, 1)
	}, Accepted
}

func (a *applier) deleteAlias(n *fsmpb.AliasName) (pending, Verdict) {
	o := lookup(a.db, fsmpb.Kind_KIND_ALIAS, AliasID(n.Region, n.Name))
	if o == nil {
		return nil, Invalid
	}
	return func() {
		a.remove(o)
		a.countAliases(o.msg.(*fsmpb.Alias), -1)
	}, Accepted
}

// countAliases keeps the count of a key's aliases, whose version stands for the
// set in read sets.
func (a *applier) countAliases(of *fsmpb.Alias, by int) {
	id, _ := keyID(of.Region, of.Key)
	n := &fsmpb.KeyAliases{Key: of.Key, Region: of.Region}
	if o := lookup(a.db, fsmpb.Kind_KIND_KEY_ALIASES, id.Bytes()); o != nil {
		n.Count = o.msg.(*fsmpb.KeyAliases).Count
	}
	n.Count = uint32(int(n.Count) + by)
	a.put(fsmpb.Kind_KIND_KEY_ALIASES, id.Bytes(), n)
}

func (a *applier) putCredential(n *fsmpb.Credential) (pending, Verdict) {
	if n.Id == "" || len(n.Id) > 1024 || n.Principal == "" || n.Kind == fsmpb.CredentialKind_CREDENTIAL_KIND_UNSPECIFIED {
		return nil, Invalid
	}
	return func() { a.put(fsmpb.Kind_KIND_CREDENTIAL, []byte(n.Id), proto.CloneOf(n)) }, Accepted
}

// deleteKey destroys a key whose time has come by cluster time, whoever says so:
// no clock that runs ahead on one node can delete a key early.
func (a *applier) deleteKey(n *fsmpb.DeleteKey) (pending, Verdict) {
	id, ok := keyID(n.Region, n.Key)
	if !ok {
		return nil, Invalid
	}
	o := lookup(a.db, fsmpb.Kind_KIND_KEY, id.Bytes())
	if o == nil {
		return nil, Conflict
	}
	k := o.msg.(*fsmpb.Key)
	if k.State != fsmpb.KeyState_KEY_STATE_PENDING_DELETION {
		return nil, Conflict
	}
	if a.state.time < k.DeletionTime {
		return nil, Early
	}
	return func() {
		for _, alias := range objectsByTarget(a.db, id) {
			a.remove(alias)
		}
		a.remove(o)
		for _, kind := range []fsmpb.Kind{fsmpb.Kind_KIND_KEY_POLICY, fsmpb.Kind_KIND_KEY_TAGS, fsmpb.Kind_KIND_KEY_ALIASES} {
			if o := lookup(a.db, kind, id.Bytes()); o != nil {
				a.remove(o)
			}
		}
		a.put(fsmpb.Kind_KIND_TOMBSTONE, id.Bytes(), &fsmpb.Tombstone{Key: n.Key, Region: n.Region, Deleted: a.state.time})
		a.events.Destroyed = append(a.events.Destroyed, id)
	}, Accepted
}

// put stores msg, which from here on belongs to the state, and stamps its
// version.
func (a *applier) put(kind fsmpb.Kind, id []byte, msg proto.Message) {
	setVersion(msg, a.index)
	a.foldObject(kind, id, msg)
	if err := a.writable().Insert(objects, &object{kind: kind, id: id, version: a.index, msg: msg}); err != nil {
		panic(fmt.Sprintf("inserting %v %x: %v", kind, id, err)) // an index above disagrees with a check
	}
}

func (a *applier) remove(o *object) {
	a.foldObject(o.kind, o.id, nil)
	if err := a.writable().Delete(objects, o); err != nil {
		panic(fmt.Sprintf("deleting %v %x: %v", o.kind, o.id, err)) // it was looked up in this transaction
	}
}

// foldObject adds what became of an object to the rolling hash.
func (a *applier) foldObject(kind fsmpb.Kind, id []byte, msg proto.Message) {
	b := append(a.buf[:0], byte(kind))
	b = binary.BigEndian.AppendUint32(b, uint32(len(id)))
	b = append(b, id...)
	if msg != nil {
		b = marshal(b, msg)
	}
	a.buf = b[:0]
	a.fold(uint64(len(b)))
	a.sum.Write(b)
}

// setVersion stamps an object. Every kind has the field; the test of the schema
// holds that.
func setVersion(msg proto.Message, v Version) {
	switch m := msg.(type) {
	case *fsmpb.Cluster:
		m.Version = v
	case *fsmpb.Key:
		m.Version = v
	case *fsmpb.KeyPolicy:
		m.Version = v
	case *fsmpb.KeyTags:
		m.Version = v
	case *fsmpb.Alias:
		m.Version = v
	case *fsmpb.KeyAliases:
		m.Version = v
	case *fsmpb.Credential:
		m.Version = v
	case *fsmpb.Tombstone:
		m.Version = v
	case *fsmpb.RegisterNode:
		m.Version = v
	default:
		panic(fmt.Sprintf("%T has no version", msg))
	}
}
