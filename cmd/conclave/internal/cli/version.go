package cli

import "runtime/debug"

// Release is the release that this source is of, as the file VERSION has it.
const Release = "0.2.0"

// Version is the release, and after a plus sign the commit if it is known. The Makefile sets
// it. Nodes tell it to each other and to operators.
var Version string

func init() {
	if Version != "" {
		return
	}
	Version = Release
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return
	}
	commit, dirty := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			commit = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "-dirty"
		}
	}
	if len(commit) >= 8 {
		Version += "+" + commit[:8] + dirty
	}
}
