// The AWS SDK for JavaScript, with nothing but the environment to go by.
import assert from 'node:assert/strict'
import * as crypto from 'node:crypto'
import { createHash, createPublicKey, verify } from 'node:crypto'
import { test } from 'node:test'
import * as kms from '@aws-sdk/client-kms'

const client = new kms.KMSClient()

// call calls an operation by its name.
const call = (operation, input = {}) => client.send(new kms[operation + 'Command'](input))

const create = async (input) => (await call('CreateKey', input)).KeyMetadata

test('keys and aliases', async () => {
  const key = await create({ Description: 'von JavaScript ✓', Tags: [{ TagKey: 'of', TagValue: 'js' }] })
  assert.ok(key.CreationDate instanceof Date)
  await call('CreateAlias', { AliasName: 'alias/js', TargetKeyId: key.KeyId })
  const described = (await call('DescribeKey', { KeyId: 'alias/js' })).KeyMetadata
  assert.deepEqual(described, key)
  const ids = []
  for await (const page of kms.paginateListKeys({ client, pageSize: 1 }, {})) ids.push(...page.Keys.map((k) => k.KeyId))
  assert.ok(ids.includes(key.KeyId))
  assert.deepEqual((await call('ListResourceTags', { KeyId: key.KeyId })).Tags, [{ TagKey: 'of', TagValue: 'js' }])
})

test('encryption', async () => {
  const { KeyId, Arn } = await create()
  const EncryptionContext = { purpose: 'test', ключ: 'ß' }
  const text = Buffer.from(Array.from({ length: 256 }, (_, i) => i))
  const encrypted = await call('Encrypt', { KeyId, Plaintext: text, EncryptionContext })
  assert.equal(encrypted.KeyId, Arn)
  const { CiphertextBlob } = encrypted
  assert.deepEqual(Buffer.from((await call('Decrypt', { CiphertextBlob, EncryptionContext })).Plaintext), text)
  await assert.rejects(call('Decrypt', { CiphertextBlob }), kms.InvalidCiphertextException)

  const data = await call('GenerateDataKey', { KeyId, KeySpec: 'AES_256' })
  assert.equal(data.Plaintext.length, 32)
  assert.deepEqual((await call('Decrypt', { CiphertextBlob: data.CiphertextBlob })).Plaintext, data.Plaintext)

  await call('DisableKey', { KeyId })
  await assert.rejects(call('Decrypt', { CiphertextBlob, EncryptionContext }), kms.DisabledException)
  await assert.rejects(call('DescribeKey', { KeyId: 'alias/none' }), kms.NotFoundException)
})

test('signatures', async () => {
  const { KeyId } = await create({ KeySpec: 'ECC_NIST_P256', KeyUsage: 'SIGN_VERIFY' })
  const message = Buffer.from('message')
  const Message = createHash('sha256').update(message).digest()
  const { Signature } = await call('Sign', { KeyId, Message, MessageType: 'DIGEST', SigningAlgorithm: 'ECDSA_SHA_256' })
  const key = createPublicKey({ key: Buffer.from((await call('GetPublicKey', { KeyId })).PublicKey), format: 'der', type: 'spki' })
  assert.ok(verify('sha256', message, key, Signature))
  const check = (Message) => call('Verify', { KeyId, Message, Signature, SigningAlgorithm: 'ECDSA_SHA_256' })
  assert.equal((await check(message)).SignatureValid, true)
  await assert.rejects(check(Buffer.from('another')), kms.KMSInvalidSignatureException)
})

test('encapsulation', async (t) => {
  const EncapsulationAlgorithm = 'ML_KEM'
  for (const KeySpec of ['ML_KEM_512', 'ML_KEM_768', 'ML_KEM_1024']) {
    const { KeyId, Arn, EncapsulationAlgorithms } = await create({ KeySpec, KeyUsage: 'ENCAPSULATE_DECAPSULATE' })
    assert.deepEqual(EncapsulationAlgorithms, [EncapsulationAlgorithm])
    const made = await call('Encapsulate', { KeyId, EncapsulationAlgorithm })
    assert.equal(made.KeyId, Arn)
    const decapsulate = async (SharedSecretCiphertextBlob) =>
      Buffer.from((await call('Decapsulate', { KeyId, EncapsulationAlgorithm, SharedSecretCiphertextBlob })).SharedSecret)
    assert.deepEqual(await decapsulate(made.SharedSecretCiphertextBlob), Buffer.from(made.SharedSecret))
    await assert.rejects(decapsulate(made.SharedSecretCiphertextBlob.subarray(1)), kms.InvalidCiphertextException)

    if (!crypto.encapsulate) {
      t.diagnostic('this Node.js has no ML-KEM of its own')
      continue
    }
    // OpenSSL's ML-KEM, with the public key and the private key that the KMS gives out.
    const der = (b, type) => ({ key: Buffer.from(b), format: 'der', type })
    const publicKey = createPublicKey(der((await call('GetPublicKey', { KeyId })).PublicKey, 'spki'))
    const { sharedKey, ciphertext } = crypto.encapsulate(publicKey)
    assert.deepEqual(await decapsulate(ciphertext), Buffer.from(sharedKey))
    const pair = await call('GenerateDataKeyPair', { KeyId: (await create()).KeyId, KeyPairSpec: KeySpec })
    const privateKey = crypto.createPrivateKey(der(pair.PrivateKeyPlaintext, 'pkcs8'))
    const outside = crypto.encapsulate(createPublicKey(der(pair.PublicKey, 'spki')))
    assert.deepEqual(crypto.decapsulate(privateKey, outside.ciphertext), outside.sharedKey)
  }
})
