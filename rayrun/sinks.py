"""Where metric records go besides the JSONL file: `sinks:` of a configuration; none by default."""

import importlib
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field

from rayrun.config import Config, ConfigError


class OpenSink(Protocol):
    """A sink that takes numbers."""

    def write(self, key: str, value: float, step: int) -> None:
        """Take one number; `key` is `split/task/name`."""
        ...

    def close(self) -> None:
        """Flush and end."""
        ...


class MlflowSink(Config):
    """An MLflow tracking server or folder."""

    type: Literal["mlflow"] = "mlflow"
    tracking_uri: str = ""
    """Empty: MLflow's own rules (`MLFLOW_TRACKING_URI`)."""
    experiment: str = "infnet-ray"

    def open(self, run: str) -> OpenSink:
        """Start a run named `run`.

        Raises:
            ConfigError: MLflow is not installed, or does not answer.
        """
        return _Mlflow(self, run)


class TensorboardSink(Config):
    """TensorBoard event files."""

    type: Literal["tensorboard"] = "tensorboard"
    directory: str
    """Where the event files go; one folder per run is made in it."""

    def open(self, run: str) -> OpenSink:
        """Start a run named `run`.

        Raises:
            ConfigError: TensorBoard is not installed.
        """
        return _Tensorboard(self, run)


Sink = Annotated[MlflowSink | TensorboardSink, Field(discriminator="type")]


def _package(module: str, kind: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"sinks: type {kind!r} needs a package that is not installed ({error}); "
            f"pip install 'infnet-ray[{extra}]' or remove the sink"
        ) from None


class _Mlflow:
    def __init__(self, config: MlflowSink, run: str) -> None:
        mlflow = _package("mlflow", "mlflow", "mlflow")
        try:
            self.client: Any = mlflow.MlflowClient(tracking_uri=config.tracking_uri or None)
            found = self.client.get_experiment_by_name(config.experiment)
            experiment = found or self.client.create_experiment(config.experiment)
            identity = getattr(experiment, "experiment_id", experiment)
            self.run_id = self.client.create_run(identity, run_name=run or None).info.run_id
        except Exception as error:
            raise ConfigError(
                f"sinks: MLflow at {config.tracking_uri or 'its default place'} failed: "
                f"{' '.join(str(error).split())[:300]}; check tracking_uri"
            ) from error

    def write(self, key: str, value: float, step: int) -> None:
        # MLflow allows no `@` in a name.
        self.client.log_metric(self.run_id, key.replace("@", "_at_"), value, step=step)

    def close(self) -> None:
        self.client.set_terminated(self.run_id)


class _Tensorboard:
    def __init__(self, config: TensorboardSink, run: str) -> None:
        module = _package("torch.utils.tensorboard", "tensorboard", "tensorboard")
        self.writer: Any = module.SummaryWriter(log_dir=f"{config.directory}/{run or 'run'}")

    def write(self, key: str, value: float, step: int) -> None:
        self.writer.add_scalar(key, value, step)

    def close(self) -> None:
        self.writer.close()
