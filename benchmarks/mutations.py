"""Plants known mistakes into `pco.losses`, one at a time, and reports which test notices each.

Works on a copy in a temporary folder. Fails if a mistake goes unnoticed.

    python benchmarks/mutations.py [part of a name]
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTS = "tests/pco/losses"


@dataclass(frozen=True)
class Mutation:
    name: str
    file: str
    old: str
    new: str


MUTATIONS = (
    Mutation(
        "an ignore index that equals a class silences the Cringe term",
        "pairwise.py",
        "mask = negatives != IGNORE",
        "mask = (negatives != IGNORE) & (negatives != 0)",
    ),
    Mutation(
        "a label of -100 reads a logit instead of being ignored",
        "pairwise.py",
        "return torch.where(mask, softplus(gap), 0)",
        "return softplus(gap)",
    ),
    Mutation(
        "a label outside the vocabulary indexes from the end",
        "checks.py",
        "if low < 0 or high >= vocab:",
        "if high >= vocab:",
    ),
    Mutation(
        "k - 1 candidates remain if the negative token is among the top k + 1",
        "contrast.py",
        "drop[:, -1] |= ~is_negative.any(-1)",
        "drop[:, -1] = True",
    ),
    Mutation(
        "k + 1 candidates remain if it is not",
        "contrast.py",
        "drop[:, -1] |= ~is_negative.any(-1)",
        "pass",
    ),
    Mutation("k >= V is accepted", "checks.py", "if k >= vocab:", "if k > vocab:"),
    Mutation(
        "the contrast token is drawn evenly, not from the softmax",
        "contrast.py",
        "scores = scores.double()",
        "scores = (scores.double() * 0)",
    ),
    Mutation(
        "a number is drawn for ignored tokens too",
        "contrast.py",
        "return _uniform(int(mask.sum()), generator).to(mask.device)",
        "return _uniform(mask.numel(), generator).view(mask.shape)[mask].to(mask.device)",
    ),
    Mutation(
        "log(sigmoid(x)) in place of logsigmoid(x)",
        "pairwise.py",
        "return -F.logsigmoid(-gap)",
        "return -torch.sigmoid(-gap).log()",
    ),
    Mutation(
        "log-sum-exp without the maximum",
        "_fused/forward.py",
        "top = logits.amax(1, keepdim=True)",
        "top = 0 * logits.amax(1, keepdim=True)",
    ),
    Mutation(
        "an empty completion divides by zero",
        "pairwise.py",
        ".clamp(min=1)",
        "",
    ),
    Mutation(
        "logits stay in bfloat16",
        "likelihood.py",
        "rows.to(wide(logits.dtype))",
        "rows",
    ),
    Mutation(
        "a mean over tokens in place of the sum",
        "likelihood.py",
        "part.sum() for part",
        "part.mean() for part",
    ),
    Mutation(
        "(B, 1) is broadcast against (B,)",
        "checks.py",
        "if any(len(shape) != 1 for shape in shapes.values()) or len(set(shapes.values())) > 1:",
        "if False:",
    ),
    Mutation(
        "the gate opens as the margin grows",
        "pairwise.py",
        "scaled = (b - margin.to(wide(margin.dtype))) / tau",
        "scaled = (margin.to(wide(margin.dtype)) - b) / tau",
    ),
    Mutation("the hard gate is open at b itself", "pairwise.py", "(scaled > 0)", "(scaled >= 0)"),
    Mutation("the gate is never detached", "pairwise.py", "if detach:", "if False:"),
    Mutation("the gate is always detached", "pairwise.py", "if detach:", "if True:"),
    Mutation(
        "ignored rows are multiplied by zero, so NaN survives",
        "likelihood.py",
        'nll = F.cross_entropy(rows.to(wide(logits.dtype)), labels[mask].long(), reduction="none")',
        """every = logits.flatten(0, 1).to(wide(logits.dtype))
    nll = F.cross_entropy(every, labels.flatten().long().clamp(min=0), reduction="none")
    nll = (nll.view(mask.shape) * mask)[mask]""",
    ),
    Mutation(
        "the contrast token gets no gradient",
        "_fused/backward.py",
        ".index_add_(0, ids, hidden, alpha=-1)",
        "",
    ),
    Mutation(
        "a second backward scales what the first one scaled",
        "_fused/head.py",
        "ahead, ctx.ahead = ctx.ahead, NOTHING",
        "ahead = ctx.ahead",
    ),
    Mutation(
        "the forward works ahead for rejected tokens behind a detached gate",
        "pairwise.py",
        'expect_rejected=gate_kind == "soft" and not detach_gate',
        "expect_rejected=True",
    ),
    Mutation(
        "the block search misses a block",
        "contrast.py",
        "first = maxima.topk(count, dim=-1)",
        "first = maxima.topk(count - 1, dim=-1)",
    ),
    Mutation(
        "DPO forgets the reference",
        "preference.py",
        "return policy - (ref_chosen.to(dtype) - ref_rejected.to(dtype))",
        "return policy",
    ),
    Mutation(
        "a length-normalised loss forgets the lengths",
        "preference.py",
        " / tokens.clamp(min=1)",
        "",
    ),
    Mutation(
        "the mean of an empty completion divides by zero",
        "preference.py",
        "tokens.clamp(min=1)",
        "tokens",
    ),
    Mutation(
        "SimPO gives its margin away instead of asking for it",
        "preference.py",
        "beta * margin - gamma",
        "beta * margin + gamma",
    ),
    Mutation(
        "unlikelihood counts the token itself among the others",
        "unlikelihood.py",
        "logits.scatter(1, labels, -torch.inf).logsumexp(1)",
        "logits.logsumexp(1)",
    ),
    Mutation(
        "unlikelihood has lost its digits where a token is nearly sure",
        "unlikelihood.py",
        "per_row(-F.logsigmoid(-odds), mask)",
        "per_row(-torch.log1p(-torch.sigmoid(odds)), mask)",
    ),
)


def main() -> int:
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    unnoticed = 0
    for mutation in MUTATIONS:
        if wanted in mutation.name:
            test = noticed_by(mutation)
            unnoticed += test is None
            print(f"{mutation.name:75} {test or 'UNNOTICED'}", flush=True)
    return int(unnoticed > 0)


def noticed_by(mutation: Mutation) -> str | None:
    """The first test that fails with the mistake in place."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(ROOT / "pco", copy / "pco")
        shutil.copytree(ROOT / TESTS, copy / TESTS)
        plant(mutation, copy / "pco" / "losses" / mutation.file)
        # Without a deadline: a slow machine is no test that notices.
        options = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-profile=ci"]
        command = [sys.executable, "-m", "pytest", *options, TESTS]
        environment = {**os.environ, "PYTHONPATH": folder}
        run = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    failed = re.search(r"^(?:FAILED|ERROR) \S*?([^/\s]+\.py(?:::\w+)?)", run.stdout, re.MULTILINE)
    if run.returncode and not failed:
        raise RuntimeError(f"{mutation.name}: the tests did not run\n{run.stdout}{run.stderr}")
    return failed.group(1) if failed else None


def plant(mutation: Mutation, path: Path) -> None:
    source = path.read_text()
    if source.count(mutation.old) < 1:
        raise RuntimeError(f"{path.name} no longer holds {mutation.old!r}: bring the mutation up to date")
    path.write_text(source.replace(mutation.old, mutation.new))


if __name__ == "__main__":
    sys.exit(main())
