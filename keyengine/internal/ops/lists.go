package ops

import (
	"encoding/hex"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// Lists of many objects would need read sets of the same length. They are read after their
// record is committed instead, on a state that includes it, so a list is no older than its
// request.

func listKeys(ev *request.Evaluation, in *kmsapi.ListKeysInput) (*kmsapi.ListKeysOutput, error) {
	if err := ev.AuthoriseAccount(ev.Op.Action(), "*"); err != nil {
		return nil, err
	}
	p, err := request.PageOf(ev, in.Limit, 100, 1000, in.Marker)
	if err != nil {
		return nil, err
	}
	after := fsm.KeyID{Account: request.AccountOf(ev), Region: ev.Region()}
	if id, err := hex.DecodeString(p.After); err == nil {
		copy(after.ID[:], id)
	}
	ev.Later = func(s *fsm.State) (any, error) {
		out := &kmsapi.ListKeysOutput{Keys: []kmsapi.KeyListEntry{}}
		out.NextMarker, out.Truncated, err = request.Fill(p, s.Keys(after), func(k *fsmpb.Key) string {
			return hex.EncodeToString(k.Id)
		}, func(k *fsmpb.Key) {
			name := request.FormatKeyID([16]byte(k.Id), k.MultiRegion)
			out.Keys = append(out.Keys, kmsapi.KeyListEntry{KeyId: &name, KeyArn: new(request.KeyARN(ev.Cluster(), fsm.Account(k.Account), k.Region, name))})
		})
		return out, err
	}
	return nil, nil
}

func listAliases(ev *request.Evaluation, in *kmsapi.ListAliasesInput) (*kmsapi.ListAliasesOutput, error) {
	var filter *request.Target
	scope := ""
	if in.KeyId != nil {
		var err error
		if filter, err = ev.Resolve(*in.KeyId, request.KeyForms, ev.Op.Action()); err != nil {
			return nil, err
		}
		scope = filter.ARN
	}
	if err := ev.AuthoriseAccount(ev.Op.Action(), "*"); err != nil {
		return nil, err
	}
	p, err := request.PageOf(ev, in.Limit, 50, 100, in.Marker, scope)
	if err != nil {
		return nil, err
	}
	ev.Later = func(s *fsm.State) (any, error) {
		out := &kmsapi.ListAliasesOutput{Aliases: []kmsapi.AliasListEntry{}}
		all := s.Aliases(request.AccountOf(ev), ev.Region(), p.After)
		if filter != nil {
			all = s.AliasesOf(filter.ID)
		}
		out.NextMarker, out.Truncated, err = request.Fill(p, all, func(a *fsmpb.Alias) string { return a.Name }, func(a *fsmpb.Alias) {
			e := kmsapi.AliasListEntry{
				AliasName: new(a.Name), AliasArn: new(request.AliasARN(ev, fsm.Account(a.Account), a.Name)),
				CreationDate: TimeOf(a.Created), LastUpdatedDate: TimeOf(a.Updated),
			}
			if k, _ := s.Key(fsm.KeyID{Account: fsm.Account(a.Account), Region: a.Region, ID: [16]byte(a.Key)}); k != nil {
				e.TargetKeyId = new(request.FormatKeyID([16]byte(k.Id), k.MultiRegion))
			}
			out.Aliases = append(out.Aliases, e)
		})
		return out, err
	}
	return nil, nil
}
