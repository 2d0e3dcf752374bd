package scale

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/conclavekms/conclave/cmd/conclave/node"
	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/transport/iampb"
	"github.com/conclavekms/conclave/transport/sigv4"
)

// TestScaleUsers fills a cluster with users who have an access key each, and holds it against
// the same cluster when it was empty: memory, a node's start, signed requests, and the requests
// to IAM that are about all users of an account. Half of the users have a managed policy, and the
// others are in a group that has it. `make scale` makes 100,000 users.
func TestScaleUsers(t *testing.T) {
	if testing.Short() {
		t.Skip("measures, which the race detector spoils: make scale runs it")
	}
	if os.Getenv("GOGC") == "" {
		defer debug.SetGCPercent(debug.SetGCPercent(node.GCPercent)) // as in TestScale
	}
	size := sizeOf(t)
	w := &scaled{t: t, seed: harness.NewSeed(t)}
	w.start(func(_ *harness.Node, cfg *node.Config) { cfg.Quotas = keyengine.Quotas{Users: size + 10} })
	w.keys = make([]string, 1)
	w.check(w.createKey(0))
	u := &population{scaled: w, users: make([]user, size), iam: w.iamClients()}
	u.transport = &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: harness.RootsOf(t, w.c), MinVersion: tls.VersionTLS13}, MaxIdleConnsPerHost: callers,
	}
	t.Cleanup(u.transport.CloseIdleConnections)
	u.setUp()
	root := user{w.c.AccessKeyID, w.c.Secret()}
	emptyHeap := w.heap()
	emptyStart, _, emptySnapshot := w.starts(w.keys[0])

	began := time.Now()
	w.parallel(0, size, u.create)
	t.Logf("made %d users in %v", size, time.Since(began).Round(time.Second))
	u.lookUp()
	fromLog, _ := w.restart(w.c.Nodes[(w.c.Leader().Index+1)%3])
	fullStart, _, fullSnapshot := w.starts(w.keys[0])
	w.c.Converged()
	perUser := float64(int64(w.heap())-int64(emptyHeap)) / 3 / float64(size)

	// The order in which users make their first request; each of them makes one at one node.
	random := rand.New(rand.NewPCG(w.seed, 2))
	order := random.Perm(size)
	first := min(size/2, 20_000)
	warm := make([]user, 250) // with their keys for two services, they are less than the cache takes
	for i := range warm {
		warm[i] = u.users[order[size-1-i]]
	}
	coldCalls := u.sign("first GetCallerIdentity", callerIdentity, first, func(i int) user { return u.users[order[i]] })
	coldEncrypt := u.sign("first Encrypt", u.encryption(), first, func(i int) user { return u.users[order[i]] })
	u.sign("(warming up)", callerIdentity, 3*len(warm), func(i int) user { return warm[i/3] })
	u.sign("(warming up)", u.encryption(), 3*len(warm), func(i int) user { return warm[i/3] })
	warmCalls := u.sign("GetCallerIdentity", callerIdentity, first, func(i int) user { return warm[i/3*7%len(warm)] })
	warmEncrypt := u.sign("Encrypt", u.encryption(), first, func(i int) user { return warm[i/3*7%len(warm)] })
	rootEncrypt := u.sign("Encrypt of root", u.encryption(), first, func(int) user { return root })
	w.c.Converged()
	w.c.NoFaults()

	t.Logf("%d users with an access key; three nodes in one process, seed %d\n"+
		"                             empty       full\n"+
		"started from snapshot   %10v %10v\n"+
		"started from log                   %10v\n"+
		"snapshot                %10v %10v\n"+
		"                               p50        p99       op/s\n"+
		"first GetCallerIdentity %v\n"+
		"later GetCallerIdentity %v\n"+
		"first Encrypt           %v\n"+
		"later Encrypt           %v\n"+
		"Encrypt of root         %v\n"+
		"memory per user, with its access key: %.0f bytes a node",
		size, w.seed, ms(emptyStart), ms(fullStart), ms(fromLog), ms(emptySnapshot), ms(fullSnapshot), coldCalls, warmCalls, coldEncrypt, warmEncrypt, rootEncrypt, perUser)
	if size < 50_000 {
		return // too little to say anything of the figures
	}
	if fullStart > 15*time.Second || fromLog > 30*time.Second {
		t.Errorf("a node starts in %v from a snapshot and in %v from the log: want 15 s and 30 s at the most", fullStart, fromLog)
	}
	if perUser > 8<<10 {
		t.Errorf("a user with an access key takes %.0f bytes: want 8 KiB at the most", perUser)
	}
	for _, cold := range []encrypted{coldCalls, coldEncrypt} {
		if cold.p99 > 2*rootEncrypt.p99+25*time.Millisecond {
			t.Errorf("the p99 of a user's first request is %v, and root's is %v", cold.p99, rootEncrypt.p99)
		}
	}
}

