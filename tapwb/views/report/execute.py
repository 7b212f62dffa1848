"""Run a notebook in a fresh kernel with papermill; what ran before a failure is kept."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from tapwb.core.errors import Cancelled, ReportError
from tapwb.core.jobs import NO_PROGRESS, Progress

#: Figures come out as data, so that the report decides how to draw them; models keep to themselves.
_KERNEL_ENVIRONMENT = {
    "PLOTLY_RENDERER": "plotly_mimetype",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}


def execute(
    notebook: NotebookNode,
    parameters: Mapping[str, Any],
    output: Path,
    *,
    cwd: Path,
    progress: Progress = NO_PROGRESS,
) -> tuple[NotebookNode, str | None]:
    """Run every cell, saving to ``output`` after each.

    Args:
        notebook: What to run.
        parameters: Replace the values of its parameters cell.
        output: The ``.ipynb`` to write; after a failure it holds what ran and the error.
        cwd: Folder the kernel works in.
        progress: Told about every cell.

    Returns:
        The notebook with outputs, and the error of the failing cell in one line, or ``None``.

    Raises:
        Cancelled: If the user stopped it.
        ReportError: If the kernel cannot start or dies.
    """
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from jupyter_core.utils import ensure_event_loop
    from nbclient.exceptions import DeadKernelError

    progress.stage("run the notebook", total=len(notebook.cells), unit="cell")

    def work() -> NotebookNode:
        loop = ensure_event_loop()  # nbclient would make one for this thread and leave it open
        try:
            return papermill.execute_notebook(
                notebook,
                str(output),
                parameters=dict(parameters),
                progress_bar=False,
                cwd=str(cwd),
                config=_kernel_config(),
                on_cell_complete=lambda cell, cell_index: done.append(cell_index),
            )
        finally:
            loop.close()

    done: list[int] = []
    try:
        # In a thread of its own: nbclient takes Ctrl-C for itself when it runs in the main one.
        with _environment(_KERNEL_ENVIRONMENT), ThreadPoolExecutor(1, thread_name_prefix="tapwb-notebook") as pool:
            return _wait(pool.submit(work), done, progress), None
    except papermill.PapermillExecutionError as error:
        import nbformat

        partly = nbformat.read(output, as_version=4)
        return partly, f"cell {error.exec_count}: {error.ename}: {' '.join(str(error.evalue).split())}"
    except NoSuchKernel as error:
        raise ReportError(
            f"there is no Jupyter kernel here ({error}). Install it: pip install 'tapwb[notebooks]'."
        ) from error
    except DeadKernelError as error:
        raise ReportError(
            "the notebook's kernel died, most likely out of memory. Use a smaller model or fewer tokens."
        ) from error


def _kernel_config() -> Any:
    """Talk to the kernel through a file socket that only this user can open, where the system has such sockets."""
    from traitlets.config import Config

    config = Config()
    if os.name == "posix":
        config.KernelManager.transport = "ipc"
    return config


def _wait(future: "Future[NotebookNode]", done: list[int], progress: Progress) -> NotebookNode:
    told = 0
    try:
        while True:
            with contextlib.suppress(NotYet):
                result = future.result(timeout=0.2)
                progress.advance(len(done) - told)
                return result
            progress.advance(len(done) - told)
            told = len(done)
    except (Cancelled, KeyboardInterrupt):
        _stop_kernels()
        raise


def _stop_kernels() -> None:
    """End the kernels this process started; their notebook then fails, which nobody waits for any more."""
    import psutil

    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if any("ipykernel" in word for word in child.cmdline()):
                child.kill()


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
