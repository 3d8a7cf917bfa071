"""What is lost where a network gives other boxes than the true ones? transformers' own losses, summed over true boxes.

A sum over true boxes, divided by the boxes of an optimizer step, is the same for any division of the step into
micro-batches. The stock loss divides by the boxes of a micro-batch. An image without boxes counts as one.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss
from transformers.loss.loss_rt_detr import RTDetrForObjectDetectionLoss

LAYERS = "layer_answers"  # field of the output: logits [L, B, Q, C] and boxes [L, B, Q, 4]
Targets = list[dict[str, torch.Tensor]]
"""Of each image, as transformers wants them: `class_labels` int64 [N] and `boxes` float32 [N, 4], shares of it."""


def sum_softmax_loss(outputs: Any, targets: Targets, config: Any) -> torch.Tensor:
    """Of networks that know a class for no object, each of whose images has a loss of its own.

    Its cross-entropy is a mean over all answers, so that no sum over the boxes of several images is the same.
    `ImageLoss.forward` would divide by the mean number of boxes of all processes, and wait for them.
    """
    answers = [(outputs["logits"], outputs["pred_boxes"])]
    if (layers := outputs.get(LAYERS)) is not None:
        answers += zip(*(part[:-1] for part in layers), strict=True)  # the last is the output itself
    matcher = HungarianMatcher(config.class_cost, config.bbox_cost, config.giou_cost)
    parts = ImageLoss(matcher, config.num_labels, config.eos_coefficient, ["labels", "boxes"])
    parts.to(outputs["logits"].device)
    weights = {"loss_ce": 1.0, "loss_bbox": config.bbox_loss_coefficient, "loss_giou": config.giou_loss_coefficient}
    total = outputs["logits"].new_zeros(())
    for logits, boxes in answers:
        for index, target in enumerate(targets):
            answer = {"logits": logits[index : index + 1], "pred_boxes": boxes[index : index + 1]}
            matched, count = matcher(answer, [target]), max(len(target["boxes"]), 1)
            for part in parts.losses:
                found = parts.get_loss(part, answer, [target], matched, count)
                total = total + count * sum(weights[name] * value for name, value in found.items())
    return total


def sum_sigmoid_loss(outputs: Any, targets: Targets, config: Any) -> torch.Tensor:
    """Of networks that choose their queries in the encoder, whose layers all learn.

    The queries made of noisy true boxes are left out: the network would have to read the labels, and their noise and
    number depend on the micro-batch.
    """
    names = {"outputs_class": "intermediate_logits", "outputs_coord": "intermediate_reference_points"}
    names |= {name: name for name in ("enc_topk_logits", "enc_topk_bboxes")}
    loss, *_ = RTDetrForObjectDetectionLoss(
        outputs["logits"],
        targets,
        outputs["logits"].device,
        outputs["pred_boxes"],
        config,
        **{name: outputs[field] for name, field in names.items()},
    )
    return loss * max(sum(len(target["boxes"]) for target in targets), 1)


def expose_layers(network: nn.Module) -> None:
    """Let a DETR's output carry what each layer of its decoder answers, so that all of them learn.

    transformers 5.23 computes that beside its own loss alone, which divides by the boxes of a micro-batch.
    """
    if network.config.model_type == "detr":
        network.model.register_forward_hook(_hold_states)
        network.register_forward_hook(_answer_by_layer)


def _hold_states(body: nn.Module, _: Any, output: Any) -> None:
    body.held_states = output.intermediate_hidden_states  # [L, B, Q, D]


def _answer_by_layer(network: nn.Module, _: Any, output: Any) -> Any:
    states, network.model.held_states = network.model.held_states, None
    output[LAYERS] = (network.class_labels_classifier(states), network.bbox_predictor(states).sigmoid())
    return output


FAMILIES: Mapping[str, Callable[[Any, Targets, Any], torch.Tensor]] = {
    "detr": sum_softmax_loss,
    "yolos": sum_softmax_loss,
    "rt_detr": sum_sigmoid_loss,
    "rt_detr_v2": sum_sigmoid_loss,
}
"""By `model_type`."""
