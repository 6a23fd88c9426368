import pytest
import torch
from conftest import write_npz
from safetensors.torch import save_file
from short_run import run

from diffusers_ict import CT, LPIPS, consistency_pair
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
    found = LPIPS(backbone, linear, smallest=0)(a, b)
    for sample in range(2):
        total = 0.0
        x, y = (torch.stack([(image[sample, c] - SHIFT[c]) / SCALE[c] for c in range(3)])[None] for image in (a, b))
        for f, g, w in zip(backbone(x), backbone(y), linear):
            rows, columns = f.shape[2:]
            for r in range(rows):
                for c in range(columns):
                    u, v = f[0, :, r, c], g[0, :, r, c]
                    total += (w * (u / u.norm() - v / v.norm()) ** 2).sum() / (rows * columns)
        assert found[sample].item() == pytest.approx(total.item(), rel=1e-5)


def test_equal_images_are_at_distance_0_and_gradients_flow_to_the_first(path):
    metric = LPIPS.from_safetensors(path, smallest=32)
    a = torch.rand(2, 1, 16, 16, requires_grad=True)
    assert metric(a, a).abs().max().item() == 0
    distance = metric(a, torch.rand(2, 1, 16, 16))
    assert distance.shape == (2,)
    distance.sum().backward()
    assert a.grad.abs().max() > 0
    assert all(p.grad is None for p in metric.backbone.parameters())


def test_it_is_a_metric_for_ct(path):
    x = torch.rand(2, 3, 16, 16)
    pair = consistency_pair(lambda x, s, labels: x, x, torch.randn_like(x), torch.ones(2), torch.ones(2) * 2)
    metric = LPIPS.from_safetensors(path, smallest=32)
    torch.testing.assert_close(CT(metric=metric).loss(pair), metric(pair.student, pair.target))


def test_files_that_do_not_hold_it_are_refused(tmp_path):
    some = weights()
    del some["lin3.model.1.weight"]
    save_file(some, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"lin3\.model\.1\.weight is missing"):
        LPIPS.from_safetensors(tmp_path / "a.safetensors")
    save_file({**weights(), "features.0.weight": torch.zeros(64, 1, 3, 3)}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="does not hold VGG16"):
        LPIPS.from_safetensors(tmp_path / "b.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("loss", [["ct"], pytest.param(["act"], marks=pytest.mark.slow)])
def test_the_script_trains_with_it(loss, path, tmp_path):
    data = write_npz(tmp_path / "d.npz")
    flags = ["--dataset_name", data, "--max_train_steps", 1, "--train_batch_size", 1, "--objective", "metric=lpips"]
    assert run("--loss", *loss, *flags, f"lpips_weights={path}", "--output_dir", tmp_path / "out") == 0
    (entry,) = read_log(tmp_path / "out" / "log.jsonl")
    assert entry["loss"] > 0


def test_without_weights_or_package_the_door_is_shut(tmp_path, capsys):
    from diffusers_ict.commands import train as train_ict

    data = write_npz(tmp_path / "d.npz")
    flags = [
        "--dataset_name",
        str(data),
        "--loss",
        "ct",
        "--output_dir",
        str(tmp_path / "out"),
        "--objective",
        "metric=lpips",
    ]
    assert train_ict.main(flags) == 2
    assert "--metric lpips needs --lpips_weights FILE, or the package" in capsys.readouterr().err
    assert train_ict.main([*flags, "lpips_weights=none.safetensors"]) == 2
    assert "--lpips_weights cannot be used" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
