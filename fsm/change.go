package fsm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

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
	case *fsmpb.Change_PutGrant:
		return a.putGrant(c.PutGrant)
	case *fsmpb.Change_DeleteGrant:
		return a.deleteGrant(c.DeleteGrant)
	case *fsmpb.Change_PutKeyStore:
		return a.putKeyStore(c.PutKeyStore)
	case *fsmpb.Change_DeleteKeyStore:
		return a.deleteKeyStore(c.DeleteKeyStore)
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
	for i, r := range n.MoreRegions {
		if !validRegion(r) || r == n.Region || i > 0 && r <= n.MoreRegions[i-1] {
			return nil, Invalid
		}
	}
	if o := lookup(a.db, fsmpb.Kind_KIND_CLUSTER, nil); o != nil {
		was := o.value.(*fsmpb.Cluster)
		if string(was.Id) != string(n.Id) || was.Account != n.Account || was.Region != n.Region || was.Partition != n.Partition || !slices.Equal(was.MoreRegions, n.MoreRegions) {
			return nil, Invalid
		}
	}
	return func() { a.put(fsmpb.Kind_KIND_CLUSTER, nil, proto.CloneOf(n)) }, Accepted
}

// putKey creates or changes a key. An id that was a key's is never a key's
// again, unless as a replica of the same multi-Region key, and what material is
// for never changes.
func (a *applier) putKey(n *fsmpb.Key) (pending, Verdict) {
	id, ok := keyID(n.Region, n.Id)
	if !ok || n.Spec == "" || n.Usage == "" || n.State == fsmpb.KeyState_KEY_STATE_UNSPECIFIED ||
		(n.State == fsmpb.KeyState_KEY_STATE_PENDING_DELETION) != (n.DeletionTime != 0) {
		return nil, Invalid
	}
	grave := lookup(a.db, fsmpb.Kind_KIND_TOMBSTONE, id.Bytes())
	if grave != nil && !a.replicated(n) {
		return nil, Invalid
	}
	var was *fsmpb.Key
	if o := lookup(a.db, fsmpb.Kind_KIND_KEY, id.Bytes()); o != nil {
		was = o.value.(*fsmpb.Key)
		if was.Spec != n.Spec || was.Usage != n.Usage || was.Origin != n.Origin || was.MultiRegion != n.MultiRegion ||
			was.Created != n.Created || was.KeyStore != n.KeyStore || was.XksKey != n.XksKey {
			return nil, Invalid
		}
	}
	return func() {
		if lostMaterial(was, n) {
			a.events.Destroyed = append(a.events.Destroyed, id)
		}
		if grave != nil {
			a.remove(grave)
		}
		a.put(fsmpb.Kind_KIND_KEY, id.Bytes(), proto.CloneOf(n))
		if was == nil && n.KeyStore != "" {
			a.countStoreKeys(n.KeyStore, 1)
		}
	}, Accepted
}

// replicated tells whether a key is a replica of one that is there: nothing but
// such a one can follow a replica that was deleted.
func (a *applier) replicated(n *fsmpb.Key) bool {
	id, ok := keyID(n.PrimaryRegion, n.Id)
	if !n.MultiRegion || !ok || n.PrimaryRegion == n.Region {
		return false
	}
	o := lookup(a.db, fsmpb.Kind_KIND_KEY, id.Bytes())
	if o == nil {
		return false
	}
	k := o.value.(*fsmpb.Key)
	return k.MultiRegion && k.PrimaryRegion == k.Region && k.Spec == n.Spec && k.Usage == n.Usage && k.Origin == n.Origin
}

// lostMaterial tells whether a key had material that it does not have any more.
func lostMaterial(was, is *fsmpb.Key) bool {
	for _, m := range was.GetMaterials() {
		kept := slices.ContainsFunc(is.Materials, func(n *fsmpb.Material) bool {
			return bytes.Equal(n.Id, m.Id) && bytes.Equal(n.Wrapped, m.Wrapped)
		})
		if len(m.Wrapped) > 0 && !kept {
			return true
		}
	}
	return false
}

// putGrant adds a grant. Grants never change.
func (a *applier) putGrant(n *fsmpb.Grant) (pending, Verdict) {
	id, ok := keyID(n.Region, n.Key)
	if !ok || len(n.Id) != 32 || n.Grantee == "" || len(n.Operations) == 0 {
		return nil, Invalid
	}
	if lookup(a.db, fsmpb.Kind_KIND_GRANT, GrantID(id, n.Id)) != nil {
		return nil, Invalid
	}
	return func() {
		a.put(fsmpb.Kind_KIND_GRANT, GrantID(id, n.Id), proto.CloneOf(n))
		a.countGrants(id, 1)
	}, Accepted
}

func (a *applier) deleteGrant(n *fsmpb.GrantID) (pending, Verdict) {
	id, ok := keyID(n.Region, n.Key)
	if !ok {
		return nil, Invalid
	}
	o := lookup(a.db, fsmpb.Kind_KIND_GRANT, GrantID(id, n.Id))
	if o == nil {
		return nil, Conflict
	}
	return func() {
		a.remove(o)
		a.countGrants(id, -1)
	}, Accepted
}

