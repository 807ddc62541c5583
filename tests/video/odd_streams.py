"""Films of odd streams, in many containers, and of odd pictures."""

from collections.abc import Sequence
from pathlib import Path

import av
from clips import picture
from films import Lines, Pictures, Sound, even, film_bytes, two_programs
from oddities import DAY, ORDERED, PLAIN, TEN, case, film, put, ten, ts
from PIL import Image

# Streams.

SMALL = Pictures(even(5, 10), range(500, 505), size=(16, 16))
STILL = Pictures([0], [700], codec="mjpeg", pix_fmt="yuvj420p", size=(96, 128))
for suffix in ("mkv", "mp4", "mov", "ts"):
    film(f"preview_before_the_film_{suffix}", suffix, SMALL, ten())
film("equally_long_preview_before_the_film", "mkv", Pictures(even(30, 10), range(500, 530), size=(16, 16)), ten())
film("large_but_short_trailer_before_the_film", "mkv", Pictures(even(3, 10), [500] * 3, size=(96, 128)), ten())
film("one_jpeg_before_the_film", "mkv", STILL, ten())
film("one_jpeg_before_the_film_mp4", "mp4", STILL, ten())
film("cover_beside_the_film", "mp4", Pictures([0], [700], codec="mjpeg", pix_fmt="yuvj420p", cover=True), ten())
film("sound_beside", "mp4", ten(), Sound(0, 3))
film("sound_first_and_longer", "mp4", Sound(0, 8), ten())
film("sound_begins_earlier", "mkv", Sound(0, 5), ten(start=2))
film("sound_and_subtitles_mkv", "mkv", Sound(0, 3), Lines([0.5, 1.5]), ten(options=ORDERED))
film("sound_and_subtitles_mp4", "mp4", Sound(0, 3), Lines([0.5, 1.5], "mov_text"), ten(options=ORDERED))
film("subtitles_begin_earlier", "mkv", Lines([0, 1, 3]), ten(start=2))
film("data_beside", "ts", Lines([0.5, 1.5], "data"), ten(), Sound(0, 3, "mp2"))


LATE = [*even(5, 10), DAY * 1000, *even(5, 10, start=0.6)]
film("preview_with_an_outlier", "mkv", Pictures(LATE, [500] * 11, size=(16, 16), options=PLAIN), ten())


@case(TEN)
def second_of_two_programs(folder: Path) -> Path:
    """A film, after a program with a shorter one."""
    ids = {"mpegts_service_id": "2", "mpegts_pmt_start_pid": "0x1100", "mpegts_start_pid": "0x200"}
    first = film_bytes(ten(10, first=500), folder=folder, options=ids)
    return put(folder, "ts", two_programs(first, ts(folder)))


@case(TEN)
def attached_picture(folder: Path) -> Path:
    Image.fromarray(picture(700)).save(folder / "cover.jpg")
    with av.open(str(folder / "film.mkv"), "w") as container:
        container.add_attachment("cover.jpg", "image/jpeg", (folder / "cover.jpg").read_bytes())
        for packet in ten().encode(container)():
            container.mux(packet)
    return folder / "film.mkv"


# Containers.

MOVING = {"mp4": {}, "mov": {}, "mkv": {}, "flv": {}, "nut": {}, "ts": {}, "m2ts": {"mpegts_m2ts_mode": "1"}}
MOVING |= {"3gp": {}, "f4v": {}, "ismv": {}}
for suffix, options in MOVING.items():
    film(f"{suffix}_b_frames", suffix, ten(options=ORDERED), written={"options": options})
for suffix, codec in {"mp4": "mpeg4", "mkv": "libx264", "mov": "mpeg2video"}.items():
    pictures = ten(codec=codec, options={"g": "30"}, all_keys=True)
    film(f"all_packets_flagged_as_key_frames_{suffix}", suffix, pictures, notes=None)
for suffix in ("mkv", "mp4"):
    options = {"x264-params": "intra-refresh=1:keyint=10:bframes=0:scenecut=0"}
    film(f"intra_refresh_{suffix}", suffix, ten(options=options))
