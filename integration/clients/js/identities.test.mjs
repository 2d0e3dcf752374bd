// IAM, STS and the credential providers of the AWS SDK for JavaScript, with nothing but the
// environment to go by.
import assert from 'node:assert/strict'
import { createSign, generateKeyPairSync } from 'node:crypto'
import { mkdtempSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import * as iam from '@aws-sdk/client-iam'
import * as kms from '@aws-sdk/client-kms'
import * as sts from '@aws-sdk/client-sts'

const client = new iam.IAMClient()
const manage = (operation, input = {}) => client.send(new iam[operation + 'Command'](input))
const caller = async (config = {}) => (await new sts.STSClient(config).send(new sts.GetCallerIdentityCommand())).Arn

const audience = 'sts.amazonaws.com'
const subject = 'system:serviceaccount:default:app'
const directory = mkdtempSync(join(tmpdir(), 'identities-'))
const write = (name, text) => {
  const path = join(directory, name)
  writeFileSync(path, text)
  return path
}
const allow = (Action, Resource) => JSON.stringify({ Version: '2012-10-17', Statement: [{ Effect: 'Allow', Action, Resource }] })
const trust = (Principal, Action, StringEquals) =>
  JSON.stringify({ Version: '2012-10-17', Statement: [{ Effect: 'Allow', Principal, Action, Condition: { StringEquals } }] })

// within runs a function with other variables in the environment, and without the access key.
const within = async (variables, run) => {
  const saved = { ...process.env }
  for (const name of ['AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY']) delete process.env[name]
  Object.assign(process.env, variables)
  try {
    await run()
  } finally {
    process.env = saved
  }
}

// The issuer of web identities. Its key is another one after rotate.
let key
let keys = 0
const rotate = () => {
  key = { ...generateKeyPairSync('ec', { namedCurve: 'P-256' }), id: `key-${++keys}` }
}
const issuer = createServer((request, response) => {
  response.setHeader('Content-Type', 'application/json')
  if (request.url === '/keys') {
    response.end(JSON.stringify({ keys: [{ ...key.publicKey.export({ format: 'jwk' }), kid: key.id, use: 'sig', alg: 'ES256' }] }))
  } else {
    response.end(JSON.stringify({ issuer: issuer.url, jwks_uri: issuer.url + '/keys', id_token_signing_alg_values_supported: ['ES256'] }))
  }
})
const token = () => {
  const now = Math.floor(Date.now() / 1000)
  const encode = (o) => Buffer.from(JSON.stringify(o)).toString('base64url')
  const text = encode({ alg: 'ES256', kid: key.id }) + '.' + encode({ iss: issuer.url, sub: subject, aud: [audience], iat: now, exp: now + 3600 })
  return text + '.' + createSign('sha256').update(text).sign({ key: key.privateKey, dsaEncoding: 'ieee-p1363' }).toString('base64url')
}

let account, keyArn, worker, pod, profile
before(async () => {
  rotate()
  await new Promise((resolve) => issuer.listen(0, '127.0.0.1', resolve))
  issuer.url = `http://127.0.0.1:${issuer.address().port}`
  const made = (await new kms.KMSClient().send(new kms.CreateKeyCommand({}))).KeyMetadata
  account = made.AWSAccountId
  keyArn = made.Arn

  await manage('CreateUser', { UserName: 'service' })
  await manage('PutUserPolicy', { UserName: 'service', PolicyName: 'assume', PolicyDocument: allow('sts:AssumeRole', '*') })
  const access = (await manage('CreateAccessKey', { UserName: 'service' })).AccessKey
  // Without TLS, which only a development server takes, the issuer is registered as if it had it.
  const provider = (await manage('CreateOpenIDConnectProvider', { Url: issuer.url.replace('http:', 'https:'), ClientIDList: [audience] })).OpenIDConnectProviderArn
  const roles = {
    worker: trust({ AWS: `arn:aws:iam::${account}:user/service` }, 'sts:AssumeRole', { 'sts:ExternalId': 'abc' }),
    pod: trust({ Federated: provider }, 'sts:AssumeRoleWithWebIdentity', { [issuer.url.replace('http://', '') + ':sub']: subject }),
  }
  for (const [RoleName, AssumeRolePolicyDocument] of Object.entries(roles)) {
    const role = (await manage('CreateRole', { RoleName, AssumeRolePolicyDocument })).Role
    assert.equal(decodeURIComponent(role.AssumeRolePolicyDocument), AssumeRolePolicyDocument)
    await manage('PutRolePolicy', { RoleName, PolicyName: 'own', PolicyDocument: allow(['kms:Encrypt', 'kms:Decrypt'], keyArn) })
  }
  worker = `arn:aws:iam::${account}:role/worker`
  pod = `arn:aws:iam::${account}:role/pod`
  profile = {
    AWS_SHARED_CREDENTIALS_FILE: write('credentials', `[app]\naws_access_key_id = ${access.AccessKeyId}\naws_secret_access_key = ${access.SecretAccessKey}\n`),
    AWS_CONFIG_FILE: write('config', `[profile worker]\nrole_arn = ${worker}\nsource_profile = app\nexternal_id = abc\nrole_session_name = profile\n`),
  }
})
after(() => issuer.close())

// encrypts checks that the credentials of the environment open the key, and do nothing else.
const encrypts = async (config = {}) => {
  const client = new kms.KMSClient(config)
  const { CiphertextBlob } = await client.send(new kms.EncryptCommand({ KeyId: keyArn, Plaintext: Buffer.from('text') }))
  const { Plaintext } = await client.send(new kms.DecryptCommand({ CiphertextBlob }))
  assert.equal(Buffer.from(Plaintext).toString(), 'text')
  await assert.rejects(client.send(new kms.DisableKeyCommand({ KeyId: keyArn })), { name: 'AccessDeniedException' })
}

test('users', async () => {
  assert.equal(await caller(), `arn:aws:iam::${account}:root`)
  for (let n = 0; n < 3; n++) await manage('CreateUser', { UserName: 'listed-' + n, Path: '/listed/', Tags: [{ Key: 'n', Value: String(n) }] })
  await iam.waitUntilUserExists({ client, maxWaitTime: 20 }, { UserName: 'listed-2' })
  const names = []
  for await (const page of iam.paginateListUsers({ client, pageSize: 1 }, { PathPrefix: '/listed/' })) names.push(...page.Users.map((u) => u.UserName))
  assert.deepEqual(names, ['listed-0', 'listed-1', 'listed-2'])
  const { User } = await manage('GetUser', { UserName: 'listed-1' })
  assert.deepEqual(User.Tags, [{ Key: 'n', Value: '1' }])
  assert.ok(User.CreateDate instanceof Date)
  await assert.rejects(manage('GetUser', { UserName: 'nobody' }), iam.NoSuchEntityException)
  await assert.rejects(manage('CreateUser', { UserName: 'listed-0' }), iam.EntityAlreadyExistsException)
  await assert.rejects(manage('PutUserPolicy', { UserName: 'listed-0', PolicyName: 'bad', PolicyDocument: '{}' }), iam.MalformedPolicyDocumentException)
  for (const UserName of names) await manage('DeleteUser', { UserName })
})

test('profile with a role', () =>
  within({ ...profile, AWS_PROFILE: 'worker' }, async () => {
    assert.equal(await caller(), `arn:aws:sts::${account}:assumed-role/worker/profile`)
    await encrypts()
  }))

test('AssumeRole', () =>
  within({ ...profile, AWS_PROFILE: 'app' }, async () => {
    const client = new sts.STSClient()
    const assume = (ExternalId) => client.send(new sts.AssumeRoleCommand({ RoleArn: worker, RoleSessionName: 'direct', ExternalId }))
    await assert.rejects(assume('another'), { name: 'AccessDenied' })
    const { Credentials } = await assume('abc')
    const credentials = { accessKeyId: Credentials.AccessKeyId, secretAccessKey: Credentials.SecretAccessKey, sessionToken: Credentials.SessionToken }
    assert.equal(await caller({ credentials }), `arn:aws:sts::${account}:assumed-role/worker/direct`)
    await encrypts({ credentials })
    const altered = { ...credentials, sessionToken: credentials.sessionToken.slice(0, -4) + 'AAAA' }
    await assert.rejects(caller({ credentials: altered }), { name: 'InvalidClientTokenId' })
  }))

test('container', () =>
  within(
    {
      AWS_CONTAINER_CREDENTIALS_FULL_URI: process.env.AWS_ENDPOINT_URL_STS + '/v1/credentials?session=pod-2&role=' + encodeURIComponent(pod),
      AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE: write('container-token', token()),
    },
    async () => {
      assert.equal(await caller(), `arn:aws:sts::${account}:assumed-role/pod/pod-2`)
      await encrypts()
    },
  ))

test('web identity', () =>
  within({ AWS_ROLE_ARN: pod, AWS_ROLE_SESSION_NAME: 'pod-1', AWS_WEB_IDENTITY_TOKEN_FILE: write('token', token()) }, async () => {
    const arn = `arn:aws:sts::${account}:assumed-role/pod/pod-1`
    assert.equal(await caller(), arn)
    await encrypts()

    // The server asks an issuer for keys that it does not know, but only every few seconds.
    rotate()
    write('token', token())
    const deadline = Date.now() + 60_000
    for (;;) {
      try {
        assert.equal(await caller(), arn)
        break
      } catch (e) {
        if (!(e instanceof sts.InvalidIdentityTokenException || e.name === 'InvalidIdentityToken') || Date.now() > deadline) throw e
      }
      await new Promise((resolve) => setTimeout(resolve, 100))
    }
  }))
