"""SASRec of a set of histories, trained once and kept by the content it is made from.

    <root>/sasrec-<key>/sasrec.safetensors  manifest.json          layer_select.sasrec

One worker trains, whatever the run has, so that the rival is the same on one and on many.
"""

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from layer_select.config import LayerSelectConfig
from layer_select.evaluate.config import SasRec
from layer_select.evaluate.sasrec import SasRecNetwork
from layer_select.evaluate.sasrec_training import train
from layer_select.places import data_root, use_data_root
from layer_select.task.config import SequenceData
from rayrun import manifest, storage
from rayrun.config import ConfigError, Json, digest_of, validate
from rayrun.data.sequences import Sequences, open_sequences
from rayrun.ray.train import run as run_on_ray
from rayrun.ray.worker import Worker

KIND = "layer_select.sasrec"
FORMAT_VERSION = 1
WEIGHTS = "sasrec.safetensors"
MAX_FAILURES = 2


def trained(
    config: LayerSelectConfig,
    rival: SasRec,
    data: SequenceData,
    sequences: Sequences,
    root: str,
) -> str:
    """Where the network stands; trained there first if it does not yet.

    A training that was interrupted goes on where it stopped.

    Args:
        config: of the run; `compute` says where.
        rival: what is trained.
        data: the histories.
        sequences: the same, opened.
        root: folder of what is kept between runs.

    Raises:
        ConfigError: as `sasrec_training.train`.
        RuntimeError: the worker failed more than twice.
    """
    key = digest_of([FORMAT_VERSION, sequences.digest, rival.to_dict()])
    short = key.removeprefix("sha256:")[:16]
    place = storage.join(root, f"sasrec-{short}")
    if manifest.stands(place, kind=KIND, key=key):
        return place
    state = f"{place}.training"
    with storage.claim(place):
        found = run_on_ray(
            on_worker,
            {
                "rival": rival.to_dict(),
                "data": data.to_dict(),
                "digest": sequences.digest,
                "threads": max(1, int(config.compute.cpus_per_worker)),
                "infnet_data": data_root(),
                "weights": storage.join(state, WEIGHTS),
            },
            compute=config.compute.model_copy(update={"workers": 1}),
            storage_path=state,
            name=short,
            max_failures=MAX_FAILURES,
            title="training SASRec",
        )
        with storage.output(place) as staging:
            weights = storage.read_bytes(storage.join(state, WEIGHTS))
            (staging / WEIGHTS).write_bytes(weights)
            manifest.write(
                staging,
                kind=KIND,
                format_version=FORMAT_VERSION,
                config=rival,
                inputs={"data": sequences.digest},
                info={"key": key, **found},
            )
        storage.remove(state)
    return place


def on_worker(worker: Worker, argument: Json) -> Json:
    """Train, and write the weights.

    Raises:
        ConfigError: as `sasrec_training.train`, or the data here are others than those of `digest`.
    """
    use_data_root(argument["infnet_data"])
    if worker.device.type == "cpu":
        torch.set_num_threads(argument["threads"])
    rival = validate(SasRec, argument["rival"], where="the configuration of SASRec")
    sequences = open_sequences(validate(SequenceData, argument["data"], where="data of the run"))
    check_same(sequences, argument["digest"], worker)
    network, told = train(worker, rival, sequences)
    weights = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    storage.write_bytes(argument["weights"], save(weights))
    return told


def check_same(sequences: Sequences, digest: str, worker: Worker) -> None:
    """The histories that the run was started with.

    Raises:
        ConfigError: they are not.
    """
    if sequences.digest != digest:
        raise ConfigError(
            f"{sequences.name} differs between the machines of the run: {digest} where it was "
            f"started, {sequences.digest} on worker {worker.rank}; give all workers the same files"
        )


def read(place: str, num_items: int, device: torch.device | str = "cpu") -> SasRecNetwork:
    """The network that `trained` left.

    Raises:
        ConfigError: it is damaged, or of another catalogue.
    """
    told = manifest.read(place, kind=KIND, format_version=FORMAT_VERSION)
    rival = validate(SasRec, told.config, where=place)
    network = SasRecNetwork(rival, num_items)
    try:
        network.load_state_dict(load(storage.read_bytes(storage.join(place, WEIGHTS))))
    except (SafetensorError, RuntimeError) as error:
        raise ConfigError(
            f"{place}/{WEIGHTS} is damaged or of another catalogue "
            f"({str(error).splitlines()[0]}); remove the folder, it is made again"
        ) from None
    return network.to(device).eval()
