package docs

// compatSigning is the part of docs/compatibility.md on signatures and browsers.
const compatSigning = `
## Signatures and browsers

- **Signature Version 4** is taken in the Authorization header and, presigned, in the query string, with ` + "`X-Amz-Expires`" + ` from 1 second to 7 days. Clocks may
  differ by 5 minutes. A presigned request can be sent again until it expires, by whoever has it. Parameters that stand twice, plus signs and broken
  escapes are refused. The operation may be in ` + "`X-Amz-Target`" + ` of the query string, where the Go and JavaScript signers move it.
- **Unsigned payloads** (` + "`X-Amz-Content-Sha256: UNSIGNED-PAYLOAD`" + `, itself signed) are taken over TLS, never without. A presigned URL with one lets its holder send any
  body to that operation.
- **Unsigned headers.** ` + "`Host`" + `, the date, ` + "`X-Amz-Target`" + `, ` + "`X-Amz-Content-Sha256`" + ` and ` + "`X-Amz-Security-Token`" + ` must be signed where they are sent. Other headers have no
  effect, and proxies may add them unsigned (` + "`X-Amz-Cf-Id`" + `).
- **Not supported:** Signature Version 4A (AWS4-ECDSA-P256-SHA256), streamed payloads, and the protocol rpc-v2-cbor, which AWS KMS does not
  speak either.
- **CORS** is off unless the node is told origins (` + "`--cors-origins https://app.example.com`" + `); AWS answers every origin. Origins are named whole, without wildcards, and
  are https or on localhost. Browsers are never told to send cookies or certificates. An origin is trusted with the credentials that its users give it: a script
  in that page can do all that these allow. Preflights are answered without a signature, and reach nothing behind the listener.
- **IAM and STS** are served on the same port, told apart by the service that a request is signed for, or by the form of a request that is not signed.
  IAM's requests may be signed for any Region. Errors have these services' codes and statuses, and an operation that Conclave does not have is an
  InvalidAction in XML.
- **Other services.** A request that is signed for another service is told in XML or JSON what to set instead
  (` + "`AWS_ENDPOINT_URL_KMS`, `AWS_ENDPOINT_URL_IAM`, `AWS_ENDPOINT_URL_STS` and `AWS_ENDPOINT_URL_CLOUDTRAIL`" + `), with SignatureDoesNotMatch or InvalidSignatureException.
`

// compatAnswers is the part of docs/compatibility.md on what errors say.
const compatAnswers = `
## What errors say

Codes and texts are AWS's where they are known: recorded from the service (LocalStack keeps such recordings), on AWS's own pages, or reported by those
who compared (floci's pull request 3968 and its issues). Checks are made in AWS's order: who asks; the members, all that is wrong with them in one answer;
the key; the permission; the key's usage; its state; the algorithm; sizes. A ciphertext that cannot be read, or is another key's, is answered before
anything is asked of the key that the request names.

**A message everywhere.** AWS sends none with InvalidCiphertextException, KMSInvalidSignatureException, KMSInvalidMacException, NotAuthorizedException,
with UnsupportedOperationException for a key of a kind that does not rotate or has no public half, and with DeriveSharedSecret's ValidationException for a public key
that is none. Here every error has one, which tells no more than the code.

**Values and lists.** ` + "`KeyId`" + ` and its like match ` + "`^\\p{ASCII}+$`" + `, which AWS's model does not have and its answers do. Lists of allowed values are in the
order of AWS's answers for KeySpec, KeyUsage, EncryptionAlgorithm, SigningAlgorithm and MacAlgorithm, else in the model's. GenerateDataKey's KeySpec lists
AES_256 and AES_128, which are what it takes; AWS lists the specs of KMS keys there.

**By one report only**, so not sure: the texts for message types that do not fit (` + "`Message type DIGEST is incompatible with algorithm ED25519_SHA_512.`" + `), for an encryption
context with an asymmetric key, for a key ARN with a malformed id (no quotes around it), for SM2 (no period), and that DisableKeyRotation succeeds for keys of kinds
that do not rotate. Reported too, and not done here: GetPublicKey of a disabled key succeeds (AWS's page says DisabledException, as here); Sign with
SYMMETRIC_DEFAULT is InvalidKeyUsageException (here ValidationException, as of any value outside of the list).

**Not known.** These texts are Conclave's own, with AWS's codes:

- AlreadyExistsException, LimitExceededException (but for rotations on demand), ConflictException, InvalidMarkerException, InvalidGrantIdException,
  InvalidGrantTokenException, InvalidImportTokenException, ExpiredImportTokenException and IncorrectKeyMaterialException: all but those of an alias that exists.
- MalformedPolicyDocumentException: all but those on principals and on locking oneself out.
- ValidationException: an alias that would move between keys of different types or usages; a member that another one excludes or asks for, in
  CreateKey, CreateGrant, RetireGrant, ImportKeyMaterial and custom key stores; a KeyId that Decrypt or ReEncrypt need for an RSA ciphertext, or for a dry run without
  one; a validTo out of range; attestation documents.
- UnsupportedOperationException: specs, origins and wrapping algorithms that are not supported; a Recipient without roots; FIPS mode; UpdatePrimaryRegion to the same Region.
- Everything of custom key stores and external keys: CustomKeyStore…, CloudHsm… and Xks… exceptions.
- KMSInternalException, ServiceUnavailable, SerializationException, UnknownOperationException and what is said of signatures, but for a wrong signature, an
  unknown key, a wrong clock and a missing token.
- That ListKeyRotations of a key of a kind that does not rotate, and DisableKeyRotation of one in a key store, are UnsupportedOperationException.
- Whether GenerateDataKey with neither KeySpec nor NumberOfBytes is answered before the key is looked for (it is here).
`
