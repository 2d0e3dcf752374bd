package docs

// The parts of docs/compatibility.md that are the same for all operations.

const compatIntro = `# Compatibility with AWS KMS, IAM, STS and CloudTrail

Conclave speaks AWS KMS's JSON protocol (API version 2014-11-01), so that SDKs, the CLI and Terraform work with it unchanged. This page
lists where its answers differ. ` + "`TestConformanceInputs`" + ` and ` + "`TestConformanceOutputs`" + ` compare requests and answers with AWS's service model, member by
member; ` + "`TestCompatibility`" + ` compares this page with the model and the program.

## Operations

%d of the model's %d operations are implemented. All take a ` + "`KeyId`" + ` of 1–2048 characters, up to 10 grant tokens of 1–8192 characters, a
` + "`Limit`" + ` of 1–1000 and a ` + "`Marker`" + ` of 1–1024 characters where AWS does. Invalid members are reported with a
ValidationException that has AWS's text and lists all of them (up to 100) in the model's order. A value of the wrong JSON type is a
SerializationException.
`

const compatRest = `
### FIPS mode

Release binaries and the container image are built on Go's validated module (` + "`GOFIPS140`" + `) and run in FIPS mode. Algorithms
outside of that module are not available in it: secp256k1, ML-DSA and ML-KEM-512 (the two larger variants of ML-KEM are in the module). Creating or
using a key or data key pair of such a spec is refused with UnsupportedOperationException, so all nodes of a cluster should be built alike. Strict mode (` + "`GODEBUG=fips140=only`" + `) also refuses wrapping algorithms of imports that use SHA-1.

## What AWS has and Conclave does not

- **AWS's own keys.** There are no AWS managed keys and no ` + "`alias/aws/…`" + `; that prefix is reserved, as in AWS.
- **CloudHSM.** Key stores of that type are PKCS #11 tokens that the operator provides, in binaries built with the tag ` + "`pkcs11`" + `.
- **VPC endpoint services.** An external key store in a private network is a PUBLIC_ENDPOINT with ` + "`--xks-allow-private-endpoints`" + `.
- **SM2** is refused with UnsupportedOperationException, as in AWS's Regions outside of China.
- **Request quotas** per operation are off. There is one limit: a caller whose requests are refused more than ten times a second for a while
  gets ThrottlingException from that node.
- **Services.** No service calls on behalf of a principal, so kms:ViaService is absent from all requests. Grants can be made for service principals (see below), but
  no caller can authenticate as one yet.
- **CloudTrail.** Records have CloudTrail's form and go to the cluster's own audit log. A denied request has the errorCode AccessDenied, as in
  CloudTrail, and others the name that the API gives the error. CloudTrail writes a call that reaches another account's key once for each of the two
  accounts, with the same sharedEventID. Here it is one record: recipientAccountId is the caller's account, the resources name the other one, and
  the sharedEventID is there unless the call was denied, and LookupEvents shows it to the caller's account. ` + "`tlsDetails.clientProvidedHostHeader`" + ` and ` + "`keyExchange`" + ` are recorded from feature level 2 on.

### Grants to services

A grant for a service principal, or one with a SourceArn constraint, is stored, listed, retired and revoked like any other. It applies to a service
principal that names the resource it acts for, if that is exactly the text of the constraint; wildcards have no meaning. No caller can be a service
principal yet, and neither API accepts such an ARN from other callers, so these grants currently allow nothing. AWS evaluates SourceArn only when a
service calls, and allows a user as if the constraint were not there. In Conclave a constraint always restricts its grant.

### Enclaves

A Recipient is accepted if the node was configured with the root certificates to trust (` + "`--attestation-roots`" + `). Otherwise it is refused with
UnsupportedOperationException, because Conclave ships without roots. Both of its members are required. Documents are valid for five minutes from their
timestamp; AWS may accept them for hours. Documents of NitroTPM are refused.

### Key stores

A ciphertext that is not genuine is refused with InvalidCiphertextException before the store is asked; AWS passes it on and answers
KMSInvalidStateException. For a store of type AWS_CLOUDHSM, CloudHsmClusterId is the name that the operator configured (` + "`--pkcs11-tokens`" + `), KeyStorePassword is the token's PIN, and
TrustAnchorCertificate is refused, because it would not be used. Connecting a connected store again has no effect.

### Policies

Policies have the whole language of IAM and its condition keys: [policies](policies.md) has the list. A document with anything that Conclave does not
understand is refused with MalformedPolicyDocumentException when it is set; nothing is ever ignored. The same applies to CanonicalUser principals and to
principals that do not exist. An Action that is neither ` + "`*`" + ` nor ` + "`service:name`" + `, a Resource that is neither ` + "`*`" + ` nor
an ARN, and empty lists are malformed; AWS may accept them without effect.

## Where Conclave is stricter

- **No delay.** AWS is eventually consistent. In Conclave a change is in effect on every node when the call returns, and lists reflect it too. An
  answer that depends on an object which has changed in the meantime is computed again.
- **No answer without its record.** If the audit record is not on a majority of disks, the answer is ServiceUnavailable (HTTP 503).
- **Import tokens can be used once.** The import is remembered until the token would have expired.
- **Encryption contexts** have at most 8192 bytes of keys and values, so that records can contain them in full.
- **JSON.** Duplicate members, text that is not valid Unicode, non-canonical base64, more than 32 levels, more than 16,384 values and more than 1 MiB
  are refused. Numbers are written as integers.
- **Markers** are authenticated, and valid for one caller, operation, Region and set of arguments.
- **Refusals are recorded** once the caller is authenticated, including those for invalid members. Requests that cannot be parsed
  (SerializationException, UnknownOperationException) leave no record. Throttled requests leave one record a minute, with their number.
- **Unknown members.** AWS ignores members that it does not know. If such a member restricts a request, ignoring it would allow more than was asked
  for. So in every operation with restricting members (constraints, filters, encryption contexts, policies, DryRun, Recipient and the like), and at
  every depth inside of them, an unknown member is a ValidationException that names it. In Tags and XksProxyAuthenticationCredential, and in the other
  operations, unknown members are ignored as in AWS. These operations are
%s.
  A name that differs from a member's only by case, hyphens or underscores is refused in all operations, because AWS would not treat it as that member.
- **gRPC** has the same operations. A member that this version does not know is always refused.

## Where AWS is not documented

It is not known, or not certain, what AWS does in these cases. Conclave's choices are:

- Several violations are reported in the order of the model's members.
- Imported elliptic curve keys are accepted in either version of PKCS #8, with their curve named once or twice, and with a scalar that has too few or
  too many leading zeros. A public key in the structure has to match the private one.
- The texts of errors; see [below](#what-errors-say).
- An empty answer has no body. Empty lists are included, as ` + "`[]`" + `.
- An ARN that is malformed or has another service or partition is refused with InvalidArnException; one that names neither a key nor an alias, with
  NotFoundException.
- A ciphertext of a key in another one of the cluster's Regions is refused with AccessDeniedException, like that of a deleted key.
- ReplicateKey into the key's own Region is refused with AlreadyExistsException.
- UpdatePrimaryRegion to the primary's own Region is refused with UnsupportedOperationException; to one without a replica, with NotFoundException.
- GetPublicKey of a symmetric or HMAC key is refused with UnsupportedOperationException.
- A request that is signed for a Region that the cluster does not serve is refused with InvalidSignatureException, unless the cluster was initialised
  to accept any Region.
- For Encapsulate and Decapsulate AWS documents no separate condition key or request quota. Conclave has none either.
`

