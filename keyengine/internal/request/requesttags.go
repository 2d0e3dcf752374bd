package request

import (
	"reflect"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// requestTags returns the tags in an input: those of a member Tags, or the keys of a member
// TagKeys without values. It reports whether the input has such a member that is set.
func requestTags(input any) ([]*fsmpb.Tag, bool) {
	v := reflect.ValueOf(input)
	if v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct {
		return nil, false
	}
	v = v.Elem()
	if keys, ok := fieldOf(v, "TagKeys").([]string); ok && keys != nil {
		tags := make([]*fsmpb.Tag, len(keys))
		for i, k := range keys {
			tags[i] = &fsmpb.Tag{Key: k}
		}
		return tags, true
	}
	list := v.FieldByName("Tags")
	if !list.IsValid() || list.Kind() != reflect.Slice || list.IsNil() || list.Type().Elem().Kind() != reflect.Struct {
		return nil, false
	}
	tags := make([]*fsmpb.Tag, list.Len())
	for i := range tags {
		// KMS has TagKey and TagValue, IAM and STS have Key and Value.
		t := list.Index(i)
		tags[i] = &fsmpb.Tag{Key: text(t, "TagKey", "Key"), Value: text(t, "TagValue", "Value")}
	}
	return tags, true
}

func fieldOf(v reflect.Value, name string) any {
	if f := v.FieldByName(name); f.IsValid() {
		return f.Interface()
	}
	return nil
}

// text returns the first of several text members that a structure has.
func text(v reflect.Value, names ...string) string {
	for _, name := range names {
		if p, ok := fieldOf(v, name).(*string); ok && p != nil {
			return *p
		}
	}
	return ""
}
