"""Where the router finds and puts things, and where it listens. Workers get it through the environment."""

import os
from pathlib import Path
from typing import NamedTuple

from routing.config import MODELS_PORT, SHIPPED, Routes, Site, read_site
from routing.tasks import Classifier, load_or_train
from serving.catalog import SHIPPED as SHIPPED_MODELS
from serving.catalog import read_catalog


class Settings(NamedTuple):
    """The settings of one router, all its workers."""

    home: Path
    models: Path
    routes: Path
    host: str
    port: int
    workers: int
    models_port: int

    @classmethod
    def from_environment(cls) -> "Settings":
        """From `INHOUSE_*`, with the shipped files and loopback as defaults."""
        get = os.environ.get
        return cls(
            home=Path(get("INHOUSE_HOME", ".inhouse")).absolute(),
            models=Path(get("INHOUSE_MODELS", SHIPPED_MODELS)),
            routes=Path(get("INHOUSE_ROUTES", SHIPPED)),
            host=get("INHOUSE_HOST", "127.0.0.1"),
            port=int(get("INHOUSE_PORT", "8000")),
            workers=int(get("INHOUSE_WORKERS", "1")),
            models_port=int(get("INHOUSE_MODELS_PORT", MODELS_PORT)),
        )

    def environment(self) -> dict[str, str]:
        """The same as environment variables."""
        told = {f"INHOUSE_{name.upper()}": str(value) for name, value in self._asdict().items()}
        return told | {"PROMETHEUS_MULTIPROC_DIR": str(self.home / "run" / "metrics")}

    def site(self) -> Site:
        """The site these settings point at. Raises `ConfigError`."""
        return read_site(self.routes, read_catalog(self.models), models_port=self.models_port)

    def classifier(self, routes: Routes) -> Classifier:
        """The classifier for these routes, trained now if it was not before."""
        return load_or_train(self.home / "run" / "classifier.json", routes.tasks, routes.default_task, routes.auto)
