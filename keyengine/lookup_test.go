package keyengine

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/keyengine/trailapi"
)

// by is a lookup with one attribute.
func by(key, value string) *trailapi.LookupEventsInput {
	return &trailapi.LookupEventsInput{LookupAttributes: []trailapi.LookupAttribute{{AttributeKey: &key, AttributeValue: &value}}}
}

// lookUp asks the cluster's first node.
func (c *testCluster) lookUp(id iam.Identity, in *trailapi.LookupEventsInput) (*trailapi.LookupEventsOutput, error) {
	c.t.Helper()
	c.Clock.Advance(time.Second) // an account may look up only so often
	return callAs[trailapi.LookupEventsOutput](c, c.engine, id, "LookupEvents", in)
}

func namesOf(out *trailapi.LookupEventsOutput) (names []string) {
	for _, e := range out.Events {
		names = append(names, *e.EventName)
	}
	return names
}

// TestLookupEvents: an event is found by each attribute and by its time, and has CloudTrail's
// members. The lookup itself is recorded, and is not part of its own answer.
func TestLookupEvents(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withShares(3, 2))
	c.root = rootCaller(t, c.engine, c.initResult).Identity
	withIndex(t, c.engine)
	id, arn := c.newKey()
	ann := c.storeUser(testAccountNumber, "ann", policyDocument(everything))
	c.Clock.Advance(time.Minute)
	if _, err := callAs[request.None](c, c.engine, ann, "DisableKey", &kmsapi.DisableKeyInput{KeyId: &id}); err != nil {
		t.Fatal(err)
	}
	at := c.Clock.Now()
	c.Clock.Advance(time.Minute)
	all, err := c.lookUp(c.root, by("EventName", "DisableKey"))
	if err != nil || len(all.Events) != 1 || all.NextToken != nil {
		t.Fatalf("got %+v, %v", all, err)
	}
	e := all.Events[0]
	var rec struct{ EventID, EventTime string }
	if err := json.Unmarshal([]byte(*e.CloudTrailEvent), &rec); err != nil {
		t.Fatal(err)
	}
	if *e.EventId != rec.EventID || e.EventTime.Format(time.RFC3339) != rec.EventTime || *e.ReadOnly != "false" || *e.EventSource != "kms.amazonaws.com" ||
		*e.Username != "ann" || e.AccessKeyId != nil || len(e.Resources) != 1 ||
		*e.Resources[0].ResourceType != "AWS::KMS::Key" || *e.Resources[0].ResourceName != arn {
		t.Errorf("the event: %+v", e)
	}
	if r := c.lastRecord(); r.EventName != "LookupEvents" || r.EventSource != "cloudtrail.amazonaws.com" || !r.ReadOnly ||
		len(r.RequestParameters) != 1 || !strings.Contains(r.RequestParameters[0].String(), "DisableKey") {
		t.Errorf("the record of the lookup: %v", r)
	}
	for key, value := range map[string]string{
		"EventId": *e.EventId, "ReadOnly": "false", "Username": "ann", "ResourceType": "AWS::KMS::Key", "ResourceName": arn,
		"EventSource": "kms.amazonaws.com",
	} {
		if out, err := c.lookUp(c.root, by(key, value)); err != nil || !slices.Contains(namesOf(out), "DisableKey") {
			t.Errorf("%s %s: got %v, %v", key, value, out, err)
		}
	}
	made, err := c.lookUp(c.root, by("AccessKeyId", c.initResult.AccessKeyID))
	if err != nil || !slices.Contains(namesOf(made), "CreateKey") || slices.Contains(namesOf(made), "DisableKey") || *made.Events[0].AccessKeyId != c.initResult.AccessKeyID {
		t.Errorf("by root's access key: got %v, %v", made, err)
	}
	for name, tc := range map[string]struct {
		from, to *time.Time
		want     bool
	}{
		"at its second":      {e.EventTime, e.EventTime, true},
		"from later on":      {new(e.EventTime.Add(time.Millisecond)), nil, false},
		"until before":       {nil, new(e.EventTime.Add(-time.Millisecond)), false},
		"around":             {new(at.Add(-2 * time.Second)), new(at.Add(2 * time.Second)), true},
		"in the future":      {new(at.Add(time.Hour)), nil, false},
		"long ago, to now":   {new(time.Unix(0, 0)), nil, true},
		"long ago, and then": {new(time.Unix(0, 0)), new(time.Unix(1, 0)), false},
	} {
		out, err := c.lookUp(c.root, &trailapi.LookupEventsInput{StartTime: tc.from, EndTime: tc.to})
		if err != nil || slices.Contains(namesOf(out), "DisableKey") != tc.want {
			t.Errorf("%s: got %v, %v", name, out, err)
		}
	}
	own, err := c.lookUp(c.root, by("EventName", "LookupEvents"))
	if err != nil || len(own.Events) == 0 || c.lastRecord().EventName != "LookupEvents" || c.countRecords("LookupEvents") != len(own.Events)+1 {
		t.Errorf("a lookup for lookups: %d events of %d, %v", len(own.Events), c.countRecords("LookupEvents"), err)
	}
	if out, err := c.lookUp(c.root, &trailapi.LookupEventsInput{EventCategory: new("insight")}); err != nil || len(out.Events) != 0 || out.Events == nil {
		t.Errorf("insights: got %+v, %v", out, err)
	}
	// Those of before are older than 90 days then.
	c.Clock.Advance(91 * 24 * time.Hour)
	if out, err := c.lookUp(c.root, by("EventName", "DisableKey")); err != nil || len(out.Events) != 0 {
		t.Errorf("after 91 days: got %+v, %v", out, err)
	}
}

