package awsmodel

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/google/go-cmp/cmp"
)

// TestAdditionsAreAWS holds what was added to the model against AWS's Go SDK: the
// values of every enum, in their order, and the members of the operations that are
// new and of the answers that grew.
func TestAdditionsAreAWS(t *testing.T) {
	m, later := readModel(t, "kms-2014-11-01.json"), readModel(t, "kms-additions-2026-10-26.json")
	m.add(t, later)
	for name, got := range map[string]any{
		"KeySpec": types.KeySpec("").Values(), "KeyUsageType": types.KeyUsageType("").Values(), "DataKeyPairSpec": types.DataKeyPairSpec("").Values(),
		"GrantOperation": types.GrantOperation("").Values(), "EncapsulationAlgorithmSpec": types.EncapsulationAlgorithmSpec("").Values(),
		"KeyLastUsageTrackingOperation": types.KeyLastUsageTrackingOperation("").Values(),
	} {
		var sdk []string
		for i := range reflect.ValueOf(got).Len() {
			sdk = append(sdk, reflect.ValueOf(got).Index(i).String())
		}
		if diff := cmp.Diff(sdk, m.Shapes[name].Enum); diff != "" {
			t.Errorf("%s (-SDK +model):\n%s", name, diff)
		}
		if later.Shapes[name] == nil {
			t.Errorf("nothing was added to %s", name)
		}
		delete(later.Shapes, name)
	}
	for name, of := range map[string]reflect.Type{
		"EncapsulateRequest": reflect.TypeFor[kms.EncapsulateInput](), "EncapsulateResponse": reflect.TypeFor[kms.EncapsulateOutput](),
		"DecapsulateRequest": reflect.TypeFor[kms.DecapsulateInput](), "DecapsulateResponse": reflect.TypeFor[kms.DecapsulateOutput](),
		"KeyMetadata": reflect.TypeFor[types.KeyMetadata](), "GetPublicKeyResponse": reflect.TypeFor[kms.GetPublicKeyOutput](),
	} {
		var sdk, model []string
		for f := range of.Fields() {
			if f.IsExported() && f.Name != "ResultMetadata" {
				sdk = append(sdk, strings.ToLower(f.Name))
			}
		}
		for _, mm := range m.Shapes[name].Members {
			model = append(model, strings.ToLower(mm.Name))
		}
		slices.Sort(sdk)
		slices.Sort(model)
		if diff := cmp.Diff(sdk, model); diff != "" {
			t.Errorf("%s (-SDK +model):\n%s", name, diff)
		}
		delete(later.Shapes, name)
	}
	delete(later.Shapes, "EncapsulationAlgorithmSpecList")
	for name := range later.Shapes {
		t.Errorf("%s was added, and nothing holds it against the SDK", name)
	}
}
