"""moto's server; session tokens, too, follow the seed that a test sets (they are made by os.urandom otherwise)."""

import sys
import types

import moto.sts.utils
from moto.moto_api._internal import mock_random
from moto.server import main

moto.sts.utils.os = types.SimpleNamespace(urandom=mock_random.randbytes)
main(["-H", "127.0.0.1", "-p", sys.argv[1]])
