package harness

// PID returns the id of the node's process, or 0 if it has none.
func (n *Node) PID() int {
	p, ok := n.server.(*process)
	if !ok {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil || p.cmd.Process == nil {
		return 0
	}
	return p.cmd.Process.Pid
}
