"""RetNet, which transformers lacks: a model of its own that its Auto classes load once :func:`register` was called."""


def register() -> None:
    """Make the Auto classes of transformers know RetNet; more than once is as good as once."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from tapwb.models.retnet.config import RetNetConfig
    from tapwb.models.retnet.model import RetNetForCausalLM

    AutoConfig.register(RetNetConfig.model_type, RetNetConfig, exist_ok=True)
    AutoModelForCausalLM.register(RetNetConfig, RetNetForCausalLM, exist_ok=True)
