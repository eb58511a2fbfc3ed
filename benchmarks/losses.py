"""Time and memory of one forward and backward of the losses, this package beside its peers.

Every measurement runs in a process of its own: the peak of its resident memory then belongs to that one loss, and no
peer inherits another's warm allocator. Rounds go over all peers in turn, so that a disturbance of the machine meets
all of them; the table shows the fastest round and the largest peak. Beside the wall clock stands the processor time of
all threads, which other work on the machine disturbs far less.

    python benchmarks/losses.py [--full] [--rounds 2] [--only TEXT] [--peers TEXT] [--memory-gib 8] [--out FILE]
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pco import losses
from pco.losses._fused import gradients
from pco.losses._fused.scores import CHUNK_LOGITS

RESULTS = Path(__file__).parent / "results"
KNOBS: dict[str, Any] = {"alpha": 0.5, "b": 0.0, "tau": 1e4, "k": 5}
GIB = 2**30


@dataclass(frozen=True)
class Case:
    """`pairs` pairs with `tokens` completion tokens in all, half of them chosen."""

    vocab: int
    dim: int
    tokens: int
    pairs: int = 1

    @property
    def name(self) -> str:
        return f"V={self.vocab // 1000}k D={self.dim} tokens={self.tokens} pairs={self.pairs}"

    @property
    def logits(self) -> int:
        """Bytes of all logits in float32."""
        return 4 * self.vocab * self.tokens

    @property
    def head(self) -> int:
        return 4 * self.vocab * self.dim


@dataclass(frozen=True)
class Inputs:
    chosen: Tensor
    chosen_labels: Tensor
    rejected: Tensor
    rejected_labels: Tensor
    head: Tensor

    def both(self) -> tuple[Tensor, Tensor]:
        return torch.cat([self.chosen, self.rejected]), torch.cat([self.chosen_labels, self.rejected_labels])


def make(case: Case, device: str) -> Inputs:
    torch.manual_seed(0)
    length = case.tokens // (2 * case.pairs)

    def hidden() -> Tensor:
        return torch.randn(case.pairs, length, case.dim, device=device).requires_grad_()

    def labels() -> Tensor:
        return torch.randint(case.vocab, (case.pairs, length), device=device)

    head = torch.empty(case.vocab, case.dim, device=device).normal_(std=0.02).requires_grad_()
    return Inputs(hidden(), labels(), hidden(), labels(), head)


# The peers. Each returns the loss of all pairs.


def plain(x: Inputs, **options: Any) -> Tensor:
    result = losses.pairwise_cringe(
        F.linear(x.chosen, x.head),
        x.chosen_labels,
        F.linear(x.rejected, x.head),
        x.rejected_labels,
        **KNOBS,
        **options,
    )
    return result.loss.sum()


def fused(x: Inputs, **options: Any) -> Tensor:
    result = losses.fused_pairwise_cringe(
        x.chosen, x.chosen_labels, x.rejected, x.rejected_labels, x.head, **KNOBS, **options
    )
    return result.loss.sum()


def binary_transcribed(x: Inputs) -> Tensor:
    """Binary Cringe as the formula reads: full logits, a categorical sample, a two-way cross entropy."""
    good = F.linear(x.chosen, x.head).flatten(0, 1)
    bad = F.linear(x.rejected, x.head).flatten(0, 1)
    negatives = x.rejected_labels.flatten()
    top = bad.detach().topk(KNOBS["k"] + 1, dim=-1)
    scores = top.values.masked_fill(top.indices == negatives.unsqueeze(1), -torch.inf)
    drawn = torch.distributions.Categorical(logits=scores[:, : KNOBS["k"] + 1]).sample()
    contrast = top.indices.gather(1, drawn.unsqueeze(1))
    two = torch.cat([bad.gather(1, contrast), bad.gather(1, negatives.unsqueeze(1))], dim=1)
    first = torch.zeros_like(negatives)
    ce = F.cross_entropy(good, x.chosen_labels.flatten(), reduction="sum")
    return ce + KNOBS["alpha"] * F.cross_entropy(two, first, reduction="sum")


def dpo_ours(x: Inputs) -> Tensor:
    hidden, labels = x.both()
    policy = losses.fused_logps(hidden, labels, x.head).chunk(2)
    return losses.dpo(*policy, *(p.detach() for p in policy), beta=0.1).sum()


def dpo_trl(x: Inputs) -> Tensor:
    """TRL's DPO: the log-probabilities of its fused head, then its formula."""
    from trl.kernels import ChunkedLogProbFunction  # noqa: PLC0415  a heavy import for the others

    hidden, labels = x.both()
    per_token = ChunkedLogProbFunction.apply(
        hidden.flatten(0, 1),
        x.head,
        None,
        labels.flatten(),
        1.0,
        32768,  # tokens of the vocabulary per tile, as its trainers pass
        None,
        1.0,
        ("log_probs",),
    )[0]
    chosen, rejected = per_token.view(labels.shape).sum(1).chunk(2)
    ratio = (chosen - chosen.detach()) - (rejected - rejected.detach())
    return -F.logsigmoid(0.1 * ratio).sum()


