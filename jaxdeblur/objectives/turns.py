"""Parts of a network that are trained in turns, while the others stand still."""

import dataclasses

from jaxdeblur.objectives import Objective


@dataclasses.dataclass(frozen=True)
class Turns:
    """Objectives that take turns of so many updates, in order and round again; or a single one, for good.

    Which one's turn it is follows from the number of updates made, so that a run which goes on goes on in its turn.
    """

    objectives: tuple[Objective, ...]
    updates: int = 1

    def __post_init__(self) -> None:
        if self.updates < 1 or self.updates % self.updates_per_batch:
            raise ValueError(
                f"a turn is {self.updates} updates; expected a multiple of {self.updates_per_batch}, what a batch gives"
            )

    @property
    def updates_per_batch(self) -> int:
        return self.objectives[0].updates_per_batch

    def at(self, update: int) -> Objective:
        """Whose turn the update after so many others is."""
        return self.objectives[update // self.updates % len(self.objectives)]

    def made(self, update: int, objective: Objective) -> int:
        """How many of the first so many updates were in an objective's turns."""
        rounds, rest = divmod(update, self.updates * len(self.objectives))
        place = self.objectives.index(objective)
        return rounds * self.updates + min(max(rest - place * self.updates, 0), self.updates)
