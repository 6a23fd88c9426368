from importlib import resources

import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import write_npz
from safetensors.torch import save_file
from short_run import run

from diffusers_ict import ACT, CT, LPIPS, consistency_pair
from diffusers_ict.commands import train
from diffusers_ict.objectives.lpips import SCALE, SHIFT, VGG16
from diffusers_ict.training.log import read_log


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    out = dict(VGG16().state_dict())
    for i, width in enumerate((64, 128, 256, 512, 512)):
        out[f"lin{i}.model.1.weight"] = torch.rand(1, width, 1, 1)
    return out


@pytest.fixture
def path(tmp_path):
    save_file(weights(), tmp_path / "lpips.safetensors")
    return tmp_path / "lpips.safetensors"


def test_vgg16_has_the_published_layers():
    names = [name for name in VGG16().state_dict() if name.endswith("weight")]
    assert [int(name.split(".")[1]) for name in names] == [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    assert sum(p.numel() for p in VGG16().parameters()) == 14_714_688
    shapes = [tuple(m.shape[1:]) for m in VGG16()(torch.zeros(1, 3, 32, 32))]
    assert shapes == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2)]


def test_distance_equals_the_formula_written_out():
    def backbone(x):
        return [x[:, :2] * 2, x[:, :, ::2, ::2]]

    linear = [torch.tensor([0.5, 2.0]), torch.tensor([1.0, 0.0, 3.0])]
    a, b = torch.rand(2, 3, 4, 4) * 2 - 1, torch.rand(2, 3, 4, 4) * 2 - 1
    distance = LPIPS(backbone, linear, smallest=0)(a, b)
    for sample in range(2):
        total = 0.0
        x, y = (torch.stack([(image[sample, c] - SHIFT[c]) / SCALE[c] for c in range(3)])[None] for image in (a, b))
        for f, g, w in zip(backbone(x), backbone(y), linear):
            rows, columns = f.shape[2:]
            for r in range(rows):
                for c in range(columns):
                    u, v = f[0, :, r, c], g[0, :, r, c]
                    total += (w * (u / u.norm() - v / v.norm()) ** 2).sum() / (rows * columns)
        assert distance[sample].item() == pytest.approx(total.item(), rel=1e-5)


def written_out(file, images, targets, pool):
    """LPIPS on images of one size, from the weights of a file and torch's functions alone."""
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pair = [((images + 1) / 2 - mean) / deviation, ((targets + 1) / 2 - mean) / deviation]
    total = 0
    for block, layers in enumerate(((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))):
        for layer in layers:
            kernel, bias = file[f"features.{layer}.weight"], file[f"features.{layer}.bias"]
            pair = [F.relu(F.conv2d(x, kernel, bias, padding=1)) for x in pair]
        a, b = (F.normalize(x, dim=1) for x in pair)
        total += F.conv2d((a - b) ** 2, file[f"lin{block}.model.1.weight"]).mean((1, 2, 3))
        pair = [pool(x, 2) for x in pair]
    return total


@pytest.mark.parametrize(
    ("options", "pool", "low"),
    [
        ({}, F.max_pool2d, -9),
        ({"pooling": "average"}, F.avg_pool2d, -9),
        ({"pooling": "max", "clip_target": True}, F.max_pool2d, -1),
    ],
    ids=["CT on CIFAR-10", "CT on ImageNet", "ACT"],
)
def test_each_released_code_is_there(options, pool, low, path):
    """To 3e-7 they also equal piq 0.8 on the inputs of CT's and ACT's code, which needs torchvision."""
    metric = LPIPS.from_safetensors(path, smallest=32, **options)
    images, targets = (1.5 * torch.randn(2, 3, 16, 16) for _ in range(2))
    larger = [
        F.interpolate(x, (32, 32), mode="bilinear", align_corners=False) for x in (images, targets.clamp(low, -low))
    ]
    torch.testing.assert_close(metric(images, targets), written_out(weights(), *larger, pool), rtol=1e-4, atol=0)
    other = LPIPS.from_safetensors(path, smallest=32, pooling="average" if pool is F.max_pool2d else "max")
    assert ((other(images, targets) / metric(images, targets) - 1).abs() > 1e-3).all()


@pytest.mark.parametrize(
    ("options", "side", "seen"),
    [
        ({}, 64, 224), ({}, 224, 224), ({}, 240, 224), ({}, 256, 256), ({}, 300, 300),
        ({"below": 257}, 256, 224), ({"smallest": 0}, 64, 64), ({"below": 0}, 64, 64),
    ],
)  # fmt: skip
def test_images_below_256_pixels_are_resized_to_224(options, side, seen):
    sizes = []

    def backbone(x):
        sizes.append(tuple(x.shape[2:]))
        return [x]

    LPIPS(backbone, [torch.ones(3)], **options)(torch.zeros(1, 3, side, side), torch.zeros(1, 3, side, side))
    assert sizes == [(seen, seen)] * 2


