package fsm

import (
	"errors"
	"fmt"

	"github.com/hashicorp/go-memdb"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// object is a row of the one table: anything a read set can name. Rows are
// immutable once inserted.
type object struct {
	kind    fsmpb.Kind
	id      []byte
	version Version
	msg     proto.Message
}

const (
	objects     = "objects"
	primary     = "id"
	aliasTarget = "target"   // aliases by the key they name
	grantee     = "grantee"  // grants by key and grantee
	retiring    = "retiring" // grants by the principal that may retire them
)

// schema has every kind in one table, so that checking a read set is one lookup
// an item whatever the kind.
var schema = &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{
	objects: {
		Name: objects,
		Indexes: map[string]*memdb.IndexSchema{
			primary:     {Name: primary, Unique: true, Indexer: byID{}},
			aliasTarget: {Name: aliasTarget, AllowMissing: true, Indexer: byTarget{}},
			grantee:     {Name: grantee, AllowMissing: true, Indexer: byGrantee{}},
			retiring:    {Name: retiring, AllowMissing: true, Indexer: byRetiring{}},
		},
	},
}}

func newDB() *memdb.MemDB {
	db, err := memdb.NewMemDB(schema)
	if err != nil {
		panic(err) // the schema above is wrong
	}
	return db
}

var errIndexArgs = errors.New("index arguments")

// byID orders rows by kind, then id. An id needs no terminator here: a row is
// only ever looked up whole, and ids that end in free text are alone in theirs.
type byID struct{}

func rowID(kind fsmpb.Kind, id []byte) []byte {
	b := make([]byte, 0, 1+len(id))
	b = append(b, byte(kind))
	return append(b, id...)
}

func (byID) FromArgs(args ...any) ([]byte, error) {
	if len(args) == 2 {
		kind, ok1 := args[0].(fsmpb.Kind)
		id, ok2 := args[1].([]byte)
		if ok1 && ok2 {
			return rowID(kind, id), nil
		}
	}
	return nil, errIndexArgs
}

func (byID) FromObject(raw any) (bool, []byte, error) {
	o := raw.(*object)
	return true, rowID(o.kind, o.id), nil
}

// byTarget finds the aliases of a key.
type byTarget struct{}

func (byTarget) FromArgs(args ...any) ([]byte, error) {
	if len(args) == 1 {
		if id, ok := args[0].(KeyID); ok {
			return id.Bytes(), nil
		}
	}
	return nil, errIndexArgs
}

func (byTarget) FromObject(raw any) (bool, []byte, error) {
	a, ok := raw.(*object).msg.(*fsmpb.Alias)
	if !ok {
		return false, nil, nil
	}
	id, ok := keyID(a.Region, a.Key)
	if !ok {
		return false, nil, fmt.Errorf("alias %q has no key", a.Name)
	}
	return true, id.Bytes(), nil
}

// byGrantee finds the grants on a key to a principal.
type byGrantee struct{}

func granteeID(id KeyID, principal string) []byte {
	return append(append(id.Bytes(), principal...), 0) // no principal contains it
}

func (byGrantee) FromArgs(args ...any) ([]byte, error) {
	if len(args) == 3 {
		id, ok1 := args[0].(KeyID)
		principal, ok2 := args[1].(string)
		after, ok3 := args[2].([]byte)
		if ok1 && ok2 && ok3 {
			return behind(granteeID(id, principal), after), nil
		}
	}
	return nil, errIndexArgs
}

// behind is where to begin in an index of grants, whose entries end in the rows'
// ids, after the grant of a GrantID; nil begins with the first of the value.
func behind(value, after []byte) []byte {
	if after == nil {
		return value
	}
	return append(append(value, rowID(fsmpb.Kind_KIND_GRANT, after)...), 0)
}

func (byGrantee) FromObject(raw any) (bool, []byte, error) {
	g, ok := raw.(*object).msg.(*fsmpb.Grant)
	if !ok {
		return false, nil, nil
	}
	id, ok := keyID(g.Region, g.Key)
	if !ok {
		return false, nil, fmt.Errorf("grant %x has no key", g.Id)
	}
	return true, granteeID(id, g.Grantee), nil
}

// byRetiring finds the grants that a principal may retire.
type byRetiring struct{}

func retiringID(region, principal string) []byte {
	return append(AliasID(region, principal), 0) // as in granteeID
}

func (byRetiring) FromArgs(args ...any) ([]byte, error) {
	if len(args) == 3 {
		region, ok1 := args[0].(string)
		principal, ok2 := args[1].(string)
		after, ok3 := args[2].([]byte)
		if ok1 && ok2 && ok3 {
			return behind(retiringID(region, principal), after), nil
		}
	}
	return nil, errIndexArgs
}

func (byRetiring) FromObject(raw any) (bool, []byte, error) {
	g, ok := raw.(*object).msg.(*fsmpb.Grant)
	if !ok || g.Retiring == "" {
		return false, nil, nil
	}
	return true, retiringID(g.Region, g.Retiring), nil
}

// The lookups below panic on an error: memdb returns one only for a wrong table,
// index or argument type, which is a fault in this file.

func lookup(db *memdb.Txn, kind fsmpb.Kind, id []byte) *object {
	raw, err := db.First(objects, primary, kind, id)
	if err != nil {
		panic(err)
	}
	if raw == nil {
		return nil
	}
	return raw.(*object)
}

func versionOf(db *memdb.Txn, kind fsmpb.Kind, id []byte) Version {
	if o := lookup(db, kind, id); o != nil {
		return o.version
	}
	return 0
}

func lowerBound(db *memdb.Txn, kind fsmpb.Kind, from []byte) memdb.ResultIterator {
	return lowerBoundBy(db, primary, kind, from)
}

func lowerBoundBy(db *memdb.Txn, index string, args ...any) memdb.ResultIterator {
	it, err := db.LowerBound(objects, index, args...)
	if err != nil {
		panic(err)
	}
	return it
}

// objectsByTarget lists a key's aliases; whole, since callers delete as they go.
func objectsByTarget(db *memdb.Txn, id KeyID) []*object {
	it, err := db.Get(objects, aliasTarget, id)
	if err != nil {
		panic(err)
	}
	var all []*object
	for raw := it.Next(); raw != nil; raw = it.Next() {
		all = append(all, raw.(*object))
	}
	return all
}
