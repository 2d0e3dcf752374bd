package auditsend

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/conclavekms/conclave/keyengine/internal/outbound"
)

// Webhook configures a receiver of HTTP requests whose bodies are lines of JSON. Requests are
// signed as the specification of Standard Webhooks says: the header webhook-signature has
// HMAC-SHA256 over webhook-id, webhook-timestamp and the body.
type Webhook struct {
	URL        string        `json:"url"`
	SecretFile string        `json:"secretFile"` // 24 to 64 bytes in base64, after whsec_ or without it
	TLS        *outbound.TLS `json:"tls,omitzero"`
}

type webhook struct {
	url    string
	key    []byte
	client *http.Client
}

// Open returns a Sender. It fails for what is wrong with the configuration.
func (c *Webhook) Open() (Sender, error) {
	u, err := outbound.ParseURL(c.URL)
	if err != nil {
		return nil, err
	}
	text, err := secret(c.SecretFile)
	if err != nil {
		return nil, err
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(text, "whsec_"))
	if err != nil || len(key) < 24 || len(key) > 64 {
		return nil, fmt.Errorf("%s does not have 24 to 64 bytes in base64", c.SecretFile)
	}
	client, err := outbound.Client(u, c.TLS, sendTimeout)
	if err != nil {
		return nil, err
	}
	return &webhook{u.String(), key, client}, nil
}

// Send implements Sender. The id of a message is that of its first record and the number of its
// last one, so it is the same when the same records are sent again.
func (w *webhook) Send(ctx context.Context, records []Record) error {
	var body bytes.Buffer
	for _, r := range records {
		body.Write(r.Line)
		body.WriteByte('\n')
	}
	first, last := records[0], records[len(records)-1]
	id := fmt.Sprintf("%s-%d", first.EventID, last.Index)
	at := strconv.FormatInt(time.Now().Unix(), 10)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, bytes.NewReader(body.Bytes()))
	if err != nil {
		return err
	}
	req.Header = http.Header{
		"Content-Type": {"application/x-ndjson"}, "User-Agent": {"conclave"},
		"Webhook-Id": {id}, "Webhook-Timestamp": {at}, "Webhook-Signature": {"v1," + w.sign(id, at, body.Bytes())},
		"Conclave-First-Index": {strconv.FormatUint(first.Index, 10)}, "Conclave-Last-Index": {strconv.FormatUint(last.Index, 10)},
	}
	res, err := w.client.Do(req)
	if err != nil {
		return outbound.WithoutURL(err)
	}
	defer res.Body.Close()
	if res.StatusCode < 200 || res.StatusCode > 299 {
		return fmt.Errorf("the receiver answered with status %d", res.StatusCode)
	}
	// The rest of a short answer is read so that the connection can be used again.
	if n, err := io.CopyN(io.Discard, res.Body, maxAnswer); err == nil && n == maxAnswer {
		w.client.CloseIdleConnections()
	}
	return nil
}

func (w *webhook) sign(id, at string, body []byte) string {
	m := hmac.New(sha256.New, w.key)
	fmt.Fprintf(m, "%s.%s.", id, at)
	m.Write(body)
	return base64.StdEncoding.EncodeToString(m.Sum(nil))
}

// Confirms implements Sender.
func (w *webhook) Confirms() bool { return true }

// Close implements Sender.
func (w *webhook) Close() error {
	w.client.CloseIdleConnections()
	return nil
}
