package bootstrap

import (
	"testing"

	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

// TestSurvey holds the hand-read fields against the schema.
func TestSurvey(t *testing.T) {
	encode := func(e *fsmpb.Entry) []byte {
		b, err := wire.EncodeEntry(e)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	nodes := make(map[string]sighting)
	surveyEntry(encode(&fsmpb.Entry{Clock: &fsmpb.Clock{Wall: 5}, Command: &fsmpb.Entry_RegisterNode{
		RegisterNode: &fsmpb.RegisterNode{Node: "a", Incarnation: 3, Watermark: 17, Release: "x"},
	}}), nodes)
	surveyEntry(encode(&fsmpb.Entry{Command: &fsmpb.Entry_Batches{Batches: &fsmpb.Batches{Batches: []*fsmpb.Batch{
		{Node: "b", Incarnation: 1, Seq: 2, Watermark: 30, Records: []*fsmpb.Record{clustertest.Record(), clustertest.Record()}},
		{Node: "a", Incarnation: 3, Seq: 1, Watermark: 12},
	}}}}), nodes)
	if len(nodes) != 2 || nodes["a"] != (sighting{3, 17}) || nodes["b"] != (sighting{1, 30}) {
		t.Errorf("survey = %v", nodes)
	}
}

func FuzzSurveyEntry(f *testing.F) {
	f.Add([]byte{0x5a, 3, 0x0a, 1, 'a'})
	f.Fuzz(func(t *testing.T, b []byte) { surveyEntry(b, map[string]sighting{}) })
}
