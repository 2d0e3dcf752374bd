package commit

import "github.com/conclavekms/conclave/cluster/clusterpb"

// localLink is the Link that the leader itself uses.
type localLink struct {
	node      string
	committer *Committer
	answer    func(*clusterpb.SubmitResponse)
}

// Send implements Link, like the methods below.
func (l *localLink) Send(s *Submission) {
	s.Answer = l.answer
	l.committer.Submit(s)
}
func (l *localLink) Leader() string { return l.node }
func (l *localLink) Local() bool    { return true }
func (l *localLink) Close()         {}

// Link returns the Link that the leader itself uses; node is its id.
func (c *Committer) Link(node string, answer func(*clusterpb.SubmitResponse)) Link {
	return &localLink{node, c, answer}
}
