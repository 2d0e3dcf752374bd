package node

import (
	"cmp"
	"errors"
	"fmt"

	"github.com/conclavekms/conclave/keyengine/trace"
	"github.com/conclavekms/conclave/keyengine/traceexport"
)

// defaultSample is the share of requests that are traced.
const defaultSample = 0.1

// checkTraces returns what is wrong with the configuration of traces.
func (c *Config) checkTraces() error {
	if c.TraceTo.URL == "" {
		if c.TraceTo != (traceexport.Collector{}) || c.TraceSample != 0 {
			return errors.New("there is no collector")
		}
		return nil
	}
	if !(c.TraceSample >= 0 && c.TraceSample <= 1) {
		return fmt.Errorf("the share of requests is %v", c.TraceSample)
	}
	return traceexport.Check(c.TraceTo)
}

// startTraces begins to send traces, and returns what makes them; nil if none are made.
func (n *Node) startTraces() (*trace.Tracer, error) {
	metrics, err := traceexport.NewMetrics(n.registry)
	if err != nil || n.cfg.TraceTo.URL == "" {
		return nil, err
	}
	e, err := traceexport.New(traceexport.Config{To: n.cfg.TraceTo, NodeID: n.cfg.NodeID, Release: n.cfg.Release, Log: n.log, Metrics: metrics})
	if err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	n.serving.Go(func() { e.Run(n.life) })
	return trace.New(cmp.Or(n.cfg.TraceSample, defaultSample), e.Add), nil
}
