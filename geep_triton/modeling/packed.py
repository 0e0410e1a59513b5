"""Linear layers whose weights are laid out for oneDNN, on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import GELUActivation

from geep_triton.modeling.heads import AttentionHead
from geep_triton.modeling.model import MultiExitBert
from geep_triton.modeling.precision import dtype_name, twin

# oneDNN builds a kernel for each number of rows that it meets, in the time of some 30 rows of BERT-base's largest product, and
# keeps the last 1,024. Shrinking batches have any number of rows: beyond FEW it is made a multiple of ROWS, so that few do.
FEW, ROWS = 64, 16


class PackedLinear(nn.Module):
    """A linear layer [.., I] -> [.., O] for inference on a CPU, in float32 or bfloat16.

    torch multiplies float32 matrices by MKL, which on processors that are not Intel's may reach less than half of what they
    can do; oneDNN, which torch brings along, does not. Its weight is laid out once for that, in a tensor that nothing else can
    read. An activation ("none", "gelu" or "tanh") is applied on the way out.
    """

    def __init__(self, linear: nn.Linear, activation: str = "none") -> None:
        super().__init__()
        self.activation = activation
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous(), None)
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """[.., I] -> [.., O]."""
        rows = states.reshape(-1, states.shape[-1])
        count = len(rows)
        if count > FEW and count % ROWS:
            rows = F.pad(rows, (0, 0, 0, -count % ROWS))
        out = torch.ops.mkldnn._linear_pointwise(rows, self._weight, self._bias, self.activation, [], "none")
        return out[:count].unflatten(0, states.shape[:-1])


def pack_layers(model: MultiExitBert) -> MultiExitBert:
    """A twin of `model` for inference whose layers and heads are `PackedLinear`; it shares all else with the model.

    The model stays as it is; the twin holds its layers' weights a second time.

    Raises:
        ValueError: a model that is quantized, of another dtype, or not on a CPU, or a torch without oneDNN.
    """
    if model.device.type != "cpu":
        raise ValueError(f"packed=True is for models on a CPU, got one on {model.device}")
    if type(model.bert.encoder.layer[0].output.dense) is not nn.Linear:
        raise ValueError("packed=True: torch's int8 layers have a layout of their own; choose dtype float32 or bfloat16")
    if model.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"packed=True is for float32 and bfloat16, got {dtype_name(model)}")
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        raise ValueError(f"packed=True: this torch ({torch.__version__}) comes without oneDNN's linear layers")
    other = twin(model).eval()
    for part in (other.bert.encoder, other.heads):
        for module in list(part.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.Linear):
                    setattr(module, name, PackedLinear(child))
    for layer in other.bert.encoder.layer:
        if isinstance(layer.intermediate.intermediate_act_fn, GELUActivation):
            layer.intermediate.dense.activation = "gelu"
            layer.intermediate.intermediate_act_fn = nn.Identity()
    for head in other.heads.values():
        if isinstance(head, AttentionHead):
            head.reduce.activation, head.activation = "tanh", nn.Identity()
    return other
