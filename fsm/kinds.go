package fsm

import (
	"bytes"

	"github.com/conclavekms/conclave/fsm/form"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/intern"
)

// kinds returns a row for each kind of object, in the order of their numbers.
// DESIGN.md explains how to add one.
func kinds() []*row {
	return []*row{
		newRow(spec[*fsmpb.Cluster]{
			kind:    fsmpb.Kind_KIND_CLUSTER,
			item:    (*fsmpb.SnapshotItem).GetCluster,
			version: func(m *fsmpb.Cluster) *Version { return &m.Version },
			id:      func(*fsmpb.Cluster) ([]byte, bool) { return nil, true },
			whole:   true,
			put:     (*fsmpb.Change).GetPutCluster,
			rule:    (*applier).checkCluster,
		}),
		newRow(spec[*fsmpb.Key]{
			kind:    fsmpb.Kind_KIND_KEY,
			item:    (*fsmpb.SnapshotItem).GetKey,
			version: func(m *fsmpb.Key) *Version { return &m.Version },
			id: func(m *fsmpb.Key) ([]byte, bool) {
				k, valid := keyID(m.GetAccount(), m.GetRegion(), m.GetId())
				return k.Bytes(), valid
			},
			malformed: "a key has no valid id, Region, spec or usage",
			put:       (*fsmpb.Change).GetPutKey,
			rule:      (*applier).checkKey,
			early:     (*applier).tooFar,
			making:    (*applier).makingKey,
			delete: &deletion[*fsmpb.Key]{
				of:        byID((*fsmpb.Change).GetDeleteKey, func(d *fsmpb.DeleteKey) ([]byte, bool) { return keyBytes(d) }),
				malformed: "a key has no valid id or Region",
				alone:     "it deletes a key and changes something else",
				rule:      (*applier).keyIsDue,
				gone:      (*applier).buryKey,
			},
			absent: "it stores a policy, tags, an alias or a grant for a key that does not exist",
			member: &member[*fsmpb.Key]{
				in:  fsmpb.Kind_KIND_STORE_KEYS,
				set: func(m *fsmpb.Key) ([]byte, bool) { return KeyStoreID(Account(m.Account), m.KeyStore), m.KeyStore != "" },
			},
			compact: compactKey,
		}),
		newRow(spec[*fsmpb.KeyPolicy]{
			kind:    fsmpb.Kind_KIND_KEY_POLICY,
			item:    (*fsmpb.SnapshotItem).GetKeyPolicy,
			version: func(m *fsmpb.KeyPolicy) *Version { return &m.Version },
			id:      func(m *fsmpb.KeyPolicy) ([]byte, bool) { return keyBytes(m) },
			put:     (*fsmpb.Change).GetPutKeyPolicy,
			rule:    (*applier).checkPolicy,
			owner:   &owner[*fsmpb.KeyPolicy]{kind: fsmpb.Kind_KIND_KEY},
			compact: func(t *intern.Texts, _ *table, o *object, m *fsmpb.KeyPolicy) {
				m.Key = o.last(len(m.Key), 0)
				t.Share(&m.Region, &m.Document)
				shareBindings(t, m.Bindings)
			},
		}),
		newRow(spec[*fsmpb.KeyTags]{
			kind:    fsmpb.Kind_KIND_KEY_TAGS,
			item:    (*fsmpb.SnapshotItem).GetKeyTags,
			version: func(m *fsmpb.KeyTags) *Version { return &m.Version },
			id:      func(m *fsmpb.KeyTags) ([]byte, bool) { return keyBytes(m) },
			put:     (*fsmpb.Change).GetPutKeyTags,
			owner:   &owner[*fsmpb.KeyTags]{kind: fsmpb.Kind_KIND_KEY},
			compact: func(t *intern.Texts, _ *table, o *object, m *fsmpb.KeyTags) {
				m.Key = o.last(len(m.Key), 0)
				t.Share(&m.Region)
			},
		}),
		newRow(spec[*fsmpb.Alias]{
			kind:    fsmpb.Kind_KIND_ALIAS,
			item:    (*fsmpb.SnapshotItem).GetAlias,
			version: func(m *fsmpb.Alias) *Version { return &m.Version },
			id: func(m *fsmpb.Alias) ([]byte, bool) {
				k, valid := owning(m)
				return AliasID(k.Account, k.Region, m.GetName()), valid
			},
			name:      (*fsmpb.Alias).GetName,
			maxName:   256,
			malformed: "an alias has no valid name or key",
			put:       (*fsmpb.Change).GetPutAlias,
			rule:      func(_ *applier, was, n *fsmpb.Alias) string { return form.CheckAlias(was, n) },
			delete: &deletion[*fsmpb.Alias]{
				of: byID((*fsmpb.Change).GetDeleteAlias, func(d *fsmpb.AliasName) ([]byte, bool) {
					return AliasID(Account(d.Account), d.Region, d.Name), Account(d.Account).Valid()
				}),
				missing: "it deletes an alias that does not exist",
			},
			owner: &owner[*fsmpb.Alias]{
				kind: fsmpb.Kind_KIND_KEY,
				id:   func(m *fsmpb.Alias) []byte { return firstOf(keyBytes(m)) },
				all:  aliasesOf,
			},
			member: &member[*fsmpb.Alias]{
				in:       fsmpb.Kind_KIND_KEY_ALIASES,
				set:      func(m *fsmpb.Alias) ([]byte, bool) { return keyBytes(m) },
				replaced: setLeft,
			},
			compact: compactAlias,
			indexes: []*index[*fsmpb.Alias]{byTarget},
		}),
		newRow(spec[*fsmpb.KeyAliases]{
			kind:    fsmpb.Kind_KIND_KEY_ALIASES,
			item:    (*fsmpb.SnapshotItem).GetKeyAliases,
			version: func(m *fsmpb.KeyAliases) *Version { return &m.Version },
			id:      func(m *fsmpb.KeyAliases) ([]byte, bool) { return keyBytes(m) },
			owner:   &owner[*fsmpb.KeyAliases]{kind: fsmpb.Kind_KIND_KEY},
			count: func(id []byte, n uint32, v Version) *fsmpb.KeyAliases {
				k, _ := parseKeyID(id)
				return &fsmpb.KeyAliases{Account: uint64(k.Account), Region: k.Region, Key: k.ID[:], Count: n, Version: v}
			},
			counted: (*fsmpb.KeyAliases).GetCount,
		}),
		newRow(spec[*fsmpb.Credential]{
			kind:      fsmpb.Kind_KIND_CREDENTIAL,
			item:      (*fsmpb.SnapshotItem).GetCredential,
			version:   func(m *fsmpb.Credential) *Version { return &m.Version },
			id:        func(m *fsmpb.Credential) ([]byte, bool) { return ofAccount(CredentialID, m) },
			name:      (*fsmpb.Credential).GetId,
			maxName:   1024,
			malformed: "a credential has no id or no principal",
			put:       (*fsmpb.Change).GetPutCredential,
			rule:      (*applier).checkCredential,
			making: func(a *applier, was, n *fsmpb.Credential) {
				if was == nil && n.BreakGlassUntil != 0 {
					a.events.BreakGlass = append(a.events.BreakGlass, n)
				}
			},
			delete: &deletion[*fsmpb.Credential]{
				of:   byID((*fsmpb.Change).GetDeleteCredential, func(d *fsmpb.CredentialID) ([]byte, bool) { return ofAccount(CredentialID, d) }),
				gone: func(a *applier, id []byte, _ *fsmpb.Credential) { a.f.uses.forgetCredential(id) },
			},
			texts:  rootOf,
			atInit: true,
		}),
		newRow(spec[*fsmpb.Tombstone]{
			kind:    fsmpb.Kind_KIND_TOMBSTONE,
			item:    (*fsmpb.SnapshotItem).GetTombstone,
			version: func(m *fsmpb.Tombstone) *Version { return &m.Version },
			id:      func(m *fsmpb.Tombstone) ([]byte, bool) { return keyBytes(m) },
			compact: func(t *intern.Texts, _ *table, o *object, m *fsmpb.Tombstone) {
				m.Key = o.last(len(m.Key), 0)
				t.Share(&m.Region)
			},
		}),
		newRow(spec[*fsmpb.RegisterNode]{
			kind:    fsmpb.Kind_KIND_NODE,
			item:    (*fsmpb.SnapshotItem).GetNode,
			version: func(m *fsmpb.RegisterNode) *Version { return &m.Version },
			id:      func(m *fsmpb.RegisterNode) ([]byte, bool) { return []byte(m.GetNode()), true },
			name:    (*fsmpb.RegisterNode).GetNode,
			maxName: 255,
			before:  true,
			whole:   true,
		}),
		newRow(spec[*fsmpb.Setting]{
			kind:      fsmpb.Kind_KIND_SETTING,
			item:      (*fsmpb.SnapshotItem).GetSetting,
			version:   func(m *fsmpb.Setting) *Version { return &m.Version },
			id:        func(m *fsmpb.Setting) ([]byte, bool) { return []byte(m.GetName()), form.IsVisible(m.GetName()) },
			name:      (*fsmpb.Setting).GetName,
			maxName:   form.MaxSettingName,
			malformed: "a setting has no valid name",
			whole:     true,
			put:       (*fsmpb.Change).GetPutSetting,
			rule: func(a *applier, was, n *fsmpb.Setting) string {
				return form.CheckSetting(was, n, len(under(a.db, fsmpb.Kind_KIND_SETTING, nil)))
			},
			delete: &deletion[*fsmpb.Setting]{
				of:        byID((*fsmpb.Change).GetDeleteSetting, func(d *fsmpb.SettingName) ([]byte, bool) { return []byte(d.Name), form.IsVisible(d.Name) }),
				malformed: "a setting has no valid name",
			},
		}),
		newRow(spec[*fsmpb.Grant]{
			kind:    fsmpb.Kind_KIND_GRANT,
			item:    (*fsmpb.SnapshotItem).GetGrant,
			version: func(m *fsmpb.Grant) *Version { return &m.Version },
			id: func(m *fsmpb.Grant) ([]byte, bool) {
				key, valid := owning(m)
				return GrantID(key, m.GetId()), valid && len(m.GetId()) == 32
			},
			malformed: "a grant has no valid key, id, grantee or operation",
			put:       (*fsmpb.Change).GetPutGrant,
			rule:      func(_ *applier, was, n *fsmpb.Grant) string { return form.CheckGrant(was, n) },
			delete: &deletion[*fsmpb.Grant]{
				of: byID((*fsmpb.Change).GetDeleteGrant, func(d *fsmpb.GrantID) ([]byte, bool) {
					key, valid := owning(d)
					return GrantID(key, d.Id), valid
				}),
				malformed: "a grant has no valid key",
			},
			owner: &owner[*fsmpb.Grant]{
				kind: fsmpb.Kind_KIND_KEY,
				id:   func(m *fsmpb.Grant) []byte { return firstOf(keyBytes(m)) },
				all:  func(db *table, key []byte) []*object { return under(db, fsmpb.Kind_KIND_GRANT, key) },
			},
			member: &member[*fsmpb.Grant]{
				in:  fsmpb.Kind_KIND_KEY_GRANTS,
				set: func(m *fsmpb.Grant) ([]byte, bool) { return keyBytes(m) },
			},
			compact: compactGrant,
			indexes: []*index[*fsmpb.Grant]{byGrantee, byRetiring},
		}),
		newRow(spec[*fsmpb.KeyGrants]{
			kind:    fsmpb.Kind_KIND_KEY_GRANTS,
			item:    (*fsmpb.SnapshotItem).GetKeyGrants,
			version: func(m *fsmpb.KeyGrants) *Version { return &m.Version },
			id:      func(m *fsmpb.KeyGrants) ([]byte, bool) { return keyBytes(m) },
			owner:   &owner[*fsmpb.KeyGrants]{kind: fsmpb.Kind_KIND_KEY},
			count: func(id []byte, n uint32, v Version) *fsmpb.KeyGrants {
				k, _ := parseKeyID(id)
				return &fsmpb.KeyGrants{Account: uint64(k.Account), Region: k.Region, Key: k.ID[:], Count: n, Version: v}
			},
			counted: (*fsmpb.KeyGrants).GetCount,
		}),
		newRow(spec[*fsmpb.KeyStore]{
			kind:      fsmpb.Kind_KIND_KEY_STORE,
			item:      (*fsmpb.SnapshotItem).GetKeyStore,
			version:   func(m *fsmpb.KeyStore) *Version { return &m.Version },
			id:        func(m *fsmpb.KeyStore) ([]byte, bool) { return ofAccount(KeyStoreID, m) },
			name:      (*fsmpb.KeyStore).GetId,
			maxName:   64,
			malformed: "a custom key store has no id, name, type or state",
			put:       (*fsmpb.Change).GetPutKeyStore,
			rule:      func(_ *applier, was, n *fsmpb.KeyStore) string { return form.CheckKeyStore(was, n) },
			delete: &deletion[*fsmpb.KeyStore]{
				of:   byID((*fsmpb.Change).GetDeleteKeyStore, func(d *fsmpb.KeyStoreID) ([]byte, bool) { return ofAccount(KeyStoreID, d) }),
				rule: (*applier).storeIsEmpty,
			},
			member: &member[*fsmpb.KeyStore]{
				in:       fsmpb.Kind_KIND_KEY_STORES,
				set:      func(m *fsmpb.KeyStore) ([]byte, bool) { return AccountID(Account(m.Account)), true },
				replaced: setTouched,
				last:     true,
			},
		}),
		newRow(spec[*fsmpb.KeyStores]{
			kind:    fsmpb.Kind_KIND_KEY_STORES,
			item:    (*fsmpb.SnapshotItem).GetKeyStores,
			version: func(m *fsmpb.KeyStores) *Version { return &m.Version },
			id: func(m *fsmpb.KeyStores) ([]byte, bool) {
				a := Account(m.GetAccount())
				return AccountID(a), a.Valid()
			},
			count: func(id []byte, n uint32, v Version) *fsmpb.KeyStores {
				a, _, _ := CutAccount(id)
				return &fsmpb.KeyStores{Account: uint64(a), Count: n, Version: v}
			},
			counted: (*fsmpb.KeyStores).GetCount,
		}),
		newRow(spec[*fsmpb.StoreKeys]{
			kind:    fsmpb.Kind_KIND_STORE_KEYS,
			item:    (*fsmpb.SnapshotItem).GetStoreKeys,
			version: func(m *fsmpb.StoreKeys) *Version { return &m.Version },
			id: func(m *fsmpb.StoreKeys) ([]byte, bool) {
				a := Account(m.GetAccount())
				return KeyStoreID(a, m.GetStore()), a.Valid()
			},
			owner: &owner[*fsmpb.StoreKeys]{kind: fsmpb.Kind_KIND_KEY_STORE},
			count: func(id []byte, n uint32, v Version) *fsmpb.StoreKeys {
				a, store, _ := CutAccount(id)
				return &fsmpb.StoreKeys{Account: uint64(a), Store: string(store), Count: n, Version: v}
			},
			counted: (*fsmpb.StoreKeys).GetCount,
		}),
	}
}

func firstOf(id []byte, _ bool) []byte { return id }

// aliasesOf returns the rows of a key's aliases, by name.
func aliasesOf(db *table, key []byte) (rows []*object) {
	id, _ := parseKeyID(key)
	for a := range (&State{db: db}).AliasesOf(id) {
		rows = append(rows, lookup(db, fsmpb.Kind_KIND_ALIAS, AliasID(id.Account, a.Region, a.Name)))
	}
	return rows
}

// under returns the rows of a kind whose ids begin with prefix.
func under(db *table, kind fsmpb.Kind, prefix []byte) (rows []*object) {
	from := rowID(kind, prefix)
	db.rows.AscendGreaterOrEqual(&object{id: from}, func(o *object) bool {
		if !bytes.HasPrefix(o.id, from) {
			return false
		}
		rows = append(rows, o)
		return true
	})
	return rows
}
