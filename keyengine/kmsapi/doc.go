// Package kmsapi is the API of the key management service as AWS's service model has it: the
// inputs and outputs of the operations, their errors, and for each structure one schema of its
// members. Whatever handles members without knowing the operation reads the schema: validation,
// the codecs of the network protocols, forwarding between nodes, audit records, wiping. So a
// member is described in one place, its tag.
//
// The package imports nothing of ours and keeps no state. Members have AWS's names; those that
// are absent are nil.
//
// # Tags
//
// The tag `kms` of a member of an input says what holds for it whatever the key is, and whether
// it may stand in an audit record. Its rules, separated by commas:
//
//	required            must be there
//	len=1..2048         length: characters of text, bytes of a blob, items of a list or map
//	range=1..1000       bounds of a number
//	enum=KeySpec        one of EnumOf("KeySpec")
//	pattern=alias       matches PatternOf("alias")
//	total=8192          bytes of all keys and values of a map together
//	each.len, each.enum the same for the items of a list of text
//	secret              see Member.Secret; of other blobs only the value is kept out of messages
//	public              a blob that is no secret; each blob says one of the two
//	narrows             see Member.Narrows
//	open                a structure, or a list of them, that restricts nothing
//	log, nolog          whether records show it; each member of an input says one of the two
//	default=X           what a record shows when the member is absent
//
// Each structure in an input says narrows or open, unless it is inside of one that narrows.
// Members of outputs say only whether they are secret or public.
package kmsapi
