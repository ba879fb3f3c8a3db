"""The access log's lines: what several workers write to one pipe stays whole."""

import asyncio
import os

import msgspec

from quire_gateway.access_log import AccessLog, Exchange


async def test_lines_of_one_turn_go_out_in_writes_that_a_pipe_keeps_together(tmp_path):
    receiver, sender = os.pipe2(os.O_DIRECT)
    os.set_blocking(receiver, False)
    log = AccessLog(str(tmp_path / "log"))
    log._file.close()
    log._file = os.fdopen(sender, "wb")
    sizes = [10, 3000, 900, 900, 3500, *[100] * 60]
    for number, size in enumerate(sizes):
        log.write(Exchange(f"r{number}", "POST", "/" + "x" * size, "127.0.0.1"))
    await asyncio.sleep(0)
    written = []
    while True:
        try:
            written.append(os.read(receiver, 65536))
        except BlockingIOError:
            break
    assert all(packet.endswith(b"\n") for packet in written)
    assert len(written) < len(sizes) / 2
    lines = b"".join(written).splitlines()
    assert [msgspec.json.decode(line)["request_id"] for line in lines] == [f"r{n}" for n in range(len(sizes))]
    log._file.close()
    os.close(receiver)
