package ops

import (
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"iter"
	"strconv"

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
	p, err := pageOf(ev, in.Limit, 100, 1000, in.Marker)
	if err != nil {
		return nil, err
	}
	after := fsm.KeyID{Account: request.AccountOf(ev), Region: ev.Region()}
	if id, err := hex.DecodeString(p.after); err == nil {
		copy(after.ID[:], id)
	}
	ev.Later = func(s *fsm.State) (any, error) {
		out := &kmsapi.ListKeysOutput{Keys: []kmsapi.KeyListEntry{}}
		out.NextMarker, out.Truncated, err = fill(p, s.Keys(after), func(k *fsmpb.Key) string {
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
	p, err := pageOf(ev, in.Limit, 50, 100, in.Marker, scope)
	if err != nil {
		return nil, err
	}
	ev.Later = func(s *fsm.State) (any, error) {
		out := &kmsapi.ListAliasesOutput{Aliases: []kmsapi.AliasListEntry{}}
		all := s.Aliases(request.AccountOf(ev), ev.Region(), p.after)
		if filter != nil {
			all = s.AliasesOf(filter.ID)
		}
		out.NextMarker, out.Truncated, err = fill(p, all, func(a *fsmpb.Alias) string { return a.Name }, func(a *fsmpb.Alias) {
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

// page is the requested part of a list: up to limit items whose names come after the given
// one.
type page struct {
	ev    *request.Evaluation
	scope string
	limit int
	after string
}

// pageOf parses Limit and Marker. A marker is valid for one operation, caller and Region
// and for the same arguments. It is authenticated, so that every node accepts exactly the
// markers that the cluster issued.
func pageOf(ev *request.Evaluation, limit *int32, normal, most int, marker *string, arguments ...string) (*page, error) {
	p := &page{ev: ev, limit: normal}
	if limit != nil {
		p.limit = min(int(*limit), most)
	}
	for _, s := range append(arguments, ev.Op.Name, ev.Principal().String(), ev.Region()) {
		p.scope += strconv.Itoa(len(s)) + ":" + s
	}
	if marker == nil {
		return p, nil
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(*marker)
	if err != nil || len(b) < 1+markerMAC || b[0] != markerVersion {
		return nil, kmsapi.ErrInvalidMarker
	}
	p.after = string(b[1+markerMAC:])
	mac, err := p.mac(p.after)
	if err != nil {
		return nil, err
	}
	if subtle.ConstantTimeCompare(mac, b[1:1+markerMAC]) != 1 {
		return nil, kmsapi.ErrInvalidMarker
	}
	return p, nil
}

const (
	markerVersion = 1
	markerMAC     = 16
	markerPurpose = "list marker v1"
)

func (p *page) mac(after string) ([]byte, error) {
	sum, err := p.ev.Vault.MAC(markerPurpose, []byte(p.scope+strconv.Itoa(len(after))+":"+after))
	return sum[:markerMAC], err
}

// marker returns a marker that continues the list after an item.
func (p *page) marker(after string) (*string, error) {
	mac, err := p.mac(after)
	if err != nil {
		return nil, err
	}
	b := append([]byte{markerVersion}, mac...)
	return new(base64.RawURLEncoding.EncodeToString(append(b, after...))), nil
}

// fill takes the page's items from all, which is in ascending order of names and may begin
// before the page does. It returns NextMarker and Truncated.
func fill[T any](p *page, all iter.Seq[T], name func(T) string, take func(T)) (next *string, truncated *bool, err error) {
	n, last := 0, ""
	for item := range all {
		at := name(item)
		if at <= p.after && p.after != "" {
			continue
		}
		if n == p.limit {
			next, err = p.marker(last)
			return next, new(true), err
		}
		take(item)
		n, last = n+1, at
	}
	return nil, new(false), nil
}
