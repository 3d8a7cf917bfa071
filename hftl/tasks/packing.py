"""Batches of rows of tokens, padded or packed; and can this network read packed rows as if each stood alone?"""

import torch

from hftl.data.labels import IGNORED

PACKING_TOLERANCE = 1e-4  # of a logit, in float32: networks that keep rows apart differ by 1e-6, others by 0.1


class TokenCollator:
    """Rows padded to the longest, or packed: one after the other without padding, positions from 0 in each.

    Returns:
        `input_ids`, `labels` int64 [B, T] and `attention_mask`; packed [1, T] and `position_ids` instead.
    """

    def __init__(self, pad_token_id: int, *, is_packed: bool = False) -> None:
        self.pad_token_id = pad_token_id
        self.is_packed = is_packed
        self.multiple = 8 if torch.cuda.is_available() else 1  # tensor cores want multiples of 8

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        if "labels" not in rows[0]:
            return self.pad_prompts(rows)
        # Rows to be trained on come with a seed, and only there the batch is all that matters.
        if self.is_packed and "augmentation_seed" in rows[0]:
            return self.pack(rows)
        return self.pad(rows)

    def pad(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """[B, T], padded on the right."""
        width = -(-max(len(row["input_ids"]) for row in rows) // self.multiple) * self.multiple

        def fill(name: str, value: int) -> torch.Tensor:
            return torch.tensor([list(row[name]) + [value] * (width - len(row[name])) for row in rows])

        mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows])
        inputs = {"input_ids": fill("input_ids", self.pad_token_id), "attention_mask": mask}
        return inputs | {"labels": fill("labels", IGNORED)}

    def pad_prompts(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """[B, T], padded on the left, where nothing is written."""
        width = max(len(row["input_ids"]) for row in rows)
        gaps = [width - len(row["input_ids"]) for row in rows]
        ids = [[self.pad_token_id] * gap + list(row["input_ids"]) for gap, row in zip(gaps, rows, strict=True)]
        mask = [[0] * gap + [1] * (width - gap) for gap in gaps]
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}

    def pack(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """[1, T]; networks see where a row begins by its position 0, if they get no mask and keep no cache."""
        return {
            "input_ids": torch.tensor([[token for row in rows for token in row["input_ids"]]]),
            "labels": torch.tensor([[label for row in rows for label in row["labels"]]]),
            "position_ids": torch.tensor([[place for row in rows for place in range(len(row["input_ids"]))]]),
        }


@torch.no_grad()
def keeps_rows_apart(network: torch.nn.Module, collator: TokenCollator) -> bool:
    """Whether this network gives two packed rows the logits that it gives them padded, in evaluation and in float32.

    Some families ignore positions, some look at the neighbour while a cache is kept, and prompts stand in front of the
    first row alone: so the network itself is asked.
    """
    size = min(network.config.get_text_config().vocab_size, 1000)
    rows = [{"input_ids": [(7 * i + 3 * n) % size for i in range(n)], "labels": [IGNORED] * n} for n in (9, 6)]
    was_training, device = network.training, next(network.parameters()).device
    network.eval()
    try:
        padded, packed = (
            network(**{k: v.to(device) for k, v in batch.items() if k != "labels"}, use_cache=False).logits.float()
            for batch in (collator.pad(rows), collator.pack(rows))
        )
    finally:
        network.train(was_training)
    if packed.shape[1] != sum(len(row["input_ids"]) for row in rows):
        return False
    expected = torch.cat([padded[0, :9], padded[1, :6]])
    return bool((packed[0] - expected).abs().max() <= PACKING_TOLERANCE * max(1.0, expected.abs().max().item()))
