package iamops

import (
	"slices"
	"strings"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// The case of the keys of IAM's tags is kept but does not count, as in conditions.

// authoriseTags authorises the tags of something new. They need the permission to tag it in
// addition to that to create it: otherwise whoever may create a user could give it the tags
// with which policies let it do more.
func authoriseTags(ev *request.Evaluation, action, arn string, tags []iamapi.Tag) error {
	if len(tags) == 0 {
		return nil
	}
	return ev.AuthoriseAccount(action, arn)
}

func searchTag(tags []*fsmpb.Tag, key string) int {
	key = fsm.EntityName(key)
	return slices.IndexFunc(tags, func(t *fsmpb.Tag) bool { return fsm.EntityName(t.Key) == key })
}

// addTags adds tags to those that something has, or replaces them, and returns all tags,
// ordered by key.
func addTags(ev *request.Evaluation, had []*fsmpb.Tag, add []iamapi.Tag) ([]*fsmpb.Tag, error) {
	tags, fresh := slices.Clone(had), []*fsmpb.Tag(nil)
	for _, t := range add {
		tag := &fsmpb.Tag{Key: *t.Key, Value: *t.Value}
		if strings.HasPrefix(fsm.EntityName(tag.Key), "aws:") {
			return nil, invalidInput("Tag keys that begin with aws: are reserved for system use.")
		}
		if searchTag(fresh, tag.Key) >= 0 {
			return nil, invalidInput("Duplicate tag keys found. Please note that Tag keys are case insensitive.")
		}
		fresh = append(fresh, tag)
		if i := searchTag(tags, tag.Key); i >= 0 {
			tags[i] = tag
		} else if tags = append(tags, tag); len(tags) > ev.Quotas.Tags {
			return nil, kmsapi.Errorf(iamapi.ErrLimitExceeded, "The number of tags has reached the maximum limit.")
		}
	}
	slices.SortFunc(tags, func(a, b *fsmpb.Tag) int { return strings.Compare(a.Key, b.Key) })
	return tags, nil
}

func removeTags(had []*fsmpb.Tag, keys []string) []*fsmpb.Tag {
	left := slices.Clone(had)
	for _, key := range keys {
		if i := searchTag(left, key); i >= 0 {
			left = slices.Delete(left, i, i+1)
		}
	}
	return left
}

func (k *kind[M]) tag(ev *request.Evaluation, name string, add []iamapi.Tag) error {
	return k.change(ev, name, nil, func(m M) (err error) {
		tags := k.parts(m).tags
		*tags, err = addTags(ev, *tags, add)
		return err
	})
}

func (k *kind[M]) untag(ev *request.Evaluation, name string, keys []string) error {
	return k.change(ev, name, nil, func(m M) error {
		tags := k.parts(m).tags
		*tags = removeTags(*tags, keys)
		return nil
	})
}

func (k *kind[M]) listTags(ev *request.Evaluation, name string, l paging) ([]iamapi.Tag, *string, *bool, error) {
	m, err := k.find(ev, name, nil)
	if err != nil {
		return nil, nil, nil, err
	}
	return pageOfTags(ev, *k.parts(m).tags, name, l)
}

// pageOfTags returns a part of the tags of something with that name.
func pageOfTags(ev *request.Evaluation, all []*fsmpb.Tag, name string, l paging) (tags []iamapi.Tag, marker *string, truncated *bool, err error) {
	p, err := l.page(ev, name)
	if err != nil {
		return nil, nil, nil, err
	}
	tags = []iamapi.Tag{}
	marker, truncated, err = request.Fill(p, slices.Values(all), (*fsmpb.Tag).GetKey, func(t *fsmpb.Tag) {
		tags = append(tags, iamapi.Tag{Key: new(t.Key), Value: new(t.Value)})
	})
	return tags, marker, truncated, err
}

// tagsOf returns tags as answers have them. Answers leave out an empty list, as AWS does.
func tagsOf(tags []*fsmpb.Tag) []iamapi.Tag {
	var out []iamapi.Tag
	for _, t := range tags {
		out = append(out, iamapi.Tag{Key: new(t.Key), Value: new(t.Value)})
	}
	return out
}
