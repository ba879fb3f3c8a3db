"""What the engine process says last is heard, though the process ends at once."""

import socket
import subprocess
import sys

from quire_runtime.engine.channel import Reader

PROGRAM = """
import os, sys
from quire_runtime.engine.messages import EngineFailed
from quire_runtime.engine.process import Carrier
carrier = Carrier(int(sys.argv[1]))
carrier.post(EngineFailed("x" * int(sys.argv[2]), is_user_error=True))
carrier.close()
os._exit(1)
"""


def test_a_message_posted_before_the_end_arrives():
    # Too long for the buffers of a socket: who exits without waiting loses it.
    length = 64 << 20
    ours, theirs = socket.socketpair()
    ours.settimeout(60)
    with ours, theirs:
        descriptor = theirs.fileno()
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(descriptor), str(length)], pass_fds=[descriptor])
        theirs.close()
        reader = Reader(ours)
        while not (messages := reader.read()):
            pass
        assert [len(message) > length for message in messages] == [True]
        assert process.wait(60) == 1
