"""kill -9 a run at random points, resume it, compare it bit for bit with one left alone.

    python benchmarks/kill.py                              20 kills, three back ends, 6 minutes
    python benchmarks/kill.py --points 4 --json kill.json
    python benchmarks/kill.py --every 300 --words max_epochs=400    one long run, killed on and on
    python benchmarks/kill.py --every 300 --words cifar/ressl data.path=cifar10.npz max_epochs=50

Each run is `ressl pretrain` as the command line starts it, in a process of its own (a fork of a
server that has imported everything and done nothing else, so that a restart costs no imports;
--whole N adds N runs started from nothing). A third of the kills fall into steps, a third into
saving, a third into evaluation, each a random moment after the beginning of a randomly drawn one. A
run is resumed with resume=true; what is compared is every later step's loss, and of the last
checkpoint the weights, the teacher, the queue and its pointer, the optimizer, the schedule and the
generators.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
KINDS = ("step", "save", "evaluate")
PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "ressl_rng", "global_step")
PRELOAD = [
    "ressl_plugin.train.pretrain",
    "ressl_plugin.evaluate.knn",
    "ressl_plugin.views.batched",
]
BACKENDS = {
    "batched": [],
    "host": ["data.num_workers=1"],
    "dali": ["data.num_workers=1", "dali.device=cpu"],
}


def command(images: Path, run: Path, backend: str) -> list[str]:
    """8 steps of 16 images an epoch, 3 epochs, a checkpoint every second step, kNN each epoch."""
    return [
        "pretrain", "digits/ressl", f"run_dir={run}", f"data.backend={backend}",
        f"data.train_path={images}/train", f"data.val_path={images}/val", "data.fraction=0.1",
        "backbone.name=timm:resnet10t", "backbone.stem=auto",
        "backbone.kwargs={channels: [8, 8, 16, 16]}", "method_kwargs.queue_size=100",
        "momentum.final_tau=1.0", "optimizer.batch_size=16", "max_epochs=3",
        "scheduler.warmup_epochs=1", "checkpoint.every_n_steps=2", "accelerator=cpu",
        "enable_progress_bar=false", "enable_model_summary=false", *BACKENDS[backend],
        *(["resume=true"] if (run / "config.yaml").exists() else []),
    ]  # fmt: skip


def watch(log: Path, kill: tuple[str, int, float] | None) -> None:
    """Note the beginning of every step, save and evaluation; at one of them, order a kill -9.

    kill: (kind, its how manieth in this process, seconds after its beginning).
    """
    from ressl_plugin.method.ressl import ReSSL
    from ressl_plugin.run import checkpoint

    counts = dict.fromkeys(KINDS, 0)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(kind, value=None):
        os.write(file, (json.dumps([kind, time.monotonic(), value]) + "\n").encode())

    def begins(kind):
        note(kind)
        counts[kind] += 1
        if kill and kill[:2] == (kind, counts[kind]):
            subprocess.Popen(["sh", "-c", f"sleep {kill[2]:.4f}; kill -9 {os.getpid()}"])

    def watched(function, kind):
        def call(*args, **kwargs):
            begins(kind)
            result = function(*args, **kwargs)
            if kind == "step":
                note("loss", [args[0].trainer.global_step, float(result.detach())])
            note("end", kind)
            return result

        return call

    ReSSL.training_step = watched(ReSSL.training_step, "step")
    ReSSL.validation_step = watched(ReSSL.validation_step, "evaluate")
    checkpoint.save = watched(checkpoint.save, "save")


def long_command(images: Path, run: Path, words: list[str]) -> list[str]:
    """A recipe of the words' own if they begin with one, the digits' with the words if not."""
    if not words or "=" in words[0]:
        return [*command(images, run, "batched"), *words]
    resume = ["resume=true"] if (run / "config.yaml").exists() else []
    return ["pretrain", *words, f"run_dir={run}", *resume]


def start(words: list[str], run: Path, kill=None) -> multiprocessing.Process:
    """One run in a fork of the server, its command line in `words`."""
    run.mkdir(parents=True, exist_ok=True)
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOAD)
    process = server.Process(target=work, args=(words, run, kill))
    process.start()
    return process


def work(words: list[str], run: Path, kill) -> None:
    """The run itself, its output in out.txt; ends the process with the command's exit status."""
    import torch

    from ressl_plugin.cli import main as cli

    code = 1
    out = os.open(run / "out.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1), os.dup2(out, 2)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of data workers: imported already
    try:
        watch(run / "events.jsonl", kill)
        code = cli.main(words)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def wait(process: multiprocessing.Process) -> int:
    """Exit status of a run; -9 if it was killed."""
    process.join()
    return process.exitcode


def events(run: Path) -> list:
    """[kind, time, value] of all processes of a run; a last line that a kill cut off is dropped."""
    lines = (run / "events.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("]")]


def differences(run: Path, reference: Path) -> list[str]:
    """What is not bit-equal; an empty list is the aim."""
    from ressl_plugin.run import checkpoint

    found = []
    expected = dict(e[2] for e in events(reference) if e[0] == "loss")
    for step, loss in (e[2] for e in events(run) if e[0] == "loss"):
        if expected.get(step) != loss:
            found.append(f"loss of step {step}: {loss} for {expected.get(step)}")
    ours, theirs = checkpoint.read(run / "last.ckpt"), checkpoint.read(reference / "last.ckpt")
    return found + [p for p in PARTS if not equal(ours[p], theirs[p])]


def equal(a, b) -> bool:
    """Bit for bit, through dicts and lists."""
    import torch

    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def draw(reference: Path, kind: str, rng: random.Random) -> tuple[str, int, float]:
    """A random moment within a random step, save or evaluation of the run left alone.

    A step lasts until something else begins: its gradients, the optimizer, the teacher's update.
    """
    seen = events(reference)
    ends = (lambda e: e[0] in KINDS) if kind == "step" else (lambda e: e[::2] == ["end", kind])
    spans = []
    for n, (name, begin, _) in enumerate(seen):
        if name == kind:
            end = next((event[1] for event in seen[n + 1 :] if ends(event)), begin)
            spans.append(end - begin)
    which = rng.randrange(len(spans))
    return kind, which + 1, rng.uniform(0, max(spans[which], 0.001))


def trial(images: Path, run: Path, backend: str, kill, reference: Path) -> list[str]:
    """Kill, resume, compare. A run that was faster than its kill is killed anew, sooner."""
    kind, which, seconds = kill
    while (code := wait(start(command(images, run, backend), run, (kind, which, seconds)))) == 0:
        shutil.rmtree(run)
        seconds /= 2
        if seconds < 1e-6:
            return ["no kill came in time"]
    if code != -9:
        return [f"the run ended with {code} by itself, see {run}/out.txt"]
    code = wait(start(command(images, run, backend), run))
    if code:
        return [f"resumed, the run ended with {code}, see {run}/out.txt"]
    return differences(run, reference)


def whole(images: Path, run: Path, backend: str, reference: Path, rng: random.Random) -> list[str]:
    """As `trial`, started from nothing (`python -m ressl_plugin.cli`), killed by the clock."""
    python = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "ressl_plugin.cli"]
    run.mkdir(parents=True)
    with open(run / "out.txt", "wb") as out:
        first = [*python, *command(images, run, backend)]
        process = subprocess.Popen(first, stdout=out, stderr=out)
        while not (run / "last.ckpt").exists() and process.poll() is None:
            time.sleep(0.05)
        seen = events(reference)
        time.sleep(rng.uniform(0, (seen[-1][1] - seen[0][1]) / 2))
        process.kill()
        if process.wait() != -9:
            return ["the kill came too late"]
        code = subprocess.call([*python, *command(images, run, backend)], stdout=out, stderr=out)
    (run / "events.jsonl").touch()
    return [f"resumed, it ended with {code}"] if code else differences(run, reference)


