"""What our own errors are: oracle experiments and error shares of the shipped tiny weights.

python -m benchmarks.analysis --out runs/analysis

makes its own synthetic videos, evaluates the shipped weights on them, and prints the tables of
docs/internals/analysis.md. Evaluations that exist are named instead:

python -m benchmarks.analysis --evaluation crowded released crowded/instances.json run/results.json

one for each set and method; --install writes the curves to docs/.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from markupsafe import Markup

from benchmarks import machine
from benchmarks.tiny_training import DIALS, HELD_OUT_SEED
from benchmarks.tiny_weights import TRACKERS, job
from idol.analysis import clips, oracles, results_file, score_files
from idol.analysis.oracles import OracleExperiments
from idol.analysis.score_files import Analyses
from idol.config import AnalysisConfig
from idol.evaluation import average_precision, matching
from idol.images.synthetic_dataset import write_dataset
from idol.ytvis import truth
from pipelines.report import score_page

DOCS = Path("docs/internals")
OVERLAP = 1
"""Frames that neighbouring clips share when tracks are cut and joined again."""

_STYLE: Final = """
text{font:11px sans-serif;fill:#5f6b76}.grid{stroke:#dde3e8}polyline{fill:none;stroke-width:1.8}
.dashed{stroke-dasharray:6 4}.dotted{stroke-dasharray:1.5 4}
.c0{stroke:#0072b2}.c1{stroke:#c65102}.c2{stroke:#00875f}.c3{stroke:#b0558f}.c4{stroke:#a87400}
.c5{stroke:#5a6ac4}circle{fill:#fff;stroke-width:1.8}
@media(prefers-color-scheme:dark){text{fill:#9aa6b2}.grid{stroke:#323b44}circle{fill:#14181c}
.c0{stroke:#4db8ff}.c1{stroke:#ff9350}.c2{stroke:#3ecf9f}.c3{stroke:#e29bc8}.c4{stroke:#e6b84d}
.c5{stroke:#9aa8f0}}
""".replace("\n", "")


class Evaluation(NamedTuple):
    """One method's results on one set of videos."""

    name: str
    method: str
    truth: Path
    results: Path


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate where nothing is given, analyse, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/analysis"))
    parser.add_argument("--videos", type=int, default=30, help="synthetic videos")
    parser.add_argument(
        "--evaluation",
        nargs=4,
        action="append",
        metavar=("SET", "METHOD", "TRUTH", "RESULTS"),
        default=[],
        help="results that exist; repeat for each set and method",
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=list(oracles.CLIP_LENGTHS))
    parser.add_argument("--install", action="store_true", help="write the curves to docs/")
    options = parser.parse_args(argv)
    given = [Evaluation(n, m, Path(t), Path(r)) for n, m, t, r in options.evaluation]
    rows = given or evaluated(options.out, options.videos)
    words = sys.argv[1:] if argv is None else list(argv)
    print(machine.header(shlex.join(["python", "-m", "benchmarks.analysis", *words])))
    for name in dict.fromkeys(row.name for row in rows):
        of_set = [row for row in rows if row.name == name]
        report(name, of_set, tuple(options.lengths), options.install)


def evaluated(out: Path, videos: int) -> list[Evaluation]:
    """The shipped weights with every tracker on new synthetic videos, crowded ones."""
    annotations = write_dataset(
        out / "crowded", DIALS["crowded"], videos, HELD_OUT_SEED, processes=None, progress=True
    )
    rows = []
    for tracker in TRACKERS:
        folder = out / tracker
        job("evaluate", "--annotations", str(annotations), "--checkpoint", "shipped",
            "--tracker", tracker, "--out", str(folder))  # fmt: skip
        rows.append(Evaluation("crowded", tracker, annotations, folder / "results.json"))
    return rows


def report(name: str, rows: Sequence[Evaluation], lengths: tuple[int, ...], install: bool) -> None:
    """Print one set's tables; its curve goes to docs/."""
    if len({row.truth.resolve() for row in rows}) > 1:
        sys.exit(f"the results of set {name} are to be scored against one truth, not several")
    known = truth.read(rows[0].truth)
    config = AnalysisConfig()
    found = score_files.run(
        known,
        {row.method: row.results for row in rows},
        Analyses(oracle=lengths, errors=True, config=config),
    )
    experiments = {m.name: m.oracles for m in found.files if m.oracles is not None}
    print(f"## {name}: {len(known.videos)} videos\n")
    print(oracle_table(experiments) + "\n")
    joined = [n for n in lengths if n > OVERLAP]
    print(f"| cut into clips, {OVERLAP} frame in common, joined by masks |", end="")
    print("".join(f" {n} frames |" for n in joined))
    print("|---" * (len(joined) + 1) + "|")
    for row in rows:
        cells = "".join(f" {100 * rejoined(known, row, n, config):.1f} |" for n in joined)
        print(f"| {row.method} |{cells}")
    shares = {m.name: m.errors for m in found.files if m.errors is not None}
    print(f"\n| AP regained without | {' | '.join(shares)} |")
    print("|---" * (len(shares) + 1) + "|")
    for cause in score_page.MEANINGS:
        cells = " | ".join(
            f"{100 * share.regained[cause]:+.1f}"
            + (f" ({share.counts[cause]})" if cause in share.counts else "")
            for share in shares.values()
        )
        print(f"| {cause} | {cells} |")
    for gap in found.differences:
        interval = gap.found.interval
        print(
            f"\n{gap.first} – {gap.second}: {100 * gap.found.value:+.1f} AP "
            f"({100 * interval.low:+.1f} to {100 * interval.high:+.1f})"
        )
    print()
    if install:
        chart = score_page.oracle_chart(experiments, legend=True)
        path = DOCS / f"oracles-{name}.svg"
        path.write_text(standalone(chart))
        print(f"Wrote {path}.\n")


def oracle_table(methods: Mapping[str, OracleExperiments]) -> str:
    """The paper's Tables 1 and 2 in one, in percent, for several methods side by side."""
    lengths = sorted({n for done in methods.values() for n in done.clips})
    head = ["method", "predicted", *[f"clips of {n}" for n in lengths], "frame oracle"]
    head += ["upper bound", "lost in association"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, done in methods.items():
        cells = [done.predicted.stats["AP"]]
        cells += [done.clips[n].stats["AP"] if n in done.clips else -1.0 for n in lengths]
        cells += [done.frame.stats["AP"], done.bound.stats["AP"], done.lost]
        shown = [f"{100 * c:.1f}" if c >= 0 else "–" for c in cells]
        lines.append(f"| {' | '.join([name, *shown])} |")
    return "\n".join(lines)


def standalone(chart: Markup) -> str:
    """A chart of `lines` as the content of an SVG file, with colours of its own."""
    head, body = str(chart).split(">", 1)
    return f'{head} xmlns="http://www.w3.org/2000/svg"><style>{_STYLE}</style>{body}\n'


def rejoined(known: truth.Truth, row: Evaluation, length: int, config: AnalysisConfig) -> float:
    """AP of the method's own tracks, cut into overlapping clips and joined by clip matching."""
    results = results_file.read_results(row.results, known)
    matches = []
    for video_id, of_video in known.videos.items():
        entries, _ = results.of(video_id)
        stride = length - OVERLAP
        starts = range(0, max(of_video.length - OVERLAP, 1), stride)
        parts: list[dict[str, Any]] = [
            {**e, "first_frame": a, "segmentations": e["segmentations"][a : a + length]}
            for a in starts
            for e in entries
        ]
        joined = clips.join(parts, range(len(parts)), of_video, config)
        matches.append(matching.match_video(joined, of_video))
    return average_precision.summarise(matches).stats["AP"]


if __name__ == "__main__":
    main()
