// Package traceexport sends the traces of requests to a collector of OpenTelemetry.
//
// It works aside from requests: they leave what was measured in a queue, and what does not fit in
// is dropped and counted. So a collector that is slow, down or hostile holds up nothing. What is
// sent are names of operations, parts and errors, times and ids of requests: nothing that a caller
// chooses but the ids of its own trace, and nothing about a principal or a key.
package traceexport

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	oteltrace "go.opentelemetry.io/otel/trace"

	"github.com/conclavekms/conclave/keyengine/internal/auditsend"
	"github.com/conclavekms/conclave/keyengine/internal/outbound"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/trace"
)

const (
	// queued bounds the requests that wait to be sent, and together those that are sent at once.
	queued   = 4096
	together = 256
	// collect is how long to wait for more of them.
	collect = time.Second
	// attempt bounds one sending. There is no second attempt.
	attempt = 10 * time.Second
	// lastWords bounds the sending of what is left when a node stops.
	lastWords = time.Second
)

// Collector is where traces are sent to.
type Collector = auditsend.OTLP

// TLS is how a collector is authenticated, and how the node is.
type TLS = outbound.TLS

// Config configures an Exporter.
type Config struct {
	To     Collector
	NodeID string
	// Release is the version of the binary.
	Release string
	Log     *slog.Logger
	Metrics *Metrics
}

// Metrics count spans. A request has one, and one for each of its parts.
type Metrics struct {
	sent    prometheus.Counter
	dropped *prometheus.CounterVec
}

// NewMetrics returns metrics that are registered, which show zero while nothing is traced.
func NewMetrics(registry prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{
		prometheus.NewCounter(prometheus.CounterOpts{
			Name: "conclave_trace_spans_sent_total", Help: "Spans of traces that the collector has accepted.",
		}),
		prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "conclave_trace_spans_dropped_total",
			Help: "Spans of traces that were dropped, because the queue was full (full) or the collector did not accept them (refused).",
		}, []string{"reason"}),
	}
	for _, reason := range []string{dropFull, dropRefused} {
		m.dropped.WithLabelValues(reason)
	}
	return m, errors.Join(registry.Register(m.sent), registry.Register(m.dropped))
}

// Reasons for dropping spans.
const (
	dropFull    = "full"
	dropRefused = "refused"
)

// Exporter sends traces.
type Exporter struct {
	cfg      Config
	to       *auditsend.Connection
	exporter *otlptrace.Exporter
	tracer   oteltrace.Tracer
	queue    chan *trace.Done
	batch    []sdk.ReadOnlySpan
	failing  bool
}

// Check returns what is wrong with the configuration of a collector. It calls nobody.
func Check(to Collector) error {
	_, err := to.Connect()
	return err
}

// New returns an Exporter. It sends nothing before Run.
func New(cfg Config) (*Exporter, error) {
	to, err := cfg.To.Connect()
	if err != nil {
		return nil, err
	}
	// All options are given, since the SDK takes the others from the environment.
	options := []otlptracehttp.Option{
		otlptracehttp.WithEndpointURL(to.URL.String()), otlptracehttp.WithHeaders(to.Headers), otlptracehttp.WithTimeout(attempt), otlptracehttp.WithHTTPClient(to.Client),
		otlptracehttp.WithCompression(otlptracehttp.GzipCompression), otlptracehttp.WithEncoding(otlptracehttp.EncodingProtobuf),
		otlptracehttp.WithRetry(otlptracehttp.RetryConfig{}), otlptracehttp.WithMaxResponseSize(to.MaxAnswer),
	}
	if to.URL.Scheme == "http" {
		options = append(options, otlptracehttp.WithInsecure())
	}
	e := &Exporter{cfg: cfg, to: to, queue: make(chan *trace.Done, queued)}
	if e.exporter, err = otlptracehttp.New(context.Background(), options...); err != nil {
		return nil, outbound.WithoutURL(err)
	}
	provider := sdk.NewTracerProvider(
		sdk.WithResource(resource.NewSchemaless(
			attribute.String("service.name", "conclave"), attribute.String("service.instance.id", cfg.NodeID), attribute.String("service.version", cfg.Release),
		)),
		sdk.WithSampler(sdk.AlwaysSample()), // package trace has decided
		sdk.WithRawSpanLimits(sdk.SpanLimits{AttributeValueLengthLimit: -1, AttributeCountLimit: -1, EventCountLimit: -1, LinkCountLimit: -1, AttributePerEventCountLimit: -1, AttributePerLinkCountLimit: -1}),
		sdk.WithSpanProcessor((*collector)(e)),
	)
	e.tracer = provider.Tracer("github.com/conclavekms/conclave")
	return e, nil
}

