"""Two quick stops in `patchbank extract`, at random moments: how many hang, and what is left.

Each run is stopped twice, 0 to 300 ms apart, at a random moment of its work. It has to end within the limit,
every row that is published has to be readable, no lease may stand in the way, and the same command has to
finish the work.

    python tests/benchmarks/extract_interrupt.py --runs 200
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from patchbank.cache.bank import Bank
from patchbank.datasets.images import content_hash
from patchbank.datasets.sources import open_source
from patchbank.datasets.synthetic import generate_manifests

LIMIT = 20.0  # seconds after the second stop
CARD = 'id = "slow"\nkind = "python"\nmodel = "slow:make"\nrevision = "1"\ndim = 3\ntokens = "pooled"\n'
CODE = """
import time
def make():
    def forward(batch):
        time.sleep(0.15)
        return batch.mean(dim=(2, 3))
    return forward
"""


def holds_lease(bank: Path, pid: int) -> bool:
    """Whether a process is at work: it holds a lease (those of runs before it lie there too)."""
    for path in bank.rglob("leases/*.json"):
        with suppress(OSError):
            if f'"pid": {pid},' in path.read_text():
                return True
    return False


def stop_twice(folder: Path, command: list[str], numbers: list[signal.Signals]) -> tuple[bool, int, str]:
    """(whether it hung, its exit status, what it said) of a run that is stopped twice."""
    paths = [str(folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with (folder / "said").open("w+") as said:
        running = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=said, env=environment, start_new_session=True
        )
        bank = Path(command[command.index("--bank") + 1])
        while running.poll() is None and not holds_lease(bank, running.pid):
            time.sleep(0.005)
        time.sleep(random.uniform(0, 1.0))
        for number in numbers:
            if running.poll() is None:
                running.send_signal(number)
                time.sleep(random.uniform(0, 0.3))
        try:
            hung, status = False, running.wait(LIMIT)
        except subprocess.TimeoutExpired:
            running.kill()
            hung, status = True, running.wait()
        said.seek(0)
        return hung, status, said.read()


def main(runs: int) -> None:
    hung = wrong = left = done_before = tracebacks = 0
    statuses: dict[int, int] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "slow.py").write_text(CODE)
        (folder / "slow.toml").write_text(CARD)
        manifest, _ = generate_manifests(folder / "data", n=200)
        train = next(folder.glob(f"data/{manifest.header.name}.toml"))
        source = open_source(manifest)
        keys = {content_hash(source.read(i)) for i in range(len(manifest))}
        base = [sys.executable, "-m", "patchbank", "extract", str(train), "--trust-code"]
        base += ["--card", str(folder / "slow.toml"), "--batch-size", "8", "--device", "cpu", "--no-progress"]
        for number in range(runs):
            bank = folder / f"bank-{number % 8}"  # banks are used again: what a run leaves meets the next one
            command = [*base, "--bank", str(bank)]
            kinds = [random.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP]) for _ in range(2)]
            one, status, said = stop_twice(folder, command, kinds)
            hung += one
            if "Traceback" in said:
                tracebacks += 1
                print(said[-2000:], flush=True)
            statuses[status] = statuses.get(status, 0) + 1
            if number % 20 == 19:
                print(f"{number + 1} runs: {hung} hung, {statuses}", flush=True)
            stores = Bank(bank).stores()
            for store in stores:
                found = store.keys()
                wrong += int((~np.isfinite(store.load(found))).any(axis=1).sum())
                wrong += sum(key.tobytes() not in keys for key in found)
            if stores and len(stores[0]) == len(keys):
                done_before += 1
                shutil.rmtree(bank)  # there has to be something to stop
        for bank in folder.glob("bank-*"):
            command = [*base, "--bank", str(bank)]
            paths = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
            done = subprocess.run(
                command, capture_output=True, env=os.environ | {"PYTHONPATH": paths}, timeout=120, check=False
            )
            store = Bank(bank).find("slow")
            if done.returncode or len(store) != len(keys):
                left += 1
                print(f"{bank.name}: {len(store)} of {len(keys)} rows; {done.stderr.decode()}")
    print(f"{runs} double stops: {hung} hung, exit statuses {statuses}; {wrong} wrong rows;")
    print(f"{tracebacks} said a traceback;")
    print(f"{done_before} of them had done all of the work;")
    print(f"{left} banks that the same command did not finish")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started this with `&`
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    main(parser.parse_args().runs)
