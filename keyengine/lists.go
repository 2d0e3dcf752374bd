package keyengine

import (
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"iter"
	"strconv"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// Lists over everything would have read sets as long as themselves. They are read
// after their record is committed instead, on a state that contains it: what
// they show is then no older than the request.

func listKeys(ev *eval, in *kmsapi.ListKeysInput) (*kmsapi.ListKeysOutput, error) {
	if err := ev.authoriseAccount(ev.op.action(), "*"); err != nil {
		return nil, err
	}
	p, err := pageOf(ev, in.Limit, 100, 1000, in.Marker)
	if err != nil {
		return nil, err
	}
	after := fsm.KeyID{Account: accountOf(ev), Region: ev.region()}
	if id, err := hex.DecodeString(p.after); err == nil {
		copy(after.ID[:], id)
	}
	ev.later = func(s *fsm.State) (any, error) {
		out := &kmsapi.ListKeysOutput{Keys: []kmsapi.KeyListEntry{}}
		out.NextMarker, out.Truncated, err = fill(p, s.Keys(after), func(k *fsmpb.Key) string {
			return hex.EncodeToString(k.Id)
		}, func(k *fsmpb.Key) {
			name := formatKeyID([16]byte(k.Id), k.MultiRegion)
			out.Keys = append(out.Keys, kmsapi.KeyListEntry{KeyId: &name, KeyArn: new(keyARN(ev.cluster(), k.Region, name))})
		})
		return out, err
	}
	return nil, nil
}

func listAliases(ev *eval, in *kmsapi.ListAliasesInput) (*kmsapi.ListAliasesOutput, error) {
	var filter *target
	scope := ""
	if in.KeyId != nil {
		var err error
		if filter, err = ev.resolve(*in.KeyId, keyForms, ev.op.action()); err != nil {
			return nil, err
		}
		scope = filter.arn
	}
	if err := ev.authoriseAccount(ev.op.action(), "*"); err != nil {
		return nil, err
	}
	p, err := pageOf(ev, in.Limit, 50, 100, in.Marker, scope)
	if err != nil {
		return nil, err
	}
	ev.later = func(s *fsm.State) (any, error) {
		out := &kmsapi.ListAliasesOutput{Aliases: []kmsapi.AliasListEntry{}}
		all := s.Aliases(accountOf(ev), ev.region(), p.after)
		if filter != nil {
			all = s.AliasesOf(filter.id)
		}
		out.NextMarker, out.Truncated, err = fill(p, all, func(a *fsmpb.Alias) string { return a.Name }, func(a *fsmpb.Alias) {
			e := kmsapi.AliasListEntry{
				AliasName: new(a.Name), AliasArn: new(aliasARN(ev, a.Name)),
				CreationDate: timeOf(a.Created), LastUpdatedDate: timeOf(a.Updated),
			}
			if k, _ := s.Key(fsm.KeyID{Account: fsm.Account(a.Account), Region: a.Region, ID: [16]byte(a.Key)}); k != nil {
				e.TargetKeyId = new(formatKeyID([16]byte(k.Id), k.MultiRegion))
			}
			out.Aliases = append(out.Aliases, e)
		})
		return out, err
	}
	return nil, nil
}

// page is the part of a list that a request asks for: up to limit items whose
// names come after a given one.
type page struct {
	ev    *eval
	scope string
	limit int
	after string
}

// page reads Limit and Marker. Markers are good for one operation, one caller, one
// Region and the same arguments; they are authenticated, so that any node knows those
// that the cluster gave out, and none that it did not.
func pageOf(ev *eval, limit *int32, normal, most int, marker *string, arguments ...string) (*page, error) {
	p := &page{ev: ev, limit: normal}
	if limit != nil {
		p.limit = min(int(*limit), most)
	}
	for _, s := range append(arguments, ev.op.Name, ev.caller.Identity.Principal().String(), ev.region()) {
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

// marker continues the list after an item.
func (p *page) marker(after string) (*string, error) {
	mac, err := p.mac(after)
	if err != nil {
		return nil, err
	}
	b := append([]byte{markerVersion}, mac...)
	return new(base64.RawURLEncoding.EncodeToString(append(b, after...))), nil
}

// fill takes the page's items from all, which is in ascending order of names and
// may begin before the page does, and returns NextMarker and Truncated.
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
