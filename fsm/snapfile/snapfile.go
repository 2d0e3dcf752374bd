// Package snapfile is the format of snapshots: it writes and reads their items. What the
// items mean is up to package fsm.
//
// A snapshot is the magic and then length-prefixed SnapshotItems, compressed with zstd.
// The first item is the header and the last one the end. The same items always give the
// same bytes, whichever machine writes them.
//
// A node may get a snapshot from a hostile leader, or from a disk that somebody edited.
// Reading takes a bounded amount of memory, refuses everything that this binary does not
// know, and returns an error that wraps [wire.ErrUnreadable].
package snapfile

import (
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

const (
	magic = "conclave snapshot\x00\x01"
	// maxItem and maxHeader bound the items, in bytes. The header has a hash of 32
	// bytes for each full segment of the audit log.
	maxItem   = 1 << 20
	maxHeader = 128 << 20
)

// Attested reports whether an attestation covers an item: whether the nodes agree on it.
func Attested(item *fsmpb.SnapshotItem) bool {
	switch item.Item.(type) {
	case *fsmpb.SnapshotItem_Session, *fsmpb.SnapshotItem_KeyUse, *fsmpb.SnapshotItem_CredentialUse, *fsmpb.SnapshotItem_StateChecks,
		*fsmpb.SnapshotItem_Observation, *fsmpb.SnapshotItem_Attestation, *fsmpb.SnapshotItem_End:
		return false
	}
	return true
}

// FieldOf returns the number of the field of SnapshotItem that holds messages like m, which
// may be nil; 0 if none does.
func FieldOf(m proto.Message) protowire.Number {
	return fields[m.ProtoReflect().Descriptor().FullName()]
}

var fields = func() map[protoreflect.FullName]protowire.Number {
	all := (&fsmpb.SnapshotItem{}).ProtoReflect().Descriptor().Fields()
	numbers := make(map[protoreflect.FullName]protowire.Number, all.Len())
	for i := range all.Len() {
		numbers[all.Get(i).Message().FullName()] = all.Get(i).Number()
	}
	return numbers
}()
