"""`cropray` with steps that take long while a file is there: python -m tests.braked_training ARGUMENTS.

The environment names the file (BRAKE). The steps come to the same as without.
"""

import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cropray.models import normalisation
from cropray.models.normalisation import FixedNormalisation

BRAKE = "CROPRAY_TEST_BRAKE"
_STEP_S = 0.4


@dataclass(frozen=True)
class Braked(FixedNormalisation):
    """The place in a step that travels to the workers with the plan."""

    def apply(self, *arguments: Any) -> Any:
        if Path(os.environ[BRAKE]).exists():
            time.sleep(_STEP_S)
        return super().apply(*arguments)


normalisation._KIND_OF[Braked] = "fixed"  # as which it is published


def brake_plans() -> None:
    """Let the drivers of this process plan trainings that can be braked."""
    from cropray.training import driver
    from tests.braked_training import Braked as Imported  # by this name workers find it

    make_plan = driver.make_plan

    def braked(*arguments: Any) -> Any:
        plan = make_plan(*arguments)
        return replace(plan, checkpoint=replace(plan.checkpoint, normalisation=Imported()))

    driver.make_plan = braked


if __name__ == "__main__":
    from cropray.cli import main

    brake_plans()
    main(sys.argv[1:])