// user is an access key.
type user struct{ id, secret string }

// population is a cluster being filled with users.
type population struct {
	*scaled
	iam       []iampb.IAMClient // of the nodes, as root
	users     []user
	policy    string // ARN of the policy that all of them have
	transport *http.Transport
}

const (
	usersGroup  = "scale"
	usersPolicy = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["kms:Encrypt","kms:Decrypt","kms:GenerateDataKey*"],"Resource":"*"}]}`
)

// iamClients returns a client of each node.
func (w *scaled) iamClients() (all []iampb.IAMClient) {
	for _, n := range w.c.Nodes {
		c := n.As(w.c.AccessKeyID, w.c.Secret())
		w.t.Cleanup(func() { c.Close() })
		all = append(all, c.IAM())
	}
	return all
}

// setUp makes the policy and the group.
func (u *population) setUp() {
	u.t.Helper()
	ctx, at, name := u.t.Context(), u.iam[0], usersGroup
	p, err := at.CreatePolicy(ctx, &iampb.CreatePolicyRequest{PolicyName: &name, PolicyDocument: new(usersPolicy)})
	if err != nil {
		u.t.Fatal(err)
	}
	u.policy = p.GetPolicy().GetArn()
	if _, err := at.CreateGroup(ctx, &iampb.CreateGroupRequest{GroupName: &name}); err != nil {
		u.t.Fatal(err)
	}
	if _, err := at.AttachGroupPolicy(ctx, &iampb.AttachGroupPolicyRequest{GroupName: &name, PolicyArn: &u.policy}); err != nil {
		u.t.Fatal(err)
	}
}

// create makes a user with an access key.
func (u *population) create(i int) error {
	ctx, at, name := u.t.Context(), u.iam[i%len(u.iam)], fmt.Sprintf("user-%06d", i)
	err := u.surely(func() error {
		_, err := at.CreateUser(ctx, &iampb.CreateUserRequest{UserName: &name})
		if status.Code(err) == codes.AlreadyExists {
			return nil // by a call that had no answer
		}
		return err
	})
	if err != nil {
		return err
	}
	err = u.surely(func() (err error) {
		if i%2 == 0 {
			_, err = at.AttachUserPolicy(ctx, &iampb.AttachUserPolicyRequest{UserName: &name, PolicyArn: &u.policy})
		} else {
			_, err = at.AddUserToGroup(ctx, &iampb.AddUserToGroupRequest{UserName: &name, GroupName: new(usersGroup)})
		}
		return err
	})
	if err != nil {
		return err
	}
	return u.surely(func() error {
		key, err := at.CreateAccessKey(ctx, &iampb.CreateAccessKeyRequest{UserName: &name})
		u.users[i] = user{key.GetAccessKey().GetAccessKeyId(), key.GetAccessKey().GetSecretAccessKey()}
		return err
	})
}

// surely is patiently also while there is no leader, for at most harness.Patience. What was
// asked for may then have been done without an answer.
func (u *population) surely(do func() error) (err error) {
	_ = harness.Poll(u.t.Context(), harness.Patience, func(context.Context) error {
		if err = u.patiently(do); status.Code(err) == codes.Unavailable {
			return err
		}
		return nil
	})
	return err
}

// lookUp makes the requests that are about all users of the account, or could be.
func (u *population) lookUp() {
	u.t.Helper()
	ctx, at, size := u.t.Context(), u.iam[0], len(u.users)
	time20 := func(what string, do func() (bool, error)) {
		u.t.Helper()
		var all []time.Duration
		for range 20 {
			began := time.Now()
			ok, err := do()
			if err != nil || !ok {
				u.t.Fatalf("%s: %v, as wanted: %v", what, err, ok)
			}
			all = append(all, time.Since(began))
		}
		slices.Sort(all)
		u.t.Logf("%-40s median %10v, at most %10v", what, ms(all[10]), ms(all[19]))
		if all[10] > time.Second {
			u.t.Errorf("%s takes %v: want a second at the most", what, all[10])
		}
	}
	time20("GetPolicy", func() (bool, error) {
		r, err := at.GetPolicy(ctx, &iampb.GetPolicyRequest{PolicyArn: &u.policy})
		return int(r.GetPolicy().GetAttachmentCount()) == 1+(size+1)/2, err
	})
	time20("ListPolicies of attached ones", func() (bool, error) {
		r, err := at.ListPolicies(ctx, &iampb.ListPoliciesRequest{OnlyAttached: new(true)})
		return len(r.GetPolicies()) == 1, err
	})
	time20("GetGroup", func() (bool, error) {
		r, err := at.GetGroup(ctx, &iampb.GetGroupRequest{GroupName: new(usersGroup)})
		return len(r.GetUsers()) == min(100, size/2), err
	})
	time20("ListEntitiesForPolicy", func() (bool, error) {
		r, err := at.ListEntitiesForPolicy(ctx, &iampb.ListEntitiesForPolicyRequest{PolicyArn: &u.policy, EntityFilter: new("User")})
		return len(r.GetPolicyUsers()) == min(100, size/2), err
	})
	time20("ListEntitiesForPolicy, of roles", func() (bool, error) {
		r, err := at.ListEntitiesForPolicy(ctx, &iampb.ListEntitiesForPolicyRequest{PolicyArn: &u.policy, EntityFilter: new("Role")})
		return len(r.GetPolicyRoles()) == 0, err
	})
	time20("GetAccountSummary", func() (bool, error) {
		r, err := at.GetAccountSummary(ctx, &iampb.GetAccountSummaryRequest{})
		return int(r.GetSummaryMap()["Users"]) == size, err
	})
	time20("GetAccountAuthorizationDetails", func() (bool, error) {
		r, err := at.GetAccountAuthorizationDetails(ctx, &iampb.GetAccountAuthorizationDetailsRequest{})
		return len(r.GetUserDetailList()) == min(100, size), err
	})
	time20("ListUsers", func() (bool, error) {
		r, err := at.ListUsers(ctx, &iampb.ListUsersRequest{})
		return len(r.GetUsers()) == min(100, size), err
	})
}

// signed is a request of AWS's protocols.
type signed struct{ service, contentType, target, body string }

var callerIdentity = signed{"sts", "application/x-www-form-urlencoded", "", "Action=GetCallerIdentity&Version=2011-06-15"}

// encryption is an Encrypt of 1 KiB under the one key.
func (u *population) encryption() signed {
	body, err := json.Marshal(map[string]any{"KeyId": u.keys[0], "Plaintext": make([]byte, 1024)})
	if err != nil {
		u.t.Fatal(err)
	}
	return signed{"kms", "application/x-amz-json-1.1", "TrentService.Encrypt", string(body)}
}

// sign has 16 callers make a request n times in the names of the users that who returns.
func (u *population) sign(what string, req signed, n int, who func(i int) user) encrypted {
	u.t.Helper()
	took := make([]time.Duration, n)
	var next atomic.Int64
	var all sync.WaitGroup
	http := &http.Client{Transport: u.transport, Timeout: 20 * time.Second}
	began := time.Now()
	for range callers {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && !u.t.Failed(); i = int(next.Add(1)) - 1 {
				r, err := u.request(i, req, who(i))
				if err != nil {
					u.t.Error(err)
					return
				}
				start := time.Now()
				resp, err := http.Do(r)
				if err != nil {
					u.t.Error(err)
					return
				}
				body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
				resp.Body.Close()
				took[i] = time.Since(start)
				if err != nil || resp.StatusCode != 200 {
					u.t.Errorf("%s of %s: status %d, %s, %v", what, who(i).id, resp.StatusCode, body, err)
				}
			}
		})
	}
	all.Wait()
	if u.t.Failed() {
		u.t.FailNow()
	}
	lasted := time.Since(began)
	slices.Sort(took)
	return encrypted{p50: took[n/2], p99: took[n*99/100], rate: float64(n) / lasted.Seconds()}
}

// request returns a signed request to one of the nodes.
func (u *population) request(i int, req signed, by user) (*http.Request, error) {
	addr := u.c.Nodes[i%len(u.c.Nodes)].AWS
	r, err := http.NewRequestWithContext(u.t.Context(), http.MethodPost, "https://"+addr+"/", bytes.NewReader([]byte(req.body)))
	if err != nil {
		return nil, err
	}
	headers := "content-type;host;x-amz-date"
	r.Header.Set("Content-Type", req.contentType)
	if req.target != "" {
		headers += ";x-amz-target"
		r.Header.Set("X-Amz-Target", req.target)
	}
	s := sigv4.Signer{AccessKeyID: by.id, Region: harness.Region, Service: req.service, SignedHeaders: headers, SigningKey: sigv4.Secret(by.secret)}
	return r, s.Sign(r, []byte(req.body), time.Now())
}
