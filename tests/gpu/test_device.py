"""What runs on a GPU, shown there: `pytest -m gpu tests/gpu` on any machine with CUDA.

Each relation is one that holds on every device, so it is shown on the CPU too, where that is cheap:
what skips without CUDA is the device and not the test. `tests/gpu` needs nothing beside the
packages of `pip install -e '.[train,dev]'`.
"""

import copy
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from calift_core.data.images import ImageSet
from calift_core.data.loader import Normalise, TrainView, train_batches
from calift_core.data.preprocess import Preprocess
from calift_core.data.sources import ArraySource
from calift_core.evaluation.forward import ForwardSettings, PlacedModel, forward_all, predict
from calift_core.evaluation.spectrum import Covariance, spectrum_report
from calift_core.methods import Batch, RunLength, make_method
from calift_core.methods.base import Classifier
from calift_core.models.precision import autocast, resolve_precision
from calift_core.schema.methods import METHOD_SPECS
from calift_core.training.step import add_gradient, make_optimizer, optimiser_step
from tests.core.conftest import environment, random_batch
from tests.core.jobs.test_job import assert_equal_runs, go, go_until, report_in
from tests.core.training.test_loop import plan

CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
    ],
)
on_both = pytest.mark.parametrize("kind", ["cpu", CUDA])
on_cuda = pytest.mark.parametrize("kind", [CUDA])


def moved(batch: Batch, device: torch.device) -> Batch:
    return replace(batch, images=batch.images.to(device), labels=batch.labels.to(device))


def gradient(clip, captions, device, precision, **options):
    """Loss and gradient of a CaRot step, on the CPU in fp32."""
    student = copy.deepcopy(clip).to(device)
    method = make_method(
        METHOD_SPECS["carot"](), student, captions, length=RunLength(total_steps=20)
    )
    method.clip.train()
    make_optimizer(method, plan())
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    the_plan = plan(precision=precision, **options)
    values = add_gradient(method, moved(random_batch(clip, 8), device), scaler, the_plan, device)
    found = [p.grad.reshape(-1) for p in student.parameters() if p.grad is not None]
    return float(values["loss"]), torch.cat(found).float().cpu()


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def pixels_of(n: int, side: int) -> ImageSet:
    array = np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    names = tuple(map(str, range(n)))
    return ImageSet("some", ArraySource(array, "some"), names, np.arange(n) % 3, np.arange(n))


@on_both
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_autocast__loss_and_gradient_are_near_those_of_the_cpu_in_fp32(
    vit, captions, kind, precision
):
    loss, expected = gradient(vit, captions, torch.device("cpu"), "fp32")
    found = gradient(vit, captions, torch.device(kind), precision)
    exact = precision == "fp32"
    assert found[0] == pytest.approx(loss, rel=1e-4 if exact else 3e-2)
    assert apart(found[1], expected) < (1e-3 if exact else 0.1)


@on_cuda
def test_fp16__the_scaler_skips_an_overflow_and_goes_on(vit, captions, kind):
    device = torch.device(kind)
    method = make_method(
        METHOD_SPECS["flyp"](), vit.to(device), captions, length=RunLength(total_steps=20)
    )
    method.clip.train()
    optimizer = make_optimizer(method, plan())
    scaler = torch.amp.GradScaler(kind, init_scale=2.0**40)
    before = copy.deepcopy(vit.net.state_dict())
    the_plan = plan(precision="fp16")
    batch = moved(random_batch(vit, 8), device)
    optimiser_step(method, batch, optimizer, scaler, the_plan, device)
    assert scaler.get_scale() == 2.0**39
    assert all(torch.equal(before[name], t) for name, t in vit.net.state_dict().items())
    for _ in range(40):
        optimiser_step(method, batch, optimizer, scaler, the_plan, device)
    assert any(not torch.equal(before[name], t) for name, t in vit.net.state_dict().items())
    assert all(t.isfinite().all() for t in vit.net.state_dict().values())


@on_cuda
def test_auto__is_bf16_where_the_gpu_has_it(kind):
    has = torch.cuda.get_device_capability() >= (8, 0)
    assert resolve_precision("auto", torch.device(kind)) == ("bf16" if has else "fp16")


@on_both
def test_channels_last__features_are_those_of_contiguous_images(resnet, kind):
    clip = resnet.to(kind).eval()
    assert clip.channels_last
    images = torch.randn(4, 3, clip.image_size, clip.image_size).to(kind)
    with torch.inference_mode():
        found = clip.encode_image(images)
        clip.channels_last = False
        clip.net.visual.to(memory_format=torch.contiguous_format)
        expected = clip.encode_image(images.contiguous())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@on_both
@pytest.mark.parametrize(
    "backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
)
def test_attention__every_kernel_gives_the_same_features(vit, kind, backend):
    if kind == "cpu" and backend is SDPBackend.EFFICIENT_ATTENTION:
        pytest.skip("a kernel of CUDA devices")
    clip = vit.to(kind).eval()
    device = torch.device(kind)
    images = torch.randn(4, 3, clip.image_size, clip.image_size).to(kind)
    half = kind == "cuda" and backend is SDPBackend.FLASH_ATTENTION  # it has no fp32
    with torch.inference_mode():
        expected = clip.encode_image(images)
        with sdpa_kernel(backend), autocast(device, "bf16" if half else "fp32"):
            found = clip.encode_image(images)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=3e-2 if half else 1e-4)