// countGrants keeps the count of a key's grants, whose version stands for the
// set in the read sets of denials.
func (a *applier) countGrants(id KeyID, by int) {
	n := &fsmpb.KeyGrants{Key: id.ID[:], Region: id.Region}
	if o := lookup(a.db, fsmpb.Kind_KIND_KEY_GRANTS, id.Bytes()); o != nil {
		n.Count = o.value.(uint32)
	}
	n.Count = uint32(int(n.Count) + by)
	a.put(fsmpb.Kind_KIND_KEY_GRANTS, id.Bytes(), n)
}

// putKeyStore makes or changes a custom key store.
func (a *applier) putKeyStore(n *fsmpb.KeyStore) (pending, Verdict) {
	if n.Id == "" || len(n.Id) > 64 || n.Name == "" || n.Type == "" || n.State == fsmpb.ConnectionState_CONNECTION_STATE_UNSPECIFIED {
		return nil, Invalid
	}
	by := 1
	if o := lookup(a.db, fsmpb.Kind_KIND_KEY_STORE, []byte(n.Id)); o != nil {
		was := o.value.(*fsmpb.KeyStore)
		if was.Type != n.Type || was.Created != n.Created || was.Region != n.Region {
			return nil, Invalid
		}
		by = 0
	}
	return func() {
		a.put(fsmpb.Kind_KIND_KEY_STORE, []byte(n.Id), proto.CloneOf(n))
		a.countKeyStores(by)
	}, Accepted
}

// deleteKeyStore forgets a custom key store that has no keys.
func (a *applier) deleteKeyStore(n *fsmpb.KeyStoreID) (pending, Verdict) {
	o := lookup(a.db, fsmpb.Kind_KIND_KEY_STORE, []byte(n.Id))
	if o == nil {
		return nil, Conflict
	}
	keys := lookup(a.db, fsmpb.Kind_KIND_STORE_KEYS, []byte(n.Id))
	if keys != nil && keys.value.(*fsmpb.StoreKeys).Count > 0 {
		return nil, Conflict
	}
	return func() {
		a.remove(o)
		if keys != nil {
			a.remove(keys)
		}
		a.countKeyStores(-1)
	}, Accepted
}

func (a *applier) countKeyStores(by int) {
	n := &fsmpb.KeyStores{}
	if o := lookup(a.db, fsmpb.Kind_KIND_KEY_STORES, nil); o != nil {
		n.Count = o.value.(*fsmpb.KeyStores).Count
	}
	n.Count = uint32(int(n.Count) + by)
	a.put(fsmpb.Kind_KIND_KEY_STORES, nil, n)
}

func (a *applier) countStoreKeys(store string, by int) {
	n := &fsmpb.StoreKeys{Store: store}
	if o := lookup(a.db, fsmpb.Kind_KIND_STORE_KEYS, []byte(store)); o != nil {
		n.Count = o.value.(*fsmpb.StoreKeys).Count
	}
	n.Count = uint32(int(n.Count) + by)
	a.put(fsmpb.Kind_KIND_STORE_KEYS, []byte(store), n)
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
			a.countAliases(o.value.(*fsmpb.Alias), -1)
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
		a.countAliases(o.value.(*fsmpb.Alias), -1)
	}, Accepted
}

// countAliases keeps the count of a key's aliases, whose version stands for the
// set in read sets.
func (a *applier) countAliases(of *fsmpb.Alias, by int) {
	id, _ := keyID(of.Region, of.Key)
	n := &fsmpb.KeyAliases{Key: of.Key, Region: of.Region}
	if o := lookup(a.db, fsmpb.Kind_KIND_KEY_ALIASES, id.Bytes()); o != nil {
		n.Count = o.value.(uint32)
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
	k := o.value.(*fsmpb.Key)
	if k.State != fsmpb.KeyState_KEY_STATE_PENDING_DELETION {
		return nil, Conflict
	}
	if a.state.time < k.DeletionTime {
		return nil, Early
	}
	return func() {
		// Both whole, as a walk must not see what it removes.
		for _, alias := range slices.Collect((&State{db: a.db}).AliasesOf(id)) {
			a.remove(lookup(a.db, fsmpb.Kind_KIND_ALIAS, AliasID(alias.Region, alias.Name)))
		}
		for _, g := range slices.Collect((&State{db: a.db}).Grants(id, nil)) {
			a.remove(lookup(a.db, fsmpb.Kind_KIND_GRANT, GrantID(id, g.Id)))
		}
		a.remove(o)
		if k.KeyStore != "" {
			a.countStoreKeys(k.KeyStore, -1)
		}
		a.f.uses.forget(id)
		for _, kind := range []fsmpb.Kind{fsmpb.Kind_KIND_KEY_POLICY, fsmpb.Kind_KIND_KEY_TAGS, fsmpb.Kind_KIND_KEY_ALIASES,
			fsmpb.Kind_KIND_KEY_GRANTS} {
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
	db := a.writable()
	db.insert(a.f.texts.newObject(db, kind, id, a.index, msg))
}

func (a *applier) remove(o *object) {
	a.foldObject(o.kind(), o.name(), nil)
	a.writable().remove(o)
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
	case *fsmpb.Grant:
		m.Version = v
	case *fsmpb.KeyGrants:
		m.Version = v
	case *fsmpb.KeyStore:
		m.Version = v
	case *fsmpb.KeyStores:
		m.Version = v
	case *fsmpb.StoreKeys:
		m.Version = v
	default:
		panic(fmt.Sprintf("%T has no version", msg))
	}
}
