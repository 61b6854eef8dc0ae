"""Batches and the memory they need, lanes, and pixels prepared in threads; the GPU is a stand-in."""

import platform
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from encoders.base import EncoderError, ImageEmbeddings, PreparedImage
from encoders.batches import CPU_BATCH, MemoryLimit, find_batch_size, open_lanes, stack_pixels
from encoders.fwd2bot.inputs import InputBuilder
from encoders.fwd2bot.preparation import ImagePreparer, find_resizing, find_scale, scale
from tests.conftest import FakeEncoder
from tests.tiny_families import make_lvlm_of
from tests.tiny_models import make_builder, make_pictures

GPU, CPU = torch.device("cuda"), torch.device("cpu")
IMAGE = np.zeros((3, 2, 2), np.float32)


class StandInMemory:
    """A GPU with memory for `room` images at once; it records the batch sizes it is asked to encode."""

    def __init__(self, room: int, monkeypatch: pytest.MonkeyPatch, free: int | None = None) -> None:
        self.room, self.free = room, room if free is None else free
        self.asked: list[int] = []
        self.peak = 0
        answers = {
            "memory_allocated": lambda device: 0,
            "memory_reserved": lambda device: 0,
            "max_memory_allocated": lambda device: self.peak,
            "reset_peak_memory_stats": lambda device: None,
            "mem_get_info": lambda device: (self.free, self.free),
            "empty_cache": lambda: None,
        }
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, answer)

    def encode(self, prepared: Sequence[PreparedImage]) -> ImageEmbeddings:
        """The first pixel of each image as its vector."""
        self.asked.append(len(prepared))
        if len(prepared) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.peak = len(prepared)
        vectors = np.array([[np.asarray(image).flat[0]] for image in prepared], np.float32).reshape(-1, 1)
        return ImageEmbeddings(vectors, vectors[:, None])


def test_a_batch_too_large_for_the_memory_is_encoded_in_halves_and_so_is_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory, limit = StandInMemory(5, monkeypatch), MemoryLimit()
    images = [np.full((3, 1, 1), number, np.float32) for number in range(13)]
    vectors, summaries = limit.encode(memory.encode, images)
    assert vectors[:, 0].tolist() == list(range(13)) and summaries is not None and len(summaries) == 13
    assert memory.asked == [13, 6, 3, 3, 3, 3, 1]
    memory.asked = []
    limit.encode(memory.encode, images)
    assert memory.asked == [3, 3, 3, 3, 1]


def test_a_memory_too_small_for_one_image_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = StandInMemory(0, monkeypatch)
    with pytest.raises(EncoderError, match="--device cpu"):
        MemoryLimit().encode(memory.encode, [IMAGE] * 3)


def test_what_is_no_lack_of_memory_is_raised_as_it_is() -> None:
    def fail(prepared: Sequence[PreparedImage]) -> ImageEmbeddings:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        MemoryLimit().encode(fail, [IMAGE] * 3)


