package audit

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/pflag"

	"github.com/conclavekms/conclave/auditlog/checkpoint"
	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
)

// quorumFlags say which witnesses have to have cosigned a checkpoint.
type quorumFlags struct {
	witnesses []string
	need      int
}

func (q *quorumFlags) add(f *pflag.FlagSet) {
	f.StringArrayVar(&q.witnesses, "witness", nil, "public keys of a witness, or a file with them; may be repeated")
	f.IntVar(&q.need, "quorum", 0, "how many of the witnesses have to have cosigned (default all of them)")
}

// quorum returns what the flags ask for; one without witnesses if they ask for nothing.
func (q *quorumFlags) quorum() (checkpoint.Quorum, error) {
	if len(q.witnesses) == 0 {
		if q.need != 0 {
			return checkpoint.Quorum{}, cli.Usagef("--quorum needs --witness")
		}
		return checkpoint.Quorum{}, nil
	}
	var list []*checkpoint.Witness
	for _, key := range q.witnesses {
		text, err := KeyText(key)
		if err != nil {
			return checkpoint.Quorum{}, fmt.Errorf("--witness: %w", err)
		}
		w, err := checkpoint.ParseWitness(text)
		if err != nil {
			return checkpoint.Quorum{}, fmt.Errorf("--witness: %w", err)
		}
		list = append(list, w)
	}
	need := q.need
	if need == 0 {
		need = len(list)
	}
	result, err := checkpoint.NewQuorum(list, need)
	if err != nil {
		return checkpoint.Quorum{}, cli.Usagef("%v", err)
	}
	return result, nil
}

// cosignedLine shows who has cosigned.
func cosignedLine(w io.Writer, names []string) {
	if len(names) > 0 {
		cli.Line(w, "cosigned by", strings.Join(names, ", "))
	}
}
