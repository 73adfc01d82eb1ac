"""What one agent has come to, as bytes of files that run elsewhere. One agent's world.

seeded      .dslth: masks, and the keys of which the weights are drawn; `reader` reads it with numpy alone
programs    .safetensors, .onnx and .jax: of any network and its variables
"""

from dslth_jax.export.programs import as_jax, as_onnx, as_safetensors
from dslth_jax.export.seeded import as_dslth

__all__ = ["as_dslth", "as_jax", "as_onnx", "as_safetensors"]