@on_cuda
def test_compile__towers_give_the_same_loss_and_gradient(vit, captions, kind):
    device = torch.device(kind)
    loss, expected = gradient(vit, captions, device, "fp32")
    compiled = copy.deepcopy(vit).to(device)
    compiled.compile_towers()
    again, found = gradient(compiled, captions, device, "fp32")
    assert again == pytest.approx(loss, rel=1e-4)
    assert apart(found, expected) < 1e-3


@on_both
def test_activation_checkpointing__same_loss_and_gradient(vit, captions, kind):
    device = torch.device(kind)
    loss, expected = gradient(vit, captions, device, "fp32")
    vit.checkpoint_activations()
    again, found = gradient(vit, captions, device, "fp32")
    assert again == pytest.approx(loss, rel=1e-5)
    assert apart(found, expected) < 1e-5


@on_both
@pytest.mark.parametrize("workers", [0, 2])
def test_batches__that_are_copied_ahead_are_those_of_the_cpu(kind, workers):
    if kind == "cpu" and workers:
        pytest.skip("shown in tests/core/data")
    view = TrainView(pixels_of(30, 20), Preprocess(16), 3, 0, (0.5, 1.0), True)
    options = {"batch_size": 8, "start_step": 1, "total_steps": 6}
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    expected = train_batches(
        view, workers=0, normalise=Normalise(mean, std, torch.device("cpu")), **options
    )
    found = train_batches(
        view, workers=workers, normalise=Normalise(mean, std, torch.device(kind)), **options
    )
    n = 0
    for one, other in zip(expected, found, strict=True):
        # Work that a copy on another stream must not run into.
        torch.testing.assert_close(other.images.cpu() * 2, one.images * 2)
        assert torch.equal(other.labels.cpu(), one.labels)
        assert torch.equal(other.captions, one.captions)
        n += 1
    assert n == 5


@on_both
def test_several_models__one_pass_gives_what_each_alone_gives(vit, originals, kind):
    device = torch.device(kind)
    other = copy.deepcopy(originals["vit"])
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    clips = [vit.to(device).eval(), other.to(device).eval()]
    head = Classifier(torch.randn(3, vit.embed_dim).to(device), 10.0)
    images = pixels_of(21, vit.image_size)
    settings = ForwardSettings(batch_size=8, workers=0, device=device, precision="fp32")
    placed = [PlacedModel(lambda clip=clip: clip, head) for clip in clips]
    together = [[], []]
    for batch in forward_all(placed, images, settings):
        together[batch.model].append(batch.logits)
    for clip, logits in zip(clips, together, strict=True):
        alone = predict(clip, head, images, settings)
        assert np.array_equal(np.concatenate(logits), alone)


@on_both
def test_spectrum__is_that_of_features_from_the_cpu(vit, kind):
    images = pixels_of(40, vit.image_size)

    def spectrum(device):
        clip = copy.deepcopy(vit).to(device).eval()
        head = Classifier(torch.zeros(3, vit.embed_dim, device=device), 1.0)
        covariance = Covariance(vit.embed_dim)
        settings = ForwardSettings(batch_size=16, workers=0, device=device, precision="fp32")
        predict(clip, head, images, settings, covariance=covariance)
        return np.array(spectrum_report(covariance).singular_values)

    expected = spectrum(torch.device("cpu"))
    np.testing.assert_allclose(spectrum(torch.device(kind)), expected, rtol=1e-2, atol=1e-4)


@on_cuda
def test_a_run__that_was_stopped_ends_as_one_left_alone(run_spec, tmp_path, kind):
    spec = run_spec("carot", train={"device": kind, "workers": 2, "checkpoint_every_steps": 3})
    go(spec, tmp_path / "alone")
    go_until(spec, tmp_path / "stopped", lambda r: r.kind == "metrics" and r.step >= 4)
    go(spec, tmp_path / "stopped")
    assert_equal_runs(tmp_path / "alone", tmp_path / "stopped")
    assert report_in(tmp_path / "alone").environment["device"] == "cuda"


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two CUDA devices here")
@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_two_gpus__weights_are_those_of_one(run_spec, tmp_path, tower):
    """NCCL, and SyncBatchNorm in the ResNet."""
    train = {"device": "cuda", "precision": "fp32", "eps": 1e-5, "epochs": 4}
    alone = run_spec("carot", tower=tower, train=train)
    shared = run_spec("carot", tower=tower, train=train, resources={"gpus": 2})
    go(alone, tmp_path / "alone")
    path = tmp_path / "shared.json"
    path.write_text(shared.model_dump_json())
    argv = [sys.executable, "-m", "calift", "train", str(path), "--out", str(tmp_path / "shared")]
    subprocess.run(argv, env=environment(tmp_path / "home"), check=True, timeout=300)
    from safetensors.torch import load_file

    one, two = (
        load_file(tmp_path / name / "checkpoint" / "model.safetensors")
        for name in ("alone", "shared")
    )
    gap = sum(float((one[n] - two[n]).double().square().sum()) for n in one)
    norm = sum(float(t.double().square().sum()) for t in one.values())
    assert (gap / norm) ** 0.5 < 1e-3
