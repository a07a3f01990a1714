# SPDX-License-Identifier: Apache-2.0
"""What a GPU and a model cost: one TOML file for each, combined by name.

``load_profile("h100-nvl-qwen3-coder-30b")`` joins ``gpus/h100-nvl-94gb.toml`` and
``models/qwen3-coder-30b-a3b.toml``, both found by name or alias. Every number in the files
has its source beside it; what is assumed says so.
"""

from mars.profiles.load import Profile, ProfileError, gpu_names, load_profile, model_names

__all__ = ["Profile", "ProfileError", "gpu_names", "load_profile", "model_names"]
