package ops

import (
	"slices"
	"strings"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

const actionTagResource = "kms:TagResource"

func tagResource(ev *request.Evaluation, in *kmsapi.TagResourceInput) (*request.None, error) {
	t, err := ev.Managed(*in.KeyId)
	if err != nil {
		return nil, err
	}
	tags, err := mergeTags(ev, ev.KeyTags(t.ID).GetTags(), in.Tags)
	if err != nil {
		return nil, err
	}
	PutTags(ev, t.ID, tags)
	return &request.None{}, nil
}

func untagResource(ev *request.Evaluation, in *kmsapi.UntagResourceInput) (*request.None, error) {
	t, err := ev.Managed(*in.KeyId)
	if err != nil {
		return nil, err
	}
	had := ev.KeyTags(t.ID).GetTags()
	left := slices.DeleteFunc(slices.Clone(had), func(tag *fsmpb.Tag) bool { return slices.Contains(in.TagKeys, tag.Key) })
	if len(left) < len(had) {
		PutTags(ev, t.ID, left)
	}
	return &request.None{}, nil
}

// mergeTags adds tags to those of a key, and returns them ordered by tag key.
func mergeTags(ev *request.Evaluation, had []*fsmpb.Tag, add []kmsapi.Tag) ([]*fsmpb.Tag, error) {
	most := ev.Quotas.Tags
	byKey := make(map[string]string, len(had)+min(len(add), most))
	for _, t := range had {
		byKey[t.Key] = t.Value
	}
	seen := make(map[string]bool, min(len(add), most))
	for _, t := range add {
		key := *t.TagKey
		if len(key) >= 4 && strings.EqualFold(key[:4], "aws:") {
			return nil, kmsapi.Errorf(kmsapi.ErrTag, "Tags beginning with aws: are reserved")
		}
		if seen[key] {
			return nil, kmsapi.Errorf(kmsapi.ErrTag, "Duplicate tag keys")
		}
		seen[key] = true
		byKey[key] = *t.TagValue
	}
	if len(byKey) > most {
		return nil, kmsapi.Errorf(kmsapi.ErrTag, "Too many tags")
	}
	tags := make([]*fsmpb.Tag, 0, len(byKey))
	for k, v := range byKey {
		tags = append(tags, &fsmpb.Tag{Key: k, Value: v})
	}
	slices.SortFunc(tags, func(a, b *fsmpb.Tag) int { return strings.Compare(a.Key, b.Key) })
	return tags, nil
}

func listResourceTags(ev *request.Evaluation, in *kmsapi.ListResourceTagsInput) (*kmsapi.ListResourceTagsOutput, error) {
	t, err := ev.Managed(*in.KeyId)
	if err != nil {
		return nil, err
	}
	p, err := request.PageOf(ev, in.Limit, 50, 50, in.Marker, t.ARN)
	if err != nil {
		return nil, err
	}
	out := &kmsapi.ListResourceTagsOutput{Tags: []kmsapi.Tag{}}
	out.NextMarker, out.Truncated, err = request.Fill(p, slices.Values(ev.KeyTags(t.ID).GetTags()), func(tag *fsmpb.Tag) string {
		return tag.Key
	}, func(tag *fsmpb.Tag) {
		out.Tags = append(out.Tags, kmsapi.Tag{TagKey: new(tag.Key), TagValue: new(tag.Value)})
	})
	return out, err
}

// PutTags adds a change of a key's tags to the record.
func PutTags(ev *request.Evaluation, id fsm.KeyID, tags []*fsmpb.Tag) {
	ev.Change(&fsmpb.Change{Change: &fsmpb.Change_PutKeyTags{PutKeyTags: &fsmpb.KeyTags{Account: uint64(id.Account), Key: id.ID[:], Region: id.Region, Tags: tags}}})
}
