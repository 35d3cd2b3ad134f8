"""How the losses of the tasks become one number. The union is the registry.

    weighting = config.build(schema.tasks)                  a module, trained with the network
    loss = weighting(losses, share=1 / number_of_passes)    losses: one scalar per task

`losses` may be parts of a global batch that are summed afterwards (over workers and accumulation
steps); `share` is then this part's share of the step, for whatever does not depend on the rows.
"""

from typing import Annotated

from pydantic import Field

from infnet.weighting.base import BaseWeighting
from infnet.weighting.fixed import FixedWeighting
from infnet.weighting.uncertainty import UncertaintyWeighting

Weighting = Annotated[FixedWeighting | UncertaintyWeighting, Field(discriminator="type")]

__all__ = ["BaseWeighting", "FixedWeighting", "UncertaintyWeighting", "Weighting"]
