// Package health queries the health port of a node.
package health

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
)

// State queries one of the health paths of the node with this health port. It
// returns the state that the node reports, and the HTTP status.
func State(ctx context.Context, addr, path string) (state string, code int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+path, nil)
	if err != nil {
		return "", 0, err
	}
	// A proxy from the environment must not be used.
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return "", 0, err
	}
	defer resp.Body.Close()
	var body struct {
		State string `json:"state"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 4096)).Decode(&body); err != nil {
		return "", 0, fmt.Errorf("unexpected response from %s to %s", addr, path)
	}
	return body.State, resp.StatusCode, nil
}
