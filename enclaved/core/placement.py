"""Whether an instance that is there can serve a request as it is, or the model must be loaded anew for it."""

from __future__ import annotations

from enclaved.core.events import Need, Wish


def serves(have: Need, wish: Wish) -> bool:
    """Whether an instance made for `have` fulfils a wish. What was not wished for never matters, and more context or
    sequences than wished for is fine: only a larger or different wish asks for another load."""
    return (
        (wish.context is None or wish.context <= have.context)
        and (wish.sequences is None or wish.sequences <= have.sequences)
        and (wish.kv_type is None or wish.kv_type == have.kv_type)
        and (wish.flash_attention is None or wish.flash_attention == have.flash_attention)
    )


def suits(have: Need, need: Need, wish: Wish) -> bool:
    """Whether an instance made for `have` will do for a request that would load `need` to get `wish`.

    It will also when it already has the very settings that the request would load: another load could not come closer
    to the wish, and would be followed by the next one for ever.
    """
    return serves(have, wish) or _settings(have) == _settings(need)


def _settings(need: Need) -> tuple[int, int, str, bool | None]:
    return need.context, need.sequences, need.kv_type, need.flash_attention
