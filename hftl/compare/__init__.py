"""Which way of training wins on the user's data, from how many labels on, by how much and at what cost?"""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """`hftl.compare(...)` beside `hftl.compare.plan`: a module whose class has a call, as Python documents it."""

    def __call__(self, file: str | Path, output_dir: str | Path | None = None, **options: Any) -> Mapping[str, Any]:
        """Run what is missing of an experiment and write its report: `hftl compare EXPERIMENT.yaml`.

        Args:
            file: the experiment.
            output_dir: campaign folder; default: runs/NAME.
            options: jobs, engine, keep_models, accelerate_config, as on the command line.

        Returns:
            The content of `results.json`, the verdict among it; the report is `report.html` in the folder.

        Raises:
            UserError: the experiment or its data are wrong, or the folder is that of another experiment.
        """
        from hftl.compare import study
        from hftl.errors import UserError
        from hftl.report.html import write_report

        folder = Path(output_dir or Path("runs") / Path(file).stem)
        try:
            chosen = study.StudyOptions(Path(file), folder, **options)
        except TypeError as error:
            raise UserError(f"hftl.compare takes jobs, engine, keep_models and accelerate_config: {error}.") from error
        results = study.run_study(study.open_study(chosen), chosen.command)
        write_report(folder)
        return results


sys.modules[__name__].__class__ = _Callable