// TestLookupEventsOfAccount: an account sees its own events only, whatever it asks for.
func TestLookupEventsOfAccount(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	withIndex(t, c.engine)
	c.putAccount(otherAccount)
	outsider := c.storeUser(otherAccount, "admin", policyDocument(everything))
	_, arn := c.newKey()
	if _, err := callAs[kmsapi.ListKeysOutput](c, c.engine, outsider, "ListKeys", &kmsapi.ListKeysInput{}); err != nil {
		t.Fatal(err)
	}
	theirs, err := c.lookUp(outsider, &trailapi.LookupEventsInput{})
	if err != nil || !slices.Equal(namesOf(theirs), []string{"ListKeys"}) {
		t.Errorf("the other account sees %v, %v, want ListKeys", theirs, err)
	}
	ours, err := c.lookUp(c.root, by("EventName", "CreateKey"))
	if err != nil || len(ours.Events) != 1 {
		t.Fatalf("got %v, %v", ours, err)
	}
	for _, in := range []*trailapi.LookupEventsInput{
		by("EventName", "CreateKey"), by("ResourceName", arn), by("EventId", *ours.Events[0].EventId), by("Username", "root"),
	} {
		if out, err := c.lookUp(outsider, in); err != nil || len(out.Events) != 0 {
			t.Errorf("%s: the other account sees %v, %v", *in.LookupAttributes[0].AttributeKey, namesOf(out), err)
		}
	}
	mine, err := c.lookUp(c.root, by("EventName", "ListKeys"))
	if err != nil || len(mine.Events) != 0 {
		t.Errorf("the first account sees %v, %v", namesOf(mine), err)
	}
}

// TestLookupEventsPages: pages have every event once, whatever is recorded in the meantime, and
// a token is good for the same request of the same principal only.
func TestLookupEventsPages(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	withIndex(t, c.engine)
	c.putAccount(otherAccount)
	outsider := c.storeUser(otherAccount, "admin", policyDocument(everything))
	ann := c.storeUser(testAccountNumber, "ann", policyDocument(everything))
	ids := make(map[string]bool)
	const n = 7
	for range n {
		must[kmsapi.GenerateRandomOutput](c, "GenerateRandom", &kmsapi.GenerateRandomInput{NumberOfBytes: new(int32(8))})
	}
	in, token := by("EventName", "GenerateRandom"), ""
	for pages := 1; ; pages++ {
		in.MaxResults = new(int32(1 + pages%3))
		out, err := c.lookUp(c.root, in)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range out.Events {
			if ids[*e.EventId] {
				t.Errorf("%s is there twice", *e.EventId)
			}
			ids[*e.EventId] = true
		}
		if in.NextToken = out.NextToken; in.NextToken == nil {
			break
		}
		if pages > n {
			t.Fatal("the pages do not end")
		}
		token = *out.NextToken
		must[kmsapi.GenerateRandomOutput](c, "GenerateRandom", &kmsapi.GenerateRandomInput{NumberOfBytes: new(int32(8))})
	}
	if len(ids) != n {
		t.Errorf("got %d events, want the %d of before the first page", len(ids), n)
	}

	changed := []byte(token)
	changed[len(changed)/2] ^= 1
	for name, ask := range map[string]struct {
		by    iam.Identity
		in    *trailapi.LookupEventsInput
		token string
	}{
		"changed":            {c.root, by("EventName", "GenerateRandom"), string(changed)},
		"cut":                {c.root, by("EventName", "GenerateRandom"), token[:len(token)-4]},
		"empty":              {c.root, by("EventName", "GenerateRandom"), ""},
		"not base64":         {c.root, by("EventName", "GenerateRandom"), "not a token"},
		"large":              {c.root, by("EventName", "GenerateRandom"), strings.Repeat("A", 5000)},
		"of another value":   {c.root, by("EventName", "CreateKey"), token},
		"of another key":     {c.root, by("Username", "GenerateRandom"), token},
		"of an attribute":    {c.root, &trailapi.LookupEventsInput{}, token},
		"of another time":    {c.root, &trailapi.LookupEventsInput{LookupAttributes: in.LookupAttributes, StartTime: new(c.Clock.Now().Add(-time.Hour))}, token},
		"of another user":    {ann, by("EventName", "GenerateRandom"), token},
		"of another account": {outsider, by("EventName", "GenerateRandom"), token},
	} {
		ask.in.NextToken = &ask.token
		if out, err := c.lookUp(ask.by, ask.in); !errors.Is(err, trailapi.ErrInvalidNextToken) {
			t.Errorf("a token that is %s: got %v, %v", name, out, err)
		}
	}
	in.NextToken = &token
	if _, err := c.lookUp(c.root, in); err != nil {
		t.Errorf("the token itself: %v", err)
	}
}

