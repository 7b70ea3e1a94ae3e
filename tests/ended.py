"""Something in this process that is told to end while it runs.

with told_to_end(when=file), pytest.raises(Stopped):
    run(...)        # which writes the file as soon as it is under way
"""

import contextlib
import os
import signal
import threading


@contextlib.contextmanager
def told_to_end(when):
    """SIGTERM to this process once the file `when` has something in it. Where it comes too late, or
    what should have written it failed, the process of the tests lives on."""
    is_over = threading.Event()

    def tell():
        while not is_over.wait(0.01):
            if when.exists() and when.read_text():
                os.kill(os.getpid(), signal.SIGTERM)
                return

    before = signal.signal(signal.SIGTERM, lambda *_: None)
    teller = threading.Thread(target=tell)
    teller.start()
    try:
        yield
    finally:
        is_over.set()
        teller.join()
        signal.signal(signal.SIGTERM, before)
