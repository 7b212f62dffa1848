"""``tapwb bench prefill``: how fast a prompt is read, beside other programs."""

from typing import Annotated

import typer

from tapwb.views.cli import bench_decode, options

EXAMPLE = "tapwb bench prefill --precision 8 --turns 4"


def command(
    model: options.Model = options.DEFAULT_MODEL,
    precision: Annotated[str, typer.Option("--precision", help="Of this program, joined by commas.")] = "8,4",
    peers: Annotated[str, typer.Option("--peers", help="Other programs, joined by commas; all: every other.")] = (
        "transformers-fp32"
    ),
    text_file: Annotated[
        str | None, typer.Option("--text-file", help="UTF-8 text for prompts; - reads standard input.")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", min=1, help="Tokens of each prompt.")] = 512,
    turns: Annotated[int, typer.Option("--turns", min=2, help="Prompts for each program.")] = 6,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads each program may use.")] = 1,
    cells: Annotated[str, typer.Option("--cells", help="Of this program: plain or calibrated.")] = "plain",
    group_size: options.GroupSize = 64,
    seed: options.Seed = 0,
    save: options.Save = False,
    as_json: options.Json = False,
) -> None:
    """Let programs read the same prompts in turns; the ratio that counts is that of the first token.

    As bench decode, with long prompts and answers of two tokens.
    """
    bench_decode.command(
        model=model, precision=precision, peers=peers, text_file=text_file, windows=0, prompt_tokens=prompt_tokens,
        new_tokens=2, turns=turns, threads=threads, cells=cells, group_size=group_size, seed=seed,
        out_file=None, markdown=None, save=save, as_json=as_json,
    )  # fmt: skip
