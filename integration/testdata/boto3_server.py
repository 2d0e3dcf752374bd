"""Calls AWS KMS through boto3, once for each line of standard input.

A line is {"endpoint", "operation", "input"}, where {"$blob": base64} stands for
bytes. The answer is one line: {"output"} with bytes in base64, or {"code",
"class"}: the error's code and the class that boto3 gave it.
"""
import base64
import datetime
import json
import sys

import boto3
import botocore.config
import botocore.exceptions
from botocore import xform_name

clients = {}


def client(endpoint):
    if endpoint not in clients:
        clients[endpoint] = boto3.client("kms", endpoint_url=endpoint, config=botocore.config.Config(
            retries={"total_max_attempts": 1}, read_timeout=30))
    return clients[endpoint]


def decode(o):
    return base64.b64decode(o["$blob"]) if "$blob" in o else o


def encode(o):
    if isinstance(o, bytes):
        return base64.b64encode(o).decode()
    if isinstance(o, datetime.datetime):
        return o.isoformat()
    raise TypeError(repr(o))


for line in sys.stdin:
    call = json.loads(line, object_hook=decode)
    c = client(call["endpoint"])
    try:
        output = getattr(c, xform_name(call["operation"]))(**call["input"])
        output.pop("ResponseMetadata")
        answer = {"output": output}
    except botocore.exceptions.ClientError as e:
        answer = {"code": e.response["Error"]["Code"], "class": type(e).__name__}
    except botocore.exceptions.BotoCoreError as e:
        answer = {"code": "(client) " + str(e), "class": type(e).__name__}
    print(json.dumps(answer, default=encode), flush=True)