def dpo_liger(x: Inputs) -> Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss  # noqa: PLC0415  a heavy import for the others

    hidden, labels = x.both()
    loss = LigerFusedLinearDPOLoss(beta=0.1, use_ref_model=False, average_log_prob=False, compiled=x.head.is_cuda)
    value: Tensor = loss(x.head, hidden, labels)[0]
    return value


PLAIN = "pairwise, plain"
PEERS: dict[str, Callable[[Inputs], Tensor]] = {
    PLAIN: plain,
    "pairwise, fused": fused,
    "pairwise, plain, detached gate": lambda x: plain(x, detach_gate=True),
    "pairwise, fused, detached gate": lambda x: fused(x, detach_gate=True),
    "binary, transcribed": binary_transcribed,
    "DPO, fused": dpo_ours,
    "DPO, TRL": dpo_trl,
    "DPO, Liger": dpo_liger,
}


# What is expected, written down before measuring.


def predicted_products(peer: str, case: Case) -> float:
    """Matrix products with the head, each of all tokens x vocabulary x D."""
    match peer:
        case "pairwise, fused" | "DPO, fused":
            return 3 + _recomputed(case, 1.0)
        case "pairwise, fused, detached gate":
            return 2 + _recomputed(case, 0.5)
        case "DPO, TRL":
            return 4
        case _:
            return 3


def predicted_bytes(peer: str, case: Case) -> float | None:
    """Peak beyond inputs, parameters and gradients."""
    chunk = min(4 * CHUNK_LOGITS, case.logits)
    match peer:
        case "pairwise, plain" | "pairwise, plain, detached gate":
            # Logits and log-softmax of both sides, and the gradients of both for one side.
            return 3 * case.logits + case.head
        case "pairwise, fused" | "DPO, fused":
            return chunk + 4 * case.dim * sum(_kept(case, 1.0)[1][1:])
        case "pairwise, fused, detached gate":
            return chunk + 4 * case.dim * sum(_kept(case, 0.5)[1][1:])
        case "binary, transcribed":
            return 2.5 * case.logits + case.head
        case _:
            return None


def _recomputed(case: Case, share: float) -> float:
    """Share of all logits that the backward of the fused form computes again."""
    lengths, kept = _kept(case, share)
    missing = sum(n * (1 - rows / case.vocab) for n, rows in zip(lengths, kept, strict=True))
    return missing / case.tokens


def _kept(case: Case, share: float) -> tuple[list[int], list[int]]:
    """Tokens of each completion outside the retained chunk, and rows of the head kept for it, longest first.

    `share` is the share of the tokens whose log-probabilities are differentiated.
    """
    chunk = CHUNK_LOGITS // case.vocab
    length = case.tokens // (2 * case.pairs)
    starts = range(0, int(share * case.tokens), length)
    lengths = sorted((max(0, min(length, start + length - chunk)) for start in starts), reverse=True)
    kept = gradients.rows_to_keep(lengths, chunk, case.vocab, case.dim)
    return lengths, [kept.get(row, 0) for row in range(len(lengths))]


# One measurement, in its own process.


def measure(peer: str, case: Case, device: str) -> dict[str, float]:
    """Time, and peak bytes beyond inputs, parameters and gradients, of one forward and backward."""
    loss = PEERS[peer]
    warm = make(Case(1000, 64, 64, case.pairs), device)
    loss(warm).backward()
    del warm
    inputs = make(case, device)
    peak = _peak_from_here(device)
    start, busy = time.perf_counter(), time.process_time()
    loss(inputs).backward()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    grads = [tensor.grad for tensor in (inputs.chosen, inputs.rejected, inputs.head)]
    held = sum(grad.numel() * grad.element_size() for grad in grads if grad is not None)
    return {"seconds": seconds, "cpu_seconds": busy, "bytes": peak() - held}


