"""What a pretraining is made of: histories, tokenizer, prompts, texts, the untrained decoder."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from layer_select.config import LayerSelectConfig
from layer_select.pretrain.config import Pretrain
from layer_select.pretrain.student import Student
from layer_select.pretrain.texts import TextMaker
from layer_select.pretrain.tokenizer import END, train_tokenizer, wrapped
from layer_select.task.config import HeadTask, YesNoTask
from layer_select.task.prompts import Prompts
from layer_select.task.run import RecommendationTask
from rayrun.config import ConfigError
from rayrun.data.sequences import Sequences, open_sequences

__all__ = ["END", "Made", "build", "section", "tokenizer_of"]

FEWEST_POSITIONS = 512


@dataclass(frozen=True)
class Made:
    """All of it, the same on every worker."""

    sequences: Sequences
    tokenizer: PreTrainedTokenizerFast
    prompts: Prompts
    maker: TextMaker
    student: Student
    head_task: HeadTask

    def ranking(self, item_head: bytes) -> RecommendationTask:
        """The next-item task over every user, by which the trained decoder is judged."""
        return RecommendationTask(self.head_task, self.sequences, self.prompts, item_head)


def section(config: LayerSelectConfig) -> Pretrain:
    """`config.pretrain`.

    Raises:
        ConfigError: there is none.
    """
    if config.pretrain is None:
        raise ConfigError(
            "pretrain-tiny needs a section `pretrain:`, found none; write `pretrain: {}` for the "
            "defaults, or start from configs/layer_select/quick.yaml"
        )
    return config.pretrain


def tokenizer_of(config: LayerSelectConfig, sequences: Sequences) -> str:
    """A tokenizer trained on the catalogue, questions and answers; as the text of its JSON."""
    asked = questions(config)
    words = [f"{asked.question.replace('{title}', '')}{answer}" for answer in asked.answers]
    texts = [config.task.prompt.item.replace("{title}", title) for title in sequences.titles]
    trained = train_tokenizer([*texts, *words], section(config).model.vocabulary)
    return trained.backend_tokenizer.to_str()


def questions(config: LayerSelectConfig) -> YesNoTask:
    """The yes/no task whose questions are learnt: the configured one, or the default's.

    Raises:
        ConfigError: prompts show ratings, which the texts do not.
    """
    task = config.task
    if isinstance(task, YesNoTask):
        return task
    if task.prompt.shows_ratings:
        raise ConfigError(
            f"pretrain-tiny learns histories without ratings, but task.prompt.item is "
            f"{task.prompt.item!r}; pretrain under task.type head and give its output as "
            "inputs.model, or leave {rating} out"
        )
    shared = {n: getattr(task, n) for n in ("prompt", "max_history", "max_tokens")}
    return YesNoTask(**shared)


def build(config: LayerSelectConfig, tokenizer: str, sequences: Sequences | None = None) -> Made:
    """Put everything together; opens the data unless they are given.

    Raises:
        ConfigError: bad data, no `pretrain:`, or prompts that cannot be learnt.
    """
    pretrain, task = section(config), config.task
    sequences = sequences or open_sequences(config.data)
    words = wrapped(tokenizer)
    prompts = Prompts(words, len(words), questions(config), sequences.titles)
    everyone = len(sequences.users)
    samples = everyone if sequences.rated is None else len(sequences.rated.item)
    own_test = sequences.rated is None or bool((sequences.rated.part == 2).any())
    head_task = HeadTask(
        prompt=task.prompt,
        max_history=task.max_history,
        max_tokens=task.max_tokens,
        calibration=1,
        validation=0 if own_test else samples,
        test=samples if own_test else 0,
        micro_batch=64,
    )
    return Made(
        sequences=sequences,
        tokenizer=words,
        prompts=prompts,
        maker=TextMaker(pretrain, head_task, prompts, sequences.training()),
        student=Student(
            pretrain,
            vocab_size=len(words),
            positions=max(pretrain.row_tokens, FEWEST_POSITIONS),
            titles=prompts.titles,
            answers=prompts.answers,
        ),
        head_task=head_task,
    )
