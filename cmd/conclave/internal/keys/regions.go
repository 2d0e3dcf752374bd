package keys

import (
	"io"

	"github.com/conclavekms/conclave/transport/kmspb"
)

func replicateCall() call {
	return call{
		use: "replicate KEY --to REGION", short: "Make a replica of a multi-region key in another region", op: "ReplicateKey", doing: "replicating key",
		example: `  conclave key replicate worldwide --to us-east-2`,
		takes: []input{
			keyArg(1), textFlag("replica_region", "to", "region of the replica").needed(),
			textFlag("description", "description", "what the replica is for"),
			policyFlag(), lockout(), tagFlags(),
		},
		shows: tableOf(func(w io.Writer, r *kmspb.ReplicateKeyResponse) { keyTable(w, r.GetReplicaKeyMetadata()) }),
	}
}

func primaryRegionCall() call {
	return call{
		use: "set-primary-region KEY --to REGION", short: "Make a replica of a multi-region key the primary", op: "UpdatePrimaryRegion", doing: "moving the primary of key",
		example: `  conclave key set-primary-region worldwide --to us-east-2`,
		takes:   []input{keyArg(1), textFlag("primary_region", "to", "region of the replica that becomes the primary").needed()},
	}
}
