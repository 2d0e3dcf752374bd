package ceremony

import (
	"slices"
	"strings"
	"testing"

	"github.com/conclavekms/conclave/keyengine/internal/record"
)

type clock struct{ record.Clock }

func TestInitRegions(t *testing.T) {
	good := InitParams{Shares: 1, Threshold: 1, Account: "111122223333"}
	for _, tt := range []struct {
		name    string
		region  string
		regions []string
		want    string // "" for taken
	}{
		{"one", "eu-west-1", nil, ""},
		{"one of any name", "here", nil, ""},
		{"one in the list", "", []string{"here"}, ""},
		{"several", "", []string{"eu-west-1", "us-gov-east-1"}, ""},
		{"both", "eu-west-1", []string{"eu-west-1", "eu-west-2"}, ""},
		{"none", "", nil, "the region must be 1 to 32"},
		{"other first one", "eu-west-2", []string{"eu-west-1", "eu-west-2"}, "must be the first"},
		{"twice", "", []string{"eu-west-1", "eu-west-2", "eu-west-2"}, "must differ"},
		{"empty", "", []string{"eu-west-1", ""}, "the region must be 1 to 32"},
		{"capitals", "", []string{"EU-WEST-1", "eu-west-2"}, "the region must be 1 to 32"},
		{"a name that ReplicateKey cannot give", "", []string{"here", "there"}, "a name like eu-west-1"},
		{"too many", "", slices.Repeat([]string{"eu-west-1"}, 41), "40 regions at most"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := good
			p.Region, p.Regions = tt.region, tt.regions
			err := p.check(clock{})
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}
