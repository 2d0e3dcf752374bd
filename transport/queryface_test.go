package transport_test

// A throw-away face: AWS's query protocol, with the operation and its members in a
// form and the answer in XML, signed with SigV4. It only parses and renders, and
// shows what a new face costs. TestFace tests what it gets from the pipeline.

import (
	"context"
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"time"

	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/transport"
	"github.com/conclavekms/conclave/transport/sigv4"
)

const formType = "application/x-www-form-urlencoded"

var queryVerifier = sigv4.NewVerifier("query", "Content-Type")

type queryEngine interface {
	transport.Engine
	AuthenticateSigV4(context.Context, sigv4.Proof) (iam.Identity, error)
}

type queryFace struct {
	engine     queryEngine
	operations map[string]*keyengine.Operation
	now        func() time.Time
}

func newQueryFace(api *transport.API, engine queryEngine, now func() time.Time) *transport.HTTPFace {
	f := &queryFace{engine, make(map[string]*keyengine.Operation), now}
	for _, op := range keyengine.OperationsOf(keyengine.KMS) {
		f.operations[op.Name] = op
	}
	return api.HTTP(transport.HTTPFaceConfig{
		Engine: engine, RequestIDHeader: "X-Request-Id", MaxBody: 64 << 10,
		NewExchange: func() transport.Exchange { return &queryExchange{face: f} },
	})
}

type queryExchange struct {
	face   *queryFace
	claim  sigv4.Claim
	op     string
	secret [][]byte // byte members of the input and the output
}

func (x *queryExchange) Reset() {
	for _, b := range x.secret {
		clear(b)
	}
	*x = queryExchange{face: x.face}
}

func (x *queryExchange) Accept(r *http.Request) error {
	if r.Method != http.MethodPost || r.URL.Path != "/" || r.Header.Get("Content-Type") != formType {
		return transport.ErrUnknownOperation
	}
	return queryVerifier.Read(&x.claim, r, x.face.now())
}

func (x *queryExchange) Authenticate(ctx context.Context, r *http.Request, body []byte, c *iam.Caller) (known bool, err error) {
	proof, _, err := x.claim.Proof(nil, r, body)
	if err != nil {
		return false, err
	}
	c.Region = x.claim.Region
	c.Identity, err = x.face.engine.AuthenticateSigV4(ctx, proof)
	return true, err
}

func (x *queryExchange) Decode(_ *http.Request, body []byte) (*keyengine.Operation, any, error) {
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, nil, transport.ErrSerialization
	}
	op := x.face.operations[form.Get("Action")]
	if op == nil {
		return nil, nil, transport.ErrUnknownOperation
	}
	x.op = op.Name
	in := op.NewInput()
	for name, values := range form {
		member := reflect.ValueOf(in).Elem().FieldByName(name)
		switch {
		case name == "Action":
		case len(values) != 1 || !member.IsValid():
			return nil, nil, transport.ErrSerialization
		case member.Type() == reflect.TypeFor[*string]():
			member.Set(reflect.ValueOf(&values[0]))
		case member.Type() == reflect.TypeFor[[]byte]():
			b, err := base64.StdEncoding.DecodeString(values[0])
			if err != nil {
				return nil, nil, transport.ErrSerialization
			}
			x.secret = append(x.secret, b)
			member.SetBytes(b)
		default:
			return nil, nil, transport.ErrSerialization
		}
	}
	return op, in, nil
}

func (x *queryExchange) Encode(b []byte, h http.Header, out any) ([]byte, error) {
	h.Set("Content-Type", "text/xml")
	b = fmt.Appendf(b, "<%sResponse>", x.op)
	if v := reflect.ValueOf(out); v.IsValid() {
		for i := range v.Elem().NumField() {
			name, member := v.Elem().Type().Field(i).Name, v.Elem().Field(i)
			switch m := member.Interface().(type) {
			case *string:
				if m != nil {
					b = appendElement(b, name, *m)
				}
			case []byte:
				if x.secret = append(x.secret, m); m == nil {
					continue
				}
				b = appendElement(b, name, base64.StdEncoding.EncodeToString(m))
			}
		}
	}
	return fmt.Appendf(b, "</%sResponse>", x.op), nil
}

func (x *queryExchange) Refuse(b []byte, h http.Header, _ *http.Request, id string, _ error, a transport.Answer) ([]byte, int) {
	h.Set("Content-Type", "text/xml")
	b = appendElement(append(b, "<ErrorResponse><Error>"...), "Code", a.Type)
	b = append(appendElement(b, "Message", a.Message), "</Error>"...)
	return append(appendElement(b, "RequestId", id), "</ErrorResponse>"...), a.HTTP
}

func appendElement(b []byte, name, text string) []byte {
	escaped, _ := xml.Marshal(struct {
		XMLName xml.Name
		Text    string `xml:",chardata"`
	}{xml.Name{Local: name}, text})
	return append(b, escaped...)
}
