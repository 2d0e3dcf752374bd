// Package trees provides the indexes of the state machine's table. Like the table, they are
// copied at no cost when a state is published, and what was published never changes.
package trees

import (
	"bytes"
	"iter"

	"github.com/google/btree"
	"google.golang.org/protobuf/proto"
)

// degree makes nodes of 31 to 63 items.
const degree = 32

// Listing finds items by texts, of which each item may have several, or none. It is not safe for
// changes concurrent with any other use.
//
// An entry takes 24 bytes in a node: the entries of a text share it.
type Listing[T comparable] struct {
	tree *btree.BTreeG[entry[T]]
	id   func(T) []byte
}

type entry[T comparable] struct {
	text string
	item T
}

// New returns an empty listing of items with unique ids.
func New[T comparable](id func(T) []byte) *Listing[T] {
	return &Listing[T]{id: id, tree: btree.NewG(degree, func(a, b entry[T]) bool {
		if a.text != b.text {
			return a.text < b.text
		}
		return bytes.Compare(id(a.item), id(b.item)) < 0
	})}
}

// Clone returns a copy that can be changed independently.
func (l *Listing[T]) Clone() *Listing[T] { return &Listing[T]{l.tree.Clone(), l.id} }

// Insert adds an item with its texts, in place of one that has the same id and the same text.
func (l *Listing[T]) Insert(item T, texts []string) {
	for _, text := range texts {
		e := entry[T]{text, item}
		l.tree.AscendGreaterOrEqual(e, func(other entry[T]) bool {
			if other.text == text {
				e.text = other.text
			}
			return false
		})
		l.tree.ReplaceOrInsert(e)
	}
}

// Remove removes an item from the given texts, but not another one that took its place.
func (l *Listing[T]) Remove(item T, texts []string) {
	for _, text := range texts {
		if is, ok := l.tree.Get(entry[T]{text, item}); ok && is.item == item {
			l.tree.Delete(is)
		}
	}
}

// All returns the items with a text in the order of their ids, beginning at that of from, which
// need not be in the listing.
func (l *Listing[T]) All(text string, from T) iter.Seq[T] {
	return func(yield func(T) bool) {
		l.tree.AscendGreaterOrEqual(entry[T]{text, from}, func(e entry[T]) bool { return e.text == text && yield(e.item) })
	}
}

// Len returns the number of entries: of items, each as often as it has texts.
func (l *Listing[T]) Len() int { return l.tree.Len() }

// Tree is an index of messages of any type.
type Tree interface {
	Clone() Tree
	Insert(proto.Message)
	Remove(proto.Message)
}

// Of is an index of messages by their contents. It has the size of a pointer, so that converting
// it to a Tree allocates nothing.
type Of[M Message] struct{ *btree.BTreeG[M] }

// Message is a type of messages.
type Message interface {
	comparable
	proto.Message
}

// NewOf returns an empty index whose messages are in the order of less.
func NewOf[M Message](less func(a, b M) bool) Of[M] { return Of[M]{btree.NewG(degree, less)} }

// Clone implements Tree.
func (t Of[M]) Clone() Tree { return Of[M]{t.BTreeG.Clone()} }

// Insert implements Tree. It replaces a message that is neither less nor greater.
func (t Of[M]) Insert(m proto.Message) { t.ReplaceOrInsert(m.(M)) }

// Remove removes m, but not another message that took its place.
func (t Of[M]) Remove(m proto.Message) {
	if is, ok := t.Get(m.(M)); ok && is == m.(M) {
		t.Delete(is)
	}
}
