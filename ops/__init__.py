"""The one kernel of the method: multi-scale deformable attention."""

from ops.ms_deform_attn import ms_deform_attn

__all__ = ["ms_deform_attn"]
