package bootstrap

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/peerproof"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

const (
	// helloAgain is how long to wait before a node that did not answer is asked
	// again: at first, and at most.
	helloAgain    = 50 * time.Millisecond
	maxHelloAgain = time.Second
	// askTimeout bounds one question, and the connection attempt before it.
	askTimeout = 3 * time.Second
)

// firstNodes is the static set of first nodes as nodes compare it.
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
		SchemaMin: wire.SchemaMin, SchemaMax: wire.SchemaMax,
	}
	var err error
	if a.Formed, err = j.cfg.Disk.hasState(); err != nil {
		return nil, err
	}
	// What is applied and what the log held at the start: between them lies
	// nothing that this node knew when the other one began to ask.
	select {
	case <-j.cfg.Disk.survey.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	// What an unsealed node says after a barrier is all that the cluster knows.
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
	a.Registered, a.Watermark = known, mark
	if current {
		if g, sig, err := j.cfg.Sign(helloDomain, helloDigest(r.Node, r.Nonce, a)); err == nil {
			a.Generation, a.Proof = g, sig
		}
	}
	return a, nil
}

// helloDomain separates answers to Hello from what else the origin key signs.
const helloDomain = "conclave hello v1"

// helloDigest is what an unsealed node signs of its answer to a node's nonce.
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
	for _, v := range []uint64{known, a.Watermark, a.Incarnation} {
		_, _ = h.Write(binary.BigEndian.AppendUint64(nil, v))
	}
	return [32]byte(h.Sum(nil))
}

// Proven reports whether an unsealed node of the cluster, which knew what the cluster
// does, gave that answer to that node's nonce.
func Proven(c *fsmpb.Cluster, asker string, nonce []byte, r *clusterpb.HelloResponse) bool {
	return fsm.VerifyOrigin(c, r.Generation, helloDomain, helloDigest(asker, nonce, r), r.Proof)
}

// helloResult is one node's answer.
type helloResult struct {
	node string
	r    *clusterpb.HelloResponse
	// proven says that the node is unsealed and that it knows what the cluster does,
	// as far as this node's disk has the keys to tell.
	proven bool
}

// greet asks the other first nodes until each has answered or ctx ends. again
// says which answers are to be asked for anew.
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

// greeted are the nodes to ask: the static peers, and whoever is in the Raft
// configuration by now.
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
	nonce := peerproof.NewNonce()
	r, err = client.Hello(ctx, &clusterpb.HelloRequest{
		Group: wire.Group, Node: j.cfg.Node, LastIndex: j.cfg.Disk.last, Bootstrap: j.firstNodes(), Nonce: nonce,
	})
	if err != nil {
		return nil, false, err
	}
	select {
	case <-j.cfg.Disk.survey.done:
	case <-ctx.Done():
		return nil, false, ctx.Err()
	}
	proven = r.Node == node && Proven(j.cfg.Disk.survey.cluster, j.cfg.Node, nonce, r)
	return r, proven, nil
}
