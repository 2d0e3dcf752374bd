package harness

// PID returns the id of the node's process, or 0 if it has none.
func (n *Node) PID() int {
	run, err := n.runs()
	if err != nil {
		return 0
	}
	return run.PID()
}
