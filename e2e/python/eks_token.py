"""Tokens of `aws eks get-token` at a given instant.

Reads a JSON object per line and answers each with {"token": ...} or {"error": ...}:

  at           the instant, 20260102T030405Z: botocore's clock stands there
  arguments    those of `aws eks get-token`
  environment  the command's AWS_ variables
  sts          where roles are assumed, if not at AWS; the token itself names the region's own host all the same
  via          roles to assume before, one with another's keys

All that signs is the vendor's code.
"""

import contextlib
import datetime
import io
import json
import os
import sys

import botocore.auth
import botocore.compat
from awscli.clidriver import create_clidriver
from awscli.customizations.eks import get_token


def stop_clock(at):
    instant = datetime.datetime.strptime(at, "%Y%m%dT%H%M%SZ")

    def now(remove_tzinfo=True):
        return instant if remove_tzinfo else instant.replace(tzinfo=datetime.timezone.utc)

    botocore.compat.get_current_datetime = now
    botocore.auth.get_current_datetime = now


CREATE = get_token.create_nested_client


def assume_roles_at(sts):
    """The command has two clients: one assumes the role, the other, which gets keys, signs the token."""

    def create_client(*args, **kwargs):
        if sts and "aws_access_key_id" not in kwargs:
            kwargs["endpoint_url"] = sts
        return CREATE(*args, **kwargs)

    get_token.create_nested_client = create_client


def aws(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = create_clidriver().main([*arguments, "--output", "json"])
    if code != 0:
        raise RuntimeError(err.getvalue().strip())
    return json.loads(out.getvalue())


def assume(role, sts):
    keys = aws(
        *["sts", "assume-role", "--role-session-name", "via", "--role-arn", role, "--endpoint-url", sts]
    )["Credentials"]
    os.environ["AWS_ACCESS_KEY_ID"] = keys["AccessKeyId"]
    os.environ["AWS_SECRET_ACCESS_KEY"] = keys["SecretAccessKey"]
    os.environ["AWS_SESSION_TOKEN"] = keys["SessionToken"]


def token(asked):
    # AWS_DATA_PATH is the tool's own.
    for name in [name for name in os.environ if name.startswith("AWS_") and name != "AWS_DATA_PATH"]:
        del os.environ[name]
    os.environ.update(asked["environment"])
    stop_clock(asked["at"])
    assume_roles_at(asked.get("sts") if "--role-arn" in asked["arguments"] else None)
    for role in asked.get("via", []):
        assume(role, asked["sts"])
    return aws("eks", "get-token", *asked["arguments"])["status"]["token"]


for line in sys.stdin:
    try:
        answer = {"token": token(json.loads(line))}
    except RuntimeError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
