"""The models of this project that transformers lacks: its Auto classes know them once :func:`register_own_models` ran.

Whoever loads a model calls it first. It is no import of the package: it loads transformers and the code of the models.
"""


def register_own_models() -> None:
    """Make the Auto classes of transformers know all of them; more than once is as good as once."""
    from tapwb.models import retnet, rwkv

    retnet.register()
    rwkv.register()
