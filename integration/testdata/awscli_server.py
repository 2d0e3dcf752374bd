"""Runs AWS CLI commands, one for each line of standard input.

A line is the JSON list of arguments after "aws". Each command runs in a forked
child, in a CLI that is loaded already, which takes most of a command's time. The
answer is one line of JSON: exit code, standard output, standard error.
"""
import json
import os
import sys
import tempfile

import awscli.clidriver
import botocore.auth  # what a command would load anyway
import botocore.httpsession
import botocore.signers

driver = awscli.clidriver.create_clidriver()
loader = driver.session.get_component("data_loader")
for service in ("kms", "iam", "sts"):
    for kind in ("service-2", "paginators-1", "endpoint-rule-set-1"):
        loader.load_service_model(service, kind)
for name in ("endpoints", "partitions", "sdk-default-configuration", "_retry"):
    loader.load_data(name)

with open(os.devnull) as devnull:
    for line in sys.stdin:
        arguments = json.loads(line)
        out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        child = os.fork()
        if child == 0:
            code = 255
            try:
                os.dup2(devnull.fileno(), 0)
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                code = driver.main(arguments)
            except SystemExit as e:
                code = e.code
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code or 0)
        _, status = os.waitpid(child, 0)
        for f in (out, err):
            f.seek(0)
        print(json.dumps({
            "code": os.waitstatus_to_exitcode(status),
            "out": out.read().decode(),
            "err": err.read().decode(),
        }), flush=True)