def test_a_recipe_chooses_what_a_released_code_did(path):
    file = {"metric": "lpips", "lpips_weights": str(path)}
    plain = CT.from_settings(**file)
    assert plain.settings()["metric"] == "lpips"
    assert not any(name.startswith("lpips_") for name in plain.settings()), "as in checkpoints of before these settings"
    chosen = {"lpips_pooling": "average", "lpips_clip_target": True, "lpips_below": 257}
    objective = ACT.from_settings(consistency="ct", **file, **chosen)
    assert objective.consistency.metric.pooling == "average"
    assert chosen.items() <= objective.settings().items()
    assert repr(objective.consistency.metric) == "LPIPS(smallest=224, below=257, pooling=average, clip_target=True)"
    assert CT.from_settings(**chosen).settings()["metric"] == "l2"
    for name, value, message in (
        ("lpips_pooling", "mean", "`lpips_pooling` must be max or average, got mean"),
        ("lpips_clip_target", 1, "`lpips_clip_target` must be true or false, got 1"),
        ("lpips_below", 2.5, "`lpips_below` must be an integer, got 2.5"),
        ("lpips_size", 64, "can have .*lpips_pooling, lpips_clip_target, got lpips_size"),
    ):
        with pytest.raises(ValueError, match=message):
            CT.from_settings(**file, **{name: value})
    for recipe in ("act_cifar10", "act_imagenet64", "act_lsun_cat256"):
        text = (resources.files("diffusers_ict") / "recipes" / f"{recipe}.yaml").read_text()
        block = yaml.safe_load(text)["objective"]
        made = ACT.from_settings(**block, lpips_weights=str(path)).consistency.metric
        assert (made.pooling, made.clip_target, made.below) == ("max", True, 257 if "256" in recipe else 256)


def test_it_is_a_metric_for_ct_whose_gradient_reaches_the_student_alone(path):
    metric = LPIPS.from_safetensors(path, smallest=32)
    a = torch.rand(2, 1, 16, 16, requires_grad=True)
    assert metric(a, a).abs().max().item() == 0
    noise, sigma = torch.randn(2, 1, 16, 16), torch.ones(2)
    pair = consistency_pair(lambda x, s, labels: x, a, noise, sigma, 2 * sigma)
    loss = CT(metric=metric).loss(pair)
    torch.testing.assert_close(loss, metric(pair.student, pair.target))
    loss.sum().backward()
    assert a.grad.abs().max() > 0
    assert all(p.grad is None for p in metric.parameters())
    assert repr(metric) == "LPIPS(smallest=32)"  # of a run's own objective: compared when it is resumed


def test_files_that_do_not_hold_it_are_refused(tmp_path):
    some = weights()
    del some["lin3.model.1.weight"]
    for content, message in (
        (some, r"must hold all weights of VGG16 and LPIPS: 'lin3\.model\.1\.weight'"),
        ({**weights(), "features.0.weight": torch.zeros(64, 1, 3, 3)}, r"size mismatch for features\.0\.weight"),
    ):
        save_file(content, tmp_path / "a.safetensors")
        with pytest.raises(ValueError, match=message):
            LPIPS.from_safetensors(tmp_path / "a.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("loss", [["ct"], ["act"]])
def test_the_script_trains_with_it(loss, path, tmp_path):
    data = write_npz(tmp_path / "d.npz")
    flags = ["--dataset_name", data, "--max_train_steps", 1, "--train_batch_size", 1, "--objective", "metric=lpips"]
    assert run("--loss", *loss, *flags, f"lpips_weights={path}", "--output_dir", tmp_path / "out") == 0
    (entry,) = read_log(tmp_path / "out" / "log.jsonl")
    assert entry["loss"] > 0


def test_without_weights_or_package_a_run_is_refused(tmp_path, capsys):
    data = write_npz(tmp_path / "d.npz")
    flags = ["--dataset_name", str(data), "--loss", "ct", "--output_dir", str(tmp_path / "out")]
    flags += ["--objective", "metric=lpips"]
    assert train.main(flags) == 2
    assert "--metric lpips needs --lpips_weights FILE, or the package" in capsys.readouterr().err
    assert train.main([*flags, "lpips_weights=none.safetensors"]) == 2
    assert "--lpips_weights cannot be used" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
