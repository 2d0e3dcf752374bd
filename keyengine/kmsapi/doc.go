// Package kmsapi defines the API of the key management service, after AWS's service model:
// the inputs and outputs of the operations, their errors, and for each structure one schema
// of its members. Package iamapi uses the same schemas for IAM and STS, whose enums and
// patterns are here too. Code that handles members independently of the operation uses the schema:
// validation, the codecs of the network protocols, forwarding between nodes, audit records
// and wiping. A member is therefore described in one place, its tag.
//
// The package imports no other package of the project and has no state. Members have AWS's
// names; absent members are nil.
//
// # Tags
//
// The tag `kms` of a member of an input has the constraints that hold for every key, and
// says whether audit records may contain the member. Its rules, separated by commas:
//
//	required            must be present
//	len=1..2048         length: characters of text, bytes of a blob, items of a list or map;
//	                    without an upper bound if there is nothing after the dots
//	range=1..1000       bounds of a number
//	enum=KeySpec        one of EnumOf("KeySpec")
//	pattern=alias       matches PatternOf("alias")
//	total=8192          bytes of all keys and values of a map together
//	each.len, each.enum, each.pattern
//	                    the same for the items of a list of text
//	name=arn            the member's name, if it differs from the field's
//	secret              see Member.Secret; of other blobs only the value is kept out of messages
//	public              a blob that is not secret; each blob has one of the two
//	narrows             see Member.Narrows
//	open                a structure, or a list of them, that restricts nothing
//	log, nolog          whether records contain it; each member of an input has one of the two
//	default=X           what a record contains if the member is absent
//
// Each structure in an input has narrows or open, unless it is inside one that has narrows.
// Members of outputs only have secret, public or name.
package kmsapi
