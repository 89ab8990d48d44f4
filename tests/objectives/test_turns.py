import dataclasses

import pytest

from jaxdeblur.objectives.turns import Turns


@dataclasses.dataclass(frozen=True)
class Named:
    name: str
    updates_per_batch: int = 1
    groups = ("total",)
    past_frames = future_frames = 0

    def learning_rate_name(self, group, path): ...
    def prepare(self, batch, frozen): ...
    def init_carry(self, prepared): ...
    def losses(self, params, statistics, prepared, carry, t, key): ...


@pytest.mark.parametrize("names", ["a", "ab", "abc"])
@pytest.mark.parametrize("updates", [1, 3])
def test_turns_go_round_and_are_counted(names, updates):
    turns = Turns(tuple(map(Named, names)), updates)
    plain = [name for name in names * 20 for _ in range(updates)]
    assert [turns.at(update).name for update in range(len(plain))] == plain
    for objective in turns.objectives:
        for update in range(len(plain)):
            assert turns.made(update, objective) == plain[:update].count(objective.name)


def test_a_turn_is_whole_batches():
    with pytest.raises(ValueError, match="a turn is 7 updates; expected a multiple of 3"):
        Turns((Named("a", 3),), 7)
    with pytest.raises(ValueError, match="a turn is 0 updates"):
        Turns((Named("a"),), 0)
