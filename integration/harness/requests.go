package harness

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/aws/smithy-go"

	"github.com/conclavekms/conclave/transport/client"
)

// NoKey is the id of a key that there is not.
const NoKey = "00000000-0000-4000-8000-000000000000"

// RootPolicy allows the account everything, with more statements after that.
func RootPolicy(more ...string) string {
	statements := append([]string{`{"Sid":"Enable","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::` + Account + `:root"},"Action":"kms:*","Resource":"*"}`}, more...)
	return `{"Version":"2012-10-17","Statement":[` + strings.Join(statements, ",") + `]}`
}

// DenyRoot is a statement for RootPolicy that denies the account's root some actions.
func DenyRoot(actions ...string) string {
	list, _ := json.Marshal(actions)
	return `{"Sid":"Stop","Effect":"Deny","Principal":{"AWS":"arn:aws:iam::` + Account + `:root"},"Action":` + string(list) + `,"Resource":"*"}`
}

// Members are those of a request, by AWS's names. Both faces' requests have them.
type Members map[string]any

// Must is the output of a call that must succeed.
func Must[Out any](t *testing.T) func(Out, error) Out {
	return func(out Out, err error) Out {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
}

// FillRequest sets the members of a request of either face.
func FillRequest(t *testing.T, into reflect.Value, in Members) {
	t.Helper()
	for name, v := range in {
		f := into.FieldByName(name)
		if !f.IsValid() {
			t.Fatalf("%v has no %s", into.Type(), name)
		}
		switch {
		case f.Kind() == reflect.Slice && f.Type().Elem().Kind() != reflect.Uint8 && f.Type().Elem().Kind() != reflect.String:
			for _, item := range v.([]Members) {
				e := f.Type().Elem()
				p := reflect.New(e)
				if e.Kind() == reflect.Pointer {
					p = reflect.New(e.Elem())
				}
				FillRequest(t, p.Elem(), item)
				if e.Kind() != reflect.Pointer {
					p = p.Elem()
				}
				f.Set(reflect.Append(f, p))
			}
		case f.Kind() == reflect.Slice && f.Type().Elem().Kind() == reflect.String:
			for _, item := range v.([]string) {
				f.Set(reflect.Append(f, reflect.ValueOf(item).Convert(f.Type().Elem())))
			}
		case f.Kind() == reflect.Pointer:
			p := reflect.New(f.Type().Elem())
			p.Elem().Set(reflect.ValueOf(v))
			f.Set(p)
		default:
			f.Set(reflect.ValueOf(v).Convert(f.Type()))
		}
	}
}

// Told is what an error of either face says: code and message.
func Told(err error) (code, message string) {
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		return api.ErrorCode(), api.ErrorMessage()
	}
	if f, ok := client.FromError(err); ok {
		return f.Type, f.Message
	}
	return "no answer", err.Error()
}

// SecondRegion and ThirdRegion are Regions that clusters of tests may have besides Region.
const SecondRegion, ThirdRegion = "eu-test-2", "eu-test-3"

// Key policies for Account: AllowAll lets the root user do everything, and DenyUse takes
// the use of the key away, but not its management.
const (
	AllowAll = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:root"},"Action":"kms:*","Resource":"*"}]}`
	DenyUse  = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:root"},"Action":"kms:*","Resource":"*"},` +
		`{"Effect":"Deny","Principal":{"AWS":"arn:aws:iam::111122223333:root"},"Action":["kms:Encrypt","kms:Decrypt","kms:GenerateDataKey","kms:DescribeKey"],"Resource":"*"}]}`
)