// Add queues a request to be sent. It does not block.
func (e *Exporter) Add(r *trace.Done) {
	select {
	case e.queue <- r:
	default:
		e.cfg.Metrics.dropped.WithLabelValues(dropFull).Add(float64(spansOf(r)))
	}
}

func spansOf(r *trace.Done) int { return 1 + len(r.Parts) }

// Run sends traces until ctx ends, and then, for a short time, what is left.
func (e *Exporter) Run(ctx context.Context) {
	// With requests in the queue, select can choose them again and again after ctx has ended, and
	// each sending takes its time.
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case r := <-e.queue:
			if e.gather(ctx, r); ctx.Err() == nil {
				e.send(ctx, attempt)
			}
		}
	}
	e.finish()
}

// finish sends what is left, gathered or in the queue, in one go.
func (e *Exporter) finish() {
	for n := len(e.queue); n > 0; n-- {
		e.span(<-e.queue)
	}
	e.send(context.Background(), lastWords)
	_ = e.exporter.Shutdown(context.Background())
	e.to.Client.CloseIdleConnections()
}

// gather makes spans of a request, and of those that follow soon.
func (e *Exporter) gather(ctx context.Context, first *trace.Done) {
	e.span(first)
	timer := time.NewTimer(collect)
	defer timer.Stop()
	for range together - 1 {
		select {
		case r := <-e.queue:
			e.span(r)
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// send sends the spans that were made. If ctx ends, they have a short time more.
func (e *Exporter) send(ctx context.Context, limit time.Duration) {
	if len(e.batch) == 0 {
		return
	}
	sending, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(lastWords, cancel) })()
	err := e.exporter.ExportSpans(sending, e.batch)
	n := float64(len(e.batch))
	clear(e.batch)
	e.batch = e.batch[:0]
	if err == nil {
		e.cfg.Metrics.sent.Add(n)
		e.failing = false
		return
	}
	e.cfg.Metrics.dropped.WithLabelValues(dropRefused).Add(n)
	if !e.failing { // it says nothing more than the metric, and a collector's answer may be long
		e.cfg.Log.Warn("traces could not be sent, and are dropped", "err", outbound.Clipped(outbound.WithoutURL(err)))
	}
	e.failing = true
}

// span makes the spans of a request.
func (e *Exporter) span(r *trace.Done) {
	ctx := context.Background()
	if r.Parent != (trace.Parent{}) {
		ctx = oteltrace.ContextWithRemoteSpanContext(ctx, oteltrace.NewSpanContext(oteltrace.SpanContextConfig{
			TraceID: r.Parent.TraceID, SpanID: r.Parent.SpanID, Remote: true,
		}))
	}
	name := r.Operation
	if name == "" {
		name = "unknown operation"
	}
	attributes := []attribute.KeyValue{
		attribute.String("rpc.method", name), attribute.String("conclave.api", r.API), attribute.String("conclave.request_id", record.UUID(r.ID)),
	}
	if r.Failure != "" {
		attributes = append(attributes, attribute.String("error.type", r.Failure))
	}
	ctx, span := e.tracer.Start(ctx, name, oteltrace.WithSpanKind(oteltrace.SpanKindServer), oteltrace.WithTimestamp(r.Start), oteltrace.WithAttributes(attributes...))
	if r.Fault {
		span.SetStatus(codes.Error, "")
	}
	for _, p := range r.Parts {
		_, part := e.tracer.Start(ctx, p.Name, oteltrace.WithTimestamp(r.Start.Add(p.Start)))
		part.End(oteltrace.WithTimestamp(r.Start.Add(p.End)))
	}
	span.End(oteltrace.WithTimestamp(r.Start.Add(r.Took)))
}

// collector is the SDK's processor of an Exporter, by which the SDK makes its spans.
type collector Exporter

func (c *collector) OnStart(context.Context, sdk.ReadWriteSpan) {}
func (c *collector) OnEnd(s sdk.ReadOnlySpan)                   { c.batch = append(c.batch, s) }
func (c *collector) Shutdown(context.Context) error             { return nil }
func (c *collector) ForceFlush(context.Context) error           { return nil }
