"""Manages users, roles and policies with boto3, and uses them.

The environment has an administrator's access key and the endpoints, and in TEST_*
what the test has prepared. The argument is a directory for files.
"""
import json
import os
import sys

import boto3
import botocore.exceptions
import botocore.session

directory = sys.argv[1]
account, key, issuer = os.environ["TEST_ACCOUNT"], os.environ["TEST_KEY"], os.environ["TEST_ISSUER"]
iam = boto3.client("iam")


def allow(action, resource):
    return json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": action, "Resource": resource}]})


def trust(principal, action, condition):
    return {"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Principal": principal, "Action": action, "Condition": {"StringEquals": condition}}]}


def write(name, text):
    path = os.path.join(directory, name)
    with open(path, "w") as f:
        f.write(text)
    return path


def refused(code, call, **arguments):
    try:
        call(**arguments)
    except botocore.exceptions.ClientError as e:
        assert e.response["Error"]["Code"] == code, e
        return e
    raise AssertionError("%s was not refused with %s" % (call.__name__, code))


def caller(session):
    return session.client("sts").get_caller_identity()["Arn"]


def encrypts(session):
    """Checks that a session may use the key, and nothing more."""
    kms = session.client("kms")
    assert kms.encrypt(KeyId=key, Plaintext=b"text")["KeyId"] == key
    refused("AccessDeniedException", kms.disable_key, KeyId=key)


# Users, with paginators, waiters and exceptions by their classes.
for n in range(5):
    iam.create_user(UserName="user-%d" % n, Path="/listed/", Tags=[{"Key": "n", "Value": str(n)}])
iam.get_waiter("user_exists").wait(UserName="user-4")
pages = iam.get_paginator("list_users").paginate(PathPrefix="/listed/", PaginationConfig={"PageSize": 2})
names = [u["UserName"] for p in pages for u in p["Users"]]
assert names == ["user-%d" % n for n in range(5)], names
try:
    iam.get_user(UserName="nobody")
    raise AssertionError("there is no such user")
except iam.exceptions.NoSuchEntityException:
    pass
assert isinstance(refused("EntityAlreadyExists", iam.create_user, UserName="user-0"), iam.exceptions.EntityAlreadyExistsException)

# A policy document comes back as it is, decoded.
iam.put_user_policy(UserName="user-0", PolicyName="assume", PolicyDocument=allow("sts:AssumeRole", "*"))
document = iam.get_user_policy(UserName="user-0", PolicyName="assume")["PolicyDocument"]
assert document == json.loads(allow("sts:AssumeRole", "*")), document

# Resources are another face of boto3.
user = boto3.resource("iam").User("user-0")
assert user.arn == "arn:aws:iam::%s:user/listed/user-0" % account, user.arn
pair = user.create_access_key_pair()
policy = boto3.resource("iam").create_policy(PolicyName="use", PolicyDocument=allow("kms:Encrypt", key))

# Roles, and the three ways to one.
provider = iam.create_open_id_connect_provider(Url=issuer, ClientIDList=[os.environ["TEST_AUDIENCE"]])["OpenIDConnectProviderArn"]
documents = {
    "worker": trust({"AWS": user.arn}, "sts:AssumeRole", {"sts:ExternalId": "abc"}),
    "pod": trust({"Federated": provider}, "sts:AssumeRoleWithWebIdentity", {issuer.removeprefix("https://") + ":sub": os.environ["TEST_SUBJECT"]}),
}
arns = {}
for name, document in documents.items():
    role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(document))["Role"]
    assert role["AssumeRolePolicyDocument"] == document, role
    arns[name] = role["Arn"]
    policy.attach_role(RoleName=name)

plain = boto3.Session(pair.id, pair.secret)
assert caller(plain) == user.arn
sts = plain.client("sts")
denial = refused("AccessDenied", sts.assume_role, RoleArn=arns["worker"], RoleSessionName="direct")
# An administrator finds out why.
why = boto3.client("sts").decode_authorization_message(EncodedMessage=denial.response["Error"]["EncodedMessage"])["DecodedMessage"]
assert json.loads(why)["allowed"] is False and user.arn in why and arns["worker"] in why, why
simulated = iam.simulate_principal_policy(PolicySourceArn=user.arn, ActionNames=["sts:AssumeRole", "kms:Encrypt"], ResourceArns=[arns["worker"]])
decisions = {r["EvalActionName"]: r["EvalDecision"] for r in simulated["EvaluationResults"]}
assert decisions == {"sts:AssumeRole": "allowed", "kms:Encrypt": "implicitDeny"}, decisions
credentials = sts.assume_role(RoleArn=arns["worker"], RoleSessionName="direct", ExternalId="abc")["Credentials"]
direct = boto3.Session(credentials["AccessKeyId"], credentials["SecretAccessKey"], credentials["SessionToken"])
assert caller(direct) == "arn:aws:sts::%s:assumed-role/worker/direct" % account
encrypts(direct)

for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
    del os.environ[name]
os.environ["AWS_SHARED_CREDENTIALS_FILE"] = write("credentials", "[app]\naws_access_key_id = %s\naws_secret_access_key = %s\n" % (pair.id, pair.secret))
os.environ["AWS_CONFIG_FILE"] = write("config", "[profile worker]\nrole_arn = %s\nsource_profile = app\nexternal_id = abc\nrole_session_name = profile\n" % arns["worker"])
profile = boto3.Session(profile_name="worker")
assert caller(profile) == "arn:aws:sts::%s:assumed-role/worker/profile" % account
encrypts(profile)

os.environ["AWS_ROLE_ARN"], os.environ["AWS_ROLE_SESSION_NAME"] = arns["pod"], "pod-1"
os.environ["AWS_WEB_IDENTITY_TOKEN_FILE"] = write("token", os.environ["TEST_TOKEN"])
pod = boto3.Session()
assert caller(pod) == "arn:aws:sts::%s:assumed-role/pod/pod-1" % account
encrypts(pod)

# What a session stands on is gone, and so is the session.
for name in ("worker", "pod"):
    policy.detach_role(RoleName=name)
    iam.delete_role(RoleName=name)
refused("InvalidClientTokenId", pod.client("sts").get_caller_identity)
policy.delete()
pair.delete()
refused("InvalidClientTokenId", sts.get_caller_identity)
