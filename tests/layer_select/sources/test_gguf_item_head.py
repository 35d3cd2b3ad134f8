"""The item head inside a GGUF file, and so inside an Ollama store."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from layer_select.sources import Gguf, Ollama, load, open_model
from layer_select.sources.gguf_header import read_header
from layer_select.sources.gguf_item_head import KEY, item_head_of
from layer_select.sources.gguf_write import write_gguf
from layer_select.task.head import ITEM_HEAD, read_projection, written_projection
from rayrun.config import ConfigError
from tests.layer_select.sources import forms

WIDTH = 32


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, torch.Tensor]:
    """A GGUF file of a folder with a head, alone in its own folder."""
    folder = tmp_path_factory.mktemp("head")
    place = forms.folder(forms.model_of("llama"), folder / "hf")
    projection = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0))
    (place / ITEM_HEAD).write_bytes(written_projection(projection))
    (folder / "alone").mkdir()
    write_gguf(forms.opened(place), folder / "alone" / "m.gguf")
    return folder / "alone" / "m.gguf", projection


def test_p_comes_back_bit_by_bit_from_the_file_and_from_an_ollama_store(written, tmp_path):
    path, projection = written
    store = forms.ollama(path, tmp_path / "store")
    for checkpoint in (
        Gguf(path=str(path)).open(),
        Ollama(name="small", store=str(store)).open(),
    ):
        content = checkpoint.file(ITEM_HEAD)
        assert torch.equal(read_projection(content, WIDTH), projection)


def test_the_file_still_holds_no_tensor_that_a_runtime_does_not_know(written):
    path, _ = written
    header = read_header(path, "m.gguf")
    assert KEY in header.metadata
    assert not [name for name in header.tensors if "head" in name]
    other = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, attn_implementation="eager"
    )
    ours = load(open_model(None, str(path)))
    assert torch.equal(forms.logits(other.eval()), forms.logits(ours))


def test_a_file_without_a_head_has_none(tmp_path):
    path = forms.gguf(forms.model_of("llama"), tmp_path / "m.gguf")
    assert Gguf(path=str(path)).open().file(ITEM_HEAD) is None


def test_a_head_of_another_width_is_refused():
    message = rf"small: {KEY} must hold 4 · 4 numbers, the square of the model's width, found 9"
    with pytest.raises(ConfigError, match=message):
        item_head_of({KEY: [0.0] * 9}, 4, "small")
