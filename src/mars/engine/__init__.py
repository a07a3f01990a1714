# SPDX-License-Identifier: Apache-2.0
"""The engine side: the plug-in for stock vLLM, and an emulated accelerator for it."""
