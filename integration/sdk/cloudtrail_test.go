package sdk

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/cloudtrail"
	"github.com/aws/aws-sdk-go-v2/service/cloudtrail/types"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/smithy-go"

	"github.com/conclavekms/conclave/integration/harness"
)

// trailOf is AWS's client of CloudTrail on a node.
func trailOf(t *testing.T, c *harness.Cluster, n int) *cloudtrail.Client {
	t.Helper()
	return cloudtrail.NewFromConfig(configOf(t, c, n, credentials.NewStaticCredentialsProvider(c.AccessKeyID, c.Secret(), "")))
}

// TestLookupEventsPaginator: the SDK's paginator gets 1,000 events, each once and the newest
// first, while others are recorded. Its requests go to one node after the other.
func TestLookupEventsPaginator(t *testing.T) {
	t.Parallel()
	c := harness.NewCluster(t, 3, harness.Options{Configure: harness.LongElections})
	const events, callers = 1000, 20
	var g sync.WaitGroup
	failed := make(chan error, callers)
	var calls atomic.Int64 // those without an answer may be recorded too
	for i := range callers {
		g.Go(func() {
			for range events / callers {
				err := harness.Poll(t.Context(), harness.Patience, func(ctx context.Context) error {
					calls.Add(1)
					_, err := c.Nodes[i%3].SDK().GenerateRandom(ctx, &kms.GenerateRandomInput{NumberOfBytes: aws.Int32(8)})
					return err
				})
				if err != nil {
					failed <- err
					return
				}
			}
		})
	}
	g.Wait()
	select {
	case err := <-failed:
		t.Fatal(err)
	default:
	}
	in := &cloudtrail.LookupEventsInput{LookupAttributes: []types.LookupAttribute{{AttributeKey: types.LookupAttributeKeyEventName, AttributeValue: aws.String("GenerateRandom")}}}
	// The index follows the log.
	indexed := func(ctx context.Context) error {
		for n := range c.Nodes {
			out, err := trailOf(t, c, n).LookupEvents(ctx, in)
			if err != nil {
				return err
			}
			if len(out.Events) != 50 || out.NextToken == nil {
				return errors.New("not all events are indexed")
			}
		}
		return nil
	}
	c.Eventually("the events are found", indexed)

	ctx, stop := context.WithCancel(t.Context())
	appended := make(chan int)
	go func() {
		n := 0
		defer func() { appended <- n }()
		for ctx.Err() == nil {
			calls.Add(1)
			if _, err := c.Nodes[n%3].SDK().GenerateRandom(ctx, &kms.GenerateRandomInput{NumberOfBytes: aws.Int32(8)}); err == nil {
				n++
			}
		}
	}()
	seen := make(map[string]bool)
	var last time.Time
	pages, clients := cloudtrail.NewLookupEventsPaginator(nodesInTurn(t, c), in), 0
	for pages.HasMorePages() {
		out, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		clients++
		for _, e := range out.Events {
			if seen[*e.EventId] {
				t.Errorf("event %s is there twice", *e.EventId)
			}
			seen[*e.EventId] = true
			if !last.IsZero() && e.EventTime.After(last) {
				t.Errorf("an event of %v comes after one of %v", e.EventTime, last)
			}
			last = *e.EventTime
		}
	}
	stop()
	more := <-appended
	if more == 0 {
		t.Error("nothing was recorded in the meantime")
	}
	// Those that were recorded between the first request and the search above are there too.
	if len(seen) < events || len(seen) > int(calls.Load()) {
		t.Errorf("got %d events, want the %d of before the first page, and at most %d", len(seen), events, calls.Load())
	}
	t.Logf("%d events in %d pages, while %d were recorded", len(seen), clients, more)
}

// nodesInTurn is a client that asks another node for each page.
func nodesInTurn(t *testing.T, c *harness.Cluster) cloudtrail.LookupEventsAPIClient {
	r := new(inTurn)
	for n := range c.Nodes {
		r.clients = append(r.clients, trailOf(t, c, n))
	}
	return r
}

type inTurn struct {
	clients []*cloudtrail.Client
	calls   int
}

func (r *inTurn) LookupEvents(ctx context.Context, in *cloudtrail.LookupEventsInput, with ...func(*cloudtrail.Options)) (*cloudtrail.LookupEventsOutput, error) {
	r.calls++
	return r.clients[r.calls%len(r.clients)].LookupEvents(ctx, in, with...)
}

// TestCloudTrailErrors: the SDK knows the errors, and what is not there is answered as by AWS.
func TestCloudTrailErrors(t *testing.T) {
	t.Parallel()
	c := harness.NewCluster(t, 1, harness.Options{})
	trail := trailOf(t, c, 0)
	attribute := types.LookupAttribute{AttributeKey: types.LookupAttributeKeyEventName, AttributeValue: aws.String("CreateKey")}
	now := time.Now()
	for _, tc := range []struct {
		in   cloudtrail.LookupEventsInput
		want error
	}{
		{cloudtrail.LookupEventsInput{MaxResults: aws.Int32(0)}, new(types.InvalidMaxResultsException)},
		{cloudtrail.LookupEventsInput{MaxResults: aws.Int32(51)}, new(types.InvalidMaxResultsException)},
		{cloudtrail.LookupEventsInput{LookupAttributes: []types.LookupAttribute{attribute, attribute}}, new(types.InvalidLookupAttributesException)},
		{cloudtrail.LookupEventsInput{StartTime: &now, EndTime: aws.Time(now.Add(-time.Hour))}, new(types.InvalidTimeRangeException)},
		{cloudtrail.LookupEventsInput{NextToken: aws.String("AAAA")}, new(types.InvalidNextTokenException)},
		{cloudtrail.LookupEventsInput{EventCategory: "data"}, new(types.InvalidEventCategoryException)},
	} {
		_, err := trail.LookupEvents(t.Context(), &tc.in)
		got, ok := errors.AsType[smithy.APIError](err)
		if want := tc.want.(smithy.APIError).ErrorCode(); !ok || got.ErrorCode() != want {
			t.Errorf("%+v: got %v, want %s", tc.in, err, want)
		}
	}
	_, err := trail.DescribeTrails(t.Context(), &cloudtrail.DescribeTrailsInput{})
	if got, ok := errors.AsType[smithy.APIError](err); !ok || got.ErrorCode() != "UnknownOperationException" {
		t.Errorf("DescribeTrails: got %v, want UnknownOperationException", err)
	}

	// A user needs cloudtrail:LookupEvents.
	i := newIdentities(t, c)
	for name, allowed := range map[string]bool{"auditor": true, "other": false} {
		action := "cloudtrail:LookupEvents"
		if !allowed {
			action = "conclave:ReadAudit"
		}
		user := cloudtrail.NewFromConfig(configOf(t, c, 0, i.user(name, allow("*", action))))
		out, err := user.LookupEvents(t.Context(), &cloudtrail.LookupEventsInput{LookupAttributes: []types.LookupAttribute{
			{AttributeKey: types.LookupAttributeKeyResourceName, AttributeValue: aws.String("user/" + name)},
		}})
		got, _ := errors.AsType[smithy.APIError](err)
		switch {
		case allowed && (err != nil || !slices.ContainsFunc(out.Events, func(e types.Event) bool { return *e.EventName == "CreateUser" })):
			t.Errorf("%s: got %+v, %v", name, out, err)
		case !allowed && (got == nil || got.ErrorCode() != "AccessDeniedException"):
			t.Errorf("%s: got %v, want AccessDeniedException", name, err)
		}
	}
}