def again_and_again(images: Path, folder: Path, every: float, words, rng) -> tuple[int, list[str]]:
    """(kills, differences) of one run that is killed after 0 to 2 x `every` seconds, however often,
    until it is done; the one left alone runs beside it, on a thread of its own."""
    reference, run, kills = folder / "reference", folder / "run", 0
    alone = start(long_command(images, reference, words), reference)
    while True:
        process = start(long_command(images, run, words), run)
        process.join(rng.uniform(0, 2 * every))
        process.kill()
        code = wait(process)
        if code not in (0, -9):
            return kills, [f"the run ended with {code} by itself, see {run}/out.txt"]
        if code == 0:
            break
        kills += 1
        print(f"{kills:3d} kills", flush=True)
    assert wait(alone) == 0, f"see {reference}/out.txt"
    seen = events(reference)
    print(f"{(seen[-1][1] - seen[0][1]) / 60:.0f} minutes of training, left alone")
    return kills, differences(run, reference)


def main(argv=None) -> int:
    """Print a line a kill and the count; exit status 1 if any run came out differently."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--whole", type=int, default=2, help="more, of runs with imports")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep the runs here")
    parser.add_argument("--every", type=float, metavar="SECONDS", help="on average; one long run")
    parser.add_argument("--words", nargs="+", default=[], help="of that run's command")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    from ressl_plugin import data

    rng = random.Random(args.seed)
    folder = args.folder or Path(tempfile.mkdtemp(prefix="kill-"))
    images = Path(data.make_digits(folder / "digits"))
    if args.every:
        kills, wrong = again_and_again(images, folder, args.every, args.words, rng)
        print(f"{kills} kills: {'; '.join(wrong) or 'bit-equal to the run left alone'}")
        if args.json:
            args.json.write_text(json.dumps({"kills": kills, "bit_equal": not wrong}, indent=1))
        return int(bool(wrong))
    references = {b: folder / f"reference-{b}" for b in BACKENDS}
    for backend, run in references.items():
        assert wait(start(command(images, run, backend), run)) == 0, f"see {run}/out.txt"
    good, rows = 0, []
    for n in range(args.points + args.whole):
        backend = list(BACKENDS)[n % len(BACKENDS)]
        run, reference = folder / f"run{n}", references[backend]
        if n < args.points:
            kill = draw(reference, KINDS[n // len(BACKENDS) % len(KINDS)], rng)
            wrong = trial(images, run, backend, kill, reference)
            text = f"{kill[0]:9s}{kill[1]:4d} + {1000 * kill[2]:6.1f} ms"
        else:
            wrong, text = whole(images, run, backend, reference, rng), "from nothing, by the clock"
        good += not wrong
        rows.append({"backend": backend, "kill": text, "wrong": wrong})
        print(f"{n + 1:3d} {backend:8s} {text:28s} {'; '.join(wrong) or 'bit-equal'}", flush=True)
    print(f"{good} of {len(rows)} bit-equal to the run left alone")
    if args.json:
        args.json.write_text(json.dumps({"kills": len(rows), "bit_equal": good}, indent=1))
    return int(good < len(rows))


if __name__ == "__main__":
    sys.exit(main())
