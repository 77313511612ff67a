"""Asks Azure's own library for tokens: one JSON list of cases on standard input, one line of JSON for each."""

import json
import os
import sys

from azure.identity import (
    AzureCliCredential,
    AzureDeveloperCliCredential,
    CertificateCredential,
    ClientSecretCredential,
    ManagedIdentityCredential,
    WorkloadIdentityCredential,
)

KINDS = {
    "secret": ClientSecretCredential,
    "certificate": CertificateCredential,
    "workload": WorkloadIdentityCredential,
    "machine": ManagedIdentityCredential,
    "az": AzureCliCredential,
    "azd": AzureDeveloperCliCredential,
}

for case in json.load(sys.stdin):
    os.environ.update(case["env"])
    token = KINDS[case["kind"]](**case["arguments"]).get_token(case["scope"])
    print(json.dumps({"token": token.token}), flush=True)
    for name in case["env"]:
        del os.environ[name]
