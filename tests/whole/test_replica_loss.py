"""kill -9 of one of two engines under load: no request that had not begun to answer is lost; the replica comes back."""

import signal
import threading

MODEL = "quire-tiny"
STREAMS = 8
ROUNDS = 6


def test_killing_an_engine_loses_no_request_that_had_not_begun_to_answer(up):
    up.wait_routable(2)
    lost_before_first_token: list[str] = []
    broken_midway = 0
    finished = 0
    counting = threading.Lock()
    under_way = threading.Semaphore(0)

    def stream(index: int) -> None:
        nonlocal broken_midway, finished
        client = up.client()
        for turn in range(ROUNDS):
            tokens = 0
            try:
                prompt = [10 + index, 20 + turn] * 12
                for chunk in client.completions.create(
                    model=MODEL, prompt=prompt, max_tokens=96, stream=True, extra_body={"ignore_eos": True}
                ):
                    tokens += bool(chunk.choices and chunk.choices[0].text)
                    under_way.release()
                with counting:
                    finished += 1
            except Exception as error:
                with counting:
                    if tokens:
                        broken_midway += 1
                    else:
                        lost_before_first_token.append(repr(error))

    threads = [threading.Thread(target=stream, args=(index,)) for index in range(STREAMS)]
    for thread in threads:
        thread.start()
    for _ in range(STREAMS * 4):
        assert under_way.acquire(timeout=120)
    victim = up.engines()[0]
    victim.send_signal(signal.SIGKILL)
    for thread in threads:
        thread.join(300)
    assert not any(thread.is_alive() for thread in threads)
    assert lost_before_first_token == []
    assert finished + broken_midway == STREAMS * ROUNDS
    assert broken_midway <= STREAMS, "at most the streams that the dead engine was answering break"
    up.wait_routable(2)
    assert victim.pid not in [engine.pid for engine in up.engines()]
    answer = up.client().completions.create(model=MODEL, prompt=[1, 2, 3], max_tokens=4)
    assert answer.usage.completion_tokens >= 1
