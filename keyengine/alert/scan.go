package alert

import (
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

const (
	// scanEvery is how often the leader looks for what happens without a record.
	scanEvery = time.Hour
	// expirySoon is how long before imported material expires there is an alert.
	expirySoon = 7 * day
	// rotationLate is the age of key material from which on there is an alert.
	rotationLate = 365 * day
	// maxListed bounds how many keys an alert lists.
	maxListed = 10
)

// due are the keys of one account that a rule has found.
type due struct {
	count int
	first []string // the ids of some of them
}

func (d *due) add(k *fsmpb.Key) {
	if d.count++; d.count <= maxListed {
		d.first = append(d.first, k.Region+"/"+request.FormatKeyID([16]byte(k.Id), k.MultiRegion))
	}
}

func (d *due) String() string {
	s := strings.Join(d.first, ", ")
	if more := d.count - len(d.first); more > 0 {
		s += fmt.Sprintf(" and %d more", more)
	}
	return s
}

// scan returns the alerts about keys whose time comes without anybody making a request. There
// is one alert for each account, since many keys may have been imported or created together.
func scan(keys iter.Seq[*fsmpb.Key], now int64) (list []Alert) {
	type which struct {
		rule    string
		account fsm.Account
	}
	found := make(map[which]*due)
	add := func(rule string, k *fsmpb.Key) {
		w := which{rule, fsm.Account(k.Account)}
		if found[w] == nil {
			found[w] = new(due)
		}
		found[w].add(k)
	}
	for k := range keys {
		if expiresSoon(k, now) {
			add(MaterialExpires, k)
		}
		if rotatesLate(k, now) {
			add(KeysNotRotated, k)
		}
	}
	for w, d := range found {
		a := Alert{Rule: w.rule, Subject: w.account.String(), Account: w.account.String(), Time: now}
		if w.rule == MaterialExpires {
			a.Message = fmt.Sprintf("Imported material of %d keys expires within %v: %s.", d.count, days(expirySoon), d)
		} else {
			a.Message = fmt.Sprintf("%d keys have had the same material for %v or longer: %s.", d.count, days(rotationLate), d)
		}
		list = append(list, a)
	}
	return list
}

func expiresSoon(k *fsmpb.Key, now int64) bool {
	if k.Origin != kmsapi.OriginImported {
		return false
	}
	for _, m := range k.Materials {
		if len(m.Wrapped) > 0 && m.ValidTo != 0 && m.ValidTo-now <= int64(expirySoon) {
			return true
		}
	}
	return false
}

// rotatesLate considers the keys that AWS can rotate automatically.
func rotatesLate(k *fsmpb.Key, now int64) bool {
	if k.Origin != kmsapi.OriginKMS || k.Spec != kmsapi.SpecSymmetric || k.State != fsmpb.KeyState_KEY_STATE_ENABLED || len(k.Materials) == 0 {
		return false
	}
	newest := k.Materials[len(k.Materials)-1]
	return now-max(newest.Created, newest.Rotated) >= int64(rotationLate)
}
