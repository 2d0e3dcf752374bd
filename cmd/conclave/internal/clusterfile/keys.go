package clusterfile

import (
	"fmt"

	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// keys makes the keys of each Region, over a connection for calls to it.
func (m *maker) keys() error {
	for _, region := range m.file.Regions {
		var c kmspb.KMSClient
		for i := range m.file.Keys {
			if m.file.Keys[i].Region != region {
				continue
			}
			if c == nil {
				conn, err := m.inRegion(region)
				if err != nil {
					return err
				}
				defer conn.Close()
				c = conn.KMS()
			}
			if err := m.key(c, &m.file.Keys[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *maker) inRegion(region string) (*client.Client, error) {
	cfg, err := m.app.Remote.Config()
	if err != nil {
		return nil, err
	}
	cfg.Region = region
	c, err := client.Dial(m.ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", cfg.Address, err)
	}
	return c, nil
}

func (m *maker) key(c kmspb.KMSClient, want *Key) error {
	name := want.Aliases[0]
	it := Item{Kind: "key", Name: name + " in " + want.Region, State: Unchanged}
	doing := "making key " + name
	got, err := look(m, doing, c.DescribeKey, &kmspb.DescribeKeyRequest{KeyId: &name})
	if err != nil {
		return err
	}
	id := got.GetKeyMetadata().GetKeyId()
	if got == nil {
		req := &kmspb.CreateKeyRequest{KeySpec: &want.Spec, KeyUsage: optional(want.Usage), Description: want.Description, Policy: optional(string(want.Policy)), MultiRegion: want.MultiRegion}
		for _, k := range sortedKeys(want.Tags) {
			req.Tags = append(req.Tags, &kmspb.Tag{TagKey: &k, TagValue: new(want.Tags[k])})
		}
		made, err := ask(m, doing, c.CreateKey, req)
		if err != nil {
			return err
		}
		id = made.GetKeyMetadata().GetKeyId()
		it.State, it.Detail = Created, id
		if _, err := ask(m, "naming key "+id, c.CreateAlias, &kmspb.CreateAliasRequest{AliasName: &name, TargetKeyId: &id}); err != nil {
			// The next run would not recognise the key, and make another one.
			return fmt.Errorf("%w\nkey %s was created, and has no alias yet: `conclave alias create %s %s` gives it one; otherwise the next run creates another key", err, id, name, id)
		}
	} else if err := m.compareKey(c, &it, want, got.GetKeyMetadata()); err != nil {
		return err
	}
	m.note(it)
	for _, other := range want.Aliases[1:] {
		it := Item{Kind: "alias", Name: other + " in " + want.Region, State: Unchanged}
		got, err := look(m, "naming key "+id, c.DescribeKey, &kmspb.DescribeKeyRequest{KeyId: &other})
		switch {
		case err != nil:
			return err
		case got == nil:
			if _, err := ask(m, "naming key "+id, c.CreateAlias, &kmspb.CreateAliasRequest{AliasName: &other, TargetKeyId: &id}); err != nil {
				return err
			}
			it.State = Created
		default:
			it.compare("key", got.GetKeyMetadata().GetKeyId(), id)
		}
		m.note(it)
	}
	return nil
}

func (m *maker) compareKey(c kmspb.KMSClient, it *Item, want *Key, is *kmspb.KeyMetadata) error {
	it.compare("spec", is.GetKeySpec(), want.Spec)
	if want.Usage != "" {
		it.compare("usage", is.GetKeyUsage(), want.Usage)
	}
	if want.MultiRegion != nil {
		it.compare("multi_region", is.GetMultiRegion(), *want.MultiRegion)
	}
	it.compareText("description", is.GetDescription(), want.Description)
	if state := is.GetKeyState(); state == "PendingDeletion" || state == "PendingReplicaDeletion" {
		it.differ("it is going to be deleted")
		return nil
	}
	id := is.GetKeyId()
	if want.Policy != "" {
		p, err := ask(m, "comparing the policy of key "+id, c.GetKeyPolicy, &kmspb.GetKeyPolicyRequest{KeyId: &id})
		if err != nil {
			return err
		}
		it.compareDocument("policy", p.GetPolicy(), want.Policy)
	}
	if want.Tags == nil {
		return nil
	}
	tags := make(map[string]string)
	err := pages(func(marker *string) (*string, error) {
		res, err := ask(m, "comparing the tags of key "+id, c.ListResourceTags, &kmspb.ListResourceTagsRequest{KeyId: &id, Marker: marker})
		for _, t := range res.GetTags() {
			tags[t.GetTagKey()] = t.GetTagValue()
		}
		return optional(res.GetNextMarker()), err
	})
	it.compareTags(tags, want.Tags)
	return err
}
