// Package signal wakes goroutines over channels that have room for one value.
package signal

// Send wakes whoever waits on c, or whoever does next, and never blocks. Several signals
// that nobody has waited for yet are one.
func Send(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
