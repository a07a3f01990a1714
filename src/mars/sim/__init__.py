# SPDX-License-Identifier: Apache-2.0
"""The simulator: virtual time, the very policy objects, vLLM's scheduler to the step."""
