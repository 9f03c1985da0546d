"""Loading from several threads at once."""

import subprocess
import sys


def test_threads_that_import_transformers_together_all_get_it() -> None:
    """It puts another module in its place while it is imported; who waited for that could not import a name."""
    code = """if True:
        import threading
        from nbtune import models
        found = []
        load = lambda: found.append(models.load_tokenizer("nbtune/tiny"))
        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(len(found))"""
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "3", made.stderr[-2000:]
