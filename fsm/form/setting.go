package form

import "github.com/conclavekms/conclave/fsm/fsmpb"

const (
	// MaxSettingName is the length of the longest name of a setting, in bytes.
	MaxSettingName = 128
	// MaxSettingValue is the size of the largest value of a setting, in bytes.
	MaxSettingValue = 4096
	// MaxSettings is the number of settings that there can be.
	MaxSettings = 256
)

// CheckSetting checks a setting, given the number of settings before it is stored.
func CheckSetting(was, n *fsmpb.Setting, settings int) (broken string) {
	switch {
	case len(n.Value) > MaxSettingValue:
		return "a setting has too large a value"
	case was == nil && settings >= MaxSettings:
		return "there are too many settings"
	}
	return ""
}
