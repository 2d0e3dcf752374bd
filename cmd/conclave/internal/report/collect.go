package report

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/keys"
	"github.com/conclavekms/conclave/policy"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/iampb"
	"github.com/conclavekms/conclave/transport/kmspb"
)

const (
	// together is how many keys or users are read concurrently.
	together = 8
	// pageSize is how many keys are listed, and held in memory, at once.
	pageSize = 1000
	// maxErasures bounds the deleted keys that a report lists.
	maxErasures = 1000
)

// collector reads what a report is about.
type collector struct {
	app  *cli.App
	conn *cli.Connection
	run  *run
	cbom *cbom // nil if nobody wants it
	acc  *account

	read  int       // keys
	noted time.Time // when progress was last shown
}

// progress shows how far it is, every five seconds.
func (c *collector) progress(format string, args ...any) {
	if now := time.Now(); c.noted.IsZero() {
		c.noted = now
	} else if now.Sub(c.noted) >= 5*time.Second {
		c.noted = now
		c.app.Note(format, args...)
	}
}

// timed makes one call, which may take the time of one answer.
func (c *collector) timed(ctx context.Context, call func(context.Context) error) error {
	return c.app.Timed(ctx, call)
}

// each calls do for 0 to n-1, some concurrently, until one fails.
func each(ctx context.Context, n int, do func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	turns := make(chan struct{}, together)
	for i := range n {
		turns <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-turns }()
			if err := do(ctx, i); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// refused reports whether the caller may not make a call.
func refused(err error) bool {
	f, ok := client.FromError(err)
	return ok && f.Type == "AccessDeniedException" || ok && f.Type == "AccessDenied"
}

// keys reads all keys, and makes the checks on them page by page.
func (c *collector) keys(ctx context.Context, log *records) error {
	var marker *string
	for {
		var page *kmspb.ListKeysResponse
		err := c.timed(ctx, func(ctx context.Context) (err error) {
			page, err = c.conn.KMS().ListKeys(ctx, &kmspb.ListKeysRequest{Limit: proto.Int32(pageSize), Marker: marker})
			return err
		})
		if err != nil {
			return err
		}
		got := make([]*key, len(page.GetKeys()))
		err = each(ctx, len(got), func(ctx context.Context, i int) error {
			k, err := c.key(ctx, page.GetKeys()[i])
			got[i] = k
			return err
		})
		if err != nil {
			return err
		}
		for _, k := range got {
			if k == nil {
				continue // it was deleted in the meantime
			}
			if arn, err := policy.ParseARN(k.meta.GetArn()); err == nil {
				c.run.report.Region = arn.Region
			}
			if log != nil {
				k.records = log.keys[k.id()]
			}
			c.run.key(k)
			if c.cbom != nil {
				c.cbom.key(k)
			}
		}
		c.read += len(got)
		c.progress("read %d keys", c.read)
		if !page.GetTruncated() {
			return nil
		}
		if page.GetNextMarker() == "" {
			return errors.New("the server cut the list of keys short without saying where it continues")
		}
		marker = page.NextMarker
	}
}

// key reads a key. What the caller may not read is in lacks. It returns nil for a key that is no
// longer there.
func (c *collector) key(ctx context.Context, entry *kmspb.KeyListEntry) (*key, error) {
	k := &key{meta: &kmspb.KeyMetadata{KeyId: entry.KeyId, Arn: entry.KeyArn}}
	gone := false
	call := func(what need, call func(context.Context) error) error {
		err := c.timed(ctx, call)
		f, ok := client.FromError(err)
		switch {
		case err == nil:
		case ok && f.Type == "NotFoundException":
			gone = true
		case keys.Denied(err):
			k.lacks |= what
		default:
			return err
		}
		return nil
	}
	err := call(needDescription|needRotation, func(ctx context.Context) error {
		res, err := c.conn.KMS().DescribeKey(ctx, &kmspb.DescribeKeyRequest{KeyId: entry.KeyArn})
		if err == nil {
			k.meta = res.GetKeyMetadata()
		}
		return err
	})
	if err != nil || gone {
		return nil, err
	}
	err = call(needPolicy, func(ctx context.Context) error {
		res, err := c.conn.KMS().GetKeyPolicy(ctx, &kmspb.GetKeyPolicyRequest{KeyId: entry.KeyArn})
		k.policy = res.GetPolicy()
		return err
	})
	if err == nil && k.rotates() {
		err = call(needRotation, func(ctx context.Context) error {
			res, err := c.conn.KMS().GetKeyRotationStatus(ctx, &kmspb.GetKeyRotationStatusRequest{KeyId: entry.KeyArn})
			k.rotation = res
			return err
		})
	}
	if err == nil {
		err = call(needUse, func(ctx context.Context) error {
			res, err := c.conn.KMS().GetKeyLastUsage(ctx, &kmspb.GetKeyLastUsageRequest{KeyId: entry.KeyId})
			k.use = res
			return err
		})
	}
	if err != nil || gone {
		return nil, err
	}
	return k, nil
}

// lacking notes that something could not be read, unless the error is another one.
func (c *collector) lacking(what need, doing string, err error) error {
	if refused(err) {
		c.acc.lacks = append(c.acc.lacks, lack{what, Unreadable, c.run.report.Caller + " may not " + doing})
		return nil
	}
	return err
}

// identities reads the principals and policies of the account.
func (c *collector) identities(ctx context.Context) error {
	all := new(iampb.GetAccountAuthorizationDetailsResponse)
	req := &iampb.GetAccountAuthorizationDetailsRequest{Filter: []string{"User", "Group", "Role", "LocalManagedPolicy"}, MaxItems: proto.Int32(1000)}
	for {
		var page *iampb.GetAccountAuthorizationDetailsResponse
		err := c.timed(ctx, func(ctx context.Context) (err error) {
			page, err = c.conn.IAM().GetAccountAuthorizationDetails(ctx, req)
			return err
		})
		if err != nil {
			return c.lacking(needIdentities|needAccessKeys, "list principals and policies (iam:GetAccountAuthorizationDetails)", err)
		}
		proto.Merge(all, page)
		if !page.GetIsTruncated() {
			break
		}
		if page.GetMarker() == "" {
			return errors.New("the server cut the list of principals short without saying where it continues")
		}
		req.Marker = page.Marker
	}
	c.acc.identities = all
	return c.accessKeys(ctx)
}

// accessKeys reads the access keys of all users.
func (c *collector) accessKeys(ctx context.Context) error {
	users := c.acc.identities.GetUserDetailList()
	lists := make([][]accessKey, len(users))
	err := each(ctx, len(users), func(ctx context.Context, i int) error {
		name := users[i].UserName
		return c.timed(ctx, func(ctx context.Context) error {
			res, err := c.conn.IAM().ListAccessKeys(ctx, &iampb.ListAccessKeysRequest{UserName: name})
			if err != nil {
				return unlessGone(err)
			}
			for _, m := range res.GetAccessKeyMetadata() {
				used, err := c.conn.IAM().GetAccessKeyLastUsed(ctx, &iampb.GetAccessKeyLastUsedRequest{AccessKeyId: m.AccessKeyId})
				if err != nil {
					if unlessGone(err) == nil {
						continue
					}
					return err
				}
				k := accessKey{user: *name, id: m.GetAccessKeyId(), active: m.GetStatus() == "Active", created: m.GetCreateDate().AsTime()}
				if t := used.GetAccessKeyLastUsed().GetLastUsedDate(); t != nil {
					k.used = t.AsTime()
				}
				lists[i] = append(lists[i], k)
			}
			return nil
		})
	})
	if err != nil {
		return c.lacking(needAccessKeys, "list access keys and their last use (iam:ListAccessKeys, iam:GetAccessKeyLastUsed)", err)
	}
	for _, l := range lists {
		c.acc.accessKeys = append(c.acc.accessKeys, l...)
	}
	return nil
}

// unlessGone ignores the error for what was deleted in the meantime.
func unlessGone(err error) error {
	if f, ok := client.FromError(err); ok && (f.Type == "NoSuchEntity" || f.Type == "NoSuchEntityException") {
		return nil
	}
	return err
}

func (c *collector) summary(ctx context.Context) error {
	err := c.timed(ctx, func(ctx context.Context) error {
		res, err := c.conn.IAM().GetAccountSummary(ctx, &iampb.GetAccountSummaryRequest{})
		c.acc.summary = res.GetSummaryMap()
		return err
	})
	return c.lacking(needSummary, "read the account's summary (iam:GetAccountSummary)", err)
}

// shares reads who has shares, which a node tells only operators.
func (c *collector) shares(ctx context.Context) error {
	var st *kmspb.StatusResponse
	err := c.timed(ctx, func(ctx context.Context) (err error) {
		st, err = c.conn.Operator().Status(ctx, &kmspb.StatusRequest{})
		return err
	})
	switch {
	case err != nil:
		return err
	case st.GetSeal().GetShareSet() == nil:
		c.acc.lacks = append(c.acc.lacks, lack{needShares, NotChecked, "only an operator's certificate may read who has shares (--cert, --key-file)"})
		return nil
	}
	c.acc.shares = custodyOf(st.GetSeal())
	c.run.report.Custody = c.acc.shares
	return nil
}

// noted are the events of keys that findings refer to.
var noted = map[string]bool{
	"CreateKey": true, "PutKeyPolicy": true, "ScheduleKeyDeletion": true, "DisableKey": true, "DisableKeyRotation": true, "EnableKeyRotation": true, "ImportKeyMaterial": true,
}

// records reads the audit log's records.
func (c *collector) records(ctx context.Context) (*records, error) {
	l := &records{keys: make(map[string]map[string]uint64)}
	read := 0
	err := c.conn.ReadAudit(ctx, 0, false, func(r *kmspb.ReadAuditResponse) error {
		read++
		c.progress("read %d records of the audit log", read)
		return l.add(r)
	})
	if err != nil {
		return nil, c.lacking(needRecords, "read the audit log (conclave:ReadAudit)", err)
	}
	c.acc.log = l
	c.run.report.Erasures = append(c.run.report.Erasures, l.erasures...)
	c.run.report.audit().From, c.run.report.audit().To, c.run.report.audit().Unopenable = l.from, l.to, l.unopenable
	c.run.report.audit().Oldest = l.first.Format(time.RFC3339)
	return l, nil
}

// audit returns what is known about the audit log, which is then in the report.
func (r *Report) audit() *AuditState {
	if r.Audit == nil {
		r.Audit = new(AuditState)
	}
	return r.Audit
}

// add adds a record.
func (l *records) add(r *kmspb.ReadAuditResponse) error {
	index := r.GetIndex()
	switch {
	case l.to == 0:
		l.from = index
	case index != l.to:
		l.gaps++
	}
	begins := l.to == 0
	l.to = index + 1
	if r.GetUnopenable() {
		if l.unopenable == 0 {
			l.firstBad = index
		}
		l.unopenable++
	}
	var rec struct {
		EventName, EventTime, ErrorCode string
		Resources                       []struct{ ARN string }
	}
	if err := json.Unmarshal([]byte(r.GetJson()), &rec); err != nil {
		return fmt.Errorf("record %d of the audit log is not JSON: %w", index, err)
	}
	if begins {
		t, err := time.Parse(time.RFC3339, rec.EventTime)
		if err != nil {
			return fmt.Errorf("record %d of the audit log: %w", index, err)
		}
		l.first = t
	}
	if rec.ErrorCode != "" {
		return nil
	}
	for _, res := range rec.Resources {
		_, id, ok := strings.Cut(res.ARN, ":key/")
		switch {
		case !ok:
		case rec.EventName == "DeleteKey":
			delete(l.keys, id)
			if len(l.erasures) < maxErasures {
				l.erasures = append(l.erasures, Erasure{res.ARN, rec.EventTime, index})
			} else {
				l.omitted++
			}
		case noted[rec.EventName]:
			if l.keys[id] == nil {
				l.keys[id] = make(map[string]uint64)
			}
			l.keys[id][rec.EventName] = index
		}
	}
	return nil
}
