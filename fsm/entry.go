package fsm

import (
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/origin"
	"github.com/conclavekms/conclave/fsm/wire"
)

// SignEntry is [origin.SignEntry] by this node, which then need not verify the signature
// when it applies the entry. It is safe for concurrent use.
func (f *FSM) SignEntry(encoded []byte, sign origin.Sign) ([]byte, error) {
	return f.verified.SignEntry(encoded, sign)
}

// CheckEntry refuses an encoded entry that apply could not read, with ErrUnreadable,
// before it is stored. It does not decode an entry that an unsealed leader signed,
// since the leader did. It is safe for concurrent use.
func (f *FSM) CheckEntry(b []byte) error {
	if c, _ := f.Current().Cluster(); c != nil && f.verified.Encoded(c, b) {
		return nil
	}
	_, err := wire.Decode(b)
	return err
}

// EntryInitialises returns the record of the cluster that an encoded entry initialises, provided
// that none was initialised before it; nil if it initialises none.
func EntryInitialises(b []byte) *fsmpb.Cluster {
	e, err := wire.Decode(b)
	if err != nil {
		return nil
	}
	batches, _ := e.Command.([]wire.Batch)
	for i := range batches {
		if len(batches[i].Records) == 0 || !initialises(&batches[i]) {
			continue
		}
		for _, c := range batches[i].Records[0].Changes {
			if n := c.GetPutCluster(); n != nil {
				return n
			}
		}
	}
	return nil
}
