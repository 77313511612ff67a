"""Gets an access token as an application with google-auth does: `google_token.py [FILE]`.

Without a file, of where Google's tools look. GOOGLE stands in for Google's own hosts, where google-auth asks them whatever a file says.
"""

import json
import os
import sys

import google.auth
import google.auth.transport.requests
from google.auth import iam, identity_pool, pluggable
from google.oauth2 import credentials as user
from google.oauth2 import service_account

SCOPES = [
    "https://www.googleapis.com/auth/cloud-platform",
    "https://www.googleapis.com/auth/userinfo.email",
]


def load(path):
    with open(path) as file:
        info = json.load(file)
    if info["type"] == "external_account":
        # Without the look at the project's name that google.auth.default takes.
        kind = pluggable if "executable" in info["credential_source"] else identity_pool
        return kind.Credentials.from_info(info, scopes=SCOPES)
    return google.auth.load_credentials_from_file(path, scopes=SCOPES)[0]


stand_in = os.environ["GOOGLE"]
user._GOOGLE_OAUTH2_TOKEN_ENDPOINT = stand_in + "/token"
service_account._GOOGLE_OAUTH2_TOKEN_ENDPOINT = stand_in + "/token"
iam._IAM_ENDPOINT = stand_in + "/v1/projects/-/serviceAccounts/{}:generateAccessToken"
credentials = load(sys.argv[1]) if len(sys.argv) > 1 else google.auth.default(scopes=SCOPES)[0]
credentials.refresh(google.auth.transport.requests.Request())
print(credentials.token)
