package rafttransport

import (
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// stuckPipeline waits for room until it is closed, as Raft's does when nobody
// reads its answers any more.
type stuckPipeline struct {
	raft.AppendPipeline
	closed chan struct{}
}

func (p stuckPipeline) AppendEntries(*raft.AppendEntriesRequest, *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	<-p.closed
	return nil, raft.ErrPipelineShutdown
}

func (p stuckPipeline) Close() error {
	close(p.closed)
	return nil
}

func TestStuckPipelineIsClosed(t *testing.T) {
	for name, end := range map[string]func(*Transport){
		"timeout":  func(*Transport) {},
		"shutdown": func(tr *Transport) { tr.ClosePipelines() },
	} {
		t.Run(name, func(t *testing.T) {
			d := &door{Config: Config{Timeout: 50 * time.Millisecond}}
			tr := &Transport{out: newStream(d), door: d, pipelines: make(map[*pipeline]struct{})}
			if name == "shutdown" {
				d.Timeout = time.Hour
			}
			p := &pipeline{AppendPipeline: stuckPipeline{closed: make(chan struct{})}, t: tr}
			tr.pipelines[p] = struct{}{}
			done := make(chan error, 1)
			go func() {
				_, err := p.AppendEntries(&raft.AppendEntriesRequest{}, nil)
				done <- err
			}()
			end(tr)
			select {
			case err := <-done:
				if !errors.Is(err, raft.ErrPipelineShutdown) {
					t.Errorf("AppendEntries = %v", err)
				}
			case <-time.After(5 * time.Second):
				t.Fatal("the sender still waits")
			}
			if len(tr.pipelines) != 0 {
				t.Error("the pipeline is still known")
			}
		})
	}
}

// A node whose acknowledgement does not count is sent what is committed without it.
func TestAlreadyCommitted(t *testing.T) {
	r := &raft.AppendEntriesRequest{LeaderCommitIndex: 5, Entries: []*raft.Log{{Index: 4}, {Index: 5}, {Index: 6}}}
	if got, others := alreadyCommitted(r); len(got) != 2 || !others {
		t.Errorf("%d entries, others %v", len(got), others)
	}
	r.LeaderCommitIndex = 6
	if got, others := alreadyCommitted(r); len(got) != 3 || others {
		t.Errorf("%d entries, others %v", len(got), others)
	}
}
