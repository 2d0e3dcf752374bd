package rafttransport

import (
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/internal/peerport"
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

// TestConfigurationOfALaterTime: a node that cannot check a configuration yet asks for the
// entry before it again. That comes with the leader's commit index, with which the node
// applies what it has, and can check the configuration the next time.
func TestConfigurationOfALaterTime(t *testing.T) {
	n := newTestNode()
	n.cluster.Store(nil) // it has restarted, and applied nothing
	n.start(t, true)
	tr := n.transport(t)
	next := &raft.Log{Index: 9, Term: 3, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(raft.Configuration{Servers: n.servers[:2]})}
	next.Extensions = make([]byte, 4+64)
	answer := make(chan raft.RPCResponse, 1)
	rpc := raft.RPC{RespChan: answer, Command: &raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: []byte("n2"), Addr: []byte("192.0.2.2:1")},
		Term:      3, PrevLogEntry: 8, PrevLogTerm: 3, LeaderCommitIndex: 9, Entries: []*raft.Log{next},
	}}
	if tr.admit(&conn{Conn: &peerport.Conn{Node: "n2"}}, rpc) {
		t.Fatal("Raft gets the configuration")
	}
	a := <-answer
	if r, ok := a.Response.(*raft.AppendEntriesResponse); !ok || a.Error != nil || r.Success || r.LastLog != n.raft.LastIndex() {
		t.Errorf("the answer is %+v, %v", a.Response, a.Error)
	}
}
