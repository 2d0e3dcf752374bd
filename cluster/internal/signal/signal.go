// Package signal wakes goroutines over channels that have room for one value.
package signal

// Send wakes a goroutine that receives from c now or later, and never blocks. Signals that
// have not been received yet are merged into one.
func Send(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
