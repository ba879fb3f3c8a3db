"""What the engine process says last is heard, though the process ends at once."""

import subprocess
import sys

import zmq

PROGRAM = """
import os, sys
from quire_runtime.engine.messages import EngineFailed
from quire_runtime.engine.process import Carrier
carrier = Carrier(sys.argv[1])
carrier.post(EngineFailed("x" * int(sys.argv[2]), is_user_error=True))
carrier.close()
os._exit(1)
"""


def test_a_message_posted_before_the_end_arrives(tmp_path):
    # Too long for the buffers of a socket: who exits without waiting loses it.
    length = 64 << 20
    context = zmq.Context()
    inbound, outbound = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    try:
        inbound.bind(f"ipc://{tmp_path}/from-engine")
        outbound.bind(f"ipc://{tmp_path}/to-engine")
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path), str(length)])
        assert inbound.poll(60_000)
        assert len(inbound.recv()) > length
        assert process.wait(60) == 1
    finally:
        context.destroy(linger=0)