@pytest.mark.parametrize(
    ("room", "free", "expected"),
    [
        (10**6, 10**6, 512),  # larger batches do not pay
        (10**6, 100, 32),  # two lanes of 64 would need 128
        (40, 10**6, 32),  # less fits than was reported free
        (8, 10**6, 8),
        (5, 10**6, 4),
    ],
)
def test_a_batch_grows_while_two_of_twice_its_size_fit(
    room: int, free: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = StandInMemory(room, monkeypatch, free)
    assert find_batch_size(memory.encode, IMAGE, GPU) == expected


def test_on_a_cpu_the_batch_is_fixed() -> None:
    def refuse(prepared: Sequence[PreparedImage]) -> ImageEmbeddings:
        raise AssertionError("nothing to try")

    assert find_batch_size(refuse, IMAGE, CPU) == CPU_BATCH


@pytest.mark.parametrize(
    ("threads", "lanes", "each"), [(1, 1, 1), (2, 2, 1), (8, 8, 1), (12, 6, 2), (20, 6, 3)]
)
def test_lanes_of_a_cpu_share_its_threads_out_and_give_them_back(
    threads: int, lanes: int, each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_to = [threads]
    monkeypatch.setattr(torch, "get_num_threads", lambda: set_to[-1])
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    encoder = FakeEncoder()
    with open_lanes(encoder, CPU, lambda device: FakeEncoder()) as opened:
        assert opened == [encoder] * lanes and set_to[-1] == each
    assert set_to[-1] == threads


PAGES_TOUCHED = """
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import torch
from encoders.batches import open_lanes
from encoders.memory import give_back_memory, keep_all_memory

def layers():
    for _ in range(400):
        outputs = [torch.ones(1 << 18) for _ in range(8)]  # 8 MiB, all of it freed before the next round

def count_faults(job):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    job()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def count_resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

with ThreadPoolExecutor(1) as pool:
    def run(job):
        pool.submit(job).result()
    left_alone = count_faults(lambda: run(layers))
    with open_lanes(None, torch.device("cpu"), None):
        in_a_lane, kept = count_faults(lambda: run(layers)), count_resident()
        run(give_back_memory)
    given_back = kept - count_resident()

def step():
    for _ in range(10):
        torch.ones(12 << 20)  # 48 MiB, more than glibc ever keeps of itself

once = count_faults(step) / 10
with keep_all_memory():
    step()
    in_training, kept = count_faults(step), count_resident()
print(left_alone, in_a_lane, given_back, once, in_training / 10, kept - count_resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left to themselves")
def test_what_a_layer_has_freed_is_given_to_the_next_one_and_back_at_the_end() -> None:
    done = subprocess.run([sys.executable, "-c", PAGES_TOUCHED], capture_output=True, text=True, check=True)
    left_alone, in_a_lane, given_back, once, in_training, returned = map(float, done.stdout.split())
    pages = 8 * 256  # of 4 KiB, per round
    assert 10 * in_a_lane < left_alone and given_back > pages / 2  # torch 2.15 itself keeps a part
    large = 48 * 256
    assert in_training < large / 2 < min(once, returned)


def test_lanes_of_a_gpu_are_two_and_take_turns_over_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with open_lanes(FakeEncoder("first"), GPU, FakeEncoder) as opened:
        assert [encoder.name for encoder in opened] == ["first", "cuda:1", "cuda:2"] * 2
    with open_lanes(FakeEncoder("second"), torch.device("cuda:1"), FakeEncoder) as opened:
        assert [encoder.name for encoder in opened] == ["second", "second"]


def test_pixels_prepared_one_by_one_in_threads_are_those_the_processor_makes_of_the_batch() -> None:
    builder, pictures = make_builder(), make_pictures() * 10
    preparer = ImagePreparer(builder)
    with ThreadPoolExecutor(4) as pool:
        prepared = list(pool.map(preparer.prepare, pictures))
        collated = list(pool.map(lambda _: preparer.collate(prepared, CPU), range(4)))
    assert all(isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 for pixels in prepared)
    _assert_equal(builder, preparer, prepared)
    for inputs in collated:
        assert torch.equal(inputs["pixel_values"], builder.images(pictures)["pixel_values"])


class PeakProcessor:
    """Divides each image by its brightest value unless `do_rescale` is False; may lack that attribute."""

    def __init__(self, knows_rescale: bool) -> None:
        if knows_rescale:
            self.do_rescale = True

    def __call__(
        self, image: Image.Image, return_tensors: str, do_rescale: bool = True
    ) -> dict[str, torch.Tensor]:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        return {"pixel_values": pixels / pixels.max() if do_rescale else pixels}


@pytest.mark.parametrize("knows_rescale", [True, False])
def test_a_processor_that_does_not_scale_each_value_alone_scales_for_itself(knows_rescale: bool) -> None:
    assert find_scale(PeakProcessor(knows_rescale)) is None


def test_bytes_are_scaled_to_the_last_bit_as_the_processor_does_by_channel() -> None:
    processor = make_builder().processor.image_processor
    processor.image_mean, processor.image_std = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
    table = find_scale(processor)
    assert table is not None and not torch.equal(table[0], table[1])
    picture = make_pictures()[0].resize((processor.size["width"], processor.size["height"]))
    values = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    assert torch.equal(scale(values, table), processor(picture, return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
def test_what_only_resizes_is_done_by_pillow_alone_to_the_last_bit(resample: Image.Resampling) -> None:
    processor, picture = make_builder().processor.image_processor, make_pictures()[0]
    processor.resample = resample
    resizing = find_resizing(processor)
    assert resizing is not None and resizing.resample == resample
    pixels = processor(picture, return_tensors="np", do_rescale=False, do_normalize=False)["pixel_values"]
    assert np.array_equal(resizing.apply(picture), pixels[0])


def test_a_processor_that_crops_does_so_itself() -> None:
    size = {"height": 24, "width": 24}
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size)
    assert find_scale(processor) is not None and find_resizing(processor) is None
    processor.do_center_crop, processor.size = False, size
    assert find_resizing(processor) is not None


def test_pictures_of_other_modes_are_left_to_the_processor() -> None:
    builder = make_builder()
    preparer, picture = ImagePreparer(builder), make_pictures()[0].convert("RGBA")
    got = preparer.collate([preparer.prepare(picture)], CPU)["pixel_values"]
    assert torch.equal(got, builder.images([picture])["pixel_values"])


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_vl"])
def test_where_the_prompt_depends_on_the_image_it_is_prepared_with_its_batch(family: str) -> None:
    builder, pictures = make_lvlm_of(family).builder, make_pictures()
    preparer = ImagePreparer(builder)
    prepared = [preparer.prepare(picture) for picture in pictures]
    assert isinstance(prepared[0], np.ndarray) == (family == "llava")
    _assert_equal(builder, preparer, prepared)


def _assert_equal(builder: InputBuilder, preparer: ImagePreparer, prepared: Sequence[PreparedImage]) -> None:
    repeats = len(prepared) // len(make_pictures())
    wanted, got = builder.images(make_pictures() * repeats), preparer.collate(prepared, CPU)
    assert set(got) == set(wanted)
    for name, value in wanted.items():
        assert torch.equal(torch.as_tensor(got[name]), torch.as_tensor(value)), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_pixels_arrive_on_the_gpu_whole() -> None:
    pixels = [np.random.default_rng(number).random((3, 8, 8), np.float32) for number in range(5)]
    assert np.array_equal(stack_pixels(pixels, GPU).cpu().numpy(), np.stack(pixels))
