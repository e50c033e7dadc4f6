"""The one kernel of the method: multi-scale deformable attention."""

from ops.ms_deform_attn import MSDeformAttn, ms_deform_attn, ms_deform_attn_fused, spread

__all__ = ["MSDeformAttn", "ms_deform_attn", "ms_deform_attn_fused", "spread"]
