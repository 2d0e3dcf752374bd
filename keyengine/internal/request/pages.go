package request

import (
	"crypto/subtle"
	"encoding/base64"
	"iter"
	"strconv"

	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// Page is the requested part of a list: up to a number of items whose names come after the
// given one.
type Page struct {
	// After is the name of the last item before the page, or "" for the first page.
	After string
	ev    *Evaluation
	scope string
	limit int
}

// PageOf parses Limit and Marker. A marker is valid for one operation, caller and Region
// and for the same arguments. It is authenticated, so that every node accepts exactly the
// markers that the cluster issued.
func PageOf(ev *Evaluation, limit *int32, normal, most int, marker *string, arguments ...string) (*Page, error) {
	p := &Page{ev: ev, limit: normal}
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
		return nil, p.invalidMarker()
	}
	p.After = string(b[1+markerMAC:])
	mac, err := p.mac(p.After)
	if err != nil {
		return nil, err
	}
	if subtle.ConstantTimeCompare(mac, b[1:1+markerMAC]) != 1 {
		return nil, p.invalidMarker()
	}
	return p, nil
}

const (
	markerVersion = 1
	markerMAC     = 16
	markerPurpose = "list marker v1"
)

// invalidMarker returns the error for a marker that the cluster did not issue for this
// request.
func (p *Page) invalidMarker() error {
	if p.ev.Op.Service == KMS {
		return kmsapi.ErrInvalidMarker
	}
	return kmsapi.Errorf(kmsapi.ErrValidation, "Invalid Marker.")
}

func (p *Page) mac(after string) ([]byte, error) {
	sum, err := p.ev.Vault.MAC(markerPurpose, []byte(p.scope+strconv.Itoa(len(after))+":"+after))
	return sum[:markerMAC], err
}

// marker returns a marker that continues the list after an item.
func (p *Page) marker(after string) (*string, error) {
	mac, err := p.mac(after)
	if err != nil {
		return nil, err
	}
	b := append([]byte{markerVersion}, mac...)
	return new(base64.RawURLEncoding.EncodeToString(append(b, after...))), nil
}

// Fill takes the page's items from all, which is in ascending order of names and may begin
// before the page does. It returns NextMarker and Truncated.
func Fill[T any](p *Page, all iter.Seq[T], name func(T) string, take func(T)) (next *string, truncated *bool, err error) {
	n, last := 0, ""
	for item := range all {
		at := name(item)
		if at <= p.After && p.After != "" {
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
