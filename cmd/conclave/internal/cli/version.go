package cli

import "runtime/debug"

// Version is set when a release is built. Otherwise it is that of Go's build
// information, as after `go install`.
var Version string

func init() {
	if Version != "" {
		return
	}
	Version = "unknown"
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		Version = info.Main.Version
	}
}