def _peak_from_here(device: str) -> Callable[[], int]:
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return lambda: torch.cuda.max_memory_allocated() - before
    # Writing 5 sets the kernel's high-water mark back to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    return lambda: _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def spawn(peer: str, case: Case, device: str) -> dict[str, Any]:
    request = json.dumps({"peer": peer, "case": asdict(case), "device": device})
    command = [sys.executable, __file__, "--one", request]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        return {"error": (run.stderr.strip().splitlines() or ["killed"])[-1]}
    answer: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return answer


# The table.

QUICK = (
    Case(32_000, 576, 4096),
    Case(128_000, 576, 512),
    Case(128_000, 576, 4096),
    Case(128_000, 576, 4096, pairs=4),
    Case(128_000, 2048, 2048),
    Case(152_000, 576, 1024),
)
FULL = tuple(
    Case(vocab, dim, tokens, pairs)
    for vocab in (32_000, 128_000, 152_000)
    for dim in (576, 2048)
    for tokens in (512, 2048, 4096, 8192, 16384)
    for pairs in (1, 4)
)


def fits(peer: str, case: Case, limit: float) -> bool:
    """Whether a peer is expected to stay below the limit, inputs and gradients included."""
    extra = predicted_bytes(peer, case)
    if extra is None:
        # Liger holds a whole pair at a time, TRL a tile of the vocabulary.
        extra = 5 * case.logits / case.pairs if peer == "DPO, Liger" else case.logits
    return extra + 3 * case.head < limit


def run(cases: tuple[Case, ...], peers: list[str], rounds: int, limit: float) -> list[dict[str, Any]]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows: list[dict[str, Any]] = []
    for case in cases:
        found: dict[str, list[dict[str, Any]]] = {peer: [] for peer in peers if fits(peer, case, limit)}
        for _ in range(rounds):
            for peer, answers in found.items():
                answers.append(spawn(peer, case, device))
        rows += [summarize(peer, case, answers) for peer, answers in found.items()]
        print_table(case, [row for row in rows if row["case"] == case.name])
    return rows


def summarize(peer: str, case: Case, answers: list[dict[str, Any]]) -> dict[str, Any]:
    good = [answer for answer in answers if "error" not in answer]
    return {
        "case": case.name,
        **asdict(case),
        "peer": peer,
        "seconds": min((answer["seconds"] for answer in good), default=None),
        "cpu_seconds": min((answer["cpu_seconds"] for answer in good), default=None),
        "bytes": max((answer["bytes"] for answer in good), default=None),
        "rounds": answers,
        "predicted_products": predicted_products(peer, case),
        "predicted_bytes": predicted_bytes(peer, case),
        "error": next((answer["error"] for answer in answers if "error" in answer), None),
    }


def print_table(case: Case, rows: list[dict[str, Any]]) -> None:
    print(f"\n{case.name}")
    print(f"{'':32}{'wall s':>8}{'/plain':>8}{'cpu s':>8}{'/plain':>8}{'expected':>9}", end="")
    print(f"   {'extra GiB':>9}{'/plain':>8}{'expected':>9}")
    base = next((row for row in rows if row["peer"] == PLAIN and not row["error"]), None)
    for row in rows:
        if row["error"]:
            print(f"{row['peer']:32}{row['error'][:90]}")
            continue
        numbers = "".join(
            f"{row[field] / unit:{width}.2f}"
            + (f"{row[field] / base[field]:8.3f}" if base else f"{'':8}")
            + (f"{row['predicted_products'] / 3:9.2f}" if field == "cpu_seconds" else "")
            for field, unit, width in (("seconds", 1, 8), ("cpu_seconds", 1, 8), ("bytes", GIB, 12))
        )
        expected = row["predicted_bytes"]
        print(f"{row['peer']:32}{numbers}" + (f"{expected / GIB:9.2f}" if expected is not None else ""), flush=True)


def machine() -> dict[str, Any]:
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "device": cuda or platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "max_rss_kib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="all sizes in place of six")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", default="", help="cases whose name holds one of these texts, parted by commas")
    parser.add_argument("--peers", default="", help="peers whose name holds this text")
    parser.add_argument("--memory-gib", type=float, default=8, help="leave out what would need more")
    parser.add_argument("--out", type=Path, default=RESULTS / "losses.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        request = json.loads(options.one)
        print(json.dumps(measure(request["peer"], Case(**request["case"]), request["device"])))
        return
    cases = tuple(
        case for case in (FULL if options.full else QUICK) if any(text in case.name for text in options.only.split(","))
    )
    peers = [peer for peer in PEERS if options.peers in peer]
    rows = run(cases, peers, options.rounds, options.memory_gib * GIB)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1))
    print(f"\n{options.out}")


if __name__ == "__main__":
    main()
