package bootstrap

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/membership"
	"github.com/conclavekms/conclave/cluster/internal/peerproof"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/origin"
	"github.com/conclavekms/conclave/fsm/wire"
)

const (
	// helloAgain is the first delay before a node that did not answer is asked again, and
	// maxHelloAgain the longest.
	helloAgain    = 50 * time.Millisecond
	maxHelloAgain = time.Second
	// askTimeout bounds one question, including the attempt to connect.
	askTimeout = 3 * time.Second
)

// firstNodes returns the configured set of first nodes in the form in which nodes compare
// it.
func (j *Joiner) firstNodes() []string {
	var set []string
	for _, id := range slices.Sorted(maps.Keys(j.cfg.Peers)) {
		set = append(set, id+"="+j.cfg.Peers[id])
	}
	return set
}

// Answer answers another node that starts.
func (j *Joiner) Answer(ctx context.Context, r *clusterpb.HelloRequest) (*clusterpb.HelloResponse, error) {
	a := &clusterpb.HelloResponse{
		Node: j.cfg.Node, Bootstrap: j.firstNodes(), Version: j.cfg.Release,
		SchemaMin: j.cfg.Known.Oldest, SchemaMax: j.cfg.Known.Newest, Level: j.cfg.State().Level(),
	}
	if err := j.refuse(r, a.Level); err != nil {
		return nil, err
	}
	var err error
	if a.Formed, err = j.cfg.Disk.hasState(); err != nil {
		return nil, err
	}
	// The answer combines the applied state with what was in the log at the start.
	// Everything that this node knew when it was asked is in one of them.
	select {
	case <-j.cfg.Disk.survey.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	// After a barrier, an unsealed node's answer covers everything that was committed.
	current := false
	if j.cfg.Unsealed() && len(r.Nonce) == peerproof.NonceSize {
		ctx, cancel := context.WithTimeout(ctx, j.cfg.Patience/2)
		defer cancel()
		current = j.cfg.Barrier(ctx) == nil
	}
	mark, known := j.cfg.Watermark(r.Node)
	if logged, ok := j.cfg.Disk.survey.nodes[r.Node]; ok {
		known, mark, a.Incarnation = true, max(mark, logged.watermark), logged.incarnation
	}
	if reg, _ := j.cfg.State().Node(r.Node); reg != nil {
		known, mark, a.Incarnation = true, max(mark, reg.Watermark), max(a.Incarnation, reg.Incarnation)
	}
	a.Registered, a.Watermark, a.Level = known, mark, j.cfg.State().Level()
	if index, c := j.cfg.Configuration(); index > 0 {
		a.ConfigurationIndex, a.Configuration = index, raft.EncodeConfiguration(c)
	}
	if current {
		j.sign(r, a)
	}
	return a, nil
}

// sign adds this node's proofs to an answer, unless it was sealed in the meantime.
func (j *Joiner) sign(r *clusterpb.HelloRequest, a *clusterpb.HelloResponse) {
	g, sig, err := j.cfg.Sign(helloDomain, helloDigest(r.Node, r.Nonce, a))
	if err != nil {
		return
	}
	a.Generation, a.Proof = g, sig
	// A release without configurations in its answers verifies the proof above, so they have
	// one of their own.
	if g, sig, err := j.cfg.Sign(membersDomain, membersDigest(r.Node, r.Nonce, a)); err == nil && g == a.Generation {
		a.ConfigurationProof = sig
	}
}

// membersDomain separates the members in answers to Hello from other data that the origin
// key signs.
const membersDomain = "conclave hello members v1"

// membersDigest returns the digest that an unsealed node signs of the configuration in its
// answer to a node's nonce.
func membersDigest(asker string, nonce []byte, a *clusterpb.HelloResponse) [32]byte {
	h := sha256.New()
	for _, b := range [][]byte{[]byte(a.Node), []byte(asker), nonce, a.Configuration} {
		_, _ = h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b))))
		_, _ = h.Write(b)
	}
	_, _ = h.Write(binary.BigEndian.AppendUint64(nil, a.ConfigurationIndex))
	return [32]byte(h.Sum(nil))
}

// learn passes the configuration in an answer to this node's nonce to record.
func (j *Joiner) learn(nonce []byte, r *clusterpb.HelloResponse, record func(index uint64, c raft.Configuration, proven bool)) {
	if r.ConfigurationIndex == 0 || len(r.Configuration) > maxConfiguration {
		return
	}
	c, err := membership.Decode(r.Configuration)
	if err != nil || len(c.Servers) == 0 {
		return
	}
	proven := origin.Verify(j.cluster(), r.Generation, membersDomain, membersDigest(j.cfg.Node, nonce, r), r.ConfigurationProof)
	record(r.ConfigurationIndex, c, proven)
}

