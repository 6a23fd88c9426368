"""Consistency models trained from data, for Hugging Face diffusers: iCT, ECT, ACT and CT.

Every public name is listed in `__init__.pyi` and imported when it is first used, so that `--help` and refused flags
answer at once. The names need torch and diffusers only; `diffusers_ict.training` needs the extra `train`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
