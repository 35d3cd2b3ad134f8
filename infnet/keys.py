"""What the verbs read beside their configuration and inputs: digests for the key in a store.

`rayrun.store` makes the key of a result from the sections of the configuration, the content of
`inputs.*` and what the functions here add: files that the configuration names by their place.
"""

from infnet import sections
from infnet.config import InfnetConfig
from infnet.evaluate.raw import open_file
from infnet.features.pretrained import PretrainedFeature
from rayrun import manifest, storage
from rayrun.config import Json, validate
from rayrun.data.source import open_source


def raw_log(config: InfnetConfig) -> Json:
    """The log and the vectors of pretrained features, by their bytes. The whole log is read once.

    Raises:
        ConfigError: the log or a file of vectors is not there or cannot be read.
    """
    vectors = {
        name: storage.content_digest(feature.path)
        for name, feature in config.features.items()
        if isinstance(feature, PretrainedFeature)
    }
    return {"source": open_source(config.data.source).content_digest(), "vectors": vectors}


def to_train(config: InfnetConfig) -> Json:
    """Nothing where the data is prepared; else what `prepare` reads.

    Raises:
        ConfigError: as `raw_log`.
    """
    if config.inputs.data:
        return {}
    return {"prepare": config.digest(sections.PREPARE), **raw_log(config)}


def to_tune(config: InfnetConfig) -> Json:
    """What is searched; as `to_train`.

    Raises:
        ConfigError: as `raw_log`.
    """
    return {"tune": config.tune.digest(), **to_train(config)}


def to_evaluate(config: InfnetConfig, split: str = "test", data: str | None = None) -> Json:
    """How the model was trained; the rows of `--data`, with the side tables of the log.

    Raises:
        ConfigError: no run at `inputs.checkpoint`; the file is not there or cannot be read.
    """
    if data is None:
        return trained(config)
    source = config.data.source
    rows = open_file(data, source, open_source(source).columns).content_digest()
    return {"rows": rows, **trained(config)}


def trained(config: InfnetConfig, **flags: object) -> Json:
    """The settings of the run at `inputs.checkpoint`, which say what its weights are weights of.

    Raises:
        ConfigError: no run stands there.
    """
    run = config.inputs.checkpoint
    if not run:
        return {}  # the verb says what is missing
    where = storage.join(run, manifest.FILE)
    settings = validate(InfnetConfig, manifest.read_raw(run).get("config"), where=where)
    return {"trained": settings.digest(sections.TRAIN)}


def to_gate(config: InfnetConfig) -> Json:
    """The live bundle, or `none`; if there is one, the log that it is scored on.

    Raises:
        ConfigError: what stands at `serve.live` is no whole artifact; as `raw_log`.
    """
    live = config.serve.live
    if not live or not storage.exists(live):
        return {"live": "none"}
    return {"live": manifest.content_of(live), "log": raw_log(config)["source"]}
