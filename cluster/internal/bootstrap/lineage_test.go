package bootstrap

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

// TestLineageOfTheMembers: a majority of the nodes that are named decides, as one of them may
// be of a cluster that was given up.
func TestLineageOfTheMembers(t *testing.T) {
	for name, tt := range map[string]struct {
		said map[string]string // "down" if it does not answer
		want string
		err  string
	}{
		"one":                {map[string]string{"a": ""}, "", ""},
		"a restored cluster": {map[string]string{"a": "aa", "b": "aa", "c": "aa"}, "aa", ""},
		"one is down":        {map[string]string{"a": "aa", "b": "down", "c": "aa"}, "aa", ""},
		"one is old":         {map[string]string{"a": "", "b": "aa", "c": "aa"}, "aa", ""},
		"no majority":        {map[string]string{"a": "", "b": "aa"}, "", "of different clusters"},
		"too few answer":     {map[string]string{"a": "aa", "b": "down"}, "", "shutting down"},
	} {
		t.Run(name, func(t *testing.T) {
			taken := "nothing"
			var others []string
			for node := range tt.said {
				others = append(others, node)
			}
			j := New(Config{
				Node: "n", Others: func() []string { return others },
				Lineage: func(_ context.Context, node string) (string, error) {
					if tt.said[node] == "down" {
						return "", errors.New("refused")
					}
					return tt.said[node], nil
				},
				SetLineage: func(l string) error { taken = l; return nil },
			})
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			if name == "too few answer" {
				cancel()
			}
			defer cancel()
			err := j.takeLineage(ctx)
			if tt.err == "" && (err != nil || taken != tt.want) || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err) || taken != "nothing") {
				t.Errorf("took %q, %v; want %q, %q", taken, err, tt.want, tt.err)
			}
		})
	}
}