// TestLookupEventsInvalid: CloudTrail has an error for everything that is wrong, and records it.
func TestLookupEventsInvalid(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	withIndex(t, c.engine)
	two := by("EventName", "CreateKey")
	two.LookupAttributes = append(two.LookupAttributes, by("ReadOnly", "true").LookupAttributes...)
	now := c.Clock.Now()
	for name, tc := range map[string]struct {
		in   *trailapi.LookupEventsInput
		want *kmsapi.Error
	}{
		"two attributes":        {two, trailapi.ErrInvalidLookupAttributes},
		"an unknown attribute":  {by("Colour", "blue"), trailapi.ErrInvalidLookupAttributes},
		"an attribute's case":   {by("eventName", "CreateKey"), trailapi.ErrInvalidLookupAttributes},
		"no value":              {by("EventName", ""), trailapi.ErrInvalidLookupAttributes},
		"a long value":          {by("EventName", strings.Repeat("x", 2001)), trailapi.ErrInvalidLookupAttributes},
		"neither true or false": {by("ReadOnly", "maybe"), trailapi.ErrInvalidLookupAttributes},
		"no attribute":          {&trailapi.LookupEventsInput{LookupAttributes: []trailapi.LookupAttribute{{}}}, kmsapi.ErrValidation},
		"0 results":             {&trailapi.LookupEventsInput{MaxResults: new(int32(0))}, trailapi.ErrInvalidMaxResults},
		"51 results":            {&trailapi.LookupEventsInput{MaxResults: new(int32(51))}, trailapi.ErrInvalidMaxResults},
		"-1 results":            {&trailapi.LookupEventsInput{MaxResults: new(int32(-1))}, trailapi.ErrInvalidMaxResults},
		"reversed times":        {&trailapi.LookupEventsInput{StartTime: &now, EndTime: new(now.Add(-time.Second))}, trailapi.ErrInvalidTimeRange},
		"a time before 1970":    {&trailapi.LookupEventsInput{StartTime: new(time.Unix(-1, 0))}, trailapi.ErrInvalidTimeRange},
		"a time in year 9999":   {&trailapi.LookupEventsInput{EndTime: new(time.Unix(253402300799, 0))}, trailapi.ErrInvalidTimeRange},
		"another category":      {&trailapi.LookupEventsInput{EventCategory: new("data")}, trailapi.ErrInvalidEventCategory},
	} {
		before := c.Audit.Size()
		out, err := c.lookUp(c.root, tc.in)
		if !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, %v, want %s", name, out, err, tc.want.Code)
		}
		if r := c.lastRecord(); c.Audit.Size() != before+1 || r.EventName != "LookupEvents" || r.ErrorCode != string(tc.want.Code) {
			t.Errorf("%s: recorded as %s", name, r.ErrorCode)
		}
	}
}

// TestLookupEventsThrottled: an account may look up only so often, which does not concern other
// accounts and other requests.
func TestLookupEventsThrottled(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	withIndex(t, c.engine)
	c.putAccount(otherAccount)
	outsider := c.storeUser(otherAccount, "admin", policyDocument(everything))
	ask := func(id iam.Identity) error {
		_, err := callAs[trailapi.LookupEventsOutput](c, c.engine, id, "LookupEvents", &trailapi.LookupEventsInput{MaxResults: new(int32(1))})
		return err
	}
	for i := range costlyBurst {
		if err := ask(c.root); err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
	}
	records := c.Audit.Size()
	if err := ask(c.root); !errors.Is(err, kmsapi.ErrThrottling) {
		t.Errorf("got %v, want ThrottlingException", err)
	}
	if got := c.Audit.Size(); got != records {
		t.Errorf("a throttled request made %d records", got-records)
	}
	if err := ask(outsider); err != nil {
		t.Errorf("another account: %v", err)
	}
	must[kmsapi.ListKeysOutput](c, "ListKeys", &kmsapi.ListKeysInput{})
	c.Clock.Advance(time.Second / costlyRate)
	if err := ask(c.root); err != nil {
		t.Errorf("later: %v", err)
	}
}
