// Package iamapi defines the APIs of AWS's identity and access management (IAM) and of its
// security token service (STS), after AWS's service models: the inputs and outputs of the
// operations that Conclave has, and their errors. For each operation X there is an XInput
// and, unless AWS answers with nothing, an XOutput.
//
// The tags of the members, and the schemas that are compiled from them, are those of package
// kmsapi, whose documentation explains them. Members have AWS's names, limits and patterns;
// absent members are nil. In outputs, a list that is not nil is rendered even if it is empty.
//
// Policy documents are plain JSON here. The face encodes them where AWS does.
package iamapi
