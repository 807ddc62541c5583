"""Reading videos: choosing frames (sampling), decoding them (reader) and resizing them (preprocess). Without JAX."""

from vxl2_jax.video.ahead import prefetch
from vxl2_jax.video.hashing import content_hash
from vxl2_jax.video.preprocess import pad_to_square, resize_frame
from vxl2_jax.video.reader import VideoSource, open_video
from vxl2_jax.video.sampling import frame_seconds, sample_indices, sample_timestamps

__all__ = [
    "VideoSource",
    "content_hash",
    "frame_seconds",
    "open_video",
    "pad_to_square",
    "prefetch",
    "resize_frame",
    "sample_indices",
    "sample_timestamps",
]
