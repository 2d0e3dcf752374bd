package docs

// The parts of docs/compatibility.md that are the same for all operations.

const compatIntro = `# Compatibility with AWS KMS

Conclave speaks AWS KMS's JSON protocol (API version 2014-11-01), so that SDKs, the CLI and Terraform work with it unchanged. This page says
where it answers otherwise. ` + "`TestConformanceInputs`" + ` and ` + "`TestConformanceOutputs`" + ` hold requests and answers against AWS's service model, member by
member; ` + "`TestCompatibility`" + ` holds this page against the model and the program.

## Operations

%d of the model's %d operations are implemented. All take a ` + "`KeyId`" + ` of 1–2048 characters, up to 10 grant tokens of 1–8192 characters, a
` + "`Limit`" + ` of 1–1000 and a ` + "`Marker`" + ` of 1–1024 characters where AWS does. Members that are wrong are ValidationException with AWS's
text, all of them in one answer (up to 100), in the model's order; values of a wrong JSON type are SerializationException.
`

const compatRest = `
### FIPS mode

Release binaries and the container image are built on Go's validated module (` + "`GOFIPS140`" + `) and run in FIPS mode. It does not have what stands outside
of that module: secp256k1, ML-DSA and ML-KEM-512 (the larger two of ML-KEM are in it). Keys and data key pairs of these specs are refused with
UnsupportedOperationException there, made or used; all nodes of a cluster should therefore be built alike. Strict mode (` + "`GODEBUG=fips140=only`" + `) also refuses wrapping algorithms of imports that use SHA-1.

## What AWS has and Conclave does not

- **One account.** A cluster has one account. ARNs of other accounts are AccessDeniedException; nothing works across accounts.
- **Callers.** The only principal who can call is the account's root user, by access key, by session over gRPC or by client certificate. There are
  no users, roles and identity policies, and no STS.
- **AWS's own keys.** There are no AWS managed keys and no ` + "`alias/aws/…`" + `; that prefix is reserved as in AWS.
- **CloudHSM.** Key stores of that type are PKCS #11 tokens of the operator's, in binaries built with the tag ` + "`pkcs11`" + `.
- **VPC endpoint services.** An external key store in a private network is a PUBLIC_ENDPOINT with ` + "`--xks-allow-private-endpoints`" + `.
- **SM2** is refused with UnsupportedOperationException, as in AWS's Regions outside of China.
- **Request quotas** per operation are off. There is one limit: who is refused more often than ten times a second for a while gets
  ThrottlingException from that node.
- **Services.** Nothing calls on behalf of another: there is no kms:ViaService. Grants can be made for service principals, see below, but nobody can
  call as one yet.
- **CloudTrail.** Records have CloudTrail's form and go to the cluster's own audit log.

### Grants to services

A grant for a service principal, or one with a SourceArn constraint, is kept, listed, retired and revoked like others. What it allows, it allows to a
service principal that says which resource it acts for, with exactly the constraint's text; wildcards have no meaning. No caller can be a service
principal yet, and neither API takes such an ARN from anybody else, so these grants admit nobody. AWS looks at SourceArn only when a service calls, and
admits a user as if the constraint were not there; here a grant that is narrowed never gives more than it says.

### Enclaves

A Recipient is taken if the node was told whose documents to trust (` + "`--attestation-roots`" + `), else it is UnsupportedOperationException: no root is
shipped. Both of its members are needed. Documents are good for five minutes from their timestamp; AWS may take them for hours. Documents of NitroTPM
are refused, and there are no kms:RecipientAttestation conditions.

### Key stores

A ciphertext that is not genuine is InvalidCiphertextException before the store is asked; AWS passes it on and says KMSInvalidStateException. A
store of type AWS_CLOUDHSM is named by CloudHsmClusterId as the operator did (` + "`--pkcs11-tokens`" + `), KeyStorePassword is the token's PIN, and
TrustAnchorCertificate is refused, as nothing would check it. A store that is connected can be connected again, which does nothing.

### Policies

Key policies know Effect, Principal, Action, Resource, wildcards and explicit deny. A policy with anything else (Condition, NotPrincipal, NotAction,
NotResource, policy variables, Service, Federated and CanonicalUser principals) is refused with MalformedPolicyDocumentException when it is put, never
ignored. So is a principal other than the account's root user. An Action that is neither ` + "`*`" + ` nor ` + "`service:name`" + `, a Resource that is neither ` + "`*`" + ` nor
an ARN, and empty lists are malformed, where AWS may take them without effect.

## Where Conclave is stricter

- **No delay.** AWS is eventually consistent; here a change holds on every node when the call returns, and lists obey the same order. Answers
  that rest on what changed meanwhile are made again.
- **No answer without its record.** If the audit record is not on a majority of disks, there is no answer, but ServiceUnavailable (HTTP 503).
- **Import tokens work once**, and the import is remembered until the token would have expired.
- **Encryption contexts** have at most 8192 bytes of keys and values, so that records can show them whole.
- **JSON.** A member that stands twice, text that is not Unicode, base64 that is not canonical, more than 32 levels, more than 16,384 values or more
  than 1 MiB are refused. Numbers are written as integers.
- **Markers** are authenticated, and good for one caller, operation, Region and set of arguments.
- **Refusals are recorded**, also for members that are wrong, once it is known who asks. What cannot be read (SerializationException,
  UnknownOperationException) leave no record, and what is throttled one in a minute that says how many requests there were.
- **Unknown members.** AWS passes over members that it does not know. Here that would answer a request for less as one for more, so it is a
  ValidationException that names the member, in every operation with a member by which a request is narrowed (constraints, filters, encryption contexts,
  policies, DryRun, Recipient and the like), and at every depth inside of such a member. In Tags and XksProxyAuthenticationCredential, and in the other
  operations, unknown members are passed over as AWS does. These are
%s.
  Everywhere a name that differs from a member's only by case, hyphens or underscores is refused: AWS would not read it as that member.
- **gRPC** has the same operations. A member that this version does not know is refused there always.

## Where AWS is not documented

What AWS does in these cases is not known, or not known for sure. Conclave's choice:

- Several violations are reported in the order of the model's members.
- Imported keys on curves are taken with either version of PKCS #8, with their curve named once or twice, and with a scalar that has leading zeros
  too few or too many; a public key in the structure has to belong to the private one.
- What errors say: see [below](#what-errors-say).
- An empty answer has no body. Lists that are empty are there, as ` + "`[]`" + `.
- An ARN that cannot be read, or is of another service or partition, is InvalidArnException; one that names neither key nor alias is
  NotFoundException.
- A ciphertext of a key in another of the cluster's Regions is AccessDeniedException, like that of a key that is gone.
- ReplicateKey into the key's own Region is AlreadyExistsException.
- UpdatePrimaryRegion to the primary's own Region is UnsupportedOperationException; to one without a replica, NotFoundException.
- GetPublicKey of a symmetric or HMAC key is UnsupportedOperationException.
- A request that is signed for a Region that the cluster does not serve is InvalidSignatureException, unless the cluster was founded to take any.
- For Encapsulate and Decapsulate AWS documents no condition key and no request quota of their own. There are none here.
`
