package cluster

import (
	"errors"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the metrics of a node. Without a Registerer they exist too, unregistered.
type metrics struct {
	commit       prometheus.Histogram
	entryRecords prometheus.Histogram
	disk         *prometheus.HistogramVec
	snapshot     prometheus.Histogram
	refused      *prometheus.CounterVec
	forgeries    *prometheus.CounterVec
	unproven     *prometheus.CounterVec
	forwarded    prometheus.Counter
	resubmitted  prometheus.Counter
	leaders      prometheus.Counter
	transfers    *prometheus.CounterVec
	scrubbed     prometheus.Counter
	repaired     prometheus.Counter
	fenced       prometheus.Gauge
	registered   []prometheus.Collector
}

func newMetrics() *metrics {
	return &metrics{
		commit: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "conclave_raft_commit_seconds", Help: "Time from handing an entry to Raft until it was applied, on the leader.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}),
		entryRecords: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "conclave_raft_entry_records", Help: "Records in each Raft entry, on the leader.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 12),
		}),
		disk: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "conclave_raft_disk_seconds", Help: "Duration of writes to the Raft log, fsync included.",
			Buckets: prometheus.ExponentialBuckets(0.0002, 2, 15),
		}, []string{"op"}),
		snapshot: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "conclave_raft_snapshot_seconds", Help: "Time that it took to write a snapshot of the state, fsync included.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 9),
		}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "conclave_peer_refused_total", Help: "Connections to the peer port that were refused.",
		}, []string{"reason"}),
		forgeries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "conclave_peer_forgeries_total",
			Help: "Messages of other nodes that only an unsealed node can send and that none sent. Anything but 0 means that a node's disk or identity is in wrong hands.",
		}, []string{"node"}),
		unproven: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "conclave_raft_unproven_refused_total",
			Help: "Requests of other nodes' Rafts to be followed or voted for that were refused because the node is not known to be unsealed and another one that is could lead.",
		}, []string{"node"}),
		forwarded: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "conclave_batches_forwarded_total", Help: "Batches that this node sent to another node that led.",
		}),
		resubmitted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "conclave_batches_resubmitted_total", Help: "Batches of this node that were sent more than once.",
		}),
		leaders: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "conclave_raft_leader_changes_total", Help: "Changes of leader that this node saw.",
		}),
		transfers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "conclave_raft_leadership_transfers_total", Help: "Leadership transfers that this node began.",
		}, []string{"result"}),
		scrubbed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "conclave_audit_scrubbed_segments_total", Help: "Full segments of the audit log that were compared with their roots in the state.",
		}),
		repaired: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "conclave_audit_repaired_segments_total", Help: "Damaged segments of the audit log that were replaced by another node's.",
		}),
		fenced: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "conclave_node_fenced", Help: "1 when the node took itself out of the cluster.",
		}),
	}
}

// register registers the metrics, including those that are read from the node on demand.
func (m *metrics) register(r prometheus.Registerer, n *Node) error {
	if r == nil {
		return nil
	}
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)
	}
	ofRaft := func(f func(*raft.Raft) float64) func() float64 {
		return func() float64 {
			if r := n.raft.Load(); r != nil {
				return f(r)
			}
			return 0
		}
	}
	var errs []error
	for _, c := range []prometheus.Collector{
		m.commit, m.entryRecords, m.disk, m.snapshot, m.refused, m.forgeries, m.unproven, m.forwarded, m.resubmitted, m.leaders, m.transfers, m.scrubbed, m.repaired, m.fenced,
		gauge("conclave_raft_is_leader", "1 on the leader.", func() float64 { return boolean(n.IsLeader()) }),
		gauge("conclave_raft_term", "Raft term.", ofRaft(func(r *raft.Raft) float64 { return float64(r.CurrentTerm()) })),
		gauge("conclave_raft_last_index", "Newest index in the Raft log.", ofRaft(func(r *raft.Raft) float64 { return float64(r.LastIndex()) })),
		gauge("conclave_raft_commit_index", "Newest committed Raft index.", ofRaft(func(r *raft.Raft) float64 { return float64(r.CommitIndex()) })),
		gauge("conclave_raft_applied_index", "Newest applied Raft index.", ofRaft(func(r *raft.Raft) float64 { return float64(r.AppliedIndex()) })),
		gauge("conclave_raft_last_contact_seconds", "Time since this node heard of the leader; 0 on the leader.", func() float64 {
			return n.Status().LastContact.Seconds()
		}),
		gauge("conclave_voters", "Members of the cluster that vote, as far as this node knows.", func() float64 {
			voters, _ := memberNode{n}.count()
			return float64(voters)
		}),
		gauge("conclave_replicas", "Members of the cluster without a vote, as far as this node knows.", func() float64 {
			_, replicas := memberNode{n}.count()
			return float64(replicas)
		}),
		gauge("conclave_ready_voters", "Voters that are ready: they answer, are unsealed and caught up. On the leader; elsewhere NaN.", func() float64 {
			return n.health.on(func(h Health) float64 {
				_, ready := h.Voters()
				return float64(ready)
			})
		}),
		gauge("conclave_failure_tolerance", "How many of the ready voters may fail before there is no majority; below 0 if there is none. On the leader; elsewhere NaN.", func() float64 {
			return n.health.on(func(h Health) float64 { return float64(h.Tolerance()) })
		}),
		gauge("conclave_feature_level", "Feature level of the cluster, as far as this node has applied the log.", func() float64 { return float64(n.State().Level()) }),
		gauge("conclave_batches_in_flight", "Batches of this node without an answer.", func() float64 { return float64(n.proposer.InFlight()) }),
		gauge("conclave_records_waiting", "Records on this node that are not submitted yet.", func() float64 {
			records, _ := n.proposer.Waiting()
			return float64(records)
		}),
		gauge("conclave_clock_disagrees", "1 when this node leads and its clock disagrees with a majority.", func() float64 {
			return boolean(n.guard.Disagrees())
		}),
		gauge("conclave_disk_free_bytes", "Room on the disk of the data directory.", func() float64 { return float64(n.space.Room().Free) }),
		gauge("conclave_disk_free_inodes", "Inodes that are free there; 0 where there is no such limit.", func() float64 {
			return float64(n.space.Room().FreeInodes)
		}),
		gauge("conclave_disk_space", "How little room that is: 0 ample, 1 low, 2 new keys are refused, 3 another node should lead, 4 nothing more is stored.", func() float64 {
			return float64(n.space.Level())
		}),
		gauge("conclave_disk_behind_seconds", "How long the oldest write that something waits for has taken already.", func() float64 {
			return n.store.Meter().Behind().Seconds()
		}),
		gauge("conclave_audit_damaged_segments", "Segments of the audit log that are damaged here and could not be repaired yet.", func() float64 {
			return float64(n.scrubber.Damaged())
		}),
		gauge("conclave_audit_missing_entries", "Audit entries that this node has to fetch from others.", func() float64 {
			from, to, ok := n.cfg.Audit.Missing()
			if !ok {
				return 0
			}
			return float64(to - from)
		}),
	} {
		if err := r.Register(c); err != nil {
			errs = append(errs, err)
			continue
		}
		m.registered = append(m.registered, c)
	}
	return errors.Join(errs...)
}

// unregister allows a later node of the same process to register the same metrics.
func (m *metrics) unregister(r prometheus.Registerer) {
	for _, c := range m.registered {
		r.Unregister(c)
	}
	m.registered = nil
}

func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
