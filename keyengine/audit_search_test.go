package keyengine

import (
	"context"
	"encoding/json"
	"path/filepath"
	"testing"
	"time"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iam/iampb"
	"github.com/conclavekms/conclave/keyengine/internal/auditfeed"
	"github.com/conclavekms/conclave/keyengine/internal/auditindex"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// withIndex gives an engine an index of its log, until the test ends.
func withIndex(t testing.TB, e *Engine) {
	t.Helper()
	log := e.cfg.Audit
	e.index = auditindex.New(auditindex.Config{
		Path: filepath.Join(t.TempDir(), "index"), Log: log, Feed: &auditfeed.Feed{Log: log, Vault: e.vault}, Vault: e.vault,
	})
	e.services.Index = e.index
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); e.index.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
}

// TestSearchAudit: a search finds what its caller just did, is recorded once with its query,
// and goes on with a page that cannot be changed.
func TestSearchAudit(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withShares(3, 2))
	e, root := c.engine, rootCaller(t, c.engine, c.initResult)
	withIndex(t, e)
	for range 3 {
		if _, err := e.ReadAudit(t.Context(), root, 0); err != nil {
			t.Fatal(err)
		}
	}
	q := AuditQuery{Where: []AuditCondition{{Field: "operation", Value: "ReadAudit"}, {Field: "outcome", Value: "Success"}}, From: time.Unix(1, 0)}
	size := c.Audit.Size()
	first, err := e.SearchAudit(t.Context(), root, q, "", 2)
	if err != nil {
		t.Fatal(err)
	}
	if len(first.Records) != 2 || first.Next == "" || first.Records[0].Index <= first.Records[1].Index {
		t.Fatalf("first page: %+v", first)
	}
	second, err := e.SearchAudit(t.Context(), root, AuditQuery{}, first.Next, 2)
	if err != nil {
		t.Fatal(err)
	}
	if len(second.Records) != 1 || second.Next != "" || second.Records[0].Index >= first.Records[1].Index {
		t.Fatalf("second page: %+v", second)
	}
	if got := c.Audit.Size(); got != size+1 {
		t.Errorf("two pages made %d records, want 1", got-size)
	}
	found, err := e.SearchAudit(t.Context(), root, AuditQuery{Where: []AuditCondition{{Field: "operation", Value: "SearchAudit"}}}, "", 10)
	if err != nil || len(found.Records) == 0 {
		t.Fatalf("%+v, %v", found, err)
	}
	var rec struct {
		RequestParameters struct {
			StartTime string
			Where     map[string]string
		}
	}
	if err := json.Unmarshal([]byte(found.Records[len(found.Records)-1].JSON), &rec); err != nil {
		t.Fatal(err)
	}
	if rec.RequestParameters.Where["operation"] != "ReadAudit" || rec.RequestParameters.StartTime == "" {
		t.Errorf("the record of the search: %s", found.Records[0].JSON)
	}
	forged := []byte(first.Next)
	forged[len(forged)/2] ^= 1
	for name, page := range map[string]string{"changed": string(forged), "made up": "AAAA", "not base64": "!"} {
		if _, err := e.SearchAudit(t.Context(), root, q, page, 2); err == nil {
			t.Errorf("a page that is %s was accepted", name)
		}
	}
}

// TestSearchAuditInvalid: what cannot be searched for is refused.
func TestSearchAuditInvalid(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withShares(3, 2))
	e, root := c.engine, rootCaller(t, c.engine, c.initResult)
	withIndex(t, e)
	for name, q := range map[string]AuditQuery{
		"unknown field": {Where: []AuditCondition{{Field: "colour", Value: "x"}}},
		"no value":      {Where: []AuditCondition{{Field: "key"}}},
		"twice":         {Where: []AuditCondition{{Field: "key", Value: "a"}, {Field: "key", Value: "b"}}},
		"time":          {From: time.Unix(2, 0), To: time.Unix(1, 0)},
	} {
		if _, err := e.SearchAudit(t.Context(), root, q, "", 2); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for _, limit := range []int{0, -1, MaxAuditPage + 1} {
		if _, err := e.SearchAudit(t.Context(), root, AuditQuery{}, "", limit); err == nil {
			t.Errorf("limit %d: accepted", limit)
		}
	}
}

// TestSearchAuditPermission: users and sessions of roles with conclave:ReadAudit search and
// read, others do not; a page belongs to who began the search, for as long as it may.
func TestSearchAuditPermission(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withShares(3, 2))
	e := c.engine
	withIndex(t, e)
	may := inline(`{"Effect":"Allow","Action":"conclave:ReadAudit","Resource":"*"}`)
	c.putRole("auditors", func(r *fsmpb.Role) { r.Inline = may })
	callers := make(map[string]*iam.Caller)
	for name, id := range map[string]iam.Identity{
		"ann":     c.newIAMUser("ann", func(u *fsmpb.User) { u.Inline = may }),
		"bob":     c.newIAMUser("bob", func(u *fsmpb.User) { u.Inline = may }),
		"eve":     c.newIAMUser("eve", func(u *fsmpb.User) {}),
		"session": c.newSession("auditors", func(*iampb.Session) {}),
	} {
		callers[name] = &iam.Caller{Identity: id, RequestID: randomID(), SourceIP: "192.0.2.1", Transport: "grpc"}
	}
	denied := func(err error) bool {
		code, _ := record.Outcome(err)
		return code == string(kmsapi.ErrAccessDenied.Code)
	}
	pages := make(map[string]string)
	for name, caller := range callers {
		p, err := e.SearchAudit(t.Context(), caller, AuditQuery{}, "", 1)
		_, readErr := e.ReadAudit(t.Context(), caller, 0)
		if name == "eve" {
			if !denied(err) || !denied(readErr) {
				t.Errorf("%s: got %v and %v, want AccessDeniedException", name, err, readErr)
			}
			continue
		}
		if err != nil || readErr != nil {
			t.Fatalf("%s: %v, %v", name, err, readErr)
		}
		pages[name] = p.Next
	}
	if _, err := e.SearchAudit(t.Context(), callers["bob"], AuditQuery{}, pages["ann"], 1); err == nil {
		t.Error("a page of another caller was accepted, whose search is not recorded")
	}
	if _, err := e.SearchAudit(t.Context(), callers["ann"], AuditQuery{}, pages["ann"], 1); err != nil {
		t.Error(err)
	}
	c.putUser("ann", func(u *fsmpb.User) { u.Inline = nil })
	before := c.Audit.Size()
	if _, err := e.SearchAudit(t.Context(), callers["ann"], AuditQuery{}, pages["ann"], 1); !denied(err) {
		t.Errorf("a page without the permission: got %v", err)
	}
	recs := nodeOf(e).Records()
	if r := recs[len(recs)-1]; c.Audit.Size() != before+1 || r.EventName != "SearchAudit" || r.ErrorCode != string(kmsapi.ErrAccessDenied.Code) {
		t.Errorf("the record of the refusal: %v", r)
	}
}
