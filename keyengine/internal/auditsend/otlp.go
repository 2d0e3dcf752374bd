package auditsend

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploghttp"
	"go.opentelemetry.io/otel/log"
	sdk "go.opentelemetry.io/otel/sdk/log"
	"go.opentelemetry.io/otel/sdk/resource"

	"github.com/conclavekms/conclave/keyengine/internal/outbound"
)

// OTLP configures a receiver of OpenTelemetry logs over HTTP, such as a collector.
type OTLP struct {
	URL string `json:"url"` // such as https://HOST:4318/v1/logs
	// HeadersFile has headers for all requests, such as one with a token: lines NAME: VALUE.
	HeadersFile string        `json:"headersFile,omitzero"`
	TLS         *outbound.TLS `json:"tls,omitzero"`
}

// otlp uses the SDK's exporter without its batching, which does not say what was delivered.
type otlp struct {
	client   *http.Client
	exporter *otlploghttp.Exporter
	logger   log.Logger
	batch    []sdk.Record
}

// Connection is how a receiver of OpenTelemetry is reached.
type Connection struct {
	URL     *url.URL
	Headers map[string]string
	Client  *http.Client
	// MaxAnswer bounds what is read of an answer, in bytes.
	MaxAnswer int64
}

// Connect returns how the receiver is reached. It calls nobody, and fails for what is wrong with
// the configuration.
func (c *OTLP) Connect() (*Connection, error) {
	u, err := outbound.ParseURL(c.URL)
	if err != nil {
		return nil, err
	}
	if u.RawQuery != "" {
		return nil, errors.New("the URL has a query")
	}
	headers := make(map[string]string)
	if c.HeadersFile != "" {
		text, err := secret(c.HeadersFile)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(text) {
			name, value, ok := strings.Cut(line, ":")
			if !ok || name == "" || token(name, 256) != name {
				return nil, fmt.Errorf("%s does not have lines NAME: VALUE", c.HeadersFile)
			}
			headers[name] = strings.TrimSpace(value)
		}
	}
	client, err := outbound.Client(u, c.TLS, sendTimeout)
	if err != nil {
		return nil, err
	}
	return &Connection{u, headers, client, maxAnswer}, nil
}

// Open returns a Sender. It fails for what is wrong with the configuration.
func (c *OTLP) Open() (Sender, error) {
	to, err := c.Connect()
	if err != nil {
		return nil, err
	}
	// All options are given, since the SDK takes the others from the environment.
	options := []otlploghttp.Option{
		otlploghttp.WithEndpointURL(to.URL.String()), otlploghttp.WithHeaders(to.Headers), otlploghttp.WithTimeout(sendTimeout), otlploghttp.WithHTTPClient(to.Client),
		otlploghttp.WithCompression(otlploghttp.GzipCompression), otlploghttp.WithRetry(otlploghttp.RetryConfig{}), otlploghttp.WithMaxResponseSize(to.MaxAnswer),
	}
	if to.URL.Scheme == "http" {
		options = append(options, otlploghttp.WithInsecure())
	}
	o := &otlp{client: to.Client}
	if o.exporter, err = otlploghttp.New(context.Background(), options...); err != nil {
		return nil, outbound.WithoutURL(err)
	}
	service := resource.NewSchemaless(attribute.String("service.name", "conclave"))
	provider := sdk.NewLoggerProvider(sdk.WithResource(service), sdk.WithProcessor(o), sdk.WithAttributeCountLimit(-1), sdk.WithAttributeValueLengthLimit(-1))
	o.logger = provider.Logger("github.com/conclavekms/conclave/audit")
	return o, nil
}

// Send implements Sender.
func (o *otlp) Send(ctx context.Context, records []Record) error {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	o.batch = o.batch[:0]
	for _, r := range records {
		var n log.Record
		n.SetTimestamp(r.Time)
		n.SetEventName(r.Name)
		n.SetSeverity(log.SeverityInfo)
		if r.Failed {
			n.SetSeverity(log.SeverityWarn)
		}
		n.SetBody(attribute.StringValue(string(r.Line)))
		n.AddAttributes(attribute.Int64("conclave.audit.index", int64(r.Index)), attribute.String("conclave.audit.event_id", r.EventID))
		o.logger.Emit(ctx, n)
	}
	if len(o.batch) != len(records) {
		return errors.New("the SDK has dropped records")
	}
	err := o.exporter.Export(ctx, o.batch)
	clear(o.batch)
	if err != nil {
		return outbound.WithoutURL(err)
	}
	return nil
}

// OnEmit implements the SDK's Processor, by which the SDK makes its records.
func (o *otlp) OnEmit(_ context.Context, r *sdk.Record) error {
	o.batch = append(o.batch, r.Clone())
	return nil
}

// Enabled, Shutdown and ForceFlush implement the SDK's Processor.
func (o *otlp) Enabled(context.Context, sdk.EnabledParameters) bool { return true }
func (o *otlp) Shutdown(context.Context) error                      { return nil }
func (o *otlp) ForceFlush(context.Context) error                    { return nil }

// Confirms implements Sender.
func (o *otlp) Confirms() bool { return true }

// Close implements Sender.
func (o *otlp) Close() error {
	err := o.exporter.Shutdown(context.Background())
	o.client.CloseIdleConnections()
	return err
}