// compatTrail has, in this order, CloudTrail's operations that are served, their number, and the
// number of those that AWS's SDK has.
const compatTrail = `
## CloudTrail

%s is served on the port of KMS (JSON 1.1, API version 2013-11-01), %d of CloudTrail's %d operations; others are an UnknownOperationException.
[audit-reading.md](audit-reading.md) shows it.

- **Events** are the records of the cluster's audit log whose recipientAccountId is the caller's account: of all operations, those on keys too, which
  AWS has as management events, and of all Regions. What the cluster does itself are events of the account that it was initialised with. Records that
  cannot be decrypted are events of no account.
- **Delay.** An event is usually found within a second; AWS needs minutes. A node whose index is more than 15 minutes behind answers 503.
- **Order.** Events are in the order of the log, the newest first, and EventTime is cluster time in whole seconds. A lookup is about the events before it,
  and its pages stay the same while others are recorded. A page may have fewer events than asked for, or none, and a NextToken.
- **Attributes.** A ResourceName is an ARN, what follows the account in it, or the id at its end. Values have at most 2,000 bytes.
- **Tokens** are bound to the principal and the request, but for MaxResults.
- **Insights.** There are none: EventCategory ` + "`insight`" + ` finds nothing.
- **Rate.** An account may look up 5 times a second on each node, and 50 times at once; AWS allows 2 a second.
- Each request is recorded, those for further pages too.
`

// compatIdentities has, in this order, the number of STS's operations that are served, of
// those that AWS's SDK has, and the names of the first; the same of IAM; and the names of
// Conclave's own operations.
const compatIdentities = `
## IAM and STS

Both services are served on the port of KMS, with their query protocol (IAM 2010-05-08, STS 2011-06-15). %d of STS's %d operations are implemented:

%s.

So are %d of IAM's %d:

%s.

Most of the others concern passwords, devices, certificates, SAML, instance profiles, service-linked roles and organizations. They are refused as an
InvalidAction. What tools ask for before they delete a user or a role is answered with an empty list. These operations are Conclave's own:
%s.

- **No delay.** A new user, key or policy counts on every node when the call returns. AWS needs seconds.
- **Devices.** There is no multi-factor authentication. A SerialNumber or TokenCode is refused with AccessDenied.
- **Identity providers.** Issuers are trusted by their certificate's CA (` + "`--web-identity-ca`" + `); thumbprints are stored, and have no effect. Without
  ` + "`--web-identity-allow-private`" + `, issuers have to be at public addresses. An issuer's keys are used for 15 minutes before it is asked for them
  again, and at once, though at most every 5 seconds, if a token names a key that is not known.
- **Sessions** end at once when their role, their issuer or the access key that they stand on is deleted or revoked.
- **AssumeRoleWithWebIdentity** takes ID tokens only: ProviderId, which is for OAuth 2.0 access tokens, is a ValidationError.
- **Names in policies.** As in AWS, a key policy, a trust policy or a grant is for the user or role that had the name when it was stored, by its unique id. Who is made
  again under the same name has nothing of it; who is renamed keeps it. What is shown are current ARNs, and unique ids of those that were deleted; a policy can be stored
  again as it is shown. A unique id is refused otherwise, also that of a user or role that exists. A policy names at most 100 users and roles.
- **Denials** of IAM do not tell whether the user, group or role exists, so they show its ARN without a path; AWS shows "user" and the name.
- **AWS's managed policies.** There are AdministratorAccess, IAMFullAccess, IAMReadOnlyAccess and AWSKeyManagementServicePowerUser.

Tests with the AWS CLI, boto3, Terraform and the SDKs for Go and JavaScript use all of this: see [clients](clients.md).
`