film("mp4_faststart", "mp4", ten(options=ORDERED), written={"options": {"movflags": "faststart"}})
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
film("mp4_fragments", "mp4", ten(options=ORDERED), written={"options": FRAGMENTS})
film("mp4_fragments_piped", "mp4", ten(options=ORDERED), written={"options": FRAGMENTS, "piped": True})
film("mkv_live", "mkv", ten(options=ORDERED), written={"options": {"live": "1"}})
film("mkv_without_cues_and_duration", "mkv", ten(options=ORDERED), written={"piped": True})
film("webm_vp8", "webm", ten(codec="libvpx", options={"g": "10"}))
film("webm_vp8_hidden_frames", "webm", ten(codec="libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "16"}))
film("webm_vp9", "webm", ten(codec="libvpx-vp9", options={"g": "10", "cpu-used": "8"}))
film("ivf_vp9", "ivf", ten(codec="libvpx-vp9", options={"g": "10", "cpu-used": "8"}))
film("wmv", "wmv", ten(codec="wmv2", options={}))
film("mp4_mpeg4", "mp4", ten(codec="mpeg4", options={"g": "10", "bf": "2"}))
FRAMES = even(30, 10, 10)
film("avi", "avi", Pictures(FRAMES, ticks=10, options=ORDERED))
film("avi_mpeg4", "avi", Pictures(FRAMES, ticks=10, codec="mpeg4", options={"g": "10", "bf": "2"}))
film("y4m", "y4m", Pictures(FRAMES, ticks=10, codec="wrapped_avframe", options={}))
for suffix, codec in {"mpg": "mpeg2video", "vob": "mpeg2video", "mpeg": "mpeg1video"}.items():
    pictures = Pictures(even(50, 25), rate=25, codec=codec, options={"g": "12", "bf": "2"})
    film(f"program_stream_{suffix}", suffix, pictures, shown=range(0, 50, 5), fps=5)
# Without timestamps the rate is 25.
X265 = {"x265-params": "log-level=none:keyint=10"}
RAW = {"h264": ("libx264", "yuv420p", PLAIN), "hevc": ("libx265", "yuv420p", X265), "mjpeg": ("mjpeg", "yuvj420p", {})}
for suffix, (codec, pix_fmt, options) in RAW.items():
    pictures = Pictures(even(50, 25), rate=25, codec=codec, pix_fmt=pix_fmt, options=options)
    film(f"raw_{suffix}", suffix, pictures, shown=range(0, 50, 5), fps=5)
film("raw_h264_b_frames", "h264", Pictures(even(50, 25), rate=25, options=ORDERED), shown=range(0, 50, 5), fps=5)
film("gif", "gif", Pictures(even(30, 10, 100), ticks=100, codec="gif", pix_fmt="rgb8"))
film("apng", "png", ten(codec="apng", pix_fmt="rgb24", options={}), written={"format": "apng"})
film("webp", "webp", ten(codec="libwebp", options={}), written={"format": "webp"})


@case([0, 1, 1])
def gif_of_uneven_times(folder: Path) -> Path:
    return animate(folder / "film.gif", [100, 2000, 400])


@case([0, 1, 1])
def webp_of_uneven_times(folder: Path) -> Path:
    return animate(folder / "film.webp", [100, 2000, 400], lossless=True)


@case([0, 1, 1])
def apng_of_uneven_times(folder: Path) -> Path:
    return animate(folder / "film.png", [100, 2000, 400])


def animate(path: Path, milliseconds: Sequence[int], **options) -> Path:
    first, *rest = (Image.fromarray(picture(number)) for number in range(len(milliseconds)))
    first.save(path, save_all=True, append_images=rest, duration=list(milliseconds), loop=0, **options)
    return path


# Pictures.

for degrees in (90, 180, 270):
    film(f"rotated_{degrees}", "mp4", ten(rotation=degrees if degrees < 270 else -90), turn=degrees // 90)
film("rotated_90_mkv", "mkv", ten(rotation=90), turn=1)
film("odd_size", "mkv", ten(codec="ffv1", size=(33, 51), options={}))
film("cropped_size", "mp4", ten(size=(50, 70)))
film("odd_size_444", "mp4", ten(size=(49, 63), pix_fmt="yuv444p"))
film("grey", "mkv", ten(codec="ffv1", pix_fmt="gray", options={}))
film("grey_h264", "mp4", ten(pix_fmt="gray"))
film("ten_bits", "mp4", ten(pix_fmt="yuv420p10le"))
film("ten_bits_hevc", "mp4", ten(codec="libx265", pix_fmt="yuv420p10le", options=X265))
film("twelve_bits", "mkv", ten(codec="ffv1", pix_fmt="yuv422p12le", options={}))
film("alpha", "mkv", ten(codec="ffv1", pix_fmt="bgra", options={}))
film("alpha_vp9", "webm", ten(codec="libvpx-vp9", pix_fmt="yuva420p", options={"cpu-used": "8"}))
film("alpha_png", "mov", ten(codec="png", pix_fmt="rgba", options={}))
film("interlaced", "ts", ten(options={"x264-params": "interlaced=1:keyint=10"}))


@case([0, 10, 20, 30])
def size_changes_in_ts(folder: Path) -> Path:
    return put(folder, "ts", ts(folder, count=20) + ts(folder, count=20, start=2, first=20, size=(96, 128)))


@case(range(0, 50, 5), fps=5)
def size_changes_in_raw_h264(folder: Path) -> Path:
    first = Pictures(even(25, 25), rate=25, options=PLAIN)
    second = Pictures(even(25, 25), range(25, 50), rate=25, size=(96, 64), options=PLAIN)
    return put(folder, "h264", b"".join(film_bytes(part, folder=folder, suffix="h264") for part in (first, second)))
