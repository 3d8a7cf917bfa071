"""How long a text may be is what the network says: in training, in prediction and in what is saved."""

import pytest
import torch
import transformers

from hftl.config import parse_args
from hftl.errors import UserError
from hftl.inference.predictor import load as load_model
from hftl.models.length import load_processor
from hftl.tasks import TASKS, build_task
from hftl.tasks.positions import count_positions
from hftl.training.run import run
from tests import tiny
from tests.models.architectures import POSITIONS, list_architectures, shrink, write_checkpoint

CLASSES = "text-classification"
LONG = " ".join(tiny.FILLER_WORDS * 8)  # 128 tokens, of networks with 64 positions
# Architecture -> the longest row it takes. The tokenizer beside each of them gives no limit.
LIMITS = {
    ("Bert", CLASSES): 64,
    ("Roberta", CLASSES): 63,  # the padding token is number 0, and positions begin behind it
    ("XLMRoberta", CLASSES): 63,
    ("MPNet", CLASSES): 62,  # whose padding token is number 1 whatever the tokenizer says
    ("IBert", CLASSES): 63,
    ("Longformer", CLASSES): 63,
    ("GPT2", CLASSES): 64,
    ("OPT", CLASSES): 64,  # two rows of its table are for nothing
    ("Nystromformer", CLASSES): 64,
    ("Mpt", CLASSES): 64,
    ("Deberta", CLASSES): 64,
    ("XLNet", CLASSES): None,
    ("Funnel", CLASSES): None,
    ("Bloom", CLASSES): None,
}


def class_name(family):
    return f"{family}ForSequenceClassification"


def build(family, **changes):
    name = class_name(family)
    torch.manual_seed(0)
    config_class = list_architectures(CLASSES)[name]
    return getattr(transformers, name)(config_class(**shrink(config_class), **changes)).eval()


def reads(network, length):
    try:
        network(input_ids=torch.full((1, length), 5), attention_mask=torch.ones(1, length, dtype=torch.long))
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("family", "task"), LIMITS)
def test_the_limit_is_the_longest_text_that_the_network_takes(family, task):
    network, limit = build(family), LIMITS[family, task]
    assert count_positions(network) == limit
    assert reads(network, limit or 4 * POSITIONS)
    assert limit is None or not reads(network, limit + 1)


def test_deberta_without_a_table_of_positions_has_no_limit():
    network = build("DebertaV2", position_biased_input=False, relative_attention=True)
    assert count_positions(network) is None and reads(network, 4 * POSITIONS)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Rows that are longer than the networks read."""
    folder = tmp_path_factory.mktemp("long")
    texts = [{"text": f"{row['text']} {LONG}", "label": row["label"]} for row in tiny.make_texts(12)]
    tags = [{"tokens": r["text"].split(), "tags": ["B-x"] + ["O"] * (len(r["text"].split()) - 1)} for r in texts]
    plain = [{"text": row["text"]} for row in texts]
    answers = [
        {
            "question": "the cat",
            "context": r["text"],
            "answers": {"text": ["a"], "answer_start": [r["text"].rindex(LONG)]},
        }
        for r in texts
    ]
    written = {CLASSES: texts, "token-classification": tags, "masked-lm": plain, "causal-lm": plain}
    written |= {"question-answering": answers}
    written |= {"seq2seq": [{"source": row["text"], "target": row["text"]} for row in texts]}
    return {task: tiny.write_jsonl(folder / f"{task}.jsonl", rows) for task, rows in written.items()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("task", "name"),
    [
        (CLASSES, "RobertaForSequenceClassification"),
        ("token-classification", "CamembertForTokenClassification"),
        ("question-answering", "RobertaForQuestionAnswering"),
        ("masked-lm", "MPNetForMaskedLM"),
        ("causal-lm", "RobertaForCausalLM"),
        ("seq2seq", "BartForConditionalGeneration"),
    ],
)
def test_a_tokenizer_without_a_limit_gets_that_of_the_network_in_every_task(task, name, files, tmp_path):
    checkpoint = write_checkpoint(tmp_path / "checkpoint", task, name)
    assert transformers.AutoTokenizer.from_pretrained(checkpoint).model_max_length > 10**9
    words = ["--task", task, "--train_file", str(files[task]), "--model_name_or_path", str(checkpoint), "--use_cpu"]
    words += ["--max_steps", "1", "--per_device_train_batch_size", "4", "--output_dir", str(tmp_path / "run")]
    run(parse_args(words, mode="full"))
    network = getattr(transformers, TASKS[task].auto_model).from_pretrained(tmp_path / "run")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "run")
    assert tokenizer.model_max_length == count_positions(network)
    assert len(tokenizer(LONG, truncation=True).input_ids) == tokenizer.model_max_length  # as the card's snippet cuts


@pytest.mark.filterwarnings("ignore")
def test_a_published_network_without_a_limit_answers_long_texts(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "checkpoint", CLASSES, class_name("Roberta"))
    answers = load_model(str(checkpoint)).predict([LONG, "the cat"])
    assert len(answers) == 2


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), CLASSES, class_name("Roberta"))


def load(checkpoint, *flags, mode="full"):
    args = parse_args(["--task", CLASSES, "--model_name_or_path", str(checkpoint), *flags], mode=mode)
    return load_processor(args.model, build_task(CLASSES), args.data)


def test_a_longer_max_length_than_the_network_reads_is_refused(roberta):
    assert load(roberta, "--max_length", "63").model_max_length == 63
    with pytest.raises(UserError, match="--max_length is 64, but .* reads at most 63 tokens"):
        load(roberta, "--max_length", "64")


def test_the_limit_follows_the_positions_that_a_network_at_random_is_given(roberta):
    more, fewer = (
        ("--config_overrides", "max_position_embeddings=129"),
        ("--config_overrides", "max_position_embeddings=20"),
    )
    assert load(roberta, *more, mode="scratch").model_max_length == 128
    assert load(roberta, *fewer, mode="scratch").model_max_length == 19
    with pytest.raises(UserError, match="reads at most 19 tokens"):
        load(roberta, *fewer, "--max_length", "20", mode="scratch")


def test_virtual_tokens_take_positions_behind_those_of_the_padding_token(roberta):
    prompt = ("--adapter", "prompt", "--num_virtual_tokens", "10")
    assert load(roberta, *prompt, mode="peft").model_max_length == 53
    with pytest.raises(
        UserError, match="of the 63 positions .* 10 go to virtual tokens. Give --max_length 53 or less"
    ):
        load(roberta, *prompt, "--max_length", "54", mode="peft")


@pytest.mark.filterwarnings("ignore")
def test_a_tokenizer_that_says_less_than_the_network_reads_is_no_limit(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "checkpoint", CLASSES, class_name("XLNet"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.model_max_length = 16
    tokenizer.save_pretrained(checkpoint)
    assert load(checkpoint).model_max_length == 16
    assert load(checkpoint, "--max_length", "200").model_max_length == 200


@pytest.mark.parametrize(
    ("length", "columns", "least"),
    [("1", ["text"], 3), ("2", ["text"], 3), ("3", ["a", "b"], 5), ("4", ["a", "b"], 5)],
)
def test_a_length_that_leaves_no_room_for_a_token_of_the_text_is_refused(length, columns, least, roberta):
    """The tokenizer would cut nothing then, or leave its own marks alone: every text would read the same."""
    with pytest.raises(UserError, match=f"--max_length is {length}, .* Give --max_length {least} or more"):
        load(roberta, "--max_length", length, "--text_columns", *columns)
    assert load(roberta, "--max_length", str(least), "--text_columns", *columns).model_max_length == least
