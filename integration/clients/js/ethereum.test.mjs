// A published signer of Ethereum transactions whose key stays in the KMS. It makes
// its own client, which finds the server by the environment.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { CreateKeyCommand, DisableKeyCommand, KMSClient } from '@aws-sdk/client-kms'
import { AwsKmsSigner } from '@nexusmutual/ethers-v6-aws-kms-signer'
import { getAddress, Transaction, verifyMessage, verifyTypedData } from 'ethers'

const client = new KMSClient()

// signer makes a key and a signer with it.
const signer = async () => {
  const { KeyMetadata } = await client.send(new CreateKeyCommand({ KeySpec: 'ECC_SECG_P256K1', KeyUsage: 'SIGN_VERIFY' }))
  return new AwsKmsSigner({
    kmsKeyId: KeyMetadata.KeyId,
    region: process.env.AWS_REGION,
    accessKeyId: process.env.AWS_ACCESS_KEY_ID,
    secretAccessKey: process.env.AWS_SECRET_ACCESS_KEY,
  })
}

test('the address is one, and is the same each time', async () => {
  const one = await signer()
  const address = await one.getAddress()
  assert.equal(getAddress(address), getAddress(await one.connect(null).getAddress()))
  assert.notEqual(address, await (await signer()).getAddress())
})

test('transactions', async () => {
  const from = await signer()
  // Both halves of the curve's order and both parities come up.
  for (let nonce = 0; nonce < 8; nonce++) {
    const signed = await from.signTransaction({
      type: 2, chainId: 1, nonce, to: '0x000000000000000000000000000000000000dEaD', value: 1n, gasLimit: 21000n, maxFeePerGas: 1n, maxPriorityFeePerGas: 1n,
    })
    assert.equal(Transaction.from(signed).from, getAddress(await from.getAddress()))
  }
})

test('messages and typed data', async () => {
  const from = await signer()
  const address = getAddress(await from.getAddress())
  const signature = await from.signMessage('a message')
  assert.equal(verifyMessage('a message', signature), address)
  assert.notEqual(verifyMessage('another', signature), address)
  const typed = [{ name: 'test', chainId: 1 }, { Mail: [{ name: 'text', type: 'string' }] }, { text: 'typed' }]
  assert.equal(verifyTypedData(...typed, await from.signTypedData(...typed)), address)
})

test('a disabled key signs nothing', async () => {
  const from = await signer()
  await from.getAddress()
  await client.send(new DisableKeyCommand({ KeyId: from.kmsKeyId }))
  await assert.rejects(from.signMessage('a message'), { name: 'DisabledException' })
})
