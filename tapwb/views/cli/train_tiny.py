"""``tapwb train-tiny``: train one of the small, never quantized models again, from nothing, on this machine."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tapwb.views.cli import options
from tapwb.views.cli.inputs import quiet_libraries
from tapwb.views.cli.output import command_output, pairs
from tapwb.views.cli.progress import RichProgress

EXAMPLE = "tapwb train-tiny tiny-llama --folder my-tiny-llama"


def command(
    model_id: Annotated[str, typer.Argument(metavar="ID", help="Of the zoo, such as tiny-llama or tiny-mamba.")],
    folder: Annotated[Path, typer.Option("--folder", help="Where the model goes; a stopped run goes on from there.")],
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Optimizer steps; by default the model's.")
    ] = None,
    seed: options.Seed = 0,
    texts: Annotated[
        Path | None, typer.Option("--texts", help="Also write the training and the held-out text to this folder.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Train a small model from nothing, in minutes on one core.

    The text is the manual and the docstrings of the Python that runs this, and our own texts; three chapters are held
    out. Ctrl-C keeps a checkpoint in the folder: the same command goes on from it.
    """
    with command_output(as_json=as_json) as out:
        quiet_libraries()
        import dataclasses

        from tapwb.core.settings import data_dir
        from tapwb.models.zoo import zoo_model
        from tapwb.training.zoo.folder import write_model_folder
        from tapwb.training.zoo.text import python_corpus, write_texts
        from tapwb.training.zoo.train import TrainingSettings, train_zoo_model

        row = zoo_model(model_id)
        chosen = TrainingSettings(seed=seed)
        with RichProgress() as progress:
            progress.stage("gather the text")
            corpus = python_corpus(data_dir() / "calibration")
            if texts:
                write_texts(corpus, texts)
            trained = train_zoo_model(
                row, corpus, folder, dataclasses.replace(chosen, steps=steps or chosen.steps), progress=progress
            )
        payload: dict[str, Any] = {"folder": folder, **write_model_folder(trained, folder)}
        out.result(payload, pairs(row.title, _summary(payload)))


def _summary(payload: dict[str, Any]) -> dict[str, str]:
    held_out, last = payload["held_out"], payload["curve"][-1]
    return {
        "folder": str(payload["folder"]),
        "parameters": f"{payload['weights']['n_parameters']:,}",
        "trained on": f"{last['tokens']:,} tokens in {last['elapsed_s']:.0f} s",
        "training loss": f"{last['train_loss_nats']:.3f} nats a token",
        "held-out perplexity": f"{held_out['perplexity']:.2f} over {held_out['n_predictions']:,} predictions",
        "first words": payload["samples"][0]["prompt"] + payload["samples"][0]["text"],
    }
