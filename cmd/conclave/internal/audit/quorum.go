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

// quorum returns what the flags ask for; nil if they ask for nothing.
func (q *quorumFlags) quorum() (*checkpoint.Quorum, error) {
	if len(q.witnesses) == 0 {
		if q.need != 0 {
			return nil, cli.Usagef("--quorum needs --witness")
		}
		return nil, nil
	}
	var list []*checkpoint.Witness
	for _, key := range q.witnesses {
		text, err := KeyText(key)
		if err != nil {
			return nil, fmt.Errorf("--witness: %w", err)
		}
		w, err := checkpoint.ParseWitness(text)
		if err != nil {
			return nil, fmt.Errorf("--witness: %w", err)
		}
		list = append(list, w)
	}
	need := q.need
	if need == 0 {
		need = len(list)
	}
	result, err := checkpoint.NewQuorum(list, need)
	if err != nil {
		return nil, cli.Usagef("%v", err)
	}
	return &result, nil
}

// cosigners checks a checkpoint and returns who has cosigned it; nil without a quorum.
func cosigners(q *checkpoint.Quorum, msg []byte) ([]string, error) {
	if q == nil {
		return nil, nil
	}
	return q.Check(msg)
}

// cosignedLine shows who has cosigned.
func cosignedLine(w io.Writer, names []string) {
	if len(names) > 0 {
		cli.Line(w, "cosigned by", strings.Join(names, ", "))
	}
}
