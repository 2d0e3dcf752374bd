package commit

import "github.com/conclavekms/conclave/cluster/clusterpb"

// localLink is the Link to the leader on the leader itself.
type localLink struct {
	node      string
	committer *Committer
	answer    func(*clusterpb.SubmitResponse)
}

// Send implements Link, like what follows.
func (l *localLink) Send(s *Submission) {
	s.Answer = l.answer
	l.committer.Submit(s)
}
func (l *localLink) Leader() string { return l.node }
func (l *localLink) Local() bool    { return true }
func (l *localLink) Close()         {}

// Link is the way to the leader on the leader itself, that node.
func (c *Committer) Link(node string, answer func(*clusterpb.SubmitResponse)) Link {
	return &localLink{node, c, answer}
}