// cluster returns the cluster's record in the state, or before that is applied the one on the
// disk; nil if there is none.
func (j *Joiner) cluster() *fsmpb.Cluster {
	if c, _ := j.cfg.State().Cluster(); c != nil {
		return c
	}
	return j.cfg.Disk.survey.cluster
}

// Verify reports whether the origin key signed a digest, according to the state or, after a
// start, the disk.
func (j *Joiner) Verify(generation uint32, domain string, digest [32]byte, sig []byte) bool {
	select {
	case <-j.cfg.Disk.survey.done:
		return origin.Verify(j.cluster(), generation, domain, digest, sig)
	default:
		return false
	}
}

// Relearn asks the other members for the newest configuration, until one has answered
// with a proof or ctx ends.
func (j *Joiner) Relearn(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for h := range j.greet(ctx, func(*clusterpb.HelloResponse) bool { return false }) {
		if h.r.ConfigurationProof != nil && h.proven {
			return
		}
	}
}

// maxConfiguration bounds an encoded configuration. That of a hundred nodes has 20 KiB.
const maxConfiguration = 64 << 10

// helloDomain separates answers to Hello from other data that the origin key signs.
const helloDomain = "conclave hello v1"

// helloDigest returns the digest that an unsealed node signs of its answer to a node's
// nonce.
func helloDigest(asker string, nonce []byte, a *clusterpb.HelloResponse) [32]byte {
	h := sha256.New()
	for _, b := range [][]byte{[]byte(a.Node), []byte(asker), nonce} {
		_, _ = h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b))))
		_, _ = h.Write(b)
	}
	known := uint64(0)
	if a.Registered {
		known = 1
	}
	numbers := []uint64{known, a.Watermark, a.Incarnation}
	if a.Level > 1 { // a release that knows only level 1 leaves it out
		numbers = append(numbers, uint64(a.Level))
	}
	for _, v := range numbers {
		_, _ = h.Write(binary.BigEndian.AppendUint64(nil, v))
	}
	return [32]byte(h.Sum(nil))
}

// Proven reports whether the answer to asker's nonce was signed by an unsealed node of the
// cluster that was up to date.
func Proven(c *fsmpb.Cluster, asker string, nonce []byte, r *clusterpb.HelloResponse) bool {
	return origin.Verify(c, r.Generation, helloDomain, helloDigest(asker, nonce, r), r.Proof)
}

// helloResult is the answer of one node.
type helloResult struct {
	node string
	r    *clusterpb.HelloResponse
	// proven means that the answer is from an unsealed node that was up to date, according
	// to the keys that are on this node's disk.
	proven bool
}

// greet asks the other first nodes until each has answered or ctx ends. again reports
// whether the node has to be asked again after an answer.
func (j *Joiner) greet(ctx context.Context, again func(*clusterpb.HelloResponse) bool) <-chan helloResult {
	results := make(chan helloResult)
	var wg sync.WaitGroup
	for _, id := range j.greeted() {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for wait := helloAgain; ; wait = min(2*wait, maxHelloAgain) {
				if r, proven, err := j.ask(ctx, id); err == nil {
					select {
					case results <- helloResult{id, r, proven}:
					case <-ctx.Done():
						return
					}
					if !again(r) {
						return
					}
				}
				select {
				case <-time.After(wait):
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	j.cfg.Go(func() {
		wg.Wait()
		close(results)
	})
	return results
}

// greeted returns the nodes to ask: the static peers, and the nodes in the Raft
// configuration.
func (j *Joiner) greeted() []string {
	ids := slices.AppendSeq(j.cfg.Others(), maps.Keys(j.cfg.Peers))
	slices.Sort(ids)
	return slices.DeleteFunc(slices.Compact(ids), func(id string) bool { return id == j.cfg.Node })
}

func (j *Joiner) ask(ctx context.Context, node string) (r *clusterpb.HelloResponse, proven bool, err error) {
	client, err := j.cfg.Client(node)
	if err != nil {
		return nil, false, err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	nonce, record := peerproof.NewNonce(), j.cfg.Learn()
	r, err = client.Hello(ctx, &clusterpb.HelloRequest{
		Group: wire.Group, Node: j.cfg.Node, LastIndex: j.cfg.Disk.last, Bootstrap: j.firstNodes(), Nonce: nonce,
		SchemaMin: j.cfg.Known.Oldest, SchemaMax: j.cfg.Known.Newest, Version: j.cfg.Release,
	}, grpc.WaitForReady(true)) // the other node may be just starting, too
	if err != nil {
		return nil, false, err
	}
	select {
	case <-j.cfg.Disk.survey.done:
	case <-ctx.Done():
		return nil, false, ctx.Err()
	}
	proven = r.Node == node && Proven(j.cluster(), j.cfg.Node, nonce, r)
	if r.Node == node {
		j.learn(nonce, r, record)
	}
	return r, proven, nil
}
