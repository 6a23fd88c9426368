from .discriminator import ConsistencyDiscriminator
from .formulas.augmentation import augment
from .formulas.distances import cauchy, pseudo_huber, pseudo_huber_constant, squared_l2
from .formulas.dropout import reuse_masks, share_dropout
from .formulas.editing import Colorize, Edit, Inpaint, SuperResolve, slerp, start_level
from .formulas.noise_schedule import (
    act_num_levels,
    ct_num_levels,
    ct_teacher_decay,
    ict_num_levels,
    ict_weighting,
    karras_level,
    karras_ramp,
    karras_sigmas,
    lognormal_pair_probabilities,
    rho_through,
    uniform_pair_probabilities,
)
from .formulas.preconditioning import ConsistencyFunction, c_noise, c_out, c_skip, denoise, scale_input
from .formulas.time_embedding import fast_columns, hold_fast_columns, uses_fast_columns, zero_fast_columns
from .loading import load_stock
from .objectives.act import (
    ACT,
    AdaptiveStrength,
    AdversarialWeight,
    discriminator_logits,
    discriminator_loss,
    generator_loss,
    r1_penalty,
    weighted_lerp,
)
from .objectives.base import GridObjective, Objective, Pair, consistency_pair
from .objectives.ct import CT
from .objectives.ect import ECT
from .objectives.ict import ICT
from .objectives.lpips import LPIPS
from .pipeline_consistency import ConsistencyPipeline
from .pipeline_consistency_edit import (
    ConsistencyColorizePipeline,
    ConsistencyDenoisePipeline,
    ConsistencyEditPipeline,
    ConsistencyImg2ImgPipeline,
    ConsistencyInpaintPipeline,
    ConsistencyUpscalePipeline,
)
from .scheduling_ict import ICTScheduler
from .version import __version__

__all__ = [
    "ACT",
    "CT",
    "ECT",
    "ICT",
    "LPIPS",
    "AdaptiveStrength",
    "AdversarialWeight",
    "Colorize",
    "ConsistencyColorizePipeline",
    "ConsistencyDenoisePipeline",
    "ConsistencyDiscriminator",
    "ConsistencyEditPipeline",
    "ConsistencyFunction",
    "ConsistencyImg2ImgPipeline",
    "ConsistencyInpaintPipeline",
    "ConsistencyPipeline",
    "ConsistencyUpscalePipeline",
    "Edit",
    "GridObjective",
    "ICTScheduler",
    "Inpaint",
    "Objective",
    "Pair",
    "SuperResolve",
    "__version__",
    "act_num_levels",
    "augment",
    "c_noise",
    "c_out",
    "c_skip",
    "cauchy",
    "consistency_pair",
    "ct_num_levels",
    "ct_teacher_decay",
    "denoise",
    "discriminator_logits",
    "discriminator_loss",
    "fast_columns",
    "generator_loss",
    "hold_fast_columns",
    "ict_num_levels",
    "ict_weighting",
    "karras_level",
    "karras_ramp",
    "karras_sigmas",
    "load_stock",
    "lognormal_pair_probabilities",
    "pseudo_huber",
    "pseudo_huber_constant",
    "r1_penalty",
    "reuse_masks",
    "rho_through",
    "scale_input",
    "share_dropout",
    "slerp",
    "squared_l2",
    "start_level",
    "uniform_pair_probabilities",
    "uses_fast_columns",
    "weighted_lerp",
    "zero_fast_columns",
]
